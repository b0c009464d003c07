"""``make demo``: photographs through the real node over real DDS, and a report of what arrived.

`replay` and `perception` run in this process, the recorder in one of its own: what it writes was
received over DDS. Exit code 0 only if clouds and poses were received.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLOUD, POSE = "/perception/points", "/perception/pose"


def prepare_environment() -> None:
    """Loopback and a domain of our own, apart from a robot's; one BLAS thread (small matrices)."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("ROS_DOMAIN_ID", str(64 + os.getpid() % 30))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    profile = ROOT / "config" / "fastdds.xml"
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; paths exist or argparse says which does not."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.split("\n")[0])
    data = ROOT / "test" / "data"
    parser.add_argument("--images", type=Path, default=data / "frames", help="folder or video")
    parser.add_argument("--checkpoint", type=Path, default=data / "golden" / "A")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rate-hz", type=float, default=4.0, help="frames per second")
    parser.add_argument("--width", type=int, default=140, help="view width in the model, pixels")
    parser.add_argument("--limit-s", type=float, default=60.0, help="stop after this long")
    chosen = parser.parse_args(arguments)
    for path in (chosen.images, chosen.checkpoint):
        if not path.exists():
            parser.error(f"{path} does not exist")
    return chosen


def run(chosen: argparse.Namespace) -> dict:
    """Replay the images through the node; returns the report. Needs a ROS 2 environment."""
    import rclpy
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.node import PerceptionNode
    from g2vlm_ros.ros.replay import ReplayNode

    rclpy.init(args=[])
    settings = {
        "model.checkpoint": str(chosen.checkpoint),
        "model.backend": chosen.backend,
        "model.image_width_px": chosen.width,
        "cloud.stride_px": 2,
        # The random weights make nothing but depth steps; a trained checkpoint needs the filter.
        "cloud.max_edge_step": 0.0,
        "window.min_gap_s": 0.0,
        "window.max_age_s": 10.0 * max(1.0, 4.0 / chosen.rate_hz),
    }
    perception = PerceptionNode(
        parameter_overrides=[Parameter(name, value=value) for name, value in settings.items()]
    )
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(perception)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    recorder = subprocess.Popen(
        [sys.executable, "-m", "g2vlm_ros.ros.recorder", str(chosen.out)], stdin=subprocess.PIPE
    )
    started = time.monotonic()
    try:
        _activate(perception)
        _wait_for_recorder(perception, recorder)
        replay = ReplayNode(
            parameter_overrides=[
                Parameter("path", value=str(chosen.images)),
                Parameter("rate_hz", value=chosen.rate_hz),
            ]
        )
        executor.add_node(replay)
        _follow(perception, replay, started, chosen.limit_s)
    finally:
        recorder.communicate(timeout=60)
        perception.trigger_shutdown()
        executor.shutdown()
        spinning.join(timeout=5)
        rclpy.try_shutdown()
    report = json.loads((chosen.out / "recorder.json").read_text())
    (chosen.out / "recorder.json").unlink()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": chosen.images.name,
        "checkpoint": chosen.checkpoint.name,
        **report,
        "run_s": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(peak_mb),
    }


def _activate(perception) -> None:
    from rclpy.lifecycle import TransitionCallbackReturn

    for transition in (perception.trigger_configure, perception.trigger_activate):
        if transition() != TransitionCallbackReturn.SUCCESS:
            raise SystemExit("the perception node did not start; its log above says why")


def _wait_for_recorder(perception, recorder: subprocess.Popen) -> None:
    """Nothing may be published before the recorder listens."""
    deadline = time.monotonic() + 30
    while not perception.listened_to():
        if time.monotonic() > deadline or recorder.poll() is not None:
            raise SystemExit("the recorder did not connect over DDS within 30 s")
        time.sleep(0.05)


def _follow(perception, replay, started: float, limit_s: float) -> None:
    """A progress line until the recording has ended and the device has rested for a second."""
    quiet = 0
    while quiet < 5 and time.monotonic() - started < limit_s:
        counts, spent_s = perception.counts(), time.monotonic() - started
        line = f"\r{spent_s:5.1f} s  frames {counts.received:4d}  windows {counts.windows:4d}"
        print(line, end="", flush=True, file=sys.stderr)
        quiet = quiet + 1 if replay.finished and perception.idle() else 0
        time.sleep(0.2)
    print(file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run, write the report, say in a few lines what was received."""
    chosen = parse(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    prepare_environment()
    print(
        f"checkpoint {chosen.checkpoint.name}: tiny, with random weights. Its geometry means "
        "nothing; what is shown is the way from camera to topics"
    )
    report = run(chosen)
    path = chosen.out / "report.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    clouds, poses = report["received"].get(CLOUD, 0), report["received"].get(POSE, 0)
    print(f"received over DDS: {clouds} clouds, {poses} poses of {report['frames_in']} frames")
    print(f"see {path}, cloud.png, cloud.ply and poses.csv beside it")
    return 0 if clouds and poses else 1


if __name__ == "__main__":
    raise SystemExit(main())
