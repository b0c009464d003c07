# SPDX-License-Identifier: Apache-2.0
"""The ONNX backend on the graphs that are kept beside the reference checkpoint; needs no torch."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

onnxruntime = pytest.importorskip("onnxruntime", reason="the backend needs onnxruntime")

from g2vlm_tests.accounts import malloc_mib  # noqa: E402
from g2vlm_tests.backend_laws import (  # noqa: E402
    GOLDEN,
    PROMPT,
    SPECIAL,
    answer,
    check_bad_images,
    check_bad_segments,
    check_pieces,
    random_views,
    reconstruct,
)

from g2vlm_ros.checkpoint.config import ModelConfig  # noqa: E402
from g2vlm_ros.checkpoint.digest import digest  # noqa: E402
from g2vlm_ros.checkpoint.onnx_manifest import MANIFEST, Manifest, ManifestError, has_all  # noqa: E402
from g2vlm_ros.checkpoint.prompt_layout import TokenCursor, text_segment  # noqa: E402
from g2vlm_ros.export.parity import check  # noqa: E402
from g2vlm_ros.inference import backend as door  # noqa: E402
from g2vlm_ros.inference import kv_buffer, onnx_backend  # noqa: E402
from g2vlm_ros.inference.backend import open_backend  # noqa: E402
from g2vlm_ros.inference.onnx_backend import OnnxBackend  # noqa: E402
from g2vlm_ros.inference.onnx_cache import DeviceCache, OnnxCache  # noqa: E402
from g2vlm_ros.records import BackendGoneError, NonFiniteError, UnfitError  # noqa: E402

NEEDED = ("model.safetensors", "*_config.json", "tokenizer.json", "*.onnx", MANIFEST)


@pytest.fixture(scope="module")
def stages() -> OnnxBackend:
    return OnnxBackend.open(GOLDEN, device="cpu")


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    return random_views()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    target = tmp_path / "A"
    target.mkdir()
    for path in (path for pattern in NEEDED for path in GOLDEN.glob(pattern)):
        shutil.copyfile(path, target / path.name)
    return target


def poison(folder: Path, parameter: str) -> None:
    """Makes one number of the weights NaN, and the ONNX files belong to such weights."""
    with (folder / "model.safetensors").open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        start, _ = json.loads(file.read(length))[parameter]["data_offsets"]
        file.seek(8 + length + start)
        file.write(np.float16(np.nan).tobytes())
    replace(Manifest.read(folder), weights=digest(folder)).write(folder)


# --- right answers -------------------------------------------------------------------------------


def test_every_array_of_the_reference_is_within_tolerance() -> None:
    """Reconstructions, dialogues and greedy ids, with both kinds of DINO windows."""
    assert has_all(GOLDEN, "float32"), "else this would export afresh, and the kept files be stale"
    lines = list(check(GOLDEN, "onnx"))
    assert len(lines) > 100 and not [str(line) for line in lines if line.missed]
    assert {"decode.next_ids", "out.points", "out.camera_poses"} <= {line.array for line in lines}


def test_text_in_one_piece_in_pieces_and_token_by_token(
    stages: OnnxBackend, views: np.ndarray
) -> None:
    check_pieces(stages, views)


def test_two_calls_give_the_same_bits(stages: OnnxBackend, views: np.ndarray) -> None:
    first, second = (reconstruct(stages, views) for _ in range(2))
    assert np.array_equal(first.local_points_u, second.local_points_u)
    assert np.array_equal(answer(stages, views, [4]), answer(stages, views, [4]))


def test_forks_never_change_each_other(stages: OnnxBackend) -> None:
    """Interleaved appends to three caches that share a prefix, past the room of their buffer."""
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    forks, texts = [cache, cache.fork(), cache.fork()], [[], [], []]
    for step in range(3):
        for index, fork in enumerate(forks):
            part = (100 * index + 7 * step + np.arange(100 + 40 * index)) % 400
            position = len(PROMPT) + sum(map(len, texts[index]))
            actual = stages.logits(stages.language(text_segment(part, position), fork))
            texts[index].append(part)
            whole = np.concatenate([PROMPT, *texts[index]])
            want = stages.logits(stages.language(text_segment(whole, 0), stages.new_cache()))
            np.testing.assert_allclose(actual, want, atol=2e-4, rtol=1e-4)
            assert fork.length == len(whole)


def test_views_beyond_the_released_ones_run(stages: OnnxBackend, views: np.ndarray) -> None:
    """The first view's points hardly know how many others are repeated behind it."""
    for count in (1, 8, 32):
        raw = reconstruct(stages, np.repeat(views[:1], count, axis=0))
        assert raw.local_points_u.shape == (count, 84, 140, 3)
        rotation = raw.window_from_camera[:, :3, :3]
        np.testing.assert_allclose(
            rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (count, 1, 1)), atol=1e-5
        )


