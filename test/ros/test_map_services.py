# SPDX-License-Identifier: Apache-2.0
"""The live map over real DDS: followed by its changes, edited, saved, loaded and continued."""

import time

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.harness import bench, image  # noqa: E402

START_S = 1000.0
SETTINGS = {
    "voxel.publish_period_s": 0.1,
    "voxel.max_edge_step": 0.0,
    "map.metres_per_unit": 1.0,
    "voxel.size_m": 0.02,
}
MAP, UPDATES = "/perception/map", "/perception/map_updates"


def stream(testbed, count, start=START_S):
    for k in range(count):
        testbed.send("/camera/image_raw", image(start + 0.1 * k))
    testbed.settle()


def rows(message):
    """The points of a PointCloud2 by field name."""
    kinds = {5: "<i4", 7: "<f4"}
    layout = [(field.name, kinds[field.datatype]) for field in message.fields]
    return np.frombuffer(message.data, np.dtype(layout))


class Follower:
    """A robot's copy of the map: {id: (x, y, z, rgb, confidence) as bytes}, by ~/map_updates."""

    def __init__(self):
        self.voxels = {}
        self.sizes = []

    def hear(self, message):
        self.sizes.append(message.width)
        for row in rows(message):
            key = int(row["id"])
            if key == -1:
                self.voxels.clear()
            elif np.isnan(row["x"]):
                self.voxels.pop(key, None)
            else:
                self.voxels[key] = row.tobytes()[:20]

    def agrees_with(self, cloud):
        return set(self.voxels.values()) == {row.tobytes() for row in rows(cloud)}


def follow(testbed):
    from sensor_msgs.msg import PointCloud2

    follower = Follower()
    testbed.peer.create_subscription(PointCloud2, UPDATES, follower.hear, 100)
    return follower


@pytest.fixture
def testbed():
    """A node in metres with ~/map listened to and a window of two frames."""
    from sensor_msgs.msg import PointCloud2

    from g2vlm_ros.ros.publishers import LATCHED

    with bench(**SETTINGS) as testbed:
        testbed.listen(PointCloud2, MAP, LATCHED)
        stream(testbed, 2)
        testbed.until(lambda: testbed.received[MAP], "the map")
        yield testbed


def agree(testbed, follower):
    testbed.until(lambda: follower.agrees_with(testbed.received[MAP][-1]), "the copies to agree")


def hear_out(testbed, follower):
    """Wait until nothing comes for several periods: the whole map is sent again to who comes later
    until the graph and the publisher know of the same listeners."""
    count = -1

    def rests():
        nonlocal count
        before, count = count, len(follower.sizes)
        time.sleep(5 * SETTINGS["voxel.publish_period_s"])
        return before == len(follower.sizes)

    testbed.until(rests, "the last whole map")


def edit(testbed, action, pose=None, size=None, **fields):
    from g2vlm_ros.srv import EditMap

    request = EditMap.Request(action=action, **fields)
    if pose is not None:
        request.box_pose = pose
        request.box_size.x, request.box_size.y, request.box_size.z = map(float, size)
    return testbed.call(EditMap, "/perception/edit_map", request)


def pose_at(position, frame="map"):
    from geometry_msgs.msg import PoseStamped

    pose = PoseStamped()
    pose.header.frame_id = frame
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = map(float, position)
    return pose


def positions(cloud):
    points = rows(cloud)
    return np.stack([points[axis] for axis in "xyz"], -1)


def box_of_a_tenth(cloud):
    """Centre and size of a box with some but not all of the points, away from the next ones."""
    points = positions(cloud).astype(np.float64)
    lower, upper = np.percentile(points[:, 0], [0, 10])
    centre, size = (points.min(0) + points.max(0)) / 2, np.ptp(points, axis=0) + 1.0
    centre[0], size[0] = (lower + upper) / 2, upper - lower + 0.01
    return centre, size


def inside(points, centre, size):
    return (np.abs(points - centre) <= np.asarray(size) / 2).all(1)


def test_map_updates_rebuild_the_map_whenever_one_joins(testbed):
    first = follow(testbed)
    agree(testbed, first)
    stream(testbed, 3, START_S + 1)
    agree(testbed, first)
    second = follow(testbed)
    testbed.until(lambda: second.voxels, "the whole map for who comes later")
    agree(testbed, first)
    agree(testbed, second)
    hear_out(testbed, first)
    cloud, heard = testbed.received[MAP][-1], len(first.sizes)
    centre, size = box_of_a_tenth(cloud)
    removed = edit(testbed, 1, pose_at(centre), size).changed
    testbed.until(lambda: testbed.received[MAP][-1].width == cloud.width - removed, "the rest")
    agree(testbed, first)
    agree(testbed, second)
    assert first.sizes[heard:] == [removed], "only what changed"


