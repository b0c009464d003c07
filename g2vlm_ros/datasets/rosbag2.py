# SPDX-License-Identifier: Apache-2.0
"""A rosbag2 folder, `.mcap` or `.db3` file with pictures, camera_info and true poses on a topic.

Read by `rosbags`, without ROS. The truth may be PoseStamped, PoseWithCovarianceStamped, Odometry
or TransformStamped; where it is that of another frame than the camera's, `/tf_static` of the
recording must tie the two. Poses without such a frame count as the camera's (optical axes).
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from g2vlm_ros.datasets.picture_files import Undistortion, pose
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceFrame,
    TrueTrajectory,
    finished_sequence,
    without_truth,
)
from g2vlm_ros.images import decoding
from g2vlm_ros.records import Intrinsics

FORMAT = "rosbag2 / MCAP"
SUFFIXES = (".mcap", ".db3")
METADATA = "metadata.yaml"
PICTURES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
CALIBRATION = "sensor_msgs/msg/CameraInfo"
TRUTHS = (
    "geometry_msgs/msg/PoseStamped",
    "geometry_msgs/msg/PoseWithCovarianceStamped",
    "geometry_msgs/msg/TransformStamped",
    "nav_msgs/msg/Odometry",
)
DEPTH_ENCODINGS = {"16UC1": (np.uint16, 1e-3), "mono16": (np.uint16, 1e-3), "32FC1": ("f4", 1.0)}
"""Numbers of a depth image and metres per count (REP-118)."""
MAX_DEPTH_LAG_NS = 20_000_000
DAMAGE = (AssertionError, AttributeError, LookupError, MemoryError, OverflowError, RuntimeError)
DAMAGE += (TypeError, sqlite3.Error, struct.error)
"""What rosbags lets out of damaged recordings beside its own errors, found by `make fuzz`."""
FISHEYE_MODELS = ("equidistant", "fisheye")


def recognises(path: Path) -> bool:
    """A folder with metadata.yaml or files of a recording, or a recording by its suffix."""
    return path.suffix in SUFFIXES or (path / METADATA).is_file() or bool(_files(path))


def read(path: Path, options: ReaderOptions) -> PosedSequence:
    """Pictures of one topic; those without a true pose at their time are left out.

    Pictures and depth are read again from the recording when they are asked for.
    """
    path = _recording(path)
    with _reader(path) as bag:
        topics = {c.topic: c.msgtype for c in bag.connections if c.msgcount}
        depth_topic = options.depth_topic
        pictures = {t for t, kind in topics.items() if kind in PICTURES and not _is_depth(bag, t)}
        image_topic = _only(path, options.image_topic, pictures, "image topic", "--image-topic")
        truth_topic = _only(
            path,
            options.truth_topic,
            {t for t, kind in topics.items() if kind in TRUTHS},
            "topic of true poses",
            "--truth-topic",
        )
        info = _first(bag, _info_topic(image_topic))
        if info is None:
            raise SequenceError(
                f"{path} has no calibration of {image_topic}: record {_info_topic(image_topic)}"
            )
        camera, undistort = _calibration(path, info)
        truth, tracked_frame = _truth(bag, truth_topic)
        camera_frame = info.header.frame_id
        mount = _mount(bag, path, tracked_frame, camera_frame)
        stamps = [(_stamp_ns(m, at_ns), at_ns) for at_ns, m in _messages(bag, image_topic)]
        depths = []
        if depth_topic:
            _only(path, depth_topic, set(topics), "depth topic", "--depth-topic")
            depths = [(_stamp_ns(m, at_ns), at_ns) for at_ns, m in _messages(bag, depth_topic)]
    depth_ns = np.array([ns for ns, _ in depths], dtype=np.int64)
    frames, missing = [], 0
    for stamp_ns, at_ns in sorted(stamps):
        world_from_tracked = truth.at(stamp_ns)
        if world_from_tracked is None:
            missing += 1
            continue
        loader = None
        if len(depths):
            near = int(np.argmin(np.abs(depth_ns - stamp_ns)))
            if abs(int(depth_ns[near]) - stamp_ns) <= MAX_DEPTH_LAG_NS:
                loader = partial(_load, path, depth_topic, depths[near][1], _depth)
        image = partial(_load, path, image_topic, at_ns, partial(_picture, undistort))
        frames.append(
            SequenceFrame(stamp_ns, "camera", image, world_from_tracked @ mount, camera, loader)
        )
    return finished_sequence(path, FORMAT, frames, without_truth(missing, truth.source))


def _files(folder: Path) -> list[Path]:
    """Files of a recording in a folder."""
    return sorted(path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}"))


def _recording(path: Path) -> Path:
    """The recording, or its only file where the recorder did not live to write metadata.yaml."""
    if not path.is_dir() or (path / METADATA).is_file():
        return path
    files = _files(path)
    if len(files) > 1:
        raise SequenceError(
            f"{path} has no {METADATA} and {len(files)} files; run: ros2 bag reindex {path}"
        )
    return files[0]


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    """An open reader that also decodes; what rosbags raises becomes one sentence."""
    try:
        from rosbags.highlevel import AnyReader, AnyReaderError
        from rosbags.rosbag2 import ReaderError
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise SequenceError(
            f"{path} is a recording and needs the PyPI package rosbags: pip install rosbags"
        ) from error
    try:
        with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as bag:
            yield bag
    except (AnyReaderError, ReaderError, *DAMAGE) as error:
        raise SequenceError(f"{path} cannot be read as a recording: {error}") from error


def _only(path: Path, name: str, topics: set[str], what: str, option: str) -> str:
    """The wanted topic, or the only one there is."""
    listed = ", ".join(sorted(topics)) or "none"
    if name and "/" + name.lstrip("/") not in topics:
        raise SequenceError(f"{path} has no {what} {name!r}; there are: {listed}")
    if name:
        return "/" + name.lstrip("/")
    if len(topics) != 1:
        raise SequenceError(
            f"{path} must have one {what}, or {option} name it; there are: {listed}"
        )
    return next(iter(topics))


def _messages(bag: Any, topic: str) -> Iterator[tuple[int, Any]]:
    """(time of receipt, message) of a topic."""
    connections = [c for c in bag.connections if c.topic == topic]
    for connection, at_ns, data in bag.messages(connections) if connections else ():
        yield at_ns, bag.deserialize(data, connection.msgtype)


def _first(bag: Any, topic: str) -> Any | None:
    return next((message for _, message in _messages(bag, topic)), None)


def _is_depth(bag: Any, topic: str) -> bool:
    """Whether the first image of a topic is one of depths."""
    return getattr(_first(bag, topic), "encoding", "") in ("16UC1", "32FC1")


def _info_topic(image_topic: str) -> str:
    """Where the calibration of an image topic goes by ROS custom: camera_info beside the image."""
    return image_topic.removesuffix("/compressed").rpartition("/")[0] + "/camera_info"


def _stamp_ns(message: Any, at_ns: int) -> int:
    """Time of acquisition, or of receipt where the header has none."""
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec or at_ns


def _calibration(path: Path, info: Any) -> tuple[Intrinsics, Undistortion | None]:
    k, coefficients = np.asarray(info.k), np.asarray(info.d, dtype=np.float64)
    try:
        camera = Intrinsics(k[0], k[4], k[2], k[5], int(info.width), int(info.height))
    except ValueError as error:
        raise SequenceError(f"{path}: camera_info is no calibration: {error}") from error
    fisheye = info.distortion_model in FISHEYE_MODELS
    bent = len(coefficients) and (fisheye or coefficients.any())
    return camera, Undistortion(camera, coefficients, fisheye) if bent else None


def _truth(bag: Any, topic: str) -> tuple[TrueTrajectory, str]:
    """Poses by the stamps of their headers, and the frame that they are of, "" if none."""
    stamps_ns, poses, frame = [], [], ""
    for at_ns, message in _messages(bag, topic):
        stamps_ns.append(_stamp_ns(message, at_ns))
        poses.append(_pose(message))
        frame = getattr(message, "child_frame_id", "")
    order = np.argsort(stamps_ns, kind="stable")
    stacked = np.array(poses).reshape(-1, 4, 4)[order]
    return TrueTrajectory(np.array(stamps_ns, np.int64)[order], stacked, topic), frame


def _pose(message: Any) -> np.ndarray:
    body = getattr(message, "transform", None) or message.pose
    body = getattr(body, "pose", body)
    place = getattr(body, "translation", None) or body.position
    turn = getattr(body, "rotation", None) or body.orientation
    try:
        return pose(
            np.array([place.x, place.y, place.z]), np.array([turn.x, turn.y, turn.z, turn.w])
        )
    except ValueError as error:
        raise SequenceError(f"a true pose is no pose: {error}") from error


def _mount(bag: Any, path: Path, tracked: str, camera: str) -> np.ndarray:
    """tracked_from_camera (4, 4) by /tf_static."""
    if not tracked or tracked == camera:
        return np.eye(4)
    edges: dict[str, list[tuple[str, np.ndarray]]] = {}
    for _, message in _messages(bag, "/tf_static"):
        for each in message.transforms:
            parent, child = each.header.frame_id, each.child_frame_id
            edges.setdefault(parent, []).append((child, _pose(each)))
            edges.setdefault(child, []).append((parent, np.linalg.inv(_pose(each))))
    reached, waiting = {tracked: np.eye(4)}, [tracked]
    while waiting:
        here = waiting.pop()
        for there, move in edges.get(here, []):
            if there not in reached:
                reached[there] = reached[here] @ move
                waiting.append(there)
    if camera not in reached:
        raise SequenceError(
            f"{path}: the true poses are of '{tracked}' and /tf_static does not tie it to the "
            f"camera's frame '{camera}'"
        )
    return reached[camera]


def _load(path: Path, topic: str, at_ns: int, decode: Callable[[Any], np.ndarray]) -> np.ndarray:
    """One message of a topic, by its time of receipt, decoded."""
    with _reader(path) as bag:
        connections = [c for c in bag.connections if c.topic == topic]
        for connection, _, data in bag.messages(connections, start=at_ns, stop=at_ns + 1):
            return decode(bag.deserialize(data, connection.msgtype))
    raise SequenceError(f"{path} no longer has the message of {topic} at {at_ns}")


def _picture(undistort: Undistortion | None, message: Any) -> np.ndarray:
    if hasattr(message, "encoding"):
        image = decoding.decode(
            message.data, message.encoding, message.width, message.height, message.step,
            bool(message.is_bigendian),
        )  # fmt: skip
    else:
        image = decoding.decode_compressed(message.data, message.format)
    return image if undistort is None else undistort(image)


def _depth(message: Any) -> np.ndarray:
    if message.encoding not in DEPTH_ENCODINGS:
        raise SequenceError(f"a depth image has encoding {message.encoding!r}; 16UC1 or 32FC1")
    dtype, metres = DEPTH_ENCODINGS[message.encoding]
    kind = np.dtype(dtype).newbyteorder(">" if message.is_bigendian else "<")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    counts = rows[:, : message.width * kind.itemsize].copy().view(kind)
    depth_m = counts.astype(np.float32) * np.float32(metres)
    return np.where(np.isfinite(depth_m), depth_m, 0)
