# SPDX-License-Identifier: Apache-2.0
"""One session of the second half of `make demo`, in a process of its own: a drive that saves its
map, or one that finds itself in the map of another.

``python -m g2vlm_ros.demo.nodes.memory_session drive|return OUT`` leaves OUT/drive.json or
OUT/return.json. A detector that knows the truth hands boxes to the node, where a robot has
`query.detections_topic`: vision_msgs is not on PyPI.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import rclpy
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.srv import LoadMap, SaveMap
from geometry_msgs.msg import PoseWithCovarianceStamped
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Header

from g2vlm_ros.demo.nodes import demo_arguments
from g2vlm_ros.demo.nodes.run_demo import activate, demo_parameters, follow, parameters
from g2vlm_ros.demo.nodes.sim_camera_node import Moment, SimCamera
from g2vlm_ros.demo.sim import drive_metrics
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.ros.client.client import SpatialClient
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.end_signals import EndSignals
from g2vlm_ros.ros.perception_node import PerceptionNode
from g2vlm_ros.ros.publishers import LATCHED

MIN_PX = 60
"""Of a thing in a view, below which the detector overlooks it."""
POLL_S = 0.02
LIMIT_S = 300.0
"""Of a drive."""
SERVICE_S = 60.0
RETURN_SHARE = 0.4
"""Of the walk, after which the second drive begins: somewhere, not where the map begins."""
MAX_QUESTIONS = 6
CAMERA_FRAME = "camera_optical_frame"


class Onlooker(Node):
    """Hears poses and status over DDS, and asks for maps to be saved and loaded."""

    def __init__(self) -> None:
        super().__init__("onlooker")
        self.poses: dict[int, np.ndarray] = {}
        """map_from_camera (4, 4) by stamp."""
        self.statuses: list[ReconstructionStatus] = []
        self.create_subscription(
            PoseWithCovarianceStamped, "/perception/pose", self._keep_pose, 100
        )
        self.create_subscription(
            ReconstructionStatus, "/perception/status", self.statuses.append, LATCHED
        )
        self._save = self.create_client(SaveMap, "/perception/save_map")
        self._load = self.create_client(LoadMap, "/perception/load_map")

    def _keep_pose(self, message: PoseWithCovarianceStamped) -> None:
        self.poses[geometry.stamp_ns(message.header.stamp)] = geometry.pose_matrix(
            message.pose.pose
        )

    def save(self, path: Path) -> Any:
        """~/save_map; SystemExit with its sentence where it refuses."""
        return self._call(self._save, SaveMap.Request(path=str(path)))

    def load(self, path: Path) -> Any:
        """~/load_map, likewise."""
        return self._call(self._load, LoadMap.Request(path=str(path)))

    def _call(self, client: Any, request: Any) -> Any:
        if not client.wait_for_service(SERVICE_S):
            raise SystemExit(f"{client.srv_name} is not offered")
        done = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: done.set())
        if not done.wait(SERVICE_S):
            raise SystemExit(f"{client.srv_name} did not answer within {SERVICE_S:.0f} s")
        response = future.result()
        if not response.success:
            raise SystemExit(response.error_msg)
        return response


class TrueDetector(threading.Thread):
    """Boxes of what a simulated camera shows, in the layout of vision_msgs/Detection2DArray."""

    def __init__(self, home: Home, moments: dict[int, Moment], receive: Any):
        super().__init__(name="detector", daemon=True)
        self._home, self._moments, self._receive = home, moments, receive
        self._stopping = threading.Event()

    def run(self) -> None:
        """Each view once, as soon as it is there."""
        newest_ns = 0
        while not self._stopping.wait(POLL_S):
            for stamp_ns in [s for s in list(self._moments) if s > newest_ns]:
                newest_ns = stamp_ns
                header = Header(stamp=geometry.stamp(stamp_ns), frame_id=CAMERA_FRAME)
                boxes = [self._box(*thing) for thing in self.things(stamp_ns)]
                self._receive(SimpleNamespace(header=header, detections=boxes))

    def things(self, stamp_ns: int) -> list[tuple[str, np.ndarray]]:
        """Names with pixels (n, 2), row and column, of what a view shows."""
        items = self._moments[stamp_ns].items
        shown = ((self._home.items[i - 1].name, items == i) for i in np.unique(items) if i)
        return [
            (name, np.argwhere(mask))
            for name, mask in shown
            if name not in STRUCTURE and np.count_nonzero(mask) >= MIN_PX
        ]

    @staticmethod
    def _box(name: str, pixels: np.ndarray) -> SimpleNamespace:
        low, high = pixels.min(0), pixels.max(0)
        (v, u), (height, width) = (low + high) / 2, high - low + 1.0
        centre = SimpleNamespace(x=float(u), y=float(v))
        result = SimpleNamespace(hypothesis=SimpleNamespace(class_id=name, score=0.9))
        bbox = SimpleNamespace(center=centre, size_x=float(width), size_y=float(height))
        return SimpleNamespace(bbox=bbox, results=[result])

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self.join()


@dataclass(frozen=True)
class Recollection:
    """One thing that was asked for, from memory."""

    question: str
    answer: str
    remembered: bool
    """In no view now."""
    off_m: float | None
    """From the middle of the nearest thing of that name; None without an answer, or a thing."""
    std_m: float | None = None
    """By which the place is off as the answer says: root of the trace of its covariance."""


class Session:
    """Node, onlooker and, once it drives, camera and detector, spun by one executor."""

    def __init__(self, options: argparse.Namespace):
        self.options, self._signals = options, EndSignals()
        self.perception = PerceptionNode(parameter_overrides=parameters(demo_parameters(options)))
        self.onlooker = Onlooker()
        self._executor = MultiThreadedExecutor(num_threads=6)
        for node in (self.perception, self.onlooker):
            self._executor.add_node(node)
        self._spinning = threading.Thread(target=self._executor.spin, daemon=True)
        self._spinning.start()
        self.camera: SimCamera | None = None
        self._detector: TrueDetector | None = None
        activate(self.perception, self._signals)

    def start_driving(self, start_s: float = 0.0) -> SimCamera:
        """Along the walk from there on."""
        options = self.options
        values = {"home": options.home, "split": options.split, "legs": options.legs}
        values |= {"start_s": start_s}
        self.camera = camera = SimCamera(parameter_overrides=parameters(values))
        self._detector = TrueDetector(
            camera.scene.home, camera.moments, self.perception.queries.worker.detections.receive
        )
        self._detector.start()
        self._executor.add_node(camera)
        return camera

    def finish_drive(self) -> None:
        """Wait for its end."""
        start_s = time.monotonic()
        if not follow(self.perception, self.camera, start_s, LIMIT_S, self._signals):
            raise SystemExit("the drive was cut short")

    def close(self) -> None:
        """End the node, which forgets everything."""
        self.perception.trigger_shutdown()
        if self._detector is not None:
            self._detector.stop()
        if self.camera is not None:
            self._executor.remove_node(self.camera)
            self.camera.destroy_node()
        self._executor.shutdown()
        self._spinning.join(timeout=5)
        self.perception.destroy_node()


@contextmanager
def session(options: argparse.Namespace):
    """A Session in a context of rclpy of its own."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    live = Session(options)
    try:
        yield live
    finally:
        live.close()
        rclpy.try_shutdown()


