# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 and OccupancyGrid from arrays, written into the memory that the message owns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

from g2vlm_ros.dense_map.occupancy import Occupancy
from g2vlm_ros.geometry import point_cloud


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
    dense = valid[pixels]
    if min_confidence > 0:
        dense = dense & (confidence[pixels] >= min_confidence)
    height = dense.shape[0] * dense.shape[1]
    return _described(msg, header, height=height, is_dense=bool(dense.all()))


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
