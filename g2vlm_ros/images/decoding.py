# SPDX-License-Identifier: Apache-2.0
"""Camera images as they arrive (raw encodings, JPEG, PNG) to uint8 RGB.

The encodings, their names and their layouts are those of ROS's sensor_msgs/image_encodings; the
conversions give the pixels that cv_bridge gives. Sixteen bits become eight by rounding
value * 255 / 65535 (cv_bridge's scaling, not the high byte); alpha is dropped; YUV is BT.601 with
limited range, as OpenCV reads it. `check` and `check_compressed` look at headers only and are
meant for the sensor callback; `decode` and `decode_compressed` touch the pixels.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import cv2
import numpy as np

from g2vlm_ros.records import DropReason


class ImageError(ValueError):
    """An image that cannot be used, and the reason under which it is counted."""

    def __init__(self, reason: DropReason, message: str):
        super().__init__(message)
        self.reason = reason


class Encoding(NamedTuple):
    """How one raw encoding lies in memory."""

    pixel_bytes: int
    """Bytes from one pixel to the next within a row."""
    to_rgb: int | None
    """OpenCV's conversion to RGB; None when the bytes are RGB already."""
    even_width: bool = False
    half_chroma: bool = False
    """A second plane of height/2 rows follows the first (4:2:0), so the height is even too."""