def test_it_runs_where_torch_cannot_be_imported() -> None:
    """Reconstruction and answer through the one door, in a process in which torch is not there."""
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from g2vlm_ros.settings import Settings
from g2vlm_ros.perception import Perception
perception = Perception.open(Settings.from_flat({{
    "model.checkpoint": {str(GOLDEN)!r}, "model.device": "cpu", "model.image_width_px": 84,
    "query.semantic_width_px": 56,
}}))
scene = perception.scene([np.full((60, 80, 3), 90, np.uint8)] * 2)
points = perception.reconstruct(scene).geometry.local_points_u
text = perception.ask(scene, "How far?", max_tokens=3)
print(perception.backend, points.shape, len(text.token_ids))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "onnx cpu float32 (2, 56, 84, 3) 3"


def test_the_descriptor_is_an_output_of_the_encoder(
    stages: OnnxBackend, views: np.ndarray
) -> None:
    features = stages.encode_geometry(views)
    described = stages.describe(features)
    assert described.shape == (4, stages.config.text.hidden_size)
    np.testing.assert_allclose(described, stages.fetch(features).mean(1), atol=1e-6, rtol=1e-5)


def on_a_device(folder: Path) -> OnnxBackend:
    """As on a GPU: caches are copied by graphs, several steps of decoding follow each other, and
    what stays there is not looked at after each stage. The CPU stands in."""
    manifest, config = Manifest.read(folder), ModelConfig.read(folder)
    return OnnxBackend(folder, config, manifest, "cpu", "float32", on_host=False)


def test_features_that_stay_on_the_device_give_the_same(
    stages: OnnxBackend, views: np.ndarray
) -> None:
    other = on_a_device(GOLDEN)
    first, second = reconstruct(stages, views), reconstruct(other, views)
    assert np.array_equal(first.local_points_u, second.local_points_u)
    assert np.array_equal(answer(stages, views, [4]), answer(other, views, [4]))
    assert isinstance(other.new_cache(), DeviceCache)


def greedy(stages: OnnxBackend, cache: OnnxCache, token: int, steps: int) -> list[int]:
    """Ids by the logits of each step, on a fork."""
    fork, ids = cache.fork(), []
    for _ in range(steps):
        logits = stages.logits(stages.language(text_segment([token], fork.length), fork))
        token = int(np.argmax(logits))
        ids.append(token)
    return ids


