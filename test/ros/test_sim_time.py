# SPDX-License-Identifier: Apache-2.0
"""A simulator's time: no clock, a clock that starts, one that jumps back, one that is not used."""

import pytest
from g2vlm_tests.asking import SMALL_QUERY, ask
from g2vlm_tests.harness import bench, image

pytestmark = pytest.mark.ros
pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")

START_S = 5000.0
QUICK = {**SMALL_QUERY, "voxel.publish_period_s": 0.2}
NO_GEOMETRY = 9904


class Simulator:
    """/clock beside a Bench, moved by hand, and what the node says of it."""

    def __init__(self, testbed):
        from diagnostic_msgs.msg import DiagnosticArray
        from rcl_interfaces.msg import Log
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import PointCloud2

        from g2vlm_ros.ros.publishers import LATCHED

        self._testbed, self._kind = testbed, Clock
        self._clock = testbed.peer.create_publisher(Clock, "/clock", 10)
        self.errors, self.warnings = [], []
        testbed.peer.create_subscription(Log, "/rosout", self._on_log, 100)
        testbed.listen(PointCloud2, "/perception/map", LATCHED)
        testbed.listen(DiagnosticArray, "/diagnostics")

    def _on_log(self, line):
        if line.level >= 30:
            (self.errors if line.level >= 40 else self.warnings).append(line.msg)

    def now(self, seconds):
        """Move the clock, and wait until the node has heard it."""
        from builtin_interfaces.msg import Time

        clock = self._testbed.node.get_clock()

        def heard():
            full_s = int(seconds)
            nanosec = round((seconds - full_s) * 1e9)
            self._clock.publish(self._kind(clock=Time(sec=full_s, nanosec=nanosec)))
            return abs(clock.now().nanoseconds * 1e-9 - seconds) < 1e-3

        self._testbed.until(heard, f"the time {seconds}")

    def drive(self, start_s):
        """Two views and their window, the clock going along."""
        for k in range(2):
            self.now(start_s + 0.1 * k)
            self._testbed.send("/camera/image_raw", image(start_s + 0.1 * k))
        self._testbed.settle()

    def until_map(self, start_s, what):
        """Run the clock until ~/map comes once more."""
        maps = self._testbed.received["/perception/map"]
        before, ticks = len(maps), iter(range(1, 10**6))

        def came():
            self.now(start_s + 0.1 * next(ticks))
            return len(maps) > before

        self._testbed.until(came, what)

    def latency(self):
        """The task `latency` of the newest /diagnostics."""
        reports = self._testbed.received["/diagnostics"]
        return next(s for s in reports[-1].status if s.name.endswith("latency"))


def test_sim_time_without_a_clock_is_named_and_all_goes_on_once_it_comes(monkeypatch):
    from g2vlm_ros.ros import perception_node

    monkeypatch.setattr(perception_node, "CLOCK_WAIT_S", 0.5)
    with bench(use_sim_time=True, **QUICK) as testbed:
        simulator = Simulator(testbed)
        for k in range(2):
            testbed.send("/camera/image_raw", image(START_S + 0.1 * k))
        testbed.settle()
        testbed.until(lambda: simulator.errors, "the word about the clock")
        assert "nothing has come on /clock" in simulator.errors[0]
        refused = ask(testbed, question="What is there?", max_age_s=5.0)
        assert refused.error_code == NO_GEOMETRY and "clock" in refused.error_msg
        assert not testbed.received["/perception/map"]
        simulator.drive(START_S + 1.0)
        simulator.until_map(START_S + 1.2, "~/map once the clock runs")
        assert ask(testbed, question="What is there?", max_age_s=1e5).success
        assert len([e for e in simulator.errors if "/clock" in e]) == 1, "said once"


def test_a_simulator_that_starts_over_starts_a_map_and_is_answered_from():
    with bench(use_sim_time=True, **QUICK) as testbed:
        simulator = Simulator(testbed)
        simulator.drive(START_S)
        simulator.until_map(START_S + 0.2, "the first map")
        windows = testbed.node.counts().windows
        for number in range(3):
            # One frame in the past is an outlier, several in agreement are a clock that jumped.
            simulator.drive(10.0 + number)
        assert testbed.node.counts().windows > windows
        simulator.until_map(13.0, "a map after the jump")
        newest_ns = testbed.node.newest_views_ns()[-1]
        assert newest_ns < 100 * 10**9
        answer = ask(testbed, question="What is there?", max_age_s=1e5)
        assert answer.success and answer.age_s > 0
        jumps = [w for w in simulator.warnings if "jumped back" in w]
        assert len(jumps) == 1 and "a new map starts" in jumps[0]


@pytest.mark.parametrize("hour", ["of a simulator", "ahead"])
def test_stamps_of_another_clock_are_named(hour):
    """A simulator's to a node without its time; a camera's whose clock is an hour ahead."""
    import time

    from diagnostic_msgs.msg import DiagnosticStatus

    start_s = START_S if hour == "of a simulator" else time.time() + 3600.0
    with bench(**QUICK) as testbed:
        simulator = Simulator(testbed)
        for k in range(2):
            testbed.send("/camera/image_raw", image(start_s + 0.1 * k, number=k))
        testbed.settle()
        refused = ask(testbed, question="What is there?", max_age_s=5.0)
        assert refused.error_code == NO_GEOMETRY and "clock" in refused.error_msg
        assert "use_sim_time" in refused.error_msg
        testbed.until(
            lambda: testbed.received["/diagnostics"] and "clock" in simulator.latency().message,
            "the word about the clock",
        )
        assert simulator.latency().level == DiagnosticStatus.WARN
