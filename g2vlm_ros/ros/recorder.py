"""A separate subscriber that writes down what really came over DDS; the witness of the demo.

``python -m g2vlm_ros.ros.recorder OUT_DIR`` records until its standard input closes, then writes
cloud.ply, cloud.png, poses.csv and recorder.json into OUT_DIR.
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
from geometry_msgs.msg import PoseArray, PoseWithCovarianceStamped
from nav_msgs.msg import Path as PathMessage
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from g2vlm_ros.core import cloud
from g2vlm_ros.core.geometry import rotation_from_xyzw
from g2vlm_ros.core.picture import picture
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.ros import convert
from g2vlm_ros.ros.outputs import LATCHED

MAX_POINTS = 400_000


class Recorder(Node):
    """Counts every message of the perception node and keeps clouds, poses and latencies."""

    def __init__(self, perception: str = "/perception"):
        super().__init__("recorder")
        self.counts: Counter[str] = Counter()
        self.clouds: dict[int, np.ndarray] = {}
        self.poses: list[PoseWithCovarianceStamped] = []
        self.latencies_s: list[float] = []
        self.stage_times_s: dict[str, list[float]] = {}
        self.status: ReconstructionStatus | None = None
        for kind, topic, keep, qos in (
            (PointCloud2, f"{perception}/points", self._keep_cloud, QoSProfile(depth=10)),
            (PoseWithCovarianceStamped, f"{perception}/pose", self.poses.append, 100),
            (PathMessage, f"{perception}/path", None, LATCHED),
            (PoseArray, f"{perception}/window_poses", None, 10),
            (Image, f"{perception}/depth/image", None, 10),
            (CameraInfo, f"{perception}/depth/camera_info", None, 10),
            (ReconstructionStatus, f"{perception}/status", self._keep_status, LATCHED),
            (TFMessage, "/tf", None, 100),
            (DiagnosticArray, "/diagnostics", None, 10),
        ):
            self.create_subscription(kind, topic, self._counted(topic, keep), qos)

    def _counted(self, topic, keep):
        def receive(message) -> None:
            self.counts[topic] += 1
            if keep is not None:
                keep(message)

        return receive

    def _keep_cloud(self, message: PointCloud2) -> None:
        stamp_ns = convert.stamp_ns(message.header.stamp)
        self.latencies_s.append((self.get_clock().now().nanoseconds - stamp_ns) * 1e-9)
        points = np.frombuffer(message.data, np.float32).reshape(-1, 5)
        self.clouds[stamp_ns] = points[:: max(1, len(points) // 50_000)].copy()
        if sum(map(len, self.clouds.values())) > MAX_POINTS:
            self.clouds = {stamp: points[::2] for stamp, points in self.clouds.items()}

    def _keep_status(self, message: ReconstructionStatus) -> None:
        fresh = self.status is None or message.window_id != self.status.window_id
        if self.status is not None and message.sub_map_id != self.status.sub_map_id:
            # Clouds of another sub-map are in another frame; the new one's may be here already.
            first_ns = convert.stamp_ns(message.header.stamp)
            self.clouds = {s: points for s, points in self.clouds.items() if s >= first_ns}
        self.status = message
        if fresh and message.window_id:
            for stage, seconds in zip(message.stage_names, message.stage_times_s, strict=True):
                self.stage_times_s.setdefault(stage, []).append(seconds)

    def write(self, out: Path) -> None:
        """Leave cloud.ply, cloud.png, poses.csv and recorder.json in `out`."""
        packed = np.concatenate([np.zeros((0, 5), np.float32), *self.clouds.values()])
        points, confidence = packed[:, :3], packed[:, 4]
        bgr = np.ascontiguousarray(packed[:, 3]).view(np.uint8).reshape(-1, 4)[:, :3]
        colours = np.ascontiguousarray(bgr[:, ::-1])
        cloud.write_ply(out / "cloud.ply", points, colours, confidence)
        rows = [self._pose_row(message) for message in self.poses]
        path = np.array([row[3][:3, 3] for row in rows]) if rows else None
        image = picture(points, colours, path)
        cv2.imwrite(str(out / "cloud.png"), image[..., ::-1])
        cloud.write_poses_csv(out / "poses.csv", rows)
        (out / "recorder.json").write_text(json.dumps(self.summary(), indent=1))

    @staticmethod
    def _pose_row(message: PoseWithCovarianceStamped) -> tuple[int, str, str, np.ndarray]:
        pose, turn = np.eye(4), message.pose.pose.orientation
        pose[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
        place = message.pose.pose.position
        pose[:3, 3] = place.x, place.y, place.z
        return convert.stamp_ns(message.header.stamp), "camera", message.header.frame_id, pose

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
            "sub_maps": status.sub_map_id + 1 if status.window_id else 0,
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
    recorder = Recorder()
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