def drive(options: argparse.Namespace) -> dict[str, Any]:
    """The first session: drive through the home, save the map."""
    with session(options) as live:
        camera = live.start_driving()
        live.finish_drive()
        saved = live.onlooker.save(options.out / "home.npz")
        true = {stamp: moment.world_from_camera for stamp, moment in camera.moments.items()}
        track = drive_metrics.track(live.onlooker.poses, true)
        if track is None:
            raise SystemExit("the drive gave too few poses to be judged")
        with SpatialClient() as robot:
            things = robot.find().objects
        return {
            "points": saved.points,
            "file_mib": round((options.out / "home.npz").stat().st_size / 2**20, 2),
            "things": sorted(thing.label for thing in things),
            "trajectory": track.scores(),
            "home_from_map": _as_lists(track.home_from_map),
            "path": track.estimated.tolist(),
            "walk_s": float(camera.scene.walk.time_s[-1]),
        }


def come_back(options: argparse.Namespace) -> dict[str, Any]:
    """The second session: a new node loads the map, finds itself, drives on, remembers."""
    before = json.loads((options.out / "drive.json").read_text())
    home_from_map = _as_sim3(before["home_from_map"])
    with session(options) as live:
        loaded = live.onlooker.load(options.out / "home.npz")
        camera = live.start_driving(RETURN_SHARE * before["walk_s"])
        live.finish_drive()
        localised = _localised(live.onlooker.statuses)
        answers = _recollections(camera, home_from_map)
        true = {stamp: moment.world_from_camera for stamp, moment in camera.moments.items()}
        off = _errors(live.onlooker.poses, true, home_from_map)
        found_ns = min(off, default=0)
        path = [live.onlooker.poses[stamp][:3, 3].tolist() for stamp in sorted(off)]
        return {
            "points": loaded.points,
            "localised": localised,
            "first_view_ns": min(camera.moments),
            "found_after_s": round((found_ns - min(camera.moments)) * 1e-9, 2) if off else None,
            "found_off": off.get(found_ns),
            "median_off": np.median(list(off.values()), axis=0).tolist() if off else None,
            "path": path,
            "answers": [asdict(each) for each in answers],
        }