@pytest.mark.parametrize("where", ["host", "device"])
def test_decoding_stays_where_it_is_and_gives_the_likeliest_tokens(
    stages: OnnxBackend, where: str
) -> None:
    """Behind caches of any length, on forks, and on again with a text behind what was taken."""
    each = stages if where == "host" else on_a_device(GOLDEN)
    cache = each.new_cache()
    each.language(text_segment(PROMPT, 0), cache)
    for first, taken in ((3, 5), (200, 3)):
        fork = cache.fork()
        want = greedy(each, cache, first, taken)
        with closing(each.decode(first, fork.length, fork)) as tokens:
            assert [next(tokens) for _ in range(taken)] == want
        assert fork.length == len(PROMPT) + taken
        behind = each.logits(each.language(text_segment([7, 8], fork.length), fork))
        fresh = each.new_cache()
        whole = text_segment([*PROMPT, first, *want[:-1], 7, 8], 0)
        np.testing.assert_allclose(
            behind, each.logits(each.language(whole, fresh)), atol=2e-4, rtol=1e-4
        )
    assert cache.length == len(PROMPT)


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_buffer_that_is_too_small_grows_in_the_middle_of_an_answer(
    stages: OnnxBackend, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = stages if where == "host" else on_a_device(GOLDEN)
    results = []
    for room in (100, 2):
        monkeypatch.setattr(kv_buffer, "GROWTH_TOKENS", room)
        cache = each.new_cache()
        each.language(text_segment(PROMPT, 0), cache)
        with closing(each.decode(3, cache.length, cache)) as tokens:
            results.append([next(tokens) for _ in range(9)])
    want, actual = results
    assert actual == want


def test_logits_that_are_not_numbers_end_an_answer(folder: Path) -> None:
    poison(folder, "language_model.lm_head.weight")
    for each in (OnnxBackend.open(folder, device="cpu"), on_a_device(folder)):
        cache = each.new_cache()
        hidden = each.language(text_segment(PROMPT, 0), cache)
        with pytest.raises(NonFiniteError, match="next_token"):
            each.logits(hidden)
        with pytest.raises(NonFiniteError, match="language"):
            next(each.decode(3, cache.length, cache))
        assert cache.length == len(PROMPT)


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [("dino2llm.bias", "encode_geometry"), ("point_head.proj.bias", "heads"),
     ("language_model.model.norm_moe_geo.weight", "geometry")],
)  # fmt: skip
def test_the_stage_that_made_a_nan_is_found_afterwards(
    folder: Path, views: np.ndarray, parameter: str, stage: str
) -> None:
    poison(folder, parameter)
    with pytest.raises(NonFiniteError) as error:
        reconstruct(on_a_device(folder), views)
    assert error.value.stage == stage


# --- the choice of a backend ---------------------------------------------------------------------


def test_auto_takes_onnx_where_graphs_are_and_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "GPU_DEVICES", ())
    assert open_backend("auto", folder).backend == "onnx cpu float32"
    (folder / MANIFEST).unlink()
    pytest.importorskip("torch", reason="the other backend needs torch")
    chosen = open_backend("auto", folder)
    assert chosen.backend.startswith("torch") and "no ONNX files" in chosen.chosen_because


def test_auto_prefers_torch_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the preferred backend needs torch")
    monkeypatch.setattr(door, "GPU_DEVICES", (str(folder),))
    chosen = open_backend("auto", folder)
    assert chosen.backend.startswith("torch") and "not tensorrt: " in chosen.chosen_because
    assert open_backend("auto", folder, device="cpu").backend.startswith("onnx")


def test_auto_without_any_backend_names_every_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "g2vlm_ros.inference.torch_backend", None)
    (folder / MANIFEST).unlink()
    with pytest.raises(UnfitError, match="not onnx: .* no ONNX files.*; not torch: "):
        open_backend("auto", folder, device="cpu")


@pytest.mark.parametrize("backend", ["auto", "onnx", "torch"])
def test_a_missing_folder_is_called_missing(folder: Path, backend: str) -> None:
    for path in (folder / "nowhere", folder / MANIFEST):
        with pytest.raises(UnfitError, match=f"{path.name} is not a folder; give the folder"):
            open_backend(backend, path, device="cpu")


def test_a_backend_whose_package_is_missing_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "g2vlm_ros.inference.torch_backend", None)
    with pytest.raises(UnfitError, match="model.backend is torch, .* not installed .*; install"):
        open_backend("torch", folder, device="cpu")


# --- bad input -----------------------------------------------------------------------------------


def test_bad_images_are_refused(stages: OnnxBackend, views: np.ndarray) -> None:
    check_bad_images(stages, views)
    with pytest.raises(ManifestError, match="33 views; .* take 1 to 32; .*--views 1..33"):
        stages.encode_geometry(np.zeros((33, 28, 28, 3), np.uint8))


