# SPDX-License-Identifier: Apache-2.0
"""A sensor that falls silent beside its publisher is subscribed to again."""

from functools import partial
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import bench, image  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data  # noqa: E402


class Graph:
    """A node of which a publisher reaches the newest subscription only, and the time."""

    def __init__(self, qos=qos_profile_sensor_data):
        from g2vlm_ros.ros.inputs.sensor_subscription import SensorSubscription

        self.now_s, self.publishers, self.taken_s, self.logged = 0.0, 1, [], []
        self.subscriptions, self.deaf = [], False
        log = SimpleNamespace(info=self.logged.append, error=self.logged.append)
        node = SimpleNamespace(
            get_logger=lambda: log,
            create_subscription=self._subscribe,
            destroy_subscription=self.subscriptions.remove,
            count_publishers=lambda _: self.publishers,
        )
        self.sensor = SensorSubscription(
            node, object, "/scan", self._take, qos, None, lambda: self.now_s
        )

    def _take(self, message):
        self.taken_s.append(message.header.stamp)

    def _subscribe(self, _kind, _topic, callback, *_, **__):
        self.deaf = False
        self.subscriptions.append(partial(callback))  # each is a thing of its own
        return self.subscriptions[-1]

    def send(self, *subscriptions):
        """One message to each of them."""
        for each in subscriptions:
            each(SimpleNamespace(header=SimpleNamespace(stamp=self.now_s)))

    def run(self, seconds, step_s=None):
        """Time passes; a message comes every step_s, and a report every half a second."""
        for k in range(round(seconds * 10)):
            self.now_s += 0.1
            if step_s and not self.deaf and k % round(step_s * 10) == 0:
                self.send(self.subscriptions[-1])
            if k % 5 == 0:
                self.sensor.renew_if_silent()


def test_a_publisher_that_sends_nothing_any_more_is_heard_again():
    graph = Graph()
    graph.run(2, step_s=0.1)
    graph.deaf = True
    graph.run(5, step_s=0.1)
    assert graph.now_s - graph.taken_s[-1] < 0.2
    assert len(graph.subscriptions) == 1
    (line,) = graph.logged
    assert "nothing has come on /scan for 3." in line and "1 publisher" in line


def test_after_a_pause_of_this_process_the_step_is_not_that_of_a_slow_sensor():
    graph = Graph()
    graph.run(2, step_s=0.1)
    graph.now_s += 12.0
    graph.run(0.1, step_s=0.1)
    graph.deaf = True
    graph.run(5, step_s=0.1)
    assert graph.now_s - graph.taken_s[-1] < 0.2


def test_a_sensor_at_rest_is_tried_less_and_less_and_spoken_of_once():
    graph = Graph()
    graph.run(1, step_s=0.1)
    first, tries = graph.subscriptions[-1], []
    for _ in range(120):
        graph.run(0.5)
        tries.append(graph.subscriptions[-1])
    assert 3 <= len(set(tries) - {first}) <= 5
    assert len(graph.logged) == 1
    graph.run(1, step_s=0.1)
    graph.deaf = True
    graph.run(5, step_s=0.1)
    assert len(graph.logged) == 2, "the next silence is another one"


def test_a_sensor_that_wakes_up_meanwhile_is_heard_once_by_either_subscription():
    graph = Graph()
    graph.run(1, step_s=0.1)
    graph.run(4)
    earlier, newer = graph.subscriptions
    count = len(graph.taken_s)
    graph.send(earlier)  # the new one is not matched yet
    assert len(graph.taken_s) == count + 1
    graph.now_s += 0.1
    graph.send(earlier, newer)
    assert len(graph.taken_s) == count + 2
    graph.now_s += 0.1
    graph.send(newer, earlier)
    assert len(graph.taken_s) == count + 3
    assert graph.subscriptions == [newer]


@pytest.mark.parametrize("case", ["slow", "no publisher", "never sent", "latched", "closed"])
def test_what_is_no_silence_keeps_its_subscription(case):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    graph = Graph(latched if case == "latched" else qos_profile_sensor_data)
    if case != "never sent":
        graph.run(10, step_s=2.0 if case == "slow" else 0.1)
    (first,) = graph.subscriptions
    if case == "closed":
        graph.sensor.close()
    graph.publishers = int(case != "no publisher")
    graph.run(5)
    assert graph.subscriptions == ([] if case == "closed" else [first])


def test_over_dds_a_publisher_that_rests_is_heard_again(monkeypatch):
    from rcl_interfaces.msg import Log

    from g2vlm_ros.ros.inputs import sensor_subscription

    monkeypatch.setattr(sensor_subscription, "MIN_SILENT_S", 0.3)
    with bench(status_period_s=0.1) as testbed:
        lines = []
        testbed.peer.create_subscription(Log, "/rosout", lambda m: lines.append(m.msg), 100)
        for k in range(3):
            testbed.send("/camera/image_raw", image(1000.0 + 0.1 * k))
        testbed.until(lambda: any("come on camera/image_raw" in line for line in lines), "the log")
        for k in range(3, 10):
            testbed.send("/camera/image_raw", image(1000.0 + 0.1 * k))
        assert testbed.node.cameras.received["camera/image_raw"] == 10
        assert not testbed.escaped
