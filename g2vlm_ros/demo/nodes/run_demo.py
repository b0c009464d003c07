# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a drive through a held-out simulated home, over real DDS, judged by the truth,
and then a robot that saves its map, and another that finds itself in it (`run_memory_demo`).

`sim_camera` (or `replay`, for photographs) and `perception` run in this process, the recorder in
one of its own: what it writes was received over DDS. Exit code 0 only if clouds and poses were,
and the second robot found itself. SIGINT, SIGTERM and SIGHUP end the drive: the report is of its
first part, the code 128 + signal.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import yaml

from g2vlm_ros.demo.nodes import demo_arguments, demo_report
from g2vlm_ros.parameter_schema import SettingError
from g2vlm_ros.ros.end_signals import EndSignals
from g2vlm_ros.ros.middleware import fastdds_profile

ROOT = Path(__file__).resolve().parents[3]
WRITE_S = 60.0
"""How long the recorder may take for its map, its pictures and its judgement."""
PROGRESS_S = 10.0
"""Between two lines of progress where nobody looks on at a terminal."""
INTERRUPTED = "interrupted (again: no report)"


def prepare_environment() -> None:
    """Loopback and a domain of our own, apart from a robot's; one BLAS thread (small matrices)."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("ROS_DOMAIN_ID", str(64 + os.getpid() % 30))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    profile = ROOT / "config" / fastdds_profile(os.environ)
    os.environ.setdefault("FASTDDS_DEFAULT_PROFILES_FILE", str(profile))
    os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profile))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; paths exist or argparse says which does not."""
    # `make` has other arguments: a mistake is one sentence, without this program's usage.
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser("make demo", description=about, usage=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help="folder or video in place of the home")
    demo_arguments.add_walk(parser)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "engines" / "demo")
    parser.add_argument("--view", action="store_true", help="show it in a browser as well")
    parser.add_argument("--out", type=Path, default=Path("demo_output"))
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rate-hz", type=float, default=4.0, help="photographs per second")
    parser.add_argument("--width", type=int, help="view width in the model, pixels")
    parser.add_argument("--limit-s", type=float, default=120.0, help="stop after this long")
    parser.add_argument(
        "--drive-only", action="store_true", help="without the saved map and who returns to it"
    )
    options = parser.parse_args(arguments)
    demo_arguments.check_paths(parser, options.out, options.images, options.checkpoint)
    return options


def check_pictures(path: Path) -> None:
    """SystemExit with a sentence where nothing can be played, before a model is loaded."""
    from g2vlm_ros.ros.replay.source import Recording

    try:
        Recording(str(path))
    except (ValueError, OSError) as error:
        raise SystemExit(f"make demo: {error}") from error


def run(options: argparse.Namespace, signals: EndSignals) -> dict:
    """Drive the camera through the node; returns the report. Needs a ROS 2 environment.

    SystemExit where the drive cannot begin, or a signal came before it did.
    """
    import rclpy
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from g2vlm_ros.ros.perception_node import PerceptionNode

    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        perception = PerceptionNode(parameter_overrides=parameters(demo_parameters(options)))
    except SettingError as error:
        raise SystemExit(f"make demo: {error}") from error
    executor = MultiThreadedExecutor(num_threads=4)
    executor.add_node(perception)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    recorder = subprocess.Popen(
        [sys.executable, "-m", "g2vlm_ros.demo.nodes.demo_recorder", str(options.out)],
        stdin=subprocess.PIPE,
        start_new_session=True,  # ends when its input closes, not by the terminal's Ctrl-C
    )
    view = _view() if options.view else None
    started = time.monotonic()
    questions = camera = None
    complete = True
    try:
        activate(perception, signals)
        _wait_for_recorder(perception, recorder, signals)
        try:
            camera = _camera(options)
        except SettingError as error:
            raise SystemExit(f"make demo: {error}") from error
        executor.add_node(camera)
        if options.images is None:
            questions = _interview(perception, camera)
        complete = follow(perception, camera, started, options.limit_s, signals)
    finally:
        if questions is not None:
            questions.stop()
        _close(recorder, signals)
        if view is not None:
            _wait_for_enter("the page stays until you press Enter", signals)
            view.terminate()
        perception.trigger_shutdown()
        if camera is not None:
            # It stops publishing before its context goes.
            executor.remove_node(camera)
            camera.destroy_node()
        executor.shutdown()
        spinning.join(timeout=5)
        perception.destroy_node()  # the second half has a node of the same name
        rclpy.try_shutdown()
    if not (options.out / "recorder.json").exists():
        if signals.again:
            raise SystemExit(signals.exit_code)
        raise SystemExit("the recorder failed; its error is above")
    report = json.loads((options.out / "recorder.json").read_text())
    (options.out / "recorder.json").unlink()
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scene = {"images": options.images.name} if options.images else {"home": options.home}
    return {
        **scene,
        "checkpoint": options.checkpoint.name,
        **report,
        "drive_complete": complete,
        **_questions(questions, options.out),
        "run_s": round(time.monotonic() - started, 1),
        "peak_memory_mb": round(peak_mb),
    }


