# SPDX-License-Identifier: Apache-2.0
"""Four cameras of 1280x720 at 30 Hz for a minute: does the node keep up, and at what price?

A second process publishes rgb8 images; the node runs in this one with nobody listening, so that
what is measured is everything but the model: DDS, rclpy, checks, window buffer. Reported: frames
sent and received, and the node's CPU seconds per second (1.0 = one core).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.record import record
from benchmarks.running_node import running_node
from g2vlm_ros.ros.middleware import fastdds_profile

ROOT = Path(__file__).resolve().parents[1]
CAMERAS = ["front", "left", "right", "rear"]
SURPLUS = ("too_close", "superseded", "too_old")
"""What becomes of good frames when no window takes them."""
WIDTH_PX, HEIGHT_PX, RATE_HZ = 1280, 720, 30.0


def publish(seconds: float) -> None:
    """The cameras: all four images at each tick, stamped now; prints how many were sent."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init(args=[])
    node = rclpy.create_node("cameras")
    publishers = [
        node.create_publisher(Image, f"{camera}/image_raw", qos_profile_sensor_data)
        for camera in CAMERAS
    ]
    message = Image(
        height=HEIGHT_PX,
        width=WIDTH_PX,
        encoding="rgb8",
        step=3 * WIDTH_PX,
        data=bytes(3 * WIDTH_PX * HEIGHT_PX),
    )
    while any(p.get_subscription_count() == 0 for p in publishers):
        time.sleep(0.05)
    time.sleep(0.5)
    start, ticks, late = time.monotonic(), int(seconds * RATE_HZ), 0
    for tick in range(ticks):
        wait = start + tick / RATE_HZ - time.monotonic()
        late += wait < -1 / RATE_HZ
        time.sleep(max(0.0, wait))
        message.header.stamp = node.get_clock().now().to_msg()
        for publisher in publishers:
            publisher.publish(message)
    print(ticks * len(CAMERAS), late, time.monotonic() - start, flush=True)
    time.sleep(1.0)


def measure(seconds: float) -> dict:
    """Run the node against the cameras."""
    settings = {
        "cameras": CAMERAS,
        "model.checkpoint": str(ROOT / "test" / "data" / "golden" / "A"),
        "model.image_width_px": 56,
        "model.backend": "torch",
        "window.views": 8,
        "window.overlap": 1,
    }
    with running_node(settings, threads=4) as node:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        cameras = subprocess.run(
            [sys.executable, "-m", "benchmarks.stream", "--publish", str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        wall_s, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
        counts = node.counts()
    sent, late, streamed_s = cameras.stdout.split()[-3:]
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": seconds,
        "frames_sent": int(sent),
        "publisher_ticks_late": int(late),
        "frames_received": counts.received,
        "frames_lost_before_the_node": int(sent) - counts.received,
        "frames_refused_by_the_node": sum(
            n for reason, n in counts.dropped.items() if reason not in SURPLUS
        ),
        "dropped_by_reason": dict(counts.dropped),
        "node_cpu_cores": round(cpu_s / float(streamed_s), 3),
        "megabytes_per_s": round(int(sent) * 3 * WIDTH_PX * HEIGHT_PX / 1e6 / float(streamed_s)),
        "wall_s": round(wall_s, 1),
        "peak_memory_mb": round(after.ru_maxrss / 1024),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure and record, or be the cameras."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--publish", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.publish:
        publish(options.publish)
        return 0
    os.environ.setdefault("ROS_DOMAIN_ID", str(64 + os.getpid() % 30))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    for variable in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        os.environ[variable] = str(ROOT / "config" / fastdds_profile(os.environ))
    with tempfile.TemporaryDirectory() as logs:
        os.environ["ROS_LOG_DIR"] = logs
        result = measure(options.seconds)
    print(record("stream", result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
