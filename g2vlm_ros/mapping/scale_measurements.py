# SPDX-License-Identifier: Apache-2.0
"""Metres per unit: what a window can be measured against.

Evidence is the scale of one window's own unit, from (in this order of trust) odometry, the known
baselines of a camera rig, a depth image, the camera's height over the floor, or a fixed number.
`scale_filter` makes the scale of the map of it; until then lengths are relative.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.mapping.gravity_alignment import Floor
from g2vlm_ros.mapping.rig_constraint import rig_distance_m
from g2vlm_ros.records import DEPTH_STRIDE, Frame, Reconstruction, ScaleSource, Window
from g2vlm_ros.settings import SettingError

TRUST = (
    ScaleSource.MAP,
    ScaleSource.ODOMETRY,
    ScaleSource.RIG,
    ScaleSource.DEPTH,
    ScaleSource.CAMERA_HEIGHT,
    ScaleSource.FIXED,
)
"""Sources of scale, the most trusted first."""
MIN_STD = {
    ScaleSource.MAP: 0.02,
    ScaleSource.ODOMETRY: 0.02,
    ScaleSource.RIG: 0.02,
    ScaleSource.DEPTH: 0.02,
    ScaleSource.CAMERA_HEIGHT: 0.05,
    ScaleSource.FIXED: 0.1,
}
"""Relative error that no number of windows averages out: the source, or the network, is off."""
VIEW_NOISE = 0.01
"""Error of a view's position in its window, as a fraction of the median range, until the scatter
of the evidence shows more (`ScaleFilter.view_noise`)."""
ODOMETRY_NOISE_M = 0.02
ODOMETRY_ARM_M = 0.2
"""The odometry's point may be so far from the camera: a turn moves one and not the other."""
MAX_SPEED_M_S = 20.0
"""Odometry that is faster has jumped."""
MIN_MOTION_M = 0.1
"""Odometry says nothing about scale over shorter ways."""
MAX_DISAGREEMENT = 0.3
"""Relative spread of single measurements above which a window's evidence is refused."""


MAX_DEPTH_M = 200.0
"""Median of a depth image above which it is not in metres: no depth camera sees so far, and
millimetres as floats are 1000 times too large."""


@dataclass(frozen=True)
class ScaleMeasurement:
    """What one source says about one window's unit."""

    metres_per_unit: float
    relative_std: float
    source: ScaleSource


def rig_baselines_m(setting: str) -> dict[tuple[str, str], float]:
    """{(camera, camera): metres} of "left right 0.12, ..."; SettingError when malformed."""
    baselines = {}
    for entry in filter(str.strip, setting.split(",")):
        words = entry.split()
        try:
            metres = float(words[2]) if len(words) == 3 else 0.0
        except ValueError:
            metres = 0.0
        if not 0 < metres < np.inf:
            raise SettingError(
                f"map.rig_baselines holds {entry.strip()!r}; each entry must be two cameras and "
                "the metres between them, like: left right 0.12"
            )
        baselines[words[0], words[1]] = metres
    return baselines


def evidence(
    window: Window,
    result: Reconstruction,
    floor: Floor | None,
    *,
    rig_m: dict[tuple[str, str], float],
    camera_height_m: float,
    metres_per_unit: float,
    expected: float = float("nan"),
    view_noise: float = VIEW_NOISE,
) -> list[ScaleMeasurement]:
    """What each source says of this window, the most trusted first.

    rig_m: known distance between two cameras' optical centres. camera_height_m, metres_per_unit:
    0 for unknown. expected: the window's metres per unit by earlier windows; NaN for unknown.
    view_noise: error of a view's position as a fraction of the median range.
    """
    measurements = (
        from_odometry(window.frames, result, expected, view_noise),
        from_rig(window.frames, result, rig_m, expected, view_noise),
        from_depth(window.frames, result),
        from_camera_height(floor, camera_height_m),
        ScaleMeasurement(metres_per_unit, MIN_STD[ScaleSource.FIXED], ScaleSource.FIXED)
        if metres_per_unit
        else None,
    )
    return [each for each in measurements if each is not None]


def from_odometry(
    frames: Sequence[Frame],
    result: Reconstruction,
    expected: float = float("nan"),
    view_noise: float = VIEW_NOISE,
) -> ScaleMeasurement | None:
    """Ratio of the ways between successive views of a camera by odometry and in the window.

    Segments are weighted by their visual length, so that a jump of the odometry weighs no more
    than any other segment. None where the ways are short against the errors of both.
    """
    ways, turns = [], []
    for camera in {frame.camera for frame in frames}:
        views = [
            i for i, f in enumerate(frames) if f.camera == camera and f.position_m is not None
        ]
        views.sort(key=lambda i: frames[i].stamp_ns)
        for i, j in itertools.pairwise(views):
            moved_m = float(np.linalg.norm(frames[j].position_m - frames[i].position_m))
            if moved_m > MAX_SPEED_M_S * (frames[j].stamp_ns - frames[i].stamp_ns) * 1e-9:
                continue
            ways.append((moved_m, _distance_u(result, i, j)))
            turns.append(_angle_rad(result, i, j))
    if not ways or sum(m for m, _ in ways) < MIN_MOTION_M:
        return None
    metres, units = np.array(ways).T
    noise_m = np.hypot(ODOMETRY_NOISE_M * np.sqrt(2), ODOMETRY_ARM_M * np.mean(turns))
    noise = noise_m / np.sqrt(len(ways)) / metres.mean()
    visual = VIEW_NOISE * _reach(result, metres, units, expected)
    worse = view_noise / VIEW_NOISE
    return _combine(metres, units, noise, visual, worse, ScaleSource.ODOMETRY)