def _close(recorder: subprocess.Popen, signals: EndSignals) -> None:
    """Let the recorder write what it has; a second signal leaves without it."""
    recorder.stdin.close()
    deadline = time.monotonic() + WRITE_S
    while recorder.poll() is None and not signals.again and time.monotonic() < deadline:
        time.sleep(0.05)
    if recorder.poll() is None:
        recorder.kill()
        recorder.wait()


def _questions(questions, out: Path) -> dict:
    """What was asked and how right the answers were; leaves answer.png."""
    if questions is None or not questions.asked:
        return {"questions": []}
    from g2vlm_ros.demo.nodes.demo_questions import summary
    from g2vlm_ros.ros.client.ask import save

    if questions.picture is not None:
        save(questions.picture, out / "answer.png")
    return {
        "language_trained": questions.speaks,
        "questions": [asdict(each) for each in questions.asked],
        "answers": summary(questions.asked),
    }


def demo_parameters(options: argparse.Namespace) -> dict:
    """config/demo.yaml with what the command line says on top."""
    from g2vlm_ros.parameter_schema import flattened

    document = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    values = flattened(document["/**/perception"]["ros__parameters"])
    values |= {
        "model.checkpoint": str(options.checkpoint.resolve()),
        "model.backend": options.backend,
    }
    if options.width:
        values["model.image_width_px"] = options.width
    if options.images is not None:
        values |= {
            "odometry_topic": "",
            "map.metres_per_unit": 0.0,
            "window.min_gap_s": 0.0,
            "window.max_age_s": 10.0 * max(1.0, 4.0 / options.rate_hz),
        }
    return values


def parameters(values: dict) -> list:
    from rclpy.parameter import Parameter

    return [Parameter(name, value=value) for name, value in values.items()]


def _camera(options: argparse.Namespace):
    """The node that publishes images, and is `finished` at some time."""
    if options.images is None:
        from g2vlm_ros.demo.nodes.sim_camera_node import SimCamera

        return SimCamera(
            parameter_overrides=parameters(
                {"home": options.home, "split": options.split, "legs": options.legs}
            )
        )
    from g2vlm_ros.ros.replay.replay_node import ReplayNode

    return ReplayNode(
        parameter_overrides=parameters({"path": str(options.images), "rate_hz": options.rate_hz})
    )


def _interview(perception, camera):
    from g2vlm_ros.demo.nodes.demo_questions import DemoQuestions

    asking = DemoQuestions(camera.scene.home, camera.moments, perception.newest_views_ns)
    asking.start()
    return asking


def _view() -> subprocess.Popen:
    from g2vlm_ros.ros.viewer import viewer_node

    try:
        return viewer_node.start(8080)
    except (OSError, RuntimeError) as error:
        raise SystemExit(str(error)) from None