def test_remove_undo_move_and_recolour(testbed):
    cloud = testbed.received[MAP][-1]
    centre, size = box_of_a_tenth(cloud)
    within = int(inside(positions(cloud), centre, size).sum())
    assert 0 < within < cloud.width
    answer = edit(testbed, 1, pose_at(centre), size)
    assert answer.success and answer.changed == within
    assert answer.edits == 1 and answer.undoable
    testbed.until(lambda: testbed.received[MAP][-1].width == cloud.width - within, "the rest")
    answer = edit(testbed, 5)
    assert answer.success and answer.changed == within and not answer.undoable
    testbed.until(lambda: testbed.received[MAP][-1].width == cloud.width, "all of it again")
    assert edit(testbed, 5).error_code == 9904, "nothing is left to undo"

    colour = {"r": 1.0, "g": 0.0, "b": 0.0, "a": 1.0}
    from std_msgs.msg import ColorRGBA

    assert edit(testbed, 4, pose_at(centre), size, colour=ColorRGBA(**colour)).changed == within

    def red(message):
        return rows(message)["rgb"].view("<u4") == 0xFF0000

    testbed.until(lambda: red(testbed.received[MAP][-1]).sum() >= within, "red points")
    painted = testbed.received[MAP][-1]
    assert inside(positions(painted)[red(painted)], centre, size).all()
    target = centre + [0.0, 0.0, 50.0]
    assert edit(testbed, 3, pose_at(centre), size, target_pose=pose_at(target)).changed == within
    testbed.until(
        lambda: inside(positions(testbed.received[MAP][-1]), target, size).any(), "it there"
    )
    assert not inside(positions(testbed.received[MAP][-1]), centre, size).any()
    assert edit(testbed, 6).edits == 0


def test_an_edited_map_is_saved_loaded_and_continued(testbed, tmp_path):
    from g2vlm_ros.srv import LoadMap, SaveMap
    from std_srvs.srv import Trigger

    def save(name):
        request = SaveMap.Request(path=str(tmp_path / name))
        return testbed.call(SaveMap, "/perception/save_map", request)

    def load(name, **fields):
        request = LoadMap.Request(path=str(tmp_path / name), known_pose=True, **fields)
        return testbed.call(LoadMap, "/perception/load_map", request)

    whole = testbed.received[MAP][-1].width
    centre, size = box_of_a_tenth(testbed.received[MAP][-1])
    removed = edit(testbed, 1, pose_at(centre), size).changed
    saved = save("edited.npz")
    assert saved.success and saved.points == whole - removed
    assert testbed.call(Trigger, "/perception/reset", Trigger.Request()).success
    follower = follow(testbed)
    loaded = load("edited.npz")
    assert loaded.success and loaded.points == saved.points, loaded.error_msg
    testbed.until(lambda: testbed.received[MAP][-1].width == saved.points, "the loaded map")
    agree(testbed, follower)
    assert not inside(positions(testbed.received[MAP][-1]), centre, size).any()
    again = save("again.npz")
    assert again.points == saved.points
    with np.load(tmp_path / "edited.npz") as one, np.load(tmp_path / "again.npz") as other:
        np.testing.assert_array_equal(np.sort(one["keys"]), np.sort(other["keys"]))
    stream(testbed, 2, START_S + 5)
    testbed.until(lambda: testbed.received[MAP][-1].width > saved.points, "the map to go on")
    agree(testbed, follower)

    far = load("edited.npz", map_from_file=pose_at([100.0, 0.0, 0.0]).pose)
    assert far.success and far.points == pytest.approx(saved.points, rel=0.1)
    testbed.until(
        lambda: positions(testbed.received[MAP][-1])[:, 0].min() > 50, "the map elsewhere"
    )
    for name, words in (("none.npz", "no map file"), ("edited.txt", "no map file")):
        answer = load(name)
        assert answer.error_code == 9909 and words in answer.error_msg
    assert (
        testbed.call(
            LoadMap, "/perception/load_map", LoadMap.Request(path="edited.npz")
        ).error_code
        == 9909
    )