def test_segments_that_do_not_belong_to_the_images_are_refused(
    stages: OnnxBackend, views: np.ndarray
) -> None:
    check_bad_segments(stages, views)


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [
        ("dino2llm.bias", "encode_geometry"),
        ("language_model.model.norm_moe_geo.weight", "geometry"),
        ("language_model.model.norm.weight", "language"),
        ("point_head.proj.bias", "heads"),
    ],
)
def test_not_a_number_names_its_stage_and_leaves_the_cache(
    folder: Path, views: np.ndarray, parameter: str, stage: str
) -> None:
    poison(folder, parameter)
    stages = OnnxBackend.open(folder, device="cpu")
    with pytest.raises(NonFiniteError) as error:
        reconstruct(stages, views)
    assert error.value.stage == stage
    cache = stages.new_cache()
    if stage == "language":
        with pytest.raises(NonFiniteError):
            stages.language(text_segment(PROMPT, 0), cache)
        assert cache.length == 0


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Damage to the manifest."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / MANIFEST).read_text())
        change(values)
        (folder / MANIFEST).write_text(json.dumps(values))

    return damage


def stale(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\1\2\3\4")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / MANIFEST).unlink(), "no ONNX files; make them with `python -m "),
        (lambda f: (f / MANIFEST).write_text("{"), "damaged or of another version"),
        (edit(lambda m: m.update(format=99)), "damaged or of another version"),
        (edit(lambda m: m.pop("graphs")), "damaged or of another version"),
        (stale, "made for other weights"),
        (edit(lambda m: m.update(graphs=[])), "dtype none, not float32"),
        (lambda f: (f / "geometry.onnx").unlink(), "geometry.onnx is missing; run `python -m "),
        (lambda f: (f / "geometry.onnx").write_bytes(b"x"), "damaged or was changed"),
        (
            edit(lambda m: [g.update(size=[518, 392]) for g in m["graphs"] if g["dino_windows"]]),
            "140x84 pixels; .* take 518x392; run `.* --sizes 140x84`",
        ),
    ],
)
def test_files_that_do_not_belong_here_are_one_sentence(
    folder: Path, views: np.ndarray, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(ManifestError, match=message):
        reconstruct(OnnxBackend.open(folder, device="cpu"), views)


def test_a_graph_that_onnxruntime_cannot_read_is_one_sentence(
    folder: Path, views: np.ndarray
) -> None:
    """A file whose digest is right but whose content is not a graph."""

    def swap(manifest: dict) -> None:
        for graph in manifest["graphs"]:
            graph["sha256"] = hashlib.sha256(b"not a graph").hexdigest()

    edit(swap)(folder)
    for path in folder.glob("*.onnx"):
        path.write_bytes(b"not a graph")
    with pytest.raises(ManifestError, match="cannot load .*language.onnx"):
        reconstruct(OnnxBackend.open(folder, device="cpu"), views)


class FailingSession:
    """A session of onnxruntime that runs once `error` is None."""

    def __init__(self, session: onnxruntime.InferenceSession, error: Exception):
        self.session, self.error = session, error

    def __getattr__(self, name: str) -> object:
        return getattr(self.session, name)

    def run(self, *arguments: object) -> object:
        return self._run(self.session.run, *arguments)

    def run_with_iobinding(self, *arguments: object) -> None:
        self._run(self.session.run_with_iobinding, *arguments)

    def _run(self, run: Callable, *arguments: object) -> object:
        if self.error is not None:
            raise self.error
        return run(*arguments)


@pytest.fixture
def fail_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], list[FailingSession]]:
    """fail_in(file, error): sessions of that graph fail; the list gets them as they are opened."""
    real = onnx_backend.open_session

    def fail(file: str, error: Exception) -> list[FailingSession]:
        sessions: list[FailingSession] = []

        def open_session(path: Path, *options: object) -> object:
            session = real(path, *options)
            if path.name != file:
                return session
            sessions.append(FailingSession(session, error))
            return sessions[-1]

        monkeypatch.setattr(onnx_backend, "open_session", open_session)
        return sessions

    return fail


