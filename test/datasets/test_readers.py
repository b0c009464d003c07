# SPDX-License-Identifier: Apache-2.0
"""Each format gives back poses, pictures, depth, stamps and calibration as they were written."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest
from g2vlm_tests import posed_sequences as small

from g2vlm_ros.datasets.open_sequence import open_sequence
from g2vlm_ros.datasets.sequence import ReaderOptions, SequenceError

OPTIONS = ReaderOptions(rate_hz=small.RATE, depth_topic="/camera/depth")
WRITERS = {
    "hololens": small.write_hololens,
    "tum": small.write_tum,
    "euroc": small.write_euroc,
    "nerfstudio": small.write_nerfstudio,
    "mcap": lambda folder, seen: small.write_bag(folder / "bag", seen, mcap=True),
    "sqlite": lambda folder, seen: small.write_bag(folder / "bag", seen, mcap=False),
}
STAMPED = ("tum", "euroc", "mcap", "sqlite")


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_written_is_read(name, tmp_path) -> None:
    seen = small.drive()
    sequence = open_sequence(WRITERS[name](tmp_path, seen), OPTIONS)
    frames = [f for f in sequence.frames if f.camera == sequence.cameras[0]]
    assert len(frames) == len(seen.poses)
    if name in STAMPED:
        assert [f.stamp_ns for f in frames] == seen.stamps_ns.tolist()
    else:
        assert (np.diff([f.stamp_ns for f in frames]) == small.STEP_NS).all()
    poses = np.stack([f.world_from_camera for f in frames])
    np.testing.assert_allclose(poses, seen.poses, atol=1e-6)
    for i in (0, len(frames) - 1):
        np.testing.assert_array_equal(frames[i].image(), seen.images[i])
        np.testing.assert_allclose(frames[i].intrinsics.matrix(), seen.camera.matrix())
    assert sequence.metric
    if name == "euroc":
        assert all(frame.depth_m is None for frame in frames)
    else:
        np.testing.assert_allclose(frames[3].depth_m(), seen.depths_m[3], atol=6e-4)


def test_euroc_has_both_cameras_and_gravity(tmp_path) -> None:
    seen = small.drive()
    sequence = open_sequence(small.write_euroc(tmp_path, seen))
    assert sequence.cameras == ("cam0", "cam1")
    left, right = (
        np.stack([f.world_from_camera for f in sequence.frames if f.camera == name])
        for name in sequence.cameras
    )
    apart = np.linalg.norm(left[:, :3, 3] - right[:, :3, 3], axis=1)
    np.testing.assert_allclose(apart, 0.1)
    # The body's z, in optical axes by its mount.
    expected = small.BODY_FROM_CAMERA[:3, :3].T @ [0, 0, 1]
    np.testing.assert_allclose(sequence.frames[0].up, expected, atol=1e-6)


def test_lens_distortion_is_removed(tmp_path) -> None:
    """A point of the undistorted picture is where a pinhole of the same matrix sees it."""
    seen = small.drive()
    folder = small.write_tum(tmp_path, seen)
    lens = (0.5, -0.1, 0.001, -0.002, 0.0)
    with (folder / "calibration.txt").open("a") as file:
        file.write(" " + " ".join(map(str, lens)))
    image = np.zeros_like(seen.images[0])
    point = np.array([[[0.4, -0.3, 1.0]]])
    matrix = seen.camera.matrix()
    bent = cv2.projectPoints(point, np.zeros(3), np.zeros(3), matrix, np.array(lens))[0][0, 0]
    cv2.circle(image, tuple(np.round(bent).astype(int).tolist()), 2, (255, 255, 255), -1)
    cv2.imwrite(str(folder / "rgb" / "0.png"), image)
    light = open_sequence(folder).frames[0].image().mean(-1)
    rows, columns = np.mgrid[: light.shape[0], : light.shape[1]]
    centre = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()
    expected = (matrix @ point[0, 0])[:2]
    assert np.linalg.norm(bent - expected) > 1.0
    np.testing.assert_allclose(centre, expected, atol=0.7)


def test_truth_between_samples_and_outside(tmp_path) -> None:
    """Pictures between true poses get the pose between; those outside are left out and counted."""
    seen = small.drive()
    folder = small.write_tum(tmp_path, seen)
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join([*lines[:4], *lines[5:9]]) + "\n")
    sequence = open_sequence(folder)
    assert len(sequence.frames) == 7, "one between 0.4 s of truth, four after its end"
    assert any("5 frames are left out" in note for note in sequence.notes)


def test_a_pause_is_noted(tmp_path) -> None:
    seen = small.drive()
    folder = small.write_tum(tmp_path, seen)
    for name in ("rgb", "groundtruth"):
        lines = (folder / f"{name}.txt").read_text().splitlines()
        (folder / f"{name}.txt").write_text("\n".join(lines[:3] + lines[9:]) + "\n")
    assert any("pause" in note for note in open_sequence(folder).notes)


def _without(*names):
    def edit(folder):
        for name in names:
            target = folder / name
            shutil.rmtree(target) if target.is_dir() else target.unlink()

    return edit


def _replace(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def _swap_lines(name, first, second):
    def edit(folder):
        lines = (folder / name).read_text().splitlines()
        lines[first], lines[second] = lines[second], lines[first]
        (folder / name).write_text("\n".join(lines) + "\n")

    return edit


def _drop_line(name):
    def edit(folder):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(lines[:-1]) + "\n")

    return edit


def _json(**values):
    def edit(folder):
        content = json.loads((folder / "transforms.json").read_text())
        content = {k: v for k, v in (content | values).items() if v is not None}
        (folder / "transforms.json").write_text(json.dumps(content))

    return edit


def _small_picture(name):
    def edit(folder):
        cv2.imwrite(str(folder / name), np.zeros((10, 20, 3), np.uint8))

    return edit


def _edit_line(name, line, edit_words):
    """Replaces the words of a line (comments count) by what `edit_words` makes of them."""

    def edit(folder):
        lines = (folder / name).read_text().splitlines()
        lines[line] = edit_words(lines[line])
        (folder / name).write_text("\n".join(lines) + "\n")

    return edit


def _frame_entry(index, **values):
    def edit(folder):
        content = json.loads((folder / "transforms.json").read_text())
        content["frames"][index] |= values
        (folder / "transforms.json").write_text(json.dumps(content))

    return edit


MIRRORED = "-1 0 0 0  0 1 0 0  0 0 1 0  0 0 0 1"
EUROC_TRUTH = "mav0/state_groundtruth_estimate0/data.csv"
LOST = [
    ("hololens", _edit_line("poses.txt", 4, lambda _: " ".join(["nan"] * 16)), 11),
    (
        "hololens",
        _edit_line("poses.txt", 4, lambda line: " ".join(["inf", *line.split()[1:]])),
        11,
    ),
    ("tum", _edit_line("groundtruth.txt", 4, lambda line: line.split()[0] + 7 * " nan"), 11),
    ("euroc", _edit_line(EUROC_TRUTH, 4, lambda line: line.split(",")[0] + 7 * ",nan"), 22),
    ("nerfstudio", _frame_entry(4, transform_matrix=[[float("nan")] * 4] * 4), 11),
]


@pytest.mark.parametrize(("name", "edit", "count"), LOST)
def test_frames_whose_true_pose_is_not_finite_are_left_out(name, edit, count, tmp_path) -> None:
    folder = WRITERS[name](tmp_path, small.drive())
    edit(folder)
    sequence = open_sequence(folder, OPTIONS)
    assert len(sequence.frames) == count
    assert any("not finite" in note for note in sequence.notes)
    assert all(np.isfinite(frame.world_from_camera).all() for frame in sequence.frames)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("hololens", "rgb/00005.png"),
        ("tum", "rgb/5.png"),
        ("euroc", f"mav0/cam0/data/{small.FIRST_NS + 5 * small.STEP_NS}.png"),
        ("nerfstudio", "images/5.png"),
    ],
)
def test_a_later_picture_of_another_size_is_named(name, picture, tmp_path) -> None:
    folder = WRITERS[name](tmp_path, small.drive())
    _small_picture(picture)(folder)
    frames = open_sequence(folder, OPTIONS).frames
    damaged = [frame for frame in frames if frame.stamp_ns == frames[-1].stamp_ns]
    assert damaged[0].image().shape == (small.HEIGHT_PX, small.WIDTH_PX, 3)
    with pytest.raises(SequenceError, match="is 20x10, the others are 112x84"):
        for frame in frames:
            frame.image()


BAD = [
    ("hololens", _edit_line("poses.txt", 3, lambda _: MIRRORED), "pose of frame 3 is no rotation"),
    ("hololens", lambda f: (f / "K.txt").write_text(3 * "0 0 0\n"), "K.txt: intrinsics"),
    ("hololens", lambda f: (f / "poses.txt").write_bytes(b"\xff\xfe"), "is no text in UTF-8"),
    ("tum", lambda f: (f / "calibration.txt").write_text("# none"), "calibration.txt is empty"),
    ("tum", _edit_line("rgb.txt", 3, lambda line: "nan " + line.split()[1]), "are no seconds"),
    ("euroc", lambda f: (f / EUROC_TRUTH).write_text("# none\n"), "holds no true poses"),
    ("euroc", _edit_line(EUROC_TRUTH, 4, lambda line: "1e18" + line), "no whole nanoseconds"),
    ("euroc", _replace("mav0/cam0/sensor.yaml", "- 0.1", "- .nan"), "has no T_BS"),
    ("nerfstudio", _frame_entry(4, transform_matrix=np.diag([2, 2, 2, 1]).tolist()), "frame 4"),
    ("nerfstudio", _frame_entry(4, depth_file_path="none.png"), "no depth file 'none.png'"),
    ("nerfstudio", _json(k1="bent"), "k1 is 'bent'"),
    ("nerfstudio", _json(depth_unit_scale_factor="mm"), "depth_unit_scale_factor is 'mm'"),
    ("hololens", _without("poses.txt"), "poses.txt is missing"),
    ("hololens", _without("K.txt"), "K.txt is missing"),
    ("hololens", _drop_line("poses.txt"), "12 pictures but 11 poses"),
    ("hololens", _replace("K.txt", "e", "x"), "K.txt, line 1"),
    ("tum", _without("groundtruth.txt"), "groundtruth.txt is missing"),
    ("tum", lambda f: (f / "groundtruth.txt").write_text("# none\n"), "holds no true poses"),
    ("tum", _without("calibration.txt"), "has no calibration"),
    ("tum", _swap_lines("rgb.txt", 2, 3), "sort the entries by time"),
    ("tum", _swap_lines("groundtruth.txt", 2, 3), "sort the entries by time"),
    ("tum", _without("rgb/3.png"), "line 5: there is no file"),
    ("euroc", _without("mav0/state_groundtruth_estimate0"), "has no true poses"),
    ("euroc", _without("mav0/cam0/sensor.yaml"), "sensor.yaml is missing"),
    ("euroc", _replace("mav0/cam0/sensor.yaml", "intrinsics", "nothing"), "has no calibration"),
    ("euroc", _swap_lines("mav0/cam0/data.csv", 2, 3), "sort the entries by time"),
    ("euroc", _replace("mav0/cam0/sensor.yaml", "112", "640"), "is for 640x84 pictures"),
    ("nerfstudio", _json(frames=[]), "lists no frames"),
    ("nerfstudio", _json(fl_x=None), "has no calibration"),
    ("nerfstudio", _json(w=640), "is for 640x84 pictures"),
    ("nerfstudio", _small_picture("images/0.png"), "pictures, but they are 20x10"),
]


@pytest.mark.parametrize(("name", "edit", "sentence"), BAD)
def test_bad_input_gets_one_sentence(name, edit, sentence, tmp_path) -> None:
    folder = WRITERS[name](tmp_path, small.drive())
    edit(folder)
    with pytest.raises(SequenceError, match=sentence) as error:
        open_sequence(folder, OPTIONS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mcap", "sqlite"])
def test_a_recording_whose_recorder_was_killed_is_read(name, tmp_path) -> None:
    folder = WRITERS[name](tmp_path, small.drive())
    sequence = open_sequence(folder, OPTIONS)
    (folder / "metadata.yaml").unlink()
    cut = open_sequence(folder, OPTIONS)
    assert [f.stamp_ns for f in cut.frames] == [f.stamp_ns for f in sequence.frames]
    file = next(path for path in folder.iterdir())
    shutil.copy(file, file.with_stem("second"))
    with pytest.raises(SequenceError, match="2 files; run: ros2 bag reindex"):
        open_sequence(folder, OPTIONS)


@pytest.mark.parametrize("suffix", [".mcap", ".db3"])
def test_an_empty_file_is_no_recording(suffix, tmp_path) -> None:
    (tmp_path / f"empty{suffix}").touch()
    for path in (tmp_path, tmp_path / f"empty{suffix}"):
        with pytest.raises(SequenceError, match="cannot be read as a recording"):
            open_sequence(path)


def test_a_recording_without_mount_or_truth_is_refused(tmp_path) -> None:
    folder = small.write_bag(tmp_path / "bag", small.drive(), mcap=True)
    with pytest.raises(SequenceError, match="no topic of true poses '/pose'"):
        open_sequence(folder, ReaderOptions(truth_topic="/pose"))
    (folder / "bag.mcap").write_bytes((folder / "bag.mcap").read_bytes()[:3000])
    with pytest.raises(SequenceError, match="cannot be read as a recording"):
        open_sequence(folder)


def test_unknown_formats_are_listed(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(SequenceError, match=r"TUM RGB-D, EuRoC / ASL, nerfstudio, rosbag2"):
        open_sequence(tmp_path)
    with pytest.raises(SequenceError, match="does not exist"):
        open_sequence(tmp_path / "nowhere")