@pytest.fixture(scope="module")
def still():
    """A node in metres with one window."""
    from sensor_msgs.msg import PointCloud2

    with bench(**SETTINGS) as testbed:
        testbed.listen(PointCloud2, MAP)
        stream(testbed, 2)
        yield testbed


@pytest.mark.parametrize(
    ("action", "frame", "size", "code", "words"),
    [
        (0, "map", [1, 1, 1], 9909, "action is 0"),
        (7, "map", [1, 1, 1], 9909, "action is 7"),
        (1, "odom", [1, 1, 1], 9902, "'odom'"),
        (1, "map", [1, 0, 1], 9909, "box_size"),
        (1, "map", [1e-6] * 3, 9905, "holds no point"),
        (3, "map", [1e3] * 3, 9902, "target_pose"),
        (5, "map", [1, 1, 1], 9904, "no edit to undo"),
    ],
)
def test_bad_edits_get_a_code_and_a_sentence(still, action, frame, size, code, words):
    answer = edit(still, action, pose_at([0.001, 0.001, 0.001], frame), size)
    assert not answer.success and answer.error_code == code and words in answer.error_msg
    assert not answer.edits


def test_paths_of_services_are_checked_before_anything_is_opened(tmp_path):
    import os

    from g2vlm_ros.srv import LoadMap

    inside, outside = tmp_path / "maps", tmp_path / "elsewhere"
    inside.mkdir()
    outside.mkdir()
    (inside / "cloud.ply").write_bytes(b"ply")
    os.mkfifo(inside / "pipe.npz")
    (inside / "way_out").symlink_to(outside)
    with bench(**{"map.folder": str(inside)}) as testbed:
        for path in (
            "/dev/ptmx",
            str(inside / "cloud.ply"),
            str(inside / "pipe.npz"),
            "~nobody-of-this-name/m.npz",
            "x" * 5000,
            str(inside / f"{'y' * 250}.npz"),
            str(outside / "m.npz"),
            str(inside / ".." / "elsewhere" / "m.npz"),
            str(inside / "way_out" / "m.npz"),
        ):
            reply = testbed.call(LoadMap, "/perception/load_map", LoadMap.Request(path=path))
            assert not reply.success and reply.error_code == 9909, (path, reply.error_msg)
            assert len(reply.error_msg) < 1000
            if path.endswith(".ply"):
                assert path in reply.error_msg and "save the map as .npz" in reply.error_msg


def test_a_map_folder_that_takes_no_map_is_named_at_configure(tmp_path, monkeypatch):
    """It was known after the drive."""
    from g2vlm_ros.ros.map_services import folder_warning

    (tmp_path / "file").touch()
    assert folder_warning("") == folder_warning(str(tmp_path)) == ""
    for folder, words in (
        ("maps", "'maps' is not absolute"),
        (str(tmp_path / "none"), "is no folder"),
        (str(tmp_path / "file"), "is no folder"),
        ("~nobody-of-this-name/maps", "is not absolute"),
    ):
        assert words in folder_warning(folder), folder
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cannot be written to" in folder_warning(str(tmp_path))


@pytest.mark.parametrize("metres", [1e8, 1e300])
def test_a_saved_map_moved_out_of_all_bounds_is_refused_and_the_live_one_stays(
    still, tmp_path, metres
):
    from g2vlm_ros.srv import LoadMap, SaveMap

    path = str(tmp_path / "m.npz")
    points = still.call(SaveMap, "/perception/save_map", SaveMap.Request(path=path)).points
    request = LoadMap.Request(path=path, known_pose=True)
    request.map_from_file.position.x = metres
    request.map_from_file.orientation.w = 1.0
    reply = still.call(LoadMap, "/perception/load_map", request)
    assert not reply.success and reply.error_code == 9909 and "map_from_file" in reply.error_msg
    assert points and len(still.node.dense_map.points()) == points


def test_a_path_is_refused_before_anybody_waits_for_a_window(tmp_path):
    from g2vlm_ros.srv import SaveMap

    (tmp_path / "folder.npz").mkdir()
    with bench(**SETTINGS) as testbed:
        request = SaveMap.Request(path=str(tmp_path / "folder.npz"))
        reply = testbed.call(SaveMap, "/perception/save_map", request)
        assert reply.error_code == 9909 and "no regular file" in reply.error_msg