def _wait_for_enter(sentence: str, signals: EndSignals) -> None:
    """Until somebody presses Enter, nobody is there who could, or the end is asked for."""
    if signals.asked:
        return
    print(sentence, end="", flush=True)
    while not signals.asked:
        if select.select([sys.stdin], [], [], 0.2)[0]:
            sys.stdin.readline()
            return


def _go_on(signals: EndSignals) -> None:
    """SystemExit with the signal's code where one has come."""
    if signals.asked:
        print("ended before the drive began", file=sys.stderr)
        raise SystemExit(signals.exit_code)


def activate(perception, signals: EndSignals) -> None:
    from rclpy.lifecycle import TransitionCallbackReturn

    for transition in (perception.trigger_configure, perception.trigger_activate):
        if transition() != TransitionCallbackReturn.SUCCESS:
            raise SystemExit("the perception node did not start; its log above says why")
        _go_on(signals)


def _wait_for_recorder(perception, recorder: subprocess.Popen, signals: EndSignals) -> None:
    """Nothing may be published before the recorder listens."""
    deadline = time.monotonic() + 30
    while not perception.listened_to():
        _go_on(signals)
        if time.monotonic() > deadline or recorder.poll() is not None:
            raise SystemExit("the recorder did not connect over DDS within 30 s")
        time.sleep(0.05)


def follow(perception, camera, started: float, limit_s: float, signals: EndSignals) -> bool:
    """A progress line until the camera has ended and the device has rested for two seconds.

    False, and said, where `limit_s` were over or a signal came first.
    """
    quiet, on_screen = 0, sys.stderr.isatty()
    shown_s = 0.0
    while quiet < 10:
        counts, spent_s = perception.counts(), time.monotonic() - started
        if on_screen or spent_s - shown_s >= PROGRESS_S:
            shown_s = spent_s
            line = f"{spent_s:5.1f} s  frames {counts.received:4d}  windows {counts.windows:4d}"
            end = "" if on_screen else "\n"
            print("\r" * on_screen + line, end=end, flush=True, file=sys.stderr)
        if spent_s >= limit_s or signals.asked:
            over = f"{limit_s:.0f} s are over (--limit-s)" if spent_s >= limit_s else INTERRUPTED
            print(
                f"\nthe drive is cut short: {over}; what follows is of its first part",
                file=sys.stderr,
            )
            return False
        quiet = quiet + 1 if camera.finished and perception.idle() else 0
        signals.wait(0.2)
    print(file=sys.stderr)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run, write the report, say in a few lines what was received."""
    options = parse(arguments)
    prepare_environment()
    if options.images is not None:
        check_pictures(options.images)
    print(
        f"checkpoint {options.checkpoint.name}: a small one of ours. It knows simulated homes "
        "only; on anything else its geometry means nothing"
    )
    signals = EndSignals()
    report = run(options, signals)
    demo_report.write(report, options.out)
    received = demo_report.show_drive(report, options.out)
    lines, complete = [demo_report.drive_summary(report)], received
    if options.images is None and not options.drive_only and not signals.asked:
        from g2vlm_ros.demo.nodes import run_memory_demo

        print("now a robot that saves its map and ends, and one that returns to it", flush=True)
        report["memory"] = run_memory_demo.run(_memory_options(options), signals)
        demo_report.write(report, options.out)
        lines.append(run_memory_demo.summary(report["memory"]))
        complete = received and report["memory"]["found_off"] is not None
    print(*lines, f"see {options.out}: report.json, maps and pictures", sep="\n")
    return signals.exit_code or (0 if complete else 1)


def _memory_options(options: argparse.Namespace) -> argparse.Namespace:
    """The same home and checkpoint; files in a folder of their own."""
    return argparse.Namespace(**{**vars(options), "out": options.out / "memory"})


if __name__ == "__main__":
    raise SystemExit(main())
