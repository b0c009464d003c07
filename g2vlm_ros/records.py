# SPDX-License-Identifier: Apache-2.0
"""The records that cross module borders: shape, unit and frame of every field, checked when made.

Lengths come from the model in its own unit (suffix ``_u``); only `mapping.graph_slam` turns them
into metres (``_m``). Camera frames are optical (x right, y down, z forward; REP-103). Pixel
centres lie at integer coordinates. Arrays inside records are read-only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from functools import cached_property

import numpy as np

from g2vlm_ros.kernels.device_maps import DeviceConfidence
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.packing import valid_points


class BackendGoneError(RuntimeError):
    """What runs the network can run nothing any more in this process."""


class MappingError(RuntimeError):
    """A window could not be entered into the map, though the device perceived it.

    `__cause__` is what happened.
    """


class UnfitError(ValueError):
    """A backend cannot run this checkpoint here; another one may."""


class NonFiniteError(ArithmeticError):
    """A stage of the network produced NaN or infinity.

    The original model decodes such logits to "!!!!!"; here they are an error with a name.
    """

    def __init__(self, stage: str):
        super().__init__(
            f"stage '{stage}' produced NaN or infinite values; check the checkpoint's weights, "
            "or run with dtype float32 if a half precision overflowed"
        )
        self.stage = stage


class Reason(str, Enum):
    """One word of a fixed list; equal to its text, which is what messages and counters show."""

    def __str__(self) -> str:
        return self.value


class DropReason(Reason):
    """Why a frame was not used; the keys of the counters in ~/status."""

    ENCODING = "encoding"
    """Of an image: not one that we read."""
    SIZE = "size"
    """Zero, too large, odd where even is needed, or rows that do not fit."""
    TRUNCATED = "truncated"
    """Fewer bytes than its header promises."""
    UNDECODABLE = "undecodable"
    STAMP = "stamp"
    """Its driver never set the time of acquisition."""
    COVERED = "covered"
    BLURRED = "blurred"
    FROZEN = "frozen"
    STILL = "still"
    """The camera stands; the view before stays."""
    TOO_CLOSE = "too_close"
    """Within min_gap_s or min_baseline_m of the frame before it in the window."""
    OUT_OF_ORDER = "out_of_order"
    DUPLICATE = "duplicate"
    UNSYNCHRONISED = "unsynchronised"
    """No partner from another camera."""
    TOO_OLD = "too_old"
    """Further than max_age_s behind."""
    SUPERSEDED = "superseded"
    """Newer frames arrived while the device was busy, or from other cameras."""
    WRONG_STAMP = "wrong_stamp"
    """Far from the frames before and after it."""
    CLOCK_JUMP = "clock_jump"
    RESET = "reset"


class ScaleSource(Reason):
    """What the metres of a map come from; those that measure are ranked by `TRUST`."""

    MAP = "map"
    """A saved map that is continued."""
    ODOMETRY = "odometry"
    RIG = "rig"
    """The distance between the cameras of a rig."""
    DEPTH = "depth"
    CAMERA_HEIGHT = "camera_height"
    FIXED = "fixed"
    """map.metres_per_unit."""
    NONE = "none"


class ScaleState(IntEnum):
    """What the lengths of a reconstruction mean (values of ReconstructionStatus.scale_state)."""

    UNKNOWN = 0
    RELATIVE = 1
    METRIC = 2


def frozen(array: np.ndarray, name: str, shape: tuple, dtype: type) -> np.ndarray:
    """A read-only view of `array`, or ValueError when shape (None = any) or dtype do not fit."""
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(
        size is None or length == size for length, size in zip(array.shape, shape, strict=True)
    )
    if not fits or array.dtype != dtype:
        size = "x".join("?" if n is None else str(n) for n in shape)
        raise ValueError(
            f"{name} is {array.dtype} {array.shape}; it must be {np.dtype(dtype)} {size}"
        )
    view = array.view()
    view.flags.writeable = False
    return view


def _freeze(record: object, name: str, shape: tuple, dtype: type) -> np.ndarray:
    view = frozen(getattr(record, name), f"{type(record).__name__}.{name}", shape, dtype)
    object.__setattr__(record, name, view)
    return view


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: focal lengths and principal point in pixels of a width x height image."""

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    width_px: int
    height_px: int

    def __post_init__(self) -> None:
        values = (self.fx_px, self.fy_px, self.cx_px, self.cy_px)
        if not np.all(np.isfinite(values)) or self.fx_px <= 0 or self.fy_px <= 0:
            raise ValueError(f"intrinsics {values} must be finite with focal lengths above 0")
        if self.width_px < 1 or self.height_px < 1:
            raise ValueError(f"image size {self.width_px}x{self.height_px} must be at least 1x1")

    def matrix(self) -> np.ndarray:
        """K, float64 (3, 3): pixel ~ K @ point in the optical frame."""
        return np.array(
            [[self.fx_px, 0.0, self.cx_px], [0.0, self.fy_px, self.cy_px], [0.0, 0.0, 1.0]]
        )

    def resized(self, width_px: int, height_px: int) -> Intrinsics:
        """The same camera after resizing the image (half pixels included)."""
        sx, sy = width_px / self.width_px, height_px / self.height_px
        return Intrinsics(
            self.fx_px * sx,
            self.fy_px * sy,
            (self.cx_px + 0.5) * sx - 0.5,
            (self.cy_px + 0.5) * sy - 0.5,
            width_px,
            height_px,
        )


