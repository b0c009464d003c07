# SPDX-License-Identifier: Apache-2.0
"""A separate subscriber that writes down what really came over DDS during the demo.

``python -m g2vlm_ros.demo.nodes.demo_recorder OUT_DIR`` records until its standard input closes,
then writes
map.ply, map.png, poses.csv and recorder.json into OUT_DIR. Where a simulated camera tells the
truth as well, recorder.json has the errors, map.png both paths, and depth.png compares depths.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from g2vlm_ros.msg import ReconstructionStatus
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from g2vlm_ros.demo.nodes.ground_truth import GroundTruth
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.images.map_preview import picture
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.publishers import LATCHED

HEADROOM_M = 0.5
"""The picture leaves out what is this much above the cameras, so that one looks into rooms."""


class DemoRecorder(Node):
    """Counts every message of the perception node; keeps poses, latencies, the longest path.

    A new map starts path and map again; kept are those of the map with the most poses.
    """

    def __init__(self, perception: str = "/perception"):
        super().__init__("recorder")
        self.counts: Counter[str] = Counter()
        self.map = np.zeros((0, 5), np.float32)
        self.path = PathMessage()
        self._longest = True
        self.poses: list[PoseWithCovarianceStamped] = []
        self.truth = GroundTruth(self)
        self.latencies_s: list[float] = []
        self.stage_times_s: dict[str, list[float]] = {}
        self.status: ReconstructionStatus | None = None
        self.loops: dict[str, int] = {}
        """Tries to close a loop by outcome."""
        for kind, topic, keep, qos in (
            (PointCloud2, f"{perception}/points", self._keep_cloud, QoSProfile(depth=10)),
            (PoseWithCovarianceStamped, f"{perception}/pose", self.poses.append, 100),
            (PointCloud2, f"{perception}/map", self.keep_map, LATCHED),
            (PathMessage, f"{perception}/path", self.keep_path, LATCHED),
            (PoseArray, f"{perception}/window_poses", None, 10),
            (Image, f"{perception}/depth/image", self.truth.compare_depth, 10),
            (CameraInfo, f"{perception}/depth/camera_info", None, 10),
            (ReconstructionStatus, f"{perception}/status", self._keep_status, LATCHED),
            (TFMessage, "/tf", None, 100),
            (DiagnosticArray, "/diagnostics", self.keep_loops, 10),
        ):
            self.create_subscription(kind, topic, self._counted(topic, keep), qos)

    def _counted(self, topic, keep):
        def receive(message) -> None:
            self.counts[topic] += 1
            if keep is not None:
                keep(message)

        return receive

    def _keep_cloud(self, message: PointCloud2) -> None:
        stamp_ns = geometry.stamp_ns(message.header.stamp)
        self.latencies_s.append((self.get_clock().now().nanoseconds - stamp_ns) * 1e-9)

    def keep_map(self, message: PointCloud2) -> None:
        """`~/map`, of the map with the longest path."""
        if self._longest:
            self.map = np.frombuffer(message.data, np.float32).reshape(-1, 5)

    def keep_path(self, message: PathMessage) -> None:
        """`~/path`, where no longer one came before."""
        self._longest = len(message.poses) >= len(self.path.poses)
        if self._longest:
            self.path = message

    def keep_loops(self, message: DiagnosticArray) -> None:
        """How the tries to close a loop ended, from /diagnostics."""
        for task in message.status:
            if task.name.endswith(": loops"):
                self.loops = {pair.key: int(pair.value) for pair in task.values}

    def _keep_status(self, message: ReconstructionStatus) -> None:
        fresh = self.status is None or message.window_id != self.status.window_id
        self.status = message
        if fresh and message.window_id:
            for stage, seconds in zip(message.stage_names, message.stage_times_s, strict=True):
                self.stage_times_s.setdefault(stage, []).append(seconds)

    def write(self, out: Path) -> None:
        """Leave map.ply, map.png, poses.csv, recorder.json and perhaps depth.png in `out`."""
        points, confidence = self.map[:, :3], self.map[:, 4]
        bgr = np.ascontiguousarray(self.map[:, 3]).view(np.uint8).reshape(-1, 4)[:, :3]
        colours = np.ascontiguousarray(bgr[:, ::-1])
        point_cloud.write_ply(out / "map.ply", points, colours, confidence)
        point_cloud.write_poses_csv(
            out / "poses.csv", [self._pose_row(pose) for pose in self.poses]
        )
        path = {
            geometry.stamp_ns(pose.header.stamp): geometry.pose_matrix(pose.pose)
            for pose in self.path.poses
        }
        judged = self.truth.judge(path, points)
        lines = [np.stack(list(path.values()))[:, :3, 3]] if path else []
        if judged is not None:
            home_from_map = judged.track.home_from_map
            points, lines = (
                home_from_map.apply(points),
                [home_from_map.apply(judged.track.estimated), judged.track.true],
            )
            judged.depths.save(out / "depth.png")
        low = points[:, 2] < max((line[:, 2].max() for line in lines), default=0.0) + HEADROOM_M
        cv2.imwrite(str(out / "map.png"), picture(points[low], colours[low], *lines)[..., ::-1])
        summary = self.summary() | ({} if judged is None else {"accuracy": judged.scores})
        (out / "recorder.json").write_text(json.dumps(summary, indent=1))

    @staticmethod
    def _pose_row(message: PoseWithCovarianceStamped) -> tuple[int, str, str, np.ndarray]:
        pose = geometry.pose_matrix(message.pose.pose)
        return geometry.stamp_ns(message.header.stamp), "camera", message.header.frame_id, pose

    def summary(self) -> dict:
        """Messages per topic, windows and frames by the last status, times and latencies."""
        status = self.status or ReconstructionStatus()
        return {
            "received": dict(sorted(self.counts.items())),
            "frames_in": status.frames_received,
            "frames_used": status.frames_used,
            "frames_dropped": dict(
                zip(status.drop_reasons, map(int, status.drop_counts), strict=True)
            ),
            "windows": status.window_id,
            "maps": status.map_id + 1 if status.window_id else 0,
            "loops": self.loops,
            "scale_state": ["UNKNOWN", "RELATIVE", "METRIC"][status.scale_state],
            "model_version": status.model_version,
            "backend": status.backend,
            "stage_ms": {
                stage: _percentiles(times, 1e3) for stage, times in self.stage_times_s.items()
            },
            "latency_ms": _percentiles(self.latencies_s, 1e3),
        }


def _percentiles(values: list[float], factor: float) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95 = np.percentile(values, [50, 95]) * factor
    return {"p50": round(float(p50), 2), "p95": round(float(p95), 2)}


def main() -> int:
    """Record until standard input closes."""
    out = Path(sys.argv[1])
    rclpy.init(args=[])
    recorder = DemoRecorder()
    executor = SingleThreadedExecutor()
    executor.add_node(recorder)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    while not done.is_set():
        executor.spin_once(timeout_sec=0.2)
    recorder.write(out)
    recorder.destroy_node()
    rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
