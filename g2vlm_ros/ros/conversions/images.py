# SPDX-License-Identifier: Apache-2.0
"""Image, CompressedImage and CameraInfo as records, and back.

Reading never copies `msg.data`. Pixels are written into the array that a new message owns:
assigning to the field copies it (or walks every element, for bytes on some distributions), the
constructor copies it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from g2vlm_ros.images import decoding
from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.images.sources import MAX_STAMP_NS
from g2vlm_ros.records import DropReason, Frame, Intrinsics
from g2vlm_ros.ros.conversions import cv_bridge_fallback
from g2vlm_ros.ros.conversions.geometry import stamp_ns

DEPTH_ENCODINGS = {"32FC1": ("f4", 1.0), "16UC1": ("u2", 1e-3)}
"""Of depth images (REP-118): numpy kind of a pixel, and its unit in metres."""
FISHEYE_MODELS = ("equidistant", "fisheye")
"""Distortion models whose projection is no pinhole even where all coefficients are 0."""
LENS_SIDES = 100.0
"""Focal lengths and principal points lie within so many sides of the image, and focal lengths are
no shorter than a side by this: fields of view of 0.6 to 178.9 degrees. A region that the driver
cuts out has its centre outside, but not so far."""


def frame_from_image(
    msg: Image,
    camera: str,
    *,
    max_px: int | None = None,
    **fields: Any,
) -> Frame:
    """The record of a raw image, its header checked now and its pixels decoded on demand.

    fields: further ones of the Frame.

    ImageError as of `decoding.check`, and with reason "stamp" where the acquisition
    time is zero (a driver that never set it) or negative: windows and TF need real stamps.
    """
    if msg.encoding not in decoding.ENCODINGS and cv_bridge_fallback.usable_bridge():
        _check_foreign(msg, max_px)
        return _frame(msg.header, camera, partial(cv_bridge_fallback.decode, msg), **fields)
    decoding.check(
        msg.encoding, msg.width, msg.height, msg.step, memoryview(msg.data).nbytes, max_px
    )
    decode = partial(
        decoding.decode,
        msg.data,
        msg.encoding,
        msg.width,
        msg.height,
        msg.step,
        bool(msg.is_bigendian),
    )
    return _frame(msg.header, camera, decode, **fields)


def _check_foreign(msg: Image, max_px: int | None) -> None:
    """What can be told of the size of an image whose encoding only cv_bridge knows."""
    if not msg.width or not msg.height or (max_px and msg.width * msg.height > max_px):
        raise ImageError(
            DropReason.SIZE,
            f"size is {msg.width}x{msg.height}; it must be 1x1 to max_image_px = {max_px}",
        )
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(
            DropReason.TRUNCATED,
            f"{len(msg.data)} bytes are there, {msg.step * msg.height} are needed",
        )


def image_size(msg: Image | CompressedImage) -> tuple[int, int]:
    """(width, height) by the message's or the file's header; ImageError where it has none."""
    if isinstance(msg, Image):
        return msg.width, msg.height
    return decoding.check_compressed(memoryview(msg.data).tobytes(), msg.format)


def frame_from_compressed(
    msg: CompressedImage,
    camera: str,
    *,
    max_px: int | None = None,
    **fields: Any,
) -> Frame:
    """The record of a JPEG or PNG image; as `frame_from_image`, ImageError included."""
    data = memoryview(msg.data).tobytes()
    decoding.check_compressed(data, msg.format, max_px)
    decode = partial(decoding.decode_compressed, data, msg.format, max_px)
    return _frame(msg.header, camera, decode, **fields)


def _frame(
    header: Header,
    camera: str,
    decode: Callable[[], np.ndarray],
    **fields: Any,
) -> Frame:
    ns = stamp_ns(header.stamp)
    if not 0 < ns < MAX_STAMP_NS:
        raise ImageError(
            DropReason.STAMP,
            f"image of camera '{camera}' has stamp {ns} ns; its driver must set header.stamp to "
            "the time of acquisition",
        )
    return Frame(ns, camera, header.frame_id, decode, **fields)


def depth_reader(msg: Image, max_px: int) -> Callable[[], np.ndarray]:
    """What reads a depth image: float32 (height, width) metres, NaN or 0 where unknown.

    The header is checked now: ImageError with reason "encoding", "size" or "truncated".
    """
    if msg.encoding not in DEPTH_ENCODINGS:
        encodings = ", ".join(DEPTH_ENCODINGS)
        raise ImageError(
            DropReason.ENCODING, f"encoding is '{msg.encoding}'; it must be one of {encodings}"
        )
    tight = msg.width * np.dtype(DEPTH_ENCODINGS[msg.encoding][0]).itemsize
    if not 0 < msg.width * msg.height <= max_px or msg.step < tight:
        raise ImageError(
            DropReason.SIZE,
            f"size is {msg.width}x{msg.height} with rows of {msg.step} bytes; 1x1 to max_image_px "
            f"= {max_px} pixels with {tight} bytes a row are needed",
        )
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(
            DropReason.TRUNCATED,
            f"{len(msg.data)} bytes are there, {msg.step * msg.height} are needed",
        )
    return partial(_depth_m, msg)


def _depth_m(msg: Image) -> np.ndarray:
    kind, unit_m = DEPTH_ENCODINGS[msg.encoding]
    pixel = np.dtype(kind).newbyteorder(">" if msg.is_bigendian else "<")
    rows = np.frombuffer(msg.data, np.uint8, msg.step * msg.height).reshape(msg.height, msg.step)
    values = np.ascontiguousarray(rows[:, : msg.width * pixel.itemsize]).view(pixel)
    return values.astype(np.float32) * np.float32(unit_m)


def rgb_image(header: Header, rgb: np.ndarray) -> Image:
    """An rgb8 image of uint8 (H, W, 3)."""
    height, width = rgb.shape[:2]
    msg = Image(header=header, height=height, width=width, encoding="rgb8", step=3 * width)
    msg.data.frombytes(memoryview(np.ascontiguousarray(rgb)).cast("B"))
    return msg


def depth_image(header: Header, depth: np.ndarray) -> Image:
    """A 32FC1 depth image of float32 (H, W); NaN where depth is not finite and above 0.

    Metres once the scale is known (REP-118), model units before; unknown is NaN (REP-117).
    """
    height, width = depth.shape
    valid = np.isfinite(depth) & (depth > 0)
    values = np.where(valid, depth, np.float32(np.nan)).astype("<f4", copy=False)
    msg = Image(header=header, height=height, width=width, encoding="32FC1", step=4 * width)
    msg.data.frombytes(memoryview(values).cast("B"))
    return msg


def intrinsics_from_info(msg: CameraInfo) -> Intrinsics | None:
    """The calibration of the image that comes with `msg`; None when it says uncalibrated.

    K[0] == 0 means uncalibrated (sensor_msgs). The region of interest is cut and binning applied,
    pixel centres at integers, so that the result fits the image as published. Distortion is not
    part of `Intrinsics`: see `is_distorted`. ValueError names what is not finite or negative.
    """
    k = np.asarray(msg.k, dtype=np.float64)
    if k[0] == 0.0:
        return None
    for name, values in (("K", k), ("D", np.asarray(msg.d, dtype=np.float64))):
        if not np.isfinite(values).all():
            raise ValueError(f"camera_info has {name} = {values.tolist()}; it must be finite")
    if k[0] < 0 or k[4] <= 0:
        raise ValueError(f"camera_info has focal lengths {k[0]}, {k[4]}; they must be above 0")
    if k[1] != 0.0:
        raise ValueError(f"camera_info has skew K[1] = {k[1]}; only 0 is supported")
    roi = msg.roi
    full_frame = roi.width == 0 and roi.height == 0
    width_px, height_px = (msg.width, msg.height) if full_frame else (roi.width, roi.height)
    sensor = Intrinsics(k[0], k[4], k[2] - roi.x_offset, k[5] - roi.y_offset, width_px, height_px)
    _check_lens(sensor)
    bin_x, bin_y = max(1, msg.binning_x), max(1, msg.binning_y)
    return sensor.resized(width_px // bin_x, height_px // bin_y)


def _check_lens(camera: Intrinsics) -> None:
    """ValueError where no camera is like that: what is computed with it would not be finite."""
    side_px = max(camera.width_px, camera.height_px)
    far_px, near_px = LENS_SIDES * side_px, side_px / LENS_SIDES
    focal_px = (camera.fx_px, camera.fy_px)
    outside = max(abs(camera.cx_px), abs(camera.cy_px), *focal_px) > far_px
    if outside or min(focal_px) < near_px:
        raise ValueError(
            f"camera_info has focal lengths {focal_px} and centre {(camera.cx_px, camera.cy_px)} "
            f"for an image of {camera.width_px}x{camera.height_px}; focal lengths must be "
            f"{near_px:g} to {far_px:g} px and the centre within {far_px:g} px"
        )


def is_distorted(msg: CameraInfo) -> bool:
    """Whether the image bends straight lines: a D that is not all zero, or a fisheye model.

    An equidistant lens does so whatever D is. We take K as a pinhole all the same; the node
    warns, and a rectified topic is the remedy.
    """
    return bool(np.any(msg.d)) or msg.distortion_model in FISHEYE_MODELS


def camera_info(
    header: Header, intrinsics: Intrinsics | None, width_px: int, height_px: int
) -> CameraInfo:
    """The CameraInfo of an image without distortion; K all zero (uncalibrated) for None."""
    info = CameraInfo(header=header, width=width_px, height=height_px)
    if intrinsics is None:
        return info
    if (intrinsics.width_px, intrinsics.height_px) != (width_px, height_px):
        raise ValueError(
            f"intrinsics are for {intrinsics.width_px}x{intrinsics.height_px} px, the image has "
            f"{width_px}x{height_px}; use Intrinsics.resized"
        )
    k = intrinsics.matrix()
    info.distortion_model = "plumb_bob"
    info.d = [0.0] * 5
    info.k = k.ravel()
    info.r = np.eye(3).ravel()
    info.p = np.hstack([k, np.zeros((3, 1))]).ravel()
    return info