def _localised(statuses: list[ReconstructionStatus]) -> list[str]:
    """What the statuses said, without repetitions."""
    said = [f"{s.localisation} by {s.localised_by}" for s in statuses]
    return [each for i, each in enumerate(said) if i == 0 or each != said[i - 1]]


def _errors(
    poses: dict[int, np.ndarray], true: dict[int, np.ndarray], home_from_map: Sim3
) -> dict[int, tuple[float, float]]:
    """Metres and degrees by which poses in the map are off, by stamp."""
    errors = {}
    for stamp_ns in poses.keys() & true.keys():
        pose = home_from_map.apply_pose(poses[stamp_ns])
        turn = pose[:3, :3].T @ true[stamp_ns][:3, :3]
        degrees = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1.0, 1.0)))
        metres = np.linalg.norm(pose[:3, 3] - true[stamp_ns][:3, 3])
        errors[stamp_ns] = round(float(metres), 3), round(float(degrees), 2)
    return errors


def _recollections(camera: SimCamera, home_from_map: Sim3) -> list[Recollection]:
    """Where each thing is of whose kind one is remembered."""
    home, answers = camera.scene.home, []
    with SpatialClient() as robot:
        labels = [thing.label for thing in robot.find().objects]
        for label in sorted({each for each in labels if labels.count(each) == 1}):
            question = f"Where did you see the {label}?"
            response = robot.ask(question, max_age_s=30.0, max_wait_s=10.0)
            if not response.success:
                answers.append(Recollection(question, response.error_msg, False, None))
                continue
            place = home_from_map.apply(geometry.position(response.pose.pose.position)[None])[0]
            centres = [item.centre_m for item in home.items if item.name in label]
            off_m = min(
                (round(float(np.linalg.norm(place - c)), 2) for c in centres), default=None
            )
            variances = np.asarray(response.position_covariance).reshape(3, 3).diagonal()
            std_m = round(float(np.sqrt(variances.sum())), 2)
            answers.append(
                Recollection(question, response.answer, response.remembered, off_m, std_m)
            )
            if len(answers) == MAX_QUESTIONS:
                break
    return answers


def _as_lists(move: Sim3) -> dict[str, Any]:
    return {
        "scale": move.scale,
        "rotation": move.rotation.tolist(),
        "translation": move.translation.tolist(),
    }


def _as_sim3(values: dict[str, Any]) -> Sim3:
    return Sim3(values["scale"], np.array(values["rotation"]), np.array(values["translation"]))


def main(arguments: list[str] | None = None) -> int:
    """Run one session and leave its JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("session", choices=("drive", "return"))
    parser.add_argument("out", type=Path)
    demo_arguments.add_walk(parser)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args(arguments)
    demo_arguments.check_paths(parser, options.out, options.checkpoint)
    options.out = options.out.resolve()
    options.images = options.width = None
    if options.session == "return":
        for name in ("drive.json", "home.npz"):
            if not (options.out / name).is_file():
                parser.error(f"{options.out} has no {name}; run the session 'drive' there first")
    result = drive(options) if options.session == "drive" else come_back(options)
    (options.out / f"{options.session}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