def test_a_lost_device_is_final(views: np.ndarray, fail_in: Callable) -> None:
    """As ONNX Runtime passes CUDA's sentence on."""
    fail_in(
        "encode_geometry.onnx",
        RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0"),
    )
    stages = OnnxBackend.open(GOLDEN, device="cpu")
    with pytest.raises(BackendGoneError, match="lost in ONNX Runtime, encode_geometry: CUDA fail"):
        stages.encode_geometry(views)


@pytest.mark.parametrize("file", ["encode_geometry", "geometry", "heads", "language"])
def test_out_of_memory_names_the_stage_and_what_helps(
    views: np.ndarray, file: str, fail_in: Callable
) -> None:
    error = MemoryError("Failed to allocate memory for requested buffer")
    sessions = fail_in(f"{file}.onnx", error)
    stages = OnnxBackend.open(GOLDEN, device="cpu")
    message = f"failed in stage {file} .Failed to allocate memory.* use fewer views"
    with pytest.raises(RuntimeError, match=message):
        reconstruct(stages, views)
    (session,) = sessions
    session.error = None
    assert np.isfinite(reconstruct(stages, views).local_points_u).all()


def test_options_that_were_not_exported_are_refused(folder: Path) -> None:
    with pytest.raises(ManifestError, match="not bfloat16; run `.* --dtype bfloat16`"):
        OnnxBackend.open(folder, dtype="bfloat16")
    edit(lambda m: m.update(graphs=[g for g in m["graphs"] if g["dino_windows"] != "aligned"]))(
        folder
    )
    with pytest.raises(ManifestError, match="dino_windows aligned; run `.*"):
        OnnxBackend.open(folder, dino_windows="aligned")
    with pytest.raises(ManifestError, match="onnxruntime-gpu"):
        OnnxBackend.open(folder, device="cuda")


def test_memory_of_a_window_is_kept_until_its_size_changes(
    views: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes come and go; the fifth size that a stage meets gives back what the others needed."""
    opened: dict[str, bool] = {}
    real = onnx_backend.open_session

    def open_session(path: Path, device: str, threads: int, keeps_memory: bool) -> object:
        opened[path.stem] = keeps_memory
        return real(path, device, threads, keeps_memory)

    monkeypatch.setattr(onnx_backend, "open_session", open_session)
    freed = []
    real_options = onnxruntime.RunOptions

    def run_options() -> object:
        freed.append(1)
        return real_options()

    monkeypatch.setattr(onnxruntime, "RunOptions", run_options)
    stages = OnnxBackend.open(GOLDEN, device="cpu")

    def times_freed(count: int) -> int:
        freed.clear()
        features = stages.encode_geometry(views[:count])
        want = OnnxBackend.open(GOLDEN, device="cpu").fetch(features)
        np.testing.assert_array_equal(stages.fetch(features), want)
        return len(freed)

    assert [times_freed(count) for count in (1, 2, 1, 2, 3, 4, 1, 2)] == [1, 1, 0, 0, 1, 1, 0, 0]
    small = views[:, :56]
    assert stages.encode_geometry(small).shape[0] == 4
    assert times_freed(1) == 1, "the fifth size took the place of the first"
    assert opened["encode_geometry"]
    run_chat = stages.encode_semantics(views[0, :84, :84])
    assert run_chat.shape[1] and not opened["encode_semantics"]


def test_memory_of_a_window_is_free_once_nobody_keeps_it(views: np.ndarray) -> None:
    """What is kept of earlier windows does not lie between the session's own memory."""
    stages = OnnxBackend.open(GOLDEN, device="cpu")

    def allocated_mib() -> float:
        gc.collect()
        return sum(malloc_mib()[kind] for kind in ("used", "mapped"))

    def of_windows(count: int) -> list:
        return [stages.encode_geometry(views[:n]) for _ in range(count) for n in (1, 4, 2, 3)]

    of_windows(2)
    before = allocated_mib()
    features = of_windows(500)
    kept = allocated_mib() - before
    assert kept > 5, "enough to tell"
    del features
    assert allocated_mib() - before < 0.1 * kept
