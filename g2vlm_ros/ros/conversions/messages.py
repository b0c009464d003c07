# SPDX-License-Identifier: Apache-2.0
"""ROS messages <-> records: everything the package knows about message layouts, and no node.

Reading never copies `msg.data`. Large data is written into the array that a new message owns:
assigning to the field copies it (or walks every element, for bytes on some distributions), the
constructor copies it twice. Time is integer nanoseconds. Poses are (4, 4) matrices
``parent_from_child``, whose parent is the frame of the header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseArray,
    PoseStamped,
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    TransformStamped,
)
from nav_msgs.msg import OccupancyGrid, Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from g2vlm_ros.dense_map.occupancy import Occupancy
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.geometry.sim3 import quaternion_xyzw, rotation_from_xyzw
from g2vlm_ros.images import decoding
from g2vlm_ros.images.decoding import ImageError
from g2vlm_ros.records import Frame, Intrinsics
from g2vlm_ros.ros.conversions import cv_bridge_fallback

DEPTH_ENCODINGS = {"32FC1": ("f4", 1.0), "16UC1": ("u2", 1e-3)}
"""Of depth images (REP-118): numpy kind of a pixel, and its unit in metres."""

FISHEYE_MODELS = ("equidistant", "fisheye")
"""Distortion models whose projection is no pinhole even where all coefficients are 0."""

_SECOND_NS = 1_000_000_000


def stamp(ns: int) -> Time:
    """A message time of integer nanoseconds; ValueError where its fields cannot hold it."""
    seconds, rest = divmod(int(ns), _SECOND_NS)
    if not 0 <= seconds < 2**31:
        raise ValueError(f"time {ns} ns must lie between 0 and 2^31 seconds")
    return Time(sec=seconds, nanosec=rest)


def stamp_ns(time: Time) -> int:
    """Integer nanoseconds of a message time."""
    return time.sec * _SECOND_NS + time.nanosec


def header(ns: int, frame_id: str) -> Header:
    """The header of data acquired at `ns` in a frame."""
    return Header(stamp=stamp(ns), frame_id=frame_id)


def frame_from_image(
    msg: Image,
    camera: str,
    *,
    max_px: int | None = None,
    **known: Any,
) -> Frame:
    """The record of a raw image, its header checked now and its pixels decoded on demand.

    known: further fields of the Frame.

    Raises ImageError as `core.images.check` does, and with reason "stamp" where the acquisition
    time is zero (a driver that never set it) or negative: windows and TF need real stamps.
    """
    if msg.encoding not in decoding.ENCODINGS and cv_bridge_fallback.usable_bridge():
        _check_foreign(msg, max_px)
        return _frame(msg.header, camera, partial(cv_bridge_fallback.decode, msg), **known)
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
    return _frame(msg.header, camera, decode, **known)


def _check_foreign(msg: Image, max_px: int | None) -> None:
    """What can be told of the size of an image whose encoding only cv_bridge knows."""
    if not msg.width or not msg.height or (max_px and msg.width * msg.height > max_px):
        raise ImageError(
            "size", f"size is {msg.width}x{msg.height}; it must be 1x1 to max_image_px = {max_px}"
        )
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(
            "truncated", f"{len(msg.data)} bytes are there, {msg.step * msg.height} are needed"
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
    **known: Any,
) -> Frame:
    """The record of a JPEG or PNG image; as `frame_from_image`, ImageError included."""
    data = memoryview(msg.data).tobytes()
    decoding.check_compressed(data, msg.format, max_px)
    decode = partial(decoding.decode_compressed, data, msg.format, max_px)
    return _frame(msg.header, camera, decode, **known)


def _frame(
    header: Header,
    camera: str,
    decode: Callable[[], np.ndarray],
    **known: Any,
) -> Frame:
    ns = stamp_ns(header.stamp)
    if ns <= 0:
        raise ImageError(
            "stamp",
            f"image of camera '{camera}' has stamp {ns} ns; its driver must set header.stamp to "
            "the time of acquisition",
        )
    return Frame(ns, camera, header.frame_id, decode, **known)


def depth_reader(msg: Image) -> Callable[[], np.ndarray]:
    """What reads a depth image: float32 (height, width) metres, NaN or 0 where unknown.

    The header is checked now: ImageError with reason "encoding", "size" or "truncated".
    """
    if msg.encoding not in DEPTH_ENCODINGS:
        known = ", ".join(DEPTH_ENCODINGS)
        raise ImageError("encoding", f"encoding is '{msg.encoding}'; it must be one of {known}")
    tight = msg.width * np.dtype(DEPTH_ENCODINGS[msg.encoding][0]).itemsize
    if not (msg.width and msg.height) or msg.step < tight:
        raise ImageError(
            "size",
            f"size is {msg.width}x{msg.height} with rows of {msg.step} bytes; at least 1x1 with "
            f"{tight} bytes is needed",
        )
    if len(msg.data) < msg.step * msg.height:
        raise ImageError(
            "truncated", f"{len(msg.data)} bytes are there, {msg.step * msg.height} are needed"
        )
    return partial(_depth_m, msg)


def _depth_m(msg: Image) -> np.ndarray:
    kind, unit_m = DEPTH_ENCODINGS[msg.encoding]
    pixel = np.dtype(kind).newbyteorder(">" if msg.is_bigendian else "<")
    rows = np.frombuffer(msg.data, np.uint8, msg.step * msg.height).reshape(msg.height, msg.step)
    values = np.ascontiguousarray(rows[:, : msg.width * pixel.itemsize]).view(pixel)
    return values.astype(np.float32) * np.float32(unit_m)


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
    whole = roi.width == 0 and roi.height == 0
    width_px, height_px = (msg.width, msg.height) if whole else (roi.width, roi.height)
    sensor = Intrinsics(k[0], k[4], k[2] - roi.x_offset, k[5] - roi.y_offset, width_px, height_px)
    bin_x, bin_y = max(1, msg.binning_x), max(1, msg.binning_y)
    return sensor.resized(width_px // bin_x, height_px // bin_y)


def is_distorted(msg: CameraInfo) -> bool:
    """Whether the image bends straight lines: a D that is not all zero, or a fisheye model.

    An equidistant lens does so whatever D is. We take K as a pinhole all the same; the node
    warns, and a rectified topic is the remedy.
    """
    return bool(np.any(msg.d)) or msg.distortion_model in FISHEYE_MODELS


def cloud_message(
    header: Header,
    points: np.ndarray,
    colours: np.ndarray,
    confidence: np.ndarray,
    valid: np.ndarray,
    *,
    views: Sequence[int] | None = None,
    poses: np.ndarray | None = None,
    scale: float = 1.0,
    stride_px: int = 1,
    min_confidence: float = 0.0,
    organised: bool = False,
    out: PointCloud2 | None = None,
) -> PointCloud2:
    """A PointCloud2 with x, y, z, rgb, confidence of some views; arguments as `point_cloud.pack`.

    Dense: height 1, valid points only, is_dense. Organised: the views (H, W) below each other,
    height V * H and width W, invalid points NaN; is_dense only where there are none. `out` is a
    message of an earlier call, published meanwhile, whose memory is used again.
    """
    msg = PointCloud2() if out is None else out
    views = range(len(valid)) if views is None else views
    point_cloud.pack(
        points, colours, confidence, valid, views=views, poses=poses, scale=scale,
        stride_px=stride_px, min_confidence=min_confidence, organised=organised, out=msg.data,
    )  # fmt: skip
    if not organised:
        return _described(msg, header)
    pixels = (list(views), slice(None, None, stride_px), slice(None, None, stride_px))
    whole = valid[pixels]
    if min_confidence > 0:
        whole = whole & (confidence[pixels] >= min_confidence)
    height = whole.shape[0] * whole.shape[1]
    return _described(msg, header, height=height, is_dense=bool(whole.all()))


def cloud_of_bytes(
    header: Header, packed: np.ndarray, out: PointCloud2 | None = None
) -> PointCloud2:
    """The dense PointCloud2 of points that a device has packed, uint8 (20 M,).

    `out` as for `cloud_message`.
    """
    msg = PointCloud2() if out is None else out
    data = point_cloud.sized(packed.size, msg.data)
    if packed.size:
        np.frombuffer(data, np.uint8)[:] = packed
    return _described(msg, header)


def _described(
    msg: PointCloud2, header: Header, height: int = 1, is_dense: bool = True
) -> PointCloud2:
    """The message of these packed points with everything but its data."""
    msg.header, msg.height, msg.is_dense = header, height, is_dense
    msg.width = len(msg.data) // point_cloud.POINT_BYTES // height
    msg.fields = [
        PointField(name=name, offset=offset, datatype=PointField.FLOAT32, count=1)
        for name, offset in point_cloud.POINT_FIELDS
    ]
    msg.is_bigendian = False
    msg.point_step = point_cloud.POINT_BYTES
    msg.row_step = msg.width * point_cloud.POINT_BYTES
    return msg


def packed_cloud(header: Header, points: np.ndarray) -> PointCloud2:
    """A PointCloud2 of packed points (n,): `changes.POINT`, or CHANGED_POINT with an INT32 id."""
    kind = points.dtype
    msg = PointCloud2(header=header, height=1, width=len(points))
    msg.is_dense = not np.isnan(points["x"]).any()
    msg.fields = [
        PointField(
            name=name,
            offset=kind.fields[name][1],
            datatype=PointField.INT32 if kind[name] == np.int32 else PointField.FLOAT32,
            count=1,
        )
        for name in kind.names
    ]
    msg.point_step = kind.itemsize
    msg.row_step = msg.width * kind.itemsize
    msg.data.frombytes(memoryview(np.ascontiguousarray(points)).cast("B"))
    return msg


def occupancy_grid(header: Header, grid: Occupancy) -> OccupancyGrid:
    """An OccupancyGrid in the frame of the header: -1 unknown, 0 free, 100 occupied."""
    msg = OccupancyGrid(header=header)
    msg.info.map_load_time = header.stamp
    msg.info.resolution = float(grid.resolution)
    msg.info.height, msg.info.width = grid.data.shape
    msg.info.origin.position.x, msg.info.origin.position.y = grid.origin_x, grid.origin_y
    msg.data.frombytes(memoryview(np.ascontiguousarray(grid.data)).cast("B"))
    return msg


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
    known = np.isfinite(depth) & (depth > 0)
    values = np.where(known, depth, np.float32(np.nan)).astype("<f4", copy=False)
    msg = Image(header=header, height=height, width=width, encoding="32FC1", step=4 * width)
    msg.data.frombytes(memoryview(values).cast("B"))
    return msg


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


def position(point: Point) -> np.ndarray:
    """A Point as float64 (3,)."""
    return np.array([point.x, point.y, point.z])


def pose_matrix(pose: Pose) -> np.ndarray:
    """A Pose as parent_from_child, float64 (4, 4)."""
    turn, matrix = pose.orientation, np.eye(4)
    matrix[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
    matrix[:3, 3] = position(pose.position)
    return matrix


def transform_matrix(transform: Transform) -> np.ndarray:
    """A Transform as parent_from_child, float64 (4, 4)."""
    turn, move, matrix = transform.rotation, transform.translation, np.eye(4)
    matrix[:3, :3] = rotation_from_xyzw(np.array([turn.x, turn.y, turn.z, turn.w]))
    matrix[:3, 3] = move.x, move.y, move.z
    return matrix


def pose_message(pose: np.ndarray) -> Pose:
    """A Pose of parent_from_child (4, 4)."""
    msg = Pose(orientation=_quaternion(pose))
    msg.position.x, msg.position.y, msg.position.z = map(float, pose[:3, 3])
    return msg


def pose_stamped(header: Header, pose: np.ndarray) -> PoseStamped:
    """A PoseStamped of parent_from_child (4, 4)."""
    return PoseStamped(header=header, pose=pose_message(pose))


def pose_with_covariance(
    header: Header, pose: np.ndarray, covariance: np.ndarray
) -> PoseWithCovarianceStamped:
    """A pose with its covariance (6, 6) in the order x, y, z, roll, pitch, yaw (REP-103)."""
    covariance = np.asarray(covariance, dtype=np.float64)
    if covariance.shape != (6, 6) or not np.isfinite(covariance).all():
        raise ValueError(f"covariance {covariance.shape} must be (6, 6) and finite")
    msg = PoseWithCovarianceStamped(header=header)
    msg.pose.pose = pose_message(pose)
    msg.pose.covariance = covariance.ravel()
    return msg


def pose_array(header: Header, poses: np.ndarray) -> PoseArray:
    """A PoseArray of parent_from_child (N, 4, 4)."""
    return PoseArray(header=header, poses=[pose_message(pose) for pose in poses])


def append(path: Path, pose: PoseStamped, max_poses: int) -> None:
    """Add a pose to a path, whose header it gives, and drop the oldest above `max_poses`."""
    path.header = pose.header
    path.poses.append(pose)
    del path.poses[:-max_poses]


def transform_message(header: Header, child_frame_id: str, pose: np.ndarray) -> TransformStamped:
    """A TransformStamped of parent_from_child (4, 4)."""
    msg = TransformStamped(header=header, child_frame_id=child_frame_id)
    msg.transform.rotation = _quaternion(pose)
    place = msg.transform.translation
    place.x, place.y, place.z = map(float, pose[:3, 3])
    return msg


def _quaternion(pose: np.ndarray) -> Quaternion:
    x, y, z, w = quaternion_xyzw(pose[:3, :3]).tolist()
    return Quaternion(x=x, y=y, z=z, w=w)
