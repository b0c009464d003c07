# SPDX-License-Identifier: Apache-2.0
"""A subscription to a sensor that is made again where it stays silent beside a publisher.

A publisher may be matched and yet send a subscription nothing: Fast DDS 2.14.5 did so in 4 of some
230 trials where a node was killed, started again and held up (SIGSTOP) while the lease of the
killed one ran out. Any new subscription to that publisher mended it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

MIN_SILENT_S = 3.0
"""Shortest silence that is none of a busy machine..."""
SILENT_STEPS = 4
"""...and in steps of a slow sensor. Each further try in one silence waits twice as long: most
silent publishers are at rest, as a recording that is paused."""


class SensorSubscription:
    """Listens to one topic until `close`."""

    def __init__(
        self,
        node: Node,
        kind: type,
        topic: str,
        callback: Callable,
        qos: QoSProfile,
        group: CallbackGroup,
        clock: Callable[[], float] = time.monotonic,
    ):
        """clock(): seconds that never go back."""
        self._node, self._kind, self.topic, self._qos = node, kind, topic, qos
        self._callback, self._group, self._clock = callback, group, clock
        self.received = 0
        """Messages that were taken in, whatever became of them."""
        self._lock, self._closed = threading.Lock(), False
        self._last_s, self._step_s, self._tries = clock(), math.inf, 0
        self._stamp: object = None
        self._subscriptions: dict[int, Subscription] = {}
        """By a number that grows. The one before the newest stays until a newer one is heard: a
        sensor may wake up before that is matched, and nothing is to be lost."""
        self._newest = self._source = 0
        """Numbers of the subscription that was made last, and of the one that messages come by."""
        self._subscribe()

    def renew_if_silent(self) -> None:
        """Subscribe again where a publisher is there that has sent before and sends no more."""
        silent_s = self._clock() - self._last_s
        limit_s = max(MIN_SILENT_S, SILENT_STEPS * self._step_s) * 2**self._tries
        if silent_s < limit_s or self._qos.durability is DurabilityPolicy.TRANSIENT_LOCAL:
            return
        publishers = self._node.count_publishers(self.topic)
        if not publishers:
            return
        if not self._tries:
            self._node.get_logger().info(
                f"nothing has come on {self.topic} for {silent_s:.1f} s, and it has {publishers} "
                "publisher(s): subscribing again; does the sensor rest?"
            )
        with self._lock:
            if self._closed:
                return
            self._tries += 1
            self._drop_before(self._newest)
            self._subscribe()

    def close(self) -> None:
        """Stop listening."""
        with self._lock:
            self._closed = True
            self._drop_before(self._newest + 1)

    def _subscribe(self) -> None:
        self._newest += 1
        self._subscriptions[self._newest] = self._node.create_subscription(
            self._kind,
            self.topic,
            partial(self._take_in, self._newest),
            self._qos,
            callback_group=self._group,
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _drop_before(self, number: int) -> None:
        for earlier in [each for each in self._subscriptions if each < number]:
            self._node.destroy_subscription(self._subscriptions.pop(earlier))

    def _take_in(self, number: int, message: Any) -> None:
        """A message of one of the subscriptions, which may bring it as the one before did."""
        if number < self._source:
            return
        is_new = number > self._source > 0
        if number > self._source:
            self._source = number
            with self._lock:
                self._drop_before(number)
        stamp = getattr(getattr(message, "header", None), "stamp", None)  # TFMessage has none
        if is_new and stamp == self._stamp:
            return
        self._callback(message)
        now_s, self._stamp = self._clock(), stamp
        if self.received:  # what was held up once is no slow sensor
            self._step_s = min(now_s - self._last_s, 2 * self._step_s)
        self._last_s, self._tries = now_s, 0
        self.received += 1

    def _on_incompatible(self, event: object) -> None:
        self._node.get_logger().error(
            f"a publisher of {self.topic} offers an incompatible QoS ({event.last_policy_kind}); "
            f"override qos_overrides.{self.topic}.subscription or the publisher's"
        )