ENCODINGS = {
    "rgb8": Encoding(3, None),
    "bgr8": Encoding(3, cv2.COLOR_BGR2RGB),
    "rgba8": Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra8": Encoding(4, cv2.COLOR_BGRA2RGB),
    "mono8": Encoding(1, cv2.COLOR_GRAY2RGB),
    "mono16": Encoding(2, cv2.COLOR_GRAY2RGB),
    # ROS names the 2x2 pattern from the top-left pixel, OpenCV row 1 from column 1 on.
    "bayer_rggb8": Encoding(1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": Encoding(1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": Encoding(1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": Encoding(1, cv2.COLOR_BayerGB2RGB),
    "yuv422": Encoding(2, cv2.COLOR_YUV2RGB_UYVY, even_width=True),
    "uyvy": Encoding(2, cv2.COLOR_YUV2RGB_UYVY, even_width=True),
    "yuv422_yuy2": Encoding(2, cv2.COLOR_YUV2RGB_YUY2, even_width=True),
    "yuyv": Encoding(2, cv2.COLOR_YUV2RGB_YUY2, even_width=True),
    "nv12": Encoding(1, cv2.COLOR_YUV2RGB_NV12, even_width=True, half_chroma=True),
    "nv21": Encoding(1, cv2.COLOR_YUV2RGB_NV21, even_width=True, half_chroma=True),
}
"""Every raw encoding that `decode` reads."""

BAYER_MIN_PX = 3
"""OpenCV cannot demosaic images with fewer rows or columns."""


def check(
    encoding: str,
    width_px: int,
    height_px: int,
    step: int,
    data_bytes: int,
    max_px: int | None = None,
) -> None:
    """Whether the header of a raw image fits its `data_bytes`; ImageError if not.

    `step` is the length of a row in bytes, padding included. NV12 and NV21 carry height * 3 / 2
    rows of `step` bytes, all others height rows. Looks at no pixel.
    """
    layout = ENCODINGS.get(encoding)
    if layout is None:
        encodings = ", ".join(ENCODINGS)
        raise ImageError(
            DropReason.ENCODING, f"image encoding '{encoding}' is not one of {encodings}"
        )
    _check_size(width_px, height_px, max_px)
    if layout.even_width and width_px % 2 or layout.half_chroma and height_px % 2:
        raise ImageError(
            DropReason.SIZE, f"{encoding} image of {width_px}x{height_px} px must have even sides"
        )
    if encoding.startswith("bayer") and min(width_px, height_px) < BAYER_MIN_PX:
        raise ImageError(
            DropReason.SIZE,
            f"{encoding} image of {width_px}x{height_px} px must have sides of at least "
            f"{BAYER_MIN_PX} px",
        )
    row_bytes = width_px * layout.pixel_bytes
    if step < row_bytes:
        raise ImageError(
            DropReason.SIZE,
            f"step is {step} bytes; a row of {width_px} {encoding} pixels needs {row_bytes}",
        )
    expected = step * _rows(layout, height_px)
    if data_bytes != expected:
        raise ImageError(
            DropReason.TRUNCATED if data_bytes < expected else DropReason.SIZE,
            f"image data has {data_bytes} bytes; {encoding} of {width_px}x{height_px} px with "
            f"step {step} has {expected}",
        )


def decode(
    data: object,
    encoding: str,
    width_px: int,
    height_px: int,
    step: int,
    is_bigendian: bool = False,
) -> np.ndarray:
    """uint8 (H, W, 3) RGB of raw image bytes (any buffer); ImageError as `check`.

    Rows may be padded (`step` longer than the pixels). For rgb8 the result is a read-only view
    of `data`, without a copy; otherwise a new array. `is_bigendian` matters for mono16 only.
    """
    flat = np.frombuffer(data, np.uint8)
    check(encoding, width_px, height_px, step, flat.size)
    layout = ENCODINGS[encoding]
    rows = flat.reshape(_rows(layout, height_px), step)[:, : width_px * layout.pixel_bytes]
    if encoding == "mono16":
        return cv2.cvtColor(
            _eight_bits(rows.view(">u2" if is_bigendian else "<u2")), layout.to_rgb
        )
    if layout.pixel_bytes > 1:
        rows = rows.reshape(height_px, width_px, layout.pixel_bytes)
    if layout.to_rgb is None:
        rows.flags.writeable = False
        return rows
    return cv2.cvtColor(rows, layout.to_rgb)


def check_compressed(data: bytes, format: str, max_px: int | None = None) -> tuple[int, int]:
    """(width, height) of a JPEG or PNG file that looks whole and usable; ImageError if not.

    `format` is the text of CompressedImage.format ("jpeg", "png", "bgr8; png compressed bgr8",
    empty). The bytes decide between JPEG and PNG; the text only serves to refuse other codecs
    (compressedDepth, video) with a clear sentence.
    """
    codec = format.rpartition(";")[2].strip().lower()
    if "compresseddepth" in codec:
        raise ImageError(
            DropReason.ENCODING,
            f"format '{format}' is a depth image; subscribe to a colour topic instead",
        )
    if codec and not re.match(r"(jpe?g|png|rgb8|bgr8|mono8)\b", codec):
        raise ImageError(
            DropReason.ENCODING,
            f"compressed format '{format}' is neither jpeg nor png; a video needs its "
            "transport's decoder: ros2 run image_transport republish",
        )
    if data[:2] == b"\xff\xd8":
        size, complete = _jpeg_size(data), data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        size, complete = _png_size(data), data.rfind(b"IEND") > 0
    else:
        raise ImageError(
            DropReason.UNDECODABLE,
            f"'{format}' image of {len(data)} bytes starts with {data[:4].hex() or 'nothing'}, "
            "which is neither JPEG nor PNG",
        )
    if size is None or not complete:
        raise ImageError(DropReason.TRUNCATED, f"'{format}' image of {len(data)} bytes has no end")
    _check_size(*size, max_px)
    return size


def decode_compressed(data: object, format: str, max_px: int | None = None) -> np.ndarray:
    """uint8 (H, W, 3) RGB of a JPEG or PNG file as CompressedImage carries it.

    Grey becomes three equal channels, alpha is dropped, 16 bit is scaled to 8. Pixels stay as the
    sensor gave them: the EXIF orientation is not applied, as camera_info would no longer fit.
    "...; jpeg compressed rgb8" (the codec was fed RGB as if it were BGR) and "bayer_...; png
    compressed" (a mosaic in a grey image) are undone as compressed_image_transport undoes them.
    Raises ImageError as `check_compressed`, or "undecodable".
    """
    data = bytes(data)
    check_compressed(data, format, max_px)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(
            DropReason.UNDECODABLE, f"'{format}' image cannot be decoded: {error}"
        ) from error
    if image is None:
        raise ImageError(
            DropReason.UNDECODABLE, f"'{format}' image of {len(data)} bytes is damaged"
        )
    if image.dtype != np.uint8:
        image = _eight_bits(image)
    original, _, compressed = format.partition(";")
    return _decoded_to_rgb(image, original, swapped="compressed rgb" in compressed)


def _decoded_to_rgb(image: np.ndarray, original: str, swapped: bool) -> np.ndarray:
    """RGB of what OpenCV decoded: grey (H, W) or (H, W, 1), BGR or BGRA."""
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels == 1:
        mosaic = original.startswith("bayer_") and original.replace("16", "8") in ENCODINGS
        encoding = original.replace("16", "8") if mosaic else "mono8"
        return cv2.cvtColor(image, ENCODINGS[encoding].to_rgb)
    if swapped:
        return np.ascontiguousarray(image[..., :3])
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGB)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    """uint8 of uint16, rounding value * 255 / 65535."""
    native = np.ascontiguousarray(image, dtype=np.uint16)
    return cv2.convertScaleAbs(native, alpha=255.0 / 65535.0)


def _rows(layout: Encoding, height_px: int) -> int:
    return height_px * 3 // 2 if layout.half_chroma else height_px


def _check_size(width_px: int, height_px: int, max_px: int | None) -> None:
    if width_px < 1 or height_px < 1:
        raise ImageError(
            DropReason.SIZE, f"image of {width_px}x{height_px} px must be at least 1x1"
        )
    if max_px is not None and width_px * height_px > max_px:
        raise ImageError(
            DropReason.SIZE,
            f"image of {width_px}x{height_px} px is above the bound of {max_px} px; "
            "raise max_image_px if that is wanted",
        )


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the IHDR chunk; None when the data ends before it."""
    return struct.unpack_from(">II", data, 16) if len(data) >= 24 else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the start-of-frame marker; None when there is none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height_px, width_px = struct.unpack_from(">HH", data, at + 5)
            return width_px, height_px
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None
