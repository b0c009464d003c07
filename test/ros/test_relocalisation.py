# SPDX-License-Identifier: Apache-2.0
"""A node saves its map, ends, and a new one finds itself in it, over real DDS."""

from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint is opened with the torch backend here")

from g2vlm_tests.harness import bench, image  # noqa: E402
from g2vlm_tests.places import WIDTH_PX, home_frames, perception_of  # noqa: E402

from g2vlm_ros.demo.sim.wheel_odometry import base_poses  # noqa: E402
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL  # noqa: E402

SETTINGS = {
    "model.image_width_px": WIDTH_PX,
    "window.views": 3,
    "window.min_gap_s": 0.1,
    "window.max_age_s": 5.0,
    "map.min_view_overlap": 0.05,
    "map.min_registration_inliers": 0.5,
    "map.min_registration_quality": 0.3,
    "depth_topic": "/camera/depth",
    "voxel.size_m": 0.1,
}
STATUS, POSE, TF = "/perception/status", "/perception/pose", "/tf"
LATER_S = 3600.0
MOUNT = np.eye(4)
"""base_from_camera."""
MOUNT[:3, :3], MOUNT[:3, 3] = ZUP_FROM_OPTICAL, (0.2, 0.0, 0.5)
ODOM_FROM_HOME = base_poses(np.array([[3.0, -2.0]]), np.array([0.7]))[0]
SLIP_M = 0.3


@pytest.fixture(scope="module", autouse=True)
def true_geometry():
    """True geometry of two homes in place of the network's, a little spoilt."""
    from g2vlm_ros.ros import perception_node

    def opened(_settings):
        perception = perception_of(0, 1)
        perception.chosen_because, perception.warnings, perception.speaks = "a test", (), False
        return perception

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perception_node, "open_and_warm_up", opened)
        yield


class Robot:
    """Drives past the views of a home, and hears what the node under test says."""

    def __init__(self, testbed):
        from g2vlm_ros.msg import ReconstructionStatus
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from tf2_msgs.msg import TFMessage

        from g2vlm_ros.ros.publishers import LATCHED

        self.testbed = testbed
        testbed.listen(PoseWithCovarianceStamped, POSE)
        testbed.listen(ReconstructionStatus, STATUS, LATCHED)
        testbed.listen(TFMessage, TF, 100)
        self.slipped = np.eye(4)
        """What the wheels added to the robot's way that it did not go."""

    def drive(self, frames, later_s=0.0, odometry=False):
        """Send views with their depth, and where the wheels put the robot; the last status."""
        for frame in frames:
            stamp_ns = frame.stamp_ns + round(later_s * 1e9)
            if odometry:
                self.send_odometry(stamp_ns, frame)
            self._send_view(stamp_ns * 1e-9, frame)
            self.testbed.settle()
        newest = stamp_ns // 10**9
        return self.status("the last view", lambda s: s.header.stamp.sec >= newest - 1)

    def _send_view(self, at_s, frame):
        from sensor_msgs.msg import Image

        pixels = frame.image()
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        colours = image(at_s, number=0, **size, step=3 * size["width"], data=pixels.tobytes())
        depth = Image(
            header=colours.header,
            encoding="32FC1",
            step=4 * size["width"],
            data=frame.depth_m().astype(np.float32).tobytes(),
            **size,
        )
        self.testbed.publish("/camera/depth", depth)
        self.testbed.send("/camera/image_raw", colours)

    def send_odometry(self, stamp_ns, frame):
        from nav_msgs.msg import Odometry

        from g2vlm_ros.ros.conversions import geometry

        message = Odometry(header=geometry.header(stamp_ns, "odom"), child_frame_id="base")
        odom_from_base = self.odom_from_camera(frame) @ np.linalg.inv(MOUNT)
        message.pose.pose = geometry.pose_message(odom_from_base)
        self.testbed.publish("/odom", message)

    def send_mount(self):
        """On /tf_static."""
        from tf2_msgs.msg import TFMessage

        from g2vlm_ros.ros.conversions import geometry
        from g2vlm_ros.ros.inputs.cameras import TF_STATIC

        publisher = self.testbed.peer.create_publisher(TFMessage, "/tf_static", TF_STATIC)
        self.testbed.until(lambda: publisher.get_subscription_count() > 0, "a listener of mounts")
        header = geometry.header(0, "base")
        publisher.publish(
            TFMessage(transforms=[geometry.transform_message(header, "optical", MOUNT)])
        )

    def odom_from_camera(self, frame):
        return self.slipped @ ODOM_FROM_HOME @ frame.world_from_camera

    def map_from_odom(self, frame, later_s):
        """As published with a message of odometry a little after a frame, the last one sent."""
        stamp_ns = frame.stamp_ns + round(later_s * 1e9) + 10**6
        self.send_odometry(stamp_ns, frame)
        self.testbed.until(lambda: self._transforms("odom", stamp_ns), "map -> odom")
        (transform,) = self._transforms("odom", stamp_ns)
        return matrix(transform.transform)

    def _transforms(self, child, stamp_ns):
        from g2vlm_ros.ros.conversions import geometry

        return [
            t
            for t in self.transforms
            if t.child_frame_id == child and geometry.stamp_ns(t.header.stamp) == stamp_ns
        ]

    @property
    def transforms(self):
        return [t for message in list(self.testbed.received[TF]) for t in message.transforms]

    def newest(self, frames, later_s):
        """(frame of the newest window's newest view, its pose in the map)."""
        from g2vlm_ros.ros.conversions import geometry

        message = self.testbed.received[POSE][-1]
        stamp_ns = geometry.stamp_ns(message.header.stamp) - round(later_s * 1e9)
        frame = next(f for f in frames if f.stamp_ns == stamp_ns)
        return frame, geometry.pose_matrix(message.pose.pose)

    def status(self, what, holds):
        """The newest status, once it is as wanted."""
        self.testbed.until(
            lambda: self.testbed.received[STATUS] and holds(self.testbed.received[STATUS][-1]),
            what,
        )
        return self.testbed.received[STATUS][-1]

    def states(self):
        """Of all statuses so far, without repetitions."""
        return [
            state for state, _ in groupby(s.localisation for s in self.testbed.received[STATUS])
        ]

    def load(self, path):
        from g2vlm_ros.srv import LoadMap

        loaded = self.testbed.call(LoadMap, "/perception/load_map", LoadMap.Request(path=path))
        assert loaded.success, loaded.error_msg
        self.status("LOST", lambda s: s.localisation == "LOST")
        return loaded

    def save(self, path):
        from g2vlm_ros.srv import SaveMap

        saved = self.testbed.call(SaveMap, "/perception/save_map", SaveMap.Request(path=path))
        assert saved.success, saved.error_msg
        return saved