@dataclass(frozen=True)
class Frame:
    """One camera image as it arrived; pixels are decoded only when a window needs them."""

    stamp_ns: int
    """Acquisition time."""
    camera: str
    """Name of the camera (the node's parameter `cameras`)."""
    frame_id: str
    """Optical frame of the camera."""
    decode: Callable[[], np.ndarray]
    """Returns uint8 (height, width, 3) RGB; raises ValueError when the data cannot be decoded."""
    intrinsics: Intrinsics | None = None
    """Known calibration for the full image, or None."""
    position_m: np.ndarray | None = None
    """Position by odometry at the stamp, float64 (3,) metres, or None: of the camera, or of the
    robot where it is not known how the camera is mounted."""
    depth: Callable[[], np.ndarray | None] | None = None
    """Returns a depth image registered to this one, float (height, width) in metres, NaN or 0
    where unknown, or None where none came; itself None where the camera has no depth."""
    up: np.ndarray | None = None
    """Up, against gravity, at the stamp: unit float64 (3,) in optical axes, or None."""
    odom_from_camera: np.ndarray | None = None
    """Pose by odometry at the stamp, float64 (4, 4) metres, optical axes; None where that, or how
    the camera is mounted, is not known. Its translation is `position_m`."""
    rig_from_camera: np.ndarray | None = None
    """Fixed pose in a frame that all cameras of the robot share, float64 (4, 4) metres, optical
    axes; None where it is not known."""

    ignored: Callable[[], np.ndarray | None] | None = None
    """Returns bool (height, width) of any size: pixels not to be believed (what moves), or None
    where no mask came; itself None where there is no topic of masks."""

    def __post_init__(self) -> None:
        if self.odom_from_camera is not None:
            _freeze(self, "odom_from_camera", (4, 4), np.float64)
            object.__setattr__(self, "position_m", self.odom_from_camera[:3, 3])
        if self.rig_from_camera is not None:
            _freeze(self, "rig_from_camera", (4, 4), np.float64)
        if self.position_m is not None:
            _freeze(self, "position_m", (3,), np.float64)
        if self.up is not None:
            _freeze(self, "up", (3,), np.float64)


@dataclass(frozen=True)
class Window:
    """The views that go through the model together, oldest first."""

    id: int
    frames: tuple[Frame, ...]

    @property
    def newest(self) -> int:
        """Index of the newest view."""
        return newest_view(self.frames)

    @property
    def stamp_ns(self) -> int:
        """Acquisition time of the newest view."""
        return self.frames[self.newest].stamp_ns


def newest_view(frames: Sequence[Frame], views: Iterable[int] | None = None) -> int:
    """Index of the newest frame, of all or of some views; the first of those of one moment."""
    among = range(len(frames)) if views is None else views
    return max(among, key=lambda i: frames[i].stamp_ns)


@dataclass(frozen=True)
class RawGeometry:
    """What the geometric heads give for N views, in model units."""

    local_points_u: np.ndarray | DevicePoints
    """float32 (N, H, W, 3): a point per pixel in the optical frame of its view, z > 0. It lies on
    the device where the backend leaves it there, and is read like an array either way."""
    window_from_camera: np.ndarray
    """float32 (N, 4, 4): camera-to-window poses; view 0 is not the identity."""
    rotation9: np.ndarray
    """float32 (N, 9): the camera head's raw rotation before orthogonalisation."""
    confidence: np.ndarray | None = None
    """float32 (N, H, W) in 0..1 from the confidence head, or None where there is none."""
    global_points_u: np.ndarray | None = None
    """float32 (N, H, W, 3) of the training-only head (frame of camera 0), or None."""

    def __post_init__(self) -> None:
        if not isinstance(self.local_points_u, DevicePoints):
            _freeze(self, "local_points_u", (None, None, None, 3), np.float32)
        views, height, width, _ = self.local_points_u.shape
        _freeze(self, "window_from_camera", (views, 4, 4), np.float32)
        _freeze(self, "rotation9", (views, 9), np.float32)
        if self.confidence is not None:
            _freeze(self, "confidence", (views, height, width), np.float32)
        if self.global_points_u is not None:
            _freeze(self, "global_points_u", (views, height, width, 3), np.float32)

    @cached_property
    def sampled_depths_u(self) -> np.ndarray:
        """float32 (N, n): depths of every DEPTH_STRIDE-th row and column of each view."""
        depths = self.local_points_u[:, ::DEPTH_STRIDE, ::DEPTH_STRIDE, 2]
        return np.ascontiguousarray(depths).reshape(len(depths), -1)

    @cached_property
    def view_depths_u(self) -> np.ndarray:
        """float32 (N,): median of each view, by samples."""
        return np.median(self.sampled_depths_u, axis=1)

    @cached_property
    def median_depth_u(self) -> float:
        """Of all views, by the samples that are numbers."""
        depths = self.sampled_depths_u
        return float(np.median(depths[~np.isnan(depths)]))


