# SPDX-License-Identifier: Apache-2.0
"""A perception node, a camera and a listener over real DDS, for tests."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
SMALL = {
    "model.checkpoint": str(GOLDEN),
    "model.backend": "torch",
    "model.image_width_px": 56,
    "window.views": 2,
    "window.overlap": 1,
    "window.min_gap_s": 0.05,
    "window.max_age_s": 2.0,
    "status_period_s": 0.2,
    # Random weights agree with nothing: join windows all the same.
    "map.min_view_overlap": 0.0,
    "map.min_registration_inliers": 0.0,
    "map.min_registration_quality": 0.0,
    "map.loop_closure": False,
}
"""Settings under which a window takes milliseconds."""
TIMEOUT_S = 60.0


class Bench:
    """One process with its own context: node under test, publishers, subscribers, spinning."""

    def __init__(self, **settings):
        import rclpy
        from rclpy.executors import MultiThreadedExecutor
        from rclpy.parameter import Parameter

        from g2vlm_ros.ros.perception_node import PerceptionNode
        from g2vlm_ros.ros.rclpy_workarounds import SafeEntities
        from g2vlm_ros.ros.run_node import Spinner

        class Peer(SafeEntities, rclpy.node.Node):
            """Its subscriptions are destroyed beside the executor."""

        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context)
        overrides = [Parameter(k, value=v) for k, v in {**SMALL, **settings}.items()]
        self.node = PerceptionNode(context=self.context, parameter_overrides=overrides)
        self.peer = Peer("peer", context=self.context)
        self.executor = MultiThreadedExecutor(num_threads=4, context=self.context)
        for node in (self.node, self.peer):
            self.executor.add_node(node)
        self.escaped = []
        """What callbacks let out to the executor."""
        self.spinner = Spinner(self.executor, self.escaped.append).start()
        self.received = defaultdict(list)
        self._publishers = {}

    def start(self):
        """Configure and activate."""
        from rclpy.lifecycle import TransitionCallbackReturn

        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def listen(self, kind, topic, qos=10):
        """Collect messages of a topic in self.received[topic] and wait for the connection."""
        self.peer.create_subscription(kind, topic, self.received[topic].append, qos)
        self.until(lambda: self.peer.count_publishers(topic) > 0, f"a publisher of {topic}")
        self.until(self.node.listened_to, "the node to see its listener")

    def publish(self, topic, message):
        """Publish reliably and only once the node listens."""
        if topic not in self._publishers:
            publisher = self.peer.create_publisher(type(message), topic, 10)
            self._publishers[topic] = publisher
            self.until(lambda: publisher.get_subscription_count() > 0, f"a listener of {topic}")
        self._publishers[topic].publish(message)

    def send(self, topic, message):
        """Publish a frame and wait until the node's callback is through with it (its queue is
        short): what it makes of the frame is queued for the device by then, see `settle`."""
        name = topic.lstrip("/")
        before = self.node.cameras.received[name]
        self.publish(topic, message)
        self.until(lambda: self.node.cameras.received[name] > before, f"a frame on {topic}")

    def call(self, kind, name, request):
        """Call a service and return its response."""
        client = self.peer.create_client(kind, name)
        assert client.wait_for_service(TIMEOUT_S), name
        future = client.call_async(request)
        self.until(future.done, f"an answer of {name}")
        self.peer.destroy_client(client)
        return future.result()

    def until(self, condition, what, timeout_s=TIMEOUT_S):
        """Wait for a condition; fail saying what did not happen."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
            time.sleep(0.01)

    @property
    def queries(self):
        """The node's QueryServer: its worker, its open goals."""
        return self.node.queries

    @property
    def perception(self):
        """The node's Perception."""
        return self.node.perception

    def waiting(self):
        """How many questions wait for the device."""
        return self.node.scheduler.waiting()

    def settle(self):
        """Wait until the device rests."""
        self.until(self.node.idle, "the device to rest")

    def close(self):
        import rclpy

        self.node.trigger_shutdown()
        self.spinner.stop(5.0)
        for node in (self.node, self.peer):
            node.destroy_node()
        rclpy.try_shutdown(context=self.context)
        # A node is part of reference cycles; its DDS participant leaves the graph with the last.
        del self.node, self.peer, node
        gc.collect()


@contextmanager
def bench(**settings):
    """A started Bench."""
    testbed = Bench(**settings)
    try:
        testbed.start()
        yield testbed
    finally:
        testbed.close()


def photograph(number=0, height=48, width=64):
    """uint8 (height, width, 3) RGB, different for each number."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(height // 6, 0).repeat(width // 8, 1))


def image(seconds, number=None, encoding="rgb8", frame_id="optical", **fields):
    """A valid rgb8 Image of a photograph; fields override."""
    from sensor_msgs.msg import Image

    from g2vlm_ros.ros.conversions import geometry

    pixels = photograph(round(seconds * 1000) if number is None else number)
    message = Image(
        header=geometry.header(round(seconds * 1e9), frame_id),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.shape[1] * 3,
        data=pixels.tobytes(),
    )
    for name, value in fields.items():
        setattr(message, name, value)
    return message