def from_rig(
    frames: Sequence[Frame],
    result: Reconstruction,
    rig_m: dict[tuple[str, str], float],
    expected: float = float("nan"),
    view_noise: float = VIEW_NOISE,
) -> ScaleMeasurement | None:
    """Ratio of known and recovered distances between the cameras of one instant."""
    pairs = []
    for i, j in itertools.combinations(range(len(frames)), 2):
        names = (frames[i].camera, frames[j].camera)
        known_m = rig_m.get(names) or rig_m.get(names[::-1])
        known_m = known_m or rig_distance_m(frames[i], frames[j])
        # Cameras of one instant: nearer in time to each other than to anything else here.
        if known_m and abs(frames[i].stamp_ns - frames[j].stamp_ns) <= _instant_ns(frames):
            pairs.append((known_m, _distance_u(result, i, j)))
    if not pairs:
        return None
    metres, units = np.array(pairs).T
    visual = VIEW_NOISE * _reach(result, metres, units, expected)
    worse = view_noise / VIEW_NOISE
    return _combine(metres, units, 0.0, visual, worse, ScaleSource.RIG)


def from_depth(frames: Sequence[Frame], result: Reconstruction) -> ScaleMeasurement | None:
    """Ratio of depth images (registered to the colour images) and recovered depth."""
    logs = []
    for i, frame in enumerate(frames):
        image = None if frame.depth is None else frame.depth()
        if image is None:
            continue
        depth_u = result.sampled_depths_u[i]
        depth_m = _nearest(image, result.local_points_u.shape[1:3])
        depth_m = depth_m[::DEPTH_STRIDE, ::DEPTH_STRIDE].reshape(-1)
        good = np.isfinite(depth_m) & (depth_m > 0) & (depth_u > 0)
        if good.mean() > 0.05 and np.median(depth_m[good]) <= MAX_DEPTH_M:
            logs.append(np.log(depth_m[good] / depth_u[good]))
    if not logs:
        return None
    ratios = np.concatenate(logs)
    spread = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))
    if spread > MAX_DISAGREEMENT:
        return None
    std = np.hypot(spread / np.sqrt(64 * len(logs)), MIN_STD[ScaleSource.DEPTH])
    return ScaleMeasurement(float(np.exp(np.median(ratios))), float(std), ScaleSource.DEPTH)


def from_camera_height(floor: Floor | None, camera_height_m: float) -> ScaleMeasurement | None:
    """Ratio of the known and the recovered height of the cameras above the floor."""
    if floor is None or camera_height_m <= 0:
        return None
    std = np.hypot(floor.relative_std, MIN_STD[ScaleSource.CAMERA_HEIGHT])
    return ScaleMeasurement(
        camera_height_m / floor.height_u, float(std), ScaleSource.CAMERA_HEIGHT
    )


def _reach(
    result: Reconstruction, metres: np.ndarray, units: np.ndarray, expected: float
) -> float:
    """Relative error of the mean of n distances per error of a view's position.

    Of two views each; positions err by a fraction of the median range. By the distances that
    should be there where the scale is about known: those that are there err themselves, and
    short ones would count too little, long ones too much.
    """
    depth = result.median_depth_u
    length_u = metres.mean() / expected if np.isfinite(expected) else units.mean()
    return depth / max(float(length_u), 1e-9) * np.sqrt(2 / len(units))


def _combine(
    metres: np.ndarray,
    units: np.ndarray,
    noise: float,
    visual: float,
    worse: float,
    source: ScaleSource,
) -> ScaleMeasurement | None:
    """Median ratio weighted by visual length.

    noise, visual: relative errors of the metres and of the units, the latter as assumed; worse:
    times as large as they have turned out since. None where they, or the contradictions between
    the ratios, leave nothing to be believed.
    """
    moved = units > 0
    metres, units = metres[moved], units[moved]
    if not len(units) or np.hypot(noise, visual * worse) > MAX_DISAGREEMENT:
        return None
    logs = np.log(np.maximum(metres, 1e-9) / units)
    order = np.argsort(logs)
    share = np.cumsum(units[order]) / units.sum()
    middle = float(logs[order][np.searchsorted(share, 0.5)])
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if spread > MAX_DISAGREEMENT:
        return None
    std = np.sqrt(spread**2 / len(logs) + noise**2 + visual**2 + MIN_STD[source] ** 2)
    return ScaleMeasurement(float(np.exp(middle)), float(std), source)


def _distance_u(result: Reconstruction, i: int, j: int) -> float:
    centres = result.window_from_camera[:, :3, 3].astype(np.float64)
    return float(np.linalg.norm(centres[i] - centres[j]))


def _angle_rad(result: Reconstruction, i: int, j: int) -> float:
    rotations = result.window_from_camera[:, :3, :3].astype(np.float64)
    return float(np.arccos(np.clip((np.trace(rotations[i].T @ rotations[j]) - 1) / 2, -1, 1)))


def _instant_ns(frames: Sequence[Frame]) -> float:
    """Half of the shortest time between two views of one camera."""
    gaps = [
        abs(a.stamp_ns - b.stamp_ns)
        for a, b in itertools.combinations(frames, 2)
        if a.camera == b.camera
    ]
    return min(gaps, default=np.inf) / 2


def _nearest(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The image sampled at the pixel centres of a grid (rows, columns)."""
    sizes = zip(shape, image.shape, strict=True)
    picks = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in sizes]
    return image[np.ix_(*picks)]