DEPTH_STRIDE = 8
"""Rows and columns from one sample of depth to the next: medians need no more."""


@dataclass(frozen=True)
class ViewStd:
    """How far views of a window are off within it: standard deviations of half of its views
    against the other half, so that the errors which neighbours share count in full."""

    turn_rad: float
    """About each axis."""
    shift: float
    """Of each coordinate of the camera's place, as a share of the window's median depth."""
    scale: float
    """Relative, of the depth."""


@dataclass(frozen=True)
class Reconstruction:
    """Geometry of one window as users get it: points, colours, poses, confidence, intrinsics.

    Lengths are in model units; the window frame is the model's own and differs between windows.
    """

    geometry: RawGeometry
    colours: np.ndarray
    """uint8 (N, H, W, 3) RGB: the resized views, pixel for pixel with the points."""
    confidence: np.ndarray | DeviceConfidence
    """float32 (N, H, W): 0..1, NaN where nothing is known (a single view without a head). It lies
    where the points lie, unless a head gave it."""
    intrinsics: tuple[Intrinsics | None, ...]
    """Per view, for the H x W image: known, or recovered from the points; None where no pinhole
    fits."""
    stage_times_s: dict[str, float]
    descriptors: np.ndarray | None = None
    """float32 (N, C): a compact signature of each view, near where views look alike; or None."""
    recovered_intrinsics: tuple[Intrinsics | None, ...] | None = None
    """What the network's points said where `intrinsics` are known ones."""
    ignored: np.ndarray | None = None
    """bool (N, H, W): pixels of what moves, as masks say; or None."""
    view_std: ViewStd | None = None
    """What images left of its errors (`PoseRefiner`); None where nothing is known of them."""
    _valid: dict[float, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """What `valid` found, by its argument."""

    def __post_init__(self) -> None:
        shape = self.geometry.local_points_u.shape
        _freeze(self, "colours", shape, np.uint8)
        if not isinstance(self.confidence, DeviceConfidence):
            _freeze(self, "confidence", shape[:3], np.float32)
        if self.descriptors is not None:
            _freeze(self, "descriptors", (shape[0], None), np.float32)
        if len(self.intrinsics) != shape[0]:
            raise ValueError(f"{len(self.intrinsics)} intrinsics given for {shape[0]} views")

    @property
    def views(self) -> int:
        """How many views N."""
        return self.geometry.local_points_u.shape[0]

    @property
    def sampled_depths_u(self) -> np.ndarray:
        """float32 (N, n): depths of every DEPTH_STRIDE-th row and column of each view."""
        return self.geometry.sampled_depths_u

    @property
    def view_depths_u(self) -> np.ndarray:
        """float32 (N,): median depth of each view."""
        return self.geometry.view_depths_u

    @property
    def median_depth_u(self) -> float:
        """Of all views."""
        return self.geometry.median_depth_u

    @property
    def local_points_u(self) -> np.ndarray | DevicePoints:
        """float32 (N, H, W, 3), see RawGeometry."""
        return self.geometry.local_points_u

    @property
    def device_points_u(self) -> DevicePoints | None:
        """`local_points_u` where they lie on a device."""
        points = self.geometry.local_points_u
        return points if isinstance(points, DevicePoints) else None

    @property
    def window_from_camera(self) -> np.ndarray:
        """float32 (N, 4, 4), see RawGeometry."""
        return self.geometry.window_from_camera

    def valid(self, max_edge_step: float) -> np.ndarray:
        """bool (N, H, W): pixels that belong into clouds and maps; found once per window.

        Out go points that are not finite or not in front of the camera, and those at depth steps
        above a fraction of the nearer depth (0 keeps them), across which networks smear surfaces,
        and ignored pixels.
        """
        if max_edge_step not in self._valid:
            mask = valid_points(self.local_points_u, max_edge_step)
            if self.ignored is not None:
                mask = mask & ~self.ignored
            self._valid[max_edge_step] = frozen(mask, "valid", mask.shape, np.bool_)
        return self._valid[max_edge_step]

    def points_u(self, stride_px: int = 1) -> np.ndarray:
        """float32 (N, H, W, 3): the points of all views, or every n-th, in the window frame."""
        pose, local = self.window_from_camera, self.local_points_u[:, ::stride_px, ::stride_px]
        turned = local.reshape(len(pose), -1, 3) @ pose[:, :3, :3].transpose(0, 2, 1)
        return (turned + pose[:, None, :3, 3]).reshape(local.shape)


@dataclass(frozen=True)
class Answer:
    """What the model said to a question about a window."""

    text: str
    token_ids: tuple[int, ...]
    finished: bool
    """False when the token limit, the deadline or a cancellation ended the answer."""
    stage_times_s: dict[str, float]
    prefill_tokens: int
    """Tokens computed for this answer; a second question on the same window pays fewer."""
