# SPDX-License-Identifier: Apache-2.0
"""`~/status` after each window and once in a while, `/diagnostics` while somebody listens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from std_msgs.msg import Header

from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.diagnostics import Diagnostics
from g2vlm_ros.ros.inference_scheduler import InferenceScheduler
from g2vlm_ros.ros.publishers import LATCHED, Publishers
from g2vlm_ros.ros.remarks import clock_remark, hang_remark, no_metres
from g2vlm_ros.ros.status_message import status_message
from g2vlm_ros.ros.stores import Store
from g2vlm_ros.ros.window_worker import WindowWorker
from g2vlm_ros.settings import Settings


class StatusReports:
    """The two topics that say how the node is.

    backend: what the model runs on, in words. stores(): what is held against its bounds.
    """

    def __init__(
        self,
        node: LifecycleNode,
        settings: Settings,
        model_version: str,
        backend: str,
        scheduler: InferenceScheduler,
        pipeline: MappingPipeline,
        windows: WindowWorker,
        outputs: Publishers,
        stores: Callable[[], Sequence[Store]],
    ):
        self._node, self._map_frame = node, settings.map.frame
        self._max_job_s = settings.model.max_job_s
        self._clock_jumps = 0
        self._model_version, self._backend = model_version, backend
        self._scheduler, self._pipeline = scheduler, pipeline
        self._windows, self._outputs, self._stores = windows, outputs, stores
        sources = (
            settings.odometry_topic,
            settings.depth_topic,
            settings.map.rig_baselines,
            settings.map.camera_height_m,
        )
        self._no_metres = no_metres(settings) if any(sources) else ""
        self._diagnostics = Diagnostics(node.get_name(), backend, settings)
        self._status_topic = node.create_lifecycle_publisher(
            ReconstructionStatus, "~/status", LATCHED
        )
        self._diagnostics_topic = node.create_lifecycle_publisher(
            DiagnosticArray, "/diagnostics", QoSProfile(depth=1)
        )

    def close(self) -> None:
        """Take the topics away."""
        for topic in (self._status_topic, self._diagnostics_topic):
            self._node.destroy_publisher(topic)

    def count_frames(self) -> None:
        """Note how many frames came so far, and what became of them."""
        counts = self._pipeline.counts()
        self._diagnostics.frame_rate.update(self._now_s(), counts.received)
        self._diagnostics.unused_frames.update(counts)
        if counts.clock_jumps > self._clock_jumps:
            self._node.get_logger().warning(
                "the cameras' stamps jumped back: a new map starts (a simulation or recording "
                "that started over? a clock that was set?)"
            )
        self._clock_jumps = counts.clock_jumps

    def publish_status(self) -> None:
        """`~/status`, of the newest window (any thread)."""
        windows, job_s = self._windows, self._scheduler.running_for_s()
        update = windows.newest
        stamp = geometry.stamp(update.window.stamp_ns) if update else self._now()
        self._status_topic.publish(
            status_message(
                Header(stamp=stamp, frame_id=self._map_frame),
                self._pipeline.counts(),
                update,
                windows.latency_s,
                self._model_version,
                self._backend,
                windows.problem or self.input_problem(),
                job_s,
                self._pipeline.localisation,
                self._no_metres,
            )
        )

    def publish_diagnostics(self, failures: int) -> None:
        """`/diagnostics`, where somebody listens. failures: callbacks that raised."""
        if not self._diagnostics_topic.get_subscription_count():
            return
        windows, tracking = self._windows, self._windows.tracking
        self._diagnostics_topic.publish(
            self._diagnostics.report(
                Header(stamp=self._now()),
                self._now_s(),
                self._pipeline.counts(),
                windows.newest,
                windows.latency_s,
                windows.problem,
                self._outputs.wanted(),
                self._scheduler.running_for_s(),
                failures,
                None if tracking is None else tracking.counts(),
                self._pipeline.localisation,
                self._stores(),
            )
        )

    def input_problem(self) -> str:
        """Why nothing, or nothing right, comes of the frames that arrive."""
        remarks = (
            hang_remark(self._scheduler.running_for_s(), self._max_job_s),
            clock_remark(self._windows.latency_s),
            self._diagnostics.frame_rate.remark() or self._diagnostics.unused_frames.remark(),
        )
        return "; ".join(filter(None, remarks))

    def _now(self):
        return self._node.get_clock().now().to_msg()

    def _now_s(self) -> float:
        return self._node.get_clock().now().nanoseconds * 1e-9
