# SPDX-License-Identifier: Apache-2.0
"""Camera frames of a rosbag2 or MCAP recording, read by `rosbags`: no rosbag2 installation needed.

Messages stay as they were recorded; only their stamp is read.
"""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

PICTURES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
BAG_SUFFIXES = frozenset((".mcap", ".db3"))
STORAGES = ("sqlite3", "mcap")
STORAGE_LINE = re.compile(r"^\s*storage_identifier:\s*[\"']?([^\"'\s]*)", re.M)
REFUSED = {
    ".bag": "is a ROS 1 recording; convert it: pip install rosbags, then rosbags-convert --src "
    "FILE.bag --dst FOLDER",
    ".db3.zstd": "is a compressed file of a recording; unpack it: zstd -d FILE.db3.zstd",
    ".mcap.zstd": "is a compressed file of a recording; unpack it: zstd -d FILE.mcap.zstd",
}
"""What is recorded but cannot be played as it is, and the remedy."""


DAMAGE = (AssertionError, AttributeError, LookupError, MemoryError, OverflowError, RuntimeError)
DAMAGE += (TypeError, sqlite3.Error, struct.error)
"""What rosbags lets out of damaged recordings beside its own errors, found by `make fuzz`."""


class Shot(NamedTuple):
    """One recorded picture: time of acquisition, message as recorded, calibration if recorded."""

    stamp_ns: int
    picture: Image | CompressedImage
    camera_info: CameraInfo | None


@dataclass(frozen=True)
class Bag:
    """The frames of one image topic, with the newest CameraInfo recorded beside it."""

    path: Path
    topic: str
    info_topic: str
    """Empty where nothing was recorded on it."""
    length: int
    skipped: tuple[str, ...] = ()
    stamps: str = "headers of the recorded messages"

    def __iter__(self) -> Iterator[Shot]:
        """Shots in the order of recording; a picture without a stamp gets the time of receipt."""
        with _reader(self.path) as reader:
            info = self._first_info(reader)
            for kind, received_ns, message in self._messages(reader):
                if kind is CameraInfo:
                    info = message
                else:
                    stamp_ns = _stamp_ns(message) or received_ns
                    yield Shot(stamp_ns, message, info)

    def _messages(self, reader: Any) -> Iterator[tuple[type, int, Any]]:
        connections = [c for c in reader.connections if c.topic in (self.topic, self.info_topic)]
        for connection, received_ns, data in reader.messages(connections):
            kind = PICTURES.get(connection.msgtype, CameraInfo)
            yield kind, received_ns, deserialize_message(bytes(data), kind)

    def _first_info(self, reader: Any) -> CameraInfo | None:
        """Calibration for the pictures that come before the first CameraInfo."""
        connections = [
            c for c in reader.connections if self.info_topic and c.topic == self.info_topic
        ]
        if not connections:
            return None
        first = next(iter(reader.messages(connections)), None)
        return first and deserialize_message(bytes(first[2]), CameraInfo)


def is_bag(path: Path) -> bool:
    """Whether `path` looks like a recording, one that cannot be played included."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return path.suffix in BAG_SUFFIXES or any(path.name.endswith(end) for end in REFUSED)


def _storage_files(folder: Path) -> list[Path]:
    """Files of a folder that hold recorded messages, compressed ones included."""
    ends = (*BAG_SUFFIXES, *(end for end in REFUSED if end != ".bag"))
    return sorted(path for path in folder.iterdir() if path.name.endswith(ends))


def _playable(path: Path) -> Path:
    """The recording itself, or its only file where metadata.yaml is missing.

    ValueError with the command that makes it playable.
    """
    if path.is_dir() and not (path / "metadata.yaml").is_file():
        files = _storage_files(path)
        if len(files) != 1:
            names = ", ".join(file.name for file in files)
            raise ValueError(
                f"{path} has no metadata.yaml (the recorder did not end in order) and several "
                f"files ({names}); run: ros2 bag reindex {path}"
            )
        path = files[0]
    for end, advice in REFUSED.items():
        if path.name.endswith(end) and path.is_file():
            raise ValueError(f"{path} {advice}")
    metadata = path / "metadata.yaml"
    if metadata.is_file():
        named = STORAGE_LINE.search(metadata.read_text())
        if named is None or named[1] not in STORAGES:
            raise ValueError(
                f"{metadata} has storage_identifier '{named[1] if named else ''}'; it must be one "
                f"of {', '.join(STORAGES)}"
            )
    return path


def open_bag(path: Path, topic: str = "") -> Bag:
    """The frames of `topic`, or of the only image topic there is.

    FileNotFoundError or ValueError say what is wrong with the recording, or list its image topics.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a rosbag2 folder, .mcap or .db3 file"
        )
    path = _playable(path)
    with _reader(path) as reader:
        connections = list(reader.connections)
    counts: dict[str, int] = {}
    for connection in connections:
        if connection.msgtype in PICTURES:
            counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
    image_topic = _choose(path, counts, topic)
    info_topic = _info_topic(image_topic)
    kinds = {c.topic: c.msgtype for c in connections}
    has_info = kinds.get(info_topic) == "sensor_msgs/msg/CameraInfo"
    return Bag(path, image_topic, info_topic if has_info else "", counts[image_topic])


def _choose(path: Path, counts: dict[str, int], topic: str) -> str:
    listed = ", ".join(f"{name} ({count} messages)" for name, count in sorted(counts.items()))
    if not listed:
        raise ValueError(
            f"{path} holds no image topic; record sensor_msgs Image or CompressedImage"
        )
    if topic:
        full_name = "/" + topic.lstrip("/")
        if full_name not in counts:
            raise ValueError(f"topic is '{topic}' but the image topics of {path} are: {listed}")
        choice = full_name
    elif len(counts) > 1:
        raise ValueError(f"{path} holds several image topics; set topic to one of: {listed}")
    else:
        choice = next(iter(counts))
    if not counts[choice]:
        raise ValueError(f"{choice} in {path} holds no messages; choose another recording")
    return choice


def _info_topic(image_topic: str) -> str:
    """Where the calibration of an image topic goes by ROS custom: camera_info beside the image."""
    base = image_topic.removesuffix("/compressed")
    return base.rpartition("/")[0] + "/camera_info"


def _stamp_ns(message: Image | CompressedImage) -> int:
    stamp = message.header.stamp
    return stamp.sec * 1_000_000_000 + stamp.nanosec


@contextmanager
def _reader(path: Path) -> Iterator[Any]:
    """An open reader; what rosbags raises on damaged recordings becomes one ValueError."""
    try:
        from rosbags.rosbag2 import Reader, ReaderError
    except ImportError as error:
        raise ValueError(
            f"{path} is a recording and needs the PyPI package rosbags: pip install rosbags"
        ) from error
    try:
        with Reader(path) as reader:
            yield reader
    except (ReaderError, *DAMAGE) as error:
        remedy = ""
        storage = [path] if path.is_file() else _storage_files(path)
        cut = [file for file in storage if file.suffix == ".mcap"]
        if "missing" in str(error):
            remedy = f"; where files were renamed, run: ros2 bag reindex {path}"
        elif cut:
            remedy = f"; where it was cut off, run: mcap recover {cut[-1]} -o recovered.mcap"
        raise ValueError(f"{path} cannot be read as a recording: {error}{remedy}") from error
