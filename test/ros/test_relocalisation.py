# SPDX-License-Identifier: Apache-2.0
"""A node saves its map, ends, and a new one finds itself in it, over real DDS."""

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint is opened with the torch backend here")

from g2vlm_tests.harness import bench, image  # noqa: E402
from g2vlm_tests.places import WIDTH_PX, home_frames, perception_of  # noqa: E402

SETTINGS = {
    "model.image_width_px": WIDTH_PX,
    "window.views": 3,
    "window.min_gap_s": 0.1,
    "window.max_age_s": 5.0,
    "map.min_view_overlap": 0.05,
    "map.min_joint_inliers": 0.5,
    "map.min_joint_quality": 0.3,
    "depth_topic": "/camera/depth",
    "voxel.size_m": 0.1,
}
STATUS = "/perception/status"


@pytest.fixture
def true_geometry(monkeypatch):
    """True geometry in place of the network's, a little spoilt."""
    from g2vlm_ros.ros import perception_node

    def opened(_settings):
        perception = perception_of(0)
        perception.chosen_because, perception.warnings, perception.speaks = "a test", (), False
        return perception

    monkeypatch.setattr(perception_node, "open_and_warm_up", opened)


def drive(made, frames, later_s=0.0):
    """Send views with their depth; the last status."""
    from sensor_msgs.msg import Image

    for frame in frames:
        at_s, pixels = frame.stamp_ns * 1e-9 + later_s, frame.image()
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        colours = image(at_s, number=0)
        depth = Image(
            header=colours.header,
            encoding="32FC1",
            step=4 * size["width"],
            data=frame.depth_m().astype(np.float32).tobytes(),
            **size,
        )
        made.publish("/camera/depth", depth)
        colours = image(at_s, number=0, **size, step=3 * size["width"], data=pixels.tobytes())
        made.send("/camera/image_raw", colours)
        made.settle()
    made.until(lambda: made.received[STATUS], "a status")
    return made.received[STATUS][-1]


def states(made):
    return [status.localisation for status in made.received[STATUS]]


def test_a_new_node_finds_itself_in_a_saved_map(true_geometry, tmp_path):
    from g2vlm_ros.msg import ReconstructionStatus
    from g2vlm_ros.srv import LoadMap, SaveMap
    from geometry_msgs.msg import PoseWithCovarianceStamped

    from g2vlm_ros.ros.publishers import LATCHED

    path, pose = str(tmp_path / "home.npz"), "/perception/pose"
    with bench(**SETTINGS) as made:
        made.listen(PoseWithCovarianceStamped, pose)
        made.listen(ReconstructionStatus, STATUS, LATCHED)
        status = drive(made, home_frames(0))
        assert status.localisation == "LOCALISED" and status.localised_by == "start"
        assert status.scale_state == 2, status
        saved = made.call(SaveMap, "/perception/save_map", SaveMap.Request(path=path))
        assert saved.success, saved.error_msg
    with bench(**SETTINGS) as made:
        made.listen(PoseWithCovarianceStamped, pose)
        made.listen(ReconstructionStatus, STATUS, LATCHED)
        loaded = made.call(LoadMap, "/perception/load_map", LoadMap.Request(path=path))
        assert loaded.success and loaded.points == saved.points, loaded.error_msg
        made.until(lambda: "LOST" in states(made), "LOST")
        assert not made.received[pose]
        drive(made, home_frames(0)[5:], 3600.0)
        made.until(lambda: "LOCALISED" in states(made)[states(made).index("LOST") :], "LOCALISED")
        status = made.received[STATUS][-1]
        assert status.localised_by == "keyframe" and status.search == "localised"
        assert status.map_id == 0 and status.localised_since.sec > 3600
        made.until(lambda: made.received[pose], "a pose in the saved map")
