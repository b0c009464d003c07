# SPDX-License-Identifier: Apache-2.0
"""Whatever `replay` plays, as the messages a camera driver would publish."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import PIL.Image
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.images.sources import open_source
from g2vlm_ros.ros.conversions import geometry, images
from g2vlm_ros.ros.replay.calibration import read_camera_info
from g2vlm_ros.ros.replay.rosbag import is_bag, open_bag

JPEG_QUALITY = 95
_log = logging.getLogger(__name__)


class CameraFrame(NamedTuple):
    """One frame; both messages carry the optical frame, the stamp is set when publishing."""

    stamp_ns: int
    """Time of acquisition as recorded."""
    image: Image | CompressedImage
    info: CameraInfo


class Recording:
    """A folder of images, an image, a video, a rosbag2 folder, an .mcap or a .db3 file.

    topic: image topic of a ROS recording; empty takes the only one there is. rate_hz: of image
    files and videos, None for their own. compressed: make CompressedImage instead of Image.
    frame_id: optical frame; empty takes the recorded one, without one `default_frame_id`.
    camera_info: calibration file; empty takes the recorded CameraInfo, without one K is all zero,
    which tells that the camera is uncalibrated.

    FileNotFoundError or ValueError say what is wrong, here or while iterating.
    """

    def __init__(
        self,
        path: str,
        *,
        topic: str = "",
        rate_hz: float | None = None,
        compressed: bool = False,
        frame_id: str = "",
        default_frame_id: str = "camera_optical_frame",
        camera_info: str = "",
    ):
        place = Path(path).expanduser()
        if topic and not is_bag(place):
            raise ValueError(f"topic is '{topic}' but {path} is no ROS recording; leave it empty")
        self._bag = open_bag(place, topic) if is_bag(place) else None
        self._source = self._bag or open_source(place, rate_hz=rate_hz)
        self._compressed = compressed
        self._frame_id, self._default_frame_id = frame_id, default_frame_id
        self._calibration_path = camera_info
        self._calibration = read_camera_info(camera_info) if camera_info else None
        self.length = self._source.length
        """How many frames, None where the file does not tell."""
        self.skipped = self._source.skipped
        """What was left out, one "name: reason" each."""
        self.stamps = self._source.stamps
        """Where the stamps come from, in words."""

    def __iter__(self) -> Iterator[CameraFrame]:
        if self._bag is None:
            for rgb, stamp_ns in self._source:
                image = self._encoded(self._header(stamp_ns, ""), rgb)
                yield self._with_info(stamp_ns, image, (rgb.shape[1], rgb.shape[0]), None)
        else:
            for stamp_ns, recorded, info in self._bag:
                recorded.header = self._header(stamp_ns, recorded.header.frame_id)
                try:
                    image, size = self._transported(recorded)
                except ImageError as error:
                    _log.warning("the picture at %.3f s is left out: %s", stamp_ns * 1e-9, error)
                    continue
                yield self._with_info(stamp_ns, image, size, info)

    def _header(self, stamp_ns: int, recorded_frame_id: str) -> Header:
        frame_id = self._frame_id or recorded_frame_id or self._default_frame_id
        return geometry.header(stamp_ns, frame_id)

    def _encoded(self, header: Header, rgb: np.ndarray) -> Image | CompressedImage:
        return (_jpeg_message if self._compressed else images.rgb_image)(header, rgb)

    def _transported(
        self, recorded: Image | CompressedImage
    ) -> tuple[Image | CompressedImage, tuple[int, int]]:
        """The message in the chosen transport, untouched if it is already, and (width, height)."""
        if isinstance(recorded, Image):
            size = recorded.width, recorded.height
            frame_from = images.frame_from_image
        else:
            size = _size_of(recorded)
            frame_from = images.frame_from_compressed
        if self._compressed == isinstance(recorded, CompressedImage):
            return recorded, size
        rgb = frame_from(recorded, "recording").decode()
        return self._encoded(recorded.header, rgb), size

    def _with_info(
        self,
        stamp_ns: int,
        image: Image | CompressedImage,
        size: tuple[int, int],
        recorded: CameraInfo | None,
    ) -> CameraFrame:
        calibration = self._calibration
        if calibration and (calibration.width, calibration.height) != size:
            raise ValueError(
                f"{self._calibration_path} calibrates {calibration.width}x{calibration.height} px "
                f"but a frame has {size[0]}x{size[1]}; calibrate at that size"
            )
        info = calibration or recorded or CameraInfo(width=size[0], height=size[1])
        info.header.frame_id = image.header.frame_id
        return CameraFrame(stamp_ns, image, info)


def _jpeg_message(header: Header, rgb: np.ndarray) -> CompressedImage:
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return CompressedImage(header=header, format="rgb8; jpeg compressed bgr8", data=_bytes(jpeg))


def _bytes(values: np.ndarray) -> array:
    data = array("B")
    data.frombytes(memoryview(values).cast("B"))
    return data


def _size_of(message: CompressedImage) -> tuple[int, int]:
    """Width and height by the picture's own header, (0, 0) where that cannot be read."""
    try:
        with PIL.Image.open(BytesIO(message.data)) as picture:
            return picture.size
    except OSError:
        return 0, 0
