# SPDX-License-Identifier: Apache-2.0
"""A map that no window can be entered into any more is given up, and said to be."""

import time

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

from g2vlm_tests.harness import bench, image  # noqa: E402

from g2vlm_ros.records import MappingError  # noqa: E402
from g2vlm_ros.ros.repeated_faults import MAX_FAULTS, MIN_FAULTS, RepeatedFaults  # noqa: E402
from g2vlm_ros.settings import Settings  # noqa: E402

QUICK = {"voxel.publish_period_s": 0.1, "map.metres_per_unit": 1.0, "voxel.max_edge_step": 0.0}


@pytest.fixture
def faults():
    return RepeatedFaults(Settings())


def until_given_up(faults):
    """How many windows in a row have to fail."""
    count = 1
    while not faults.update(MappingError("no")):
        count += 1
    return count


def test_each_map_given_up_doubles_the_patience_up_to_a_bound(faults):
    counts = [until_given_up(faults) for _ in range(7)]
    assert counts[0] >= MIN_FAULTS and counts[1] == 2 * counts[0] and counts[-1] == MAX_FAULTS
    faults.clear()
    assert until_given_up(faults) == counts[0]


def test_a_window_that_goes_well_and_faults_of_the_device_do_not_count(faults):
    for _ in range(3):
        assert not any(faults.update(MappingError("no")) for _ in range(MIN_FAULTS - 1))
        faults.clear()
    assert not any(faults.update(RuntimeError("CUDA")) for _ in range(2 * MAX_FAULTS))


@pytest.mark.parametrize(("views", "overlap"), [(8, 7), (4, 2), (2, 1)])
def test_the_windows_that_hold_one_bad_frame_are_too_few(views, overlap):
    settings = Settings.from_flat({"window.views": views, "window.overlap": overlap})
    assert until_given_up(RepeatedFaults(settings)) > views / (views - overlap) + 1


class Robot:
    """Frames into a node over DDS, and what the node says of itself."""

    def __init__(self, testbed):
        from diagnostic_msgs.msg import DiagnosticArray
        from g2vlm_ros.msg import ReconstructionStatus
        from rcl_interfaces.msg import Log
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import PointCloud2

        from g2vlm_ros.ros.publishers import LATCHED

        every_status = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)

        self.testbed, self.errors = testbed, []
        self._stamp_s = time.time() - 3.0  # frames here come quicker than their stamps say
        testbed.peer.create_subscription(Log, "/rosout", self._on_log, 100)
        testbed.listen(PointCloud2, "/perception/map", LATCHED)
        testbed.listen(ReconstructionStatus, "/perception/status", every_status)
        testbed.listen(DiagnosticArray, "/diagnostics")

    def _on_log(self, line):
        if line.level >= 40:
            self.errors.append(line.msg)

    def drive(self, frames):
        """So many frames more, each of which makes a window after the first one."""
        for _ in range(frames):
            self.testbed.send("/camera/image_raw", image(self._stamp_s))
            self._stamp_s += 0.1
            self.testbed.settle()

    def status(self):
        """The newest one."""
        return self.testbed.received["/perception/status"][-1]

    def said(self, words):
        """Whether a status, or a task of /diagnostics, said so at any time."""
        statuses = self.testbed.received["/perception/status"]
        reports = self.testbed.received["/diagnostics"]
        tasks = [task.message for report in reports for task in report.status]
        return any(words in text for text in [*(s.message for s in statuses), *tasks])


def test_a_map_that_fails_every_window_is_given_up_for_a_new_one(monkeypatch):
    """A state that cannot recover, as NaN in a pose once was: until then ~/reset alone helped."""
    from numpy.linalg import LinAlgError

    from g2vlm_ros.mapping.graph_slam import GraphSlam

    place, reset, spoilt = GraphSlam.place, GraphSlam.reset, []

    def place_unless_spoilt(self, window, result):
        if spoilt:
            raise LinAlgError("Eigenvalues did not converge")
        return place(self, window, result)

    def forget(self):
        spoilt.clear()
        reset(self)

    monkeypatch.setattr(GraphSlam, "place", place_unless_spoilt)
    monkeypatch.setattr(GraphSlam, "reset", forget)
    with bench(**QUICK) as testbed:
        robot = Robot(testbed)
        robot.drive(4)
        maps = testbed.received["/perception/map"]
        testbed.until(lambda: maps and maps[-1].width, "the first map")
        assert robot.status().map_id == 0
        spoilt.append(True)
        robot.drive(MIN_FAULTS - 1)
        assert testbed.node.pipeline.localisation.placed, "it may still recover"
        robot.drive(1)
        testbed.until(lambda: robot.said("it was given up, a new map starts"), "the reason")
        testbed.until(lambda: robot.status().localisation == "LOST", "LOST")
        testbed.until(lambda: robot.said("LOST: window after window failed"), "the diagnostics")
        testbed.until(lambda: not maps[-1].width, "the old map to be taken back")
        robot.drive(4)
        testbed.until(lambda: robot.status().map_id == 1 and maps[-1].width, "a new map")
        testbed.until(lambda: robot.status().localisation == "LOCALISED", "its place")
        start = "map 1 starts: window after window failed in the map before"
        testbed.until(lambda: robot.said(start), "why the map starts")
        testbed.until(lambda: robot.errors, "the log")
        given_up = [line for line in robot.errors if "given up" in line]
        assert len(given_up) == 1 and "LinAlgError: Eigenvalues did not" in given_up[0]


def test_a_device_that_fails_for_a_while_costs_no_map(monkeypatch):
    from g2vlm_ros.perception import Perception

    with bench(**QUICK) as testbed:
        robot = Robot(testbed)
        robot.drive(4)
        testbed.until(lambda: testbed.received["/perception/map"], "the first map")

        def fail(*_):
            raise RuntimeError("CUDA error: launch timed out")

        with monkeypatch.context() as patch:
            patch.setattr(Perception, "reconstruct", fail)
            robot.drive(2 * MIN_FAULTS)
        robot.drive(3)
        testbed.until(lambda: "CUDA" not in robot.status().message, "the next window")
        assert robot.said("launch timed out") and not robot.said("given up")
        maps = testbed.received["/perception/map"]
        assert maps and all(each.width for each in maps), "it was never taken back"
