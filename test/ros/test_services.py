# SPDX-License-Identifier: Apache-2.0
"""Services over real DDS: right answers, and error codes with a sentence for everything else."""

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.harness import bench, image  # noqa: E402

START_S = 1000.0


@pytest.fixture(scope="module")
def testbed():
    """A node with one window of two frames, taken long ago."""
    with bench(**{"cloud.max_edge_step": 0.0, "voxel.max_edge_step": 0.0}) as testbed:
        for k in range(2):
            testbed.send("/camera/image_raw", image(START_S + 0.1 * k))
        testbed.settle()
        yield testbed


def get_points(testbed, **fields):
    from g2vlm_ros.srv import GetPoints

    request = GetPoints.Request(**{"max_age_s": 1e12, **fields})
    return testbed.call(GetPoints, "/perception/get_points", request)


def test_points_of_pixels_lie_in_the_saved_map(testbed, tmp_path):
    from g2vlm_ros.srv import SaveMap
    from g2vlm_tests.point_files import read_ply

    answer = get_points(testbed, camera="camera", u_px=[0.0, 31.5, 63.0], v_px=[0.0, 23.5, 47.0])
    assert answer.success and answer.header.frame_id == "map"
    assert answer.header.stamp.nanosec == 100_000_000 and len(answer.points) == 3
    path = tmp_path / "map.ply"
    saved = testbed.call(SaveMap, "/perception/save_map", SaveMap.Request(path=str(path)))
    points, colours, _ = read_ply(path)
    assert saved.success and saved.points == len(points) > 100
    assert colours.std() > 0
    voxel = testbed.node.dense_map.voxel_size
    for p in answer.points:
        distance = np.linalg.norm(points - [p.x, p.y, p.z], axis=1).min()
        assert distance < np.sqrt(3) * voxel


def test_points_in_a_box_are_those_inside(testbed):
    from geometry_msgs.msg import PoseStamped, Vector3

    one = get_points(testbed, camera="camera", u_px=[20.0], v_px=[20.0]).points[0]
    pose = PoseStamped()
    pose.header.frame_id = "map"
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = map(
        float, (one.x, one.y, one.z)
    )
    size = Vector3(x=0.2, y=0.2, z=0.2)
    answer = get_points(testbed, box_pose=pose, box_size=size, max_points=5)
    assert answer.success and 1 <= len(answer.points) <= 5
    for p in answer.points:
        assert max(abs(p.x - one.x), abs(p.y - one.y), abs(p.z - one.z)) <= 0.1 + 1e-5
    pose.pose.position.x += 1e6
    assert get_points(testbed, box_pose=pose, box_size=size).error_code == 9905


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"camera": "left", "u_px": [1.0], "v_px": [1.0]}, 9909, "it has camera"),
        ({"camera": "camera", "u_px": [1.0]}, 9909, "1 u_px for 0 v_px"),
        ({"camera": "camera", "u_px": [64.0], "v_px": [1.0]}, 9909, "outside the 64x48"),
        ({"camera": "camera", "u_px": [1.0] * 100_001}, 9909, "at most 100000"),
        ({}, 9909, "box_size"),
        ({"max_points": 0}, 9909, "max_points is 0"),
        ({"camera": "camera", "min_confidence": float("nan")}, 9909, "min_confidence is nan"),
        ({"camera": "camera", "target_frame": "odom"}, 9902, "'odom'"),
        ({"camera": "camera", "max_age_s": 0.5}, 9904, "use_sim_time"),
        ({"camera": "camera", "max_age_s": -1.0}, 9909, "above 0"),
    ],
)
def test_bad_requests_for_points_get_a_code_and_a_sentence(testbed, fields, code, words):
    answer = get_points(testbed, **fields)
    assert not answer.success and answer.error_code == code and words in answer.error_msg


def test_save_map_refuses_what_it_cannot_write(testbed, tmp_path):
    from g2vlm_ros.srv import SaveMap

    for path, words in (
        (tmp_path / "map.xyz", "ends in .ply, .pcd, .npz"),
        ("map.ply", "absolute"),
        (tmp_path / "no" / "map.ply", "does not exist on the robot"),
        (tmp_path, "ends in .ply, .pcd, .npz"),
        ("/proc/map.npz", "path '/proc/map.npz' cannot be written on the robot"),
        ("/sys/map.ply", "path '/sys/map.ply' cannot be written on the robot"),
        ("/dev/map.npz/map.npz", "does not exist on the robot"),
    ):
        answer = testbed.call(SaveMap, "/perception/save_map", SaveMap.Request(path=str(path)))
        assert answer.error_code == 9909 and words in answer.error_msg
