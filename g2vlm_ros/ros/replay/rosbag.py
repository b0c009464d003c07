# SPDX-License-Identifier: Apache-2.0
"""Camera frames of a rosbag2 or MCAP recording, read by `rosbags`: no rosbag2 installation needed.

Messages stay as they were recorded; only their stamp is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

PICTURES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
BAG_SUFFIXES = frozenset((".mcap", ".db3"))


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
        wanted = [c for c in reader.connections if c.topic in (self.topic, self.info_topic)]
        for connection, received_ns, data in reader.messages(wanted):
            kind = PICTURES.get(connection.msgtype, CameraInfo)
            yield kind, received_ns, deserialize_message(bytes(data), kind)

    def _first_info(self, reader: Any) -> CameraInfo | None:
        """Calibration for the pictures that come before the first CameraInfo."""
        wanted = [c for c in reader.connections if self.info_topic and c.topic == self.info_topic]
        if not wanted:
            return None
        first = next(iter(reader.messages(wanted)), None)
        return first and deserialize_message(bytes(first[2]), CameraInfo)


def is_bag(path: Path) -> bool:
    """Whether `path` looks like a recording: a folder with metadata.yaml, .mcap or .db3."""
    return path.suffix in BAG_SUFFIXES or (path / "metadata.yaml").is_file()


def open_bag(path: Path, topic: str = "") -> Bag:
    """The frames of `topic`, or of the only image topic there is.

    FileNotFoundError or ValueError say what is wrong with the recording, or list its image topics.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a rosbag2 folder, .mcap or .db3 file"
        )
    with _reader(path) as reader:
        connections = list(reader.connections)
    counts: dict[str, int] = {}
    for connection in connections:
        if connection.msgtype in PICTURES:
            counts[connection.topic] = counts.get(connection.topic, 0) + connection.msgcount
    chosen = _choose(path, counts, topic)
    info_topic = _info_topic(chosen)
    kinds = {c.topic: c.msgtype for c in connections}
    has_info = kinds.get(info_topic) == "sensor_msgs/msg/CameraInfo"
    return Bag(path, chosen, info_topic if has_info else "", counts[chosen])


def _choose(path: Path, counts: dict[str, int], topic: str) -> str:
    listed = ", ".join(f"{name} ({count} messages)" for name, count in sorted(counts.items()))
    if not listed:
        raise ValueError(
            f"{path} holds no image topic; record sensor_msgs Image or CompressedImage"
        )
    if topic:
        wanted = "/" + topic.lstrip("/")
        if wanted not in counts:
            raise ValueError(f"topic is '{topic}' but the image topics of {path} are: {listed}")
        chosen = wanted
    elif len(counts) > 1:
        raise ValueError(f"{path} holds several image topics; set topic to one of: {listed}")
    else:
        chosen = next(iter(counts))
    if not counts[chosen]:
        raise ValueError(f"{chosen} in {path} holds no messages; choose another recording")
    return chosen


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
    except (ReaderError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{path} cannot be read as a recording: {error}") from error