def seconds(time):
    return time.sec + 1e-9 * time.nanosec


def matrix(transform):
    from g2vlm_ros.geometry.sim3 import rotation_from_xyzw

    turn, shift, pose = transform.rotation, transform.translation, np.eye(4)
    pose[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
    pose[:3, 3] = shift.x, shift.y, shift.z
    return pose


@contextmanager
def robot(**settings):
    with bench(**SETTINGS, **settings) as testbed:
        yield Robot(testbed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(path of the map of a drive, its points), by a node that ended."""
    path = str(tmp_path_factory.mktemp("map") / "home.npz")
    with robot() as first:
        status = first.drive(home_frames(0))
        assert status.localisation == "LOCALISED" and status.localised_by == "start"
        assert status.scale_state == 2, status
        return path, first.save(path).points


def test_a_new_node_finds_itself_in_a_saved_map(saved):
    path, points = saved
    with robot() as again:
        assert again.load(path).points == points
        assert not again.testbed.received[POSE]
        again.drive(home_frames(0)[5:], LATER_S)
        status = again.status("LOCALISED", lambda s: s.localisation == "LOCALISED")
        assert status.localised_by == "keyframe" and status.search == "localised"
        assert status.map_id == 0 and status.localised_since.sec > LATER_S
        again.testbed.until(lambda: again.testbed.received[POSE], "a pose in the saved map")


def test_in_a_fixed_map_nothing_is_added_and_odom_is_corrected(saved, tmp_path):
    """REP-105: map -> odom is all that this node says of the robot's tree. Wheels that slip move
    odom in the map; the robot in the map goes where it went."""
    path, points = saved
    frames = home_frames(0)
    settings = {"map.mode": "localization", "map.graph_windows": 16, "odometry_topic": "/odom"}
    with robot(**settings, **{"pose.between_windows": False}) as again:

        def corrected(last):
            """map_from_odom, as it carries the odometry to the pose in the map; home_from_map."""
            map_from_odom = again.map_from_odom(last, LATER_S)
            frame, pose = again.newest(frames, LATER_S)
            np.testing.assert_allclose(
                map_from_odom @ again.odom_from_camera(frame), pose, atol=0.02
            )
            return map_from_odom, frame.world_from_camera @ np.linalg.inv(pose)

        again.send_mount()
        again.load(path)
        again.drive(frames[:10], LATER_S, odometry=True)
        again.status("LOCALISED", lambda s: s.localisation == "LOCALISED")
        before, home_from_map = corrected(frames[9])
        again.slipped[:3, 3] = 0.0, SLIP_M, 0.0
        again.drive(frames[10:], LATER_S, odometry=True)
        after, still = corrected(frames[-1])
        turned_back = np.linalg.inv(before) @ after
        np.testing.assert_allclose(turned_back[:3, 3], [0.0, -SLIP_M, 0.0], atol=0.2)
        np.testing.assert_allclose(still[:3, 3], home_from_map[:3, 3], atol=0.15)
        parents = {t.child_frame_id: t.header.frame_id for t in again.transforms}
        assert parents == {"odom": "map", "optical_g2vlm": "map"}
        found = again.testbed.received[STATUS][-1].localised_since
        stamps = [seconds(t.header.stamp) for t in again.transforms]
        assert min(stamps) >= seconds(found), "nothing while LOST"
        assert again.save(str(tmp_path / "same.npz")).points == points


def test_a_hint_decides_where_is_looked(saved):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    def hint(position):
        message = PoseWithCovarianceStamped()
        message.header.frame_id = "map"
        message.pose.pose.position.x, message.pose.pose.position.y = map(float, position)
        again.testbed.publish("/initialpose", message)

    frames = home_frames(0)
    with robot() as again:
        again.load(saved[0])
        hint((40.0, 0.0))
        status = again.drive(frames[5:9], LATER_S)
        assert status.localisation == "LOST" and status.search == "not_found"
        hint((0.0, 0.0))
        again.drive(frames[9:], LATER_S)
        again.status("LOCALISED", lambda s: s.localisation == "LOCALISED")


def test_the_second_map_of_a_lost_robot_becomes_part_of_its_first(saved):
    with robot() as carried:
        carried.drive(home_frames(0))
        away = carried.drive(home_frames(1)[:8], 600.0)
        assert away.map_id == 1 and away.localisation == "LOST"
        carried.drive(home_frames(0)[4:], 1200.0)
        back = carried.status("LOCALISED", lambda s: s.localisation == "LOCALISED")
        assert back.map_id == 0 and back.localised_by == "keyframe"
        assert carried.states() == ["LOCALISED", "LOST", "LOCALISED"]
