"""Metres per unit, and which way is up: what a window can be measured against.

Evidence is the scale of one window's own unit, from (in this order of trust) odometry, the known
baselines of a camera rig, a depth image, the camera's height over the floor, or a fixed number.
`ScaleFilter` turns it into the scale of the map; until then lengths are relative.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from g2vlm_ros.core.datatypes import Frame, Reconstruction, Window
from g2vlm_ros.core.settings import SettingError

TRUST = ("odometry", "rig", "depth", "camera_height", "fixed")
"""Sources of scale, the most trusted first."""
LEAST_STD = dict(odometry=0.01, rig=0.01, depth=0.02, camera_height=0.05, fixed=0.1)
"""Relative error that no number of windows averages out: the source itself is off."""
VIEW_NOISE = 0.01
"""Assumed error of a view's position in its window, as a fraction of the median range."""
ODOMETRY_NOISE_M = 0.02
LEAST_MOTION_M = 0.1
"""Odometry says nothing about scale over shorter ways."""
MOST_DISAGREEMENT = 0.3
"""Relative spread of single measurements above which a window's evidence is refused."""
FLOOR_STEP = 0.02
"""A point lies on a plane when it is within this fraction of the median range."""
FLOOR_TILT = np.cos(np.deg2rad(25.0))
LEAST_FLOOR_SHARE = 0.1
GATE = 3.0
LEAST_AGREEMENT = 0.98
"""Length of the mean of the views' unit vectors up, below which none is believed."""
PATIENCE = 3
"""Evidence that contradicts the filter so many times in a row is believed."""
DRIFT_PER_WINDOW = 0.005


@dataclass(frozen=True)
class ScaleEvidence:
    """What one source says about one window's unit."""

    metres_per_unit: float
    relative_std: float
    source: str


@dataclass(frozen=True)
class Floor:
    """A floor plane under the cameras of a window, in the window's frame and unit."""

    up: np.ndarray
    """float64 (3,) unit normal."""
    height_u: float
    """Of the cameras above it, on average."""
    relative_std: float
    """Of the height."""


def rig_baselines_m(setting: str) -> dict[tuple[str, str], float]:
    """{(camera, camera): metres} of "left right 0.12, ..."; SettingError when malformed."""
    known = {}
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
        known[words[0], words[1]] = metres
    return known


def evidence(
    window: Window,
    result: Reconstruction,
    floor: Floor | None,
    *,
    rig_m: dict[tuple[str, str], float],
    camera_height_m: float,
) -> ScaleEvidence | None:
    """The most trusted evidence that this window offers, or None.

    rig_m: known distance between two cameras' optical centres. camera_height_m: 0 for unknown.
    """
    return (
        from_odometry(window.frames, result)
        or from_rig(window.frames, result, rig_m)
        or from_depth(window.frames, result)
        or from_camera_height(floor, camera_height_m)
    )


def from_odometry(frames: Sequence[Frame], result: Reconstruction) -> ScaleEvidence | None:
    """Ratio of the ways between successive views of a camera by odometry and in the window.

    Segments are weighted by their visual length, so that a jump of the odometry weighs no more
    than any other segment.
    """
    ways = []
    for camera in {frame.camera for frame in frames}:
        own = [i for i, f in enumerate(frames) if f.camera == camera and f.position_m is not None]
        own.sort(key=lambda i: frames[i].stamp_ns)
        for i, j in itertools.pairwise(own):
            moved_m = float(np.linalg.norm(frames[j].position_m - frames[i].position_m))
            ways.append((moved_m, _distance_u(result, i, j)))
    if not ways or sum(m for m, _ in ways) < LEAST_MOTION_M:
        return None
    metres, units = np.array(ways).T
    noise_m = ODOMETRY_NOISE_M * np.sqrt(2 / len(ways)) / max(metres.mean(), 1e-9)
    return _combine(metres, units, result, noise_m, "odometry")


def from_rig(
    frames: Sequence[Frame], result: Reconstruction, rig_m: dict[tuple[str, str], float]
) -> ScaleEvidence | None:
    """Ratio of known and recovered distances between the cameras of one instant."""
    pairs = []
    for i, j in itertools.combinations(range(len(frames)), 2):
        names = (frames[i].camera, frames[j].camera)
        known_m = rig_m.get(names) or rig_m.get(names[::-1])
        # Cameras of one instant: nearer in time to each other than to anything else here.
        if known_m and abs(frames[i].stamp_ns - frames[j].stamp_ns) <= _instant_ns(frames):
            pairs.append((known_m, _distance_u(result, i, j)))
    if not pairs:
        return None
    metres, units = np.array(pairs).T
    return _combine(metres, units, result, 0.0, "rig")


def from_depth(frames: Sequence[Frame], result: Reconstruction) -> ScaleEvidence | None:
    """Ratio of depth images (registered to the colour images) and recovered depth."""
    logs = []
    for i, frame in enumerate(frames):
        image = None if frame.depth is None else frame.depth()
        if image is None:
            continue
        depth_u = result.local_points_u[i, ..., 2]
        depth_m = _nearest(image, depth_u.shape)
        good = np.isfinite(depth_m) & (depth_m > 0) & (depth_u > 0)
        if good.mean() > 0.05:
            logs.append(np.log(depth_m[good] / depth_u[good]))
    if not logs:
        return None
    ratios = np.concatenate(logs)
    spread = 1.4826 * float(np.median(np.abs(ratios - np.median(ratios))))
    if spread > MOST_DISAGREEMENT:
        return None
    std = np.hypot(spread / np.sqrt(64 * len(logs)), LEAST_STD["depth"])
    return ScaleEvidence(float(np.exp(np.median(ratios))), float(std), "depth")


def from_camera_height(floor: Floor | None, camera_height_m: float) -> ScaleEvidence | None:
    """Ratio of the known and the recovered height of the cameras above the floor."""
    if floor is None or camera_height_m <= 0:
        return None
    std = np.hypot(floor.relative_std, LEAST_STD["camera_height"])
    return ScaleEvidence(camera_height_m / floor.height_u, float(std), "camera_height")


def _combine(
    metres: np.ndarray, units: np.ndarray, result: Reconstruction, noise: float, source: str
) -> ScaleEvidence | None:
    """Median ratio weighted by visual length; None where the ratios contradict each other."""
    moved = units > 0
    metres, units = metres[moved], units[moved]
    if not len(units):
        return None
    logs = np.log(np.maximum(metres, 1e-9) / units)
    order = np.argsort(logs)
    share = np.cumsum(units[order]) / units.sum()
    middle = float(logs[order][np.searchsorted(share, 0.5)])
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if spread > MOST_DISAGREEMENT:
        return None
    depth = result.local_points_u[..., ::8, ::8, 2]
    visual = VIEW_NOISE * float(np.median(depth)) / units.mean() * np.sqrt(2 / len(units))
    std = np.sqrt(spread**2 / len(logs) + noise**2 + visual**2 + LEAST_STD[source] ** 2)
    return ScaleEvidence(float(np.exp(middle)), float(std), source)


def _distance_u(result: Reconstruction, i: int, j: int) -> float:
    centres = result.window_from_camera[:, :3, 3].astype(np.float64)
    return float(np.linalg.norm(centres[i] - centres[j]))


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


def gravity_up(frames: Sequence[Frame], result: Reconstruction) -> np.ndarray | None:
    """Up, unit float64 (3,) in the window's frame, by the gravity of its views; None if unknown.

    None also where the views contradict each other: shaken, or turned wrongly in the window.
    """
    ups = [
        result.window_from_camera[i, :3, :3] @ frame.up
        for i, frame in enumerate(frames)
        if frame.up is not None
    ]
    if not ups:
        return None
    mean = np.mean(ups, axis=0)
    length = float(np.linalg.norm(mean))
    return mean / length if length >= LEAST_AGREEMENT else None


def find_floor(result: Reconstruction, up: np.ndarray) -> Floor | None:
    """The lowest large plane under the cameras that is level within 25 degrees of `up`, or None.

    up: (3,) in the window's frame. Robust: 200 planes through three points each, the best one
    refined by least squares; refused when much lies below it, as under a table top.
    """
    points = result.points_u()[:, ::8, ::8].reshape(-1, 3).astype(np.float64)
    centres = result.window_from_camera[:, :3, 3].astype(np.float64)
    middle, reach = centres.mean(0), float(np.median(result.local_points_u[:, ::8, ::8, 2]))
    points = points[np.isfinite(points).all(1)] - middle
    everything, step = len(points), FLOOR_STEP * reach
    points = points[points @ up < -0.1 * reach]
    if len(points) < max(30, LEAST_FLOOR_SHARE * everything):
        return None
    picks = np.random.default_rng(0).integers(len(points), size=(200, 3))
    a, b, c = points[picks].transpose(1, 0, 2)
    normal = np.cross(b - a, c - a)
    length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
    normal *= (np.sign(normal @ up) / length)[:, None]
    level = normal @ up > FLOOR_TILT
    if not level.any():
        return None
    normal, a = normal[level], a[level]
    distance = points @ normal.T - (a * normal).sum(1)
    votes = (np.abs(distance) < step).sum(0) - 2 * (distance < -2 * step).sum(0)
    best = int(votes.argmax())
    on = np.abs(distance[:, best]) < step
    if on.sum() < LEAST_FLOOR_SHARE * everything:
        return None
    for _ in range(3):
        # What stands on the floor is near it too: close in on the plane itself.
        centre = points[on].mean(0)
        refined = np.linalg.svd(points[on] - centre, full_matrices=False)[2][2]
        refined = refined * np.sign(refined @ up)
        off = np.abs((points - centre) @ refined)
        on = off <= np.clip(3 * np.median(off[on]), 1e-4 * reach, step)
    below = ((points - centre) @ refined < -2 * step).mean()
    heights = (centres - middle - centre) @ refined
    if refined @ up < FLOOR_TILT or below > 0.1 or heights.min() <= step:
        return None
    spread = float(np.std((points[on] - centre) @ refined))
    return Floor(refined, float(heights.mean()), spread / float(heights.mean()))


@dataclass(frozen=True)
class ScaleBelief:
    """What is known of the map's unit."""

    metres_per_unit: float
    """Metres per map unit; NaN while nothing is known."""
    relative_std: float
    """NaN while nothing is known."""
    source: str
    """One of TRUST, or "none"."""
    jump: float
    """New over old estimate where it changed by more than its own deviation; else 1."""
    refused: int
    """Pieces of evidence in a row that contradict the belief and were left out."""


class ScaleFilter:
    """Metres per map unit over the windows of one sub-map.

    A Kalman filter on the logarithm. The most trusted source seen so far is the only one heard;
    evidence further off than GATE deviations is refused until it comes PATIENCE times in a row.
    """

    def __init__(self) -> None:
        self._log, self._variance, self._source = np.nan, np.inf, "none"
        self._refused = 0

    def update(self, found: ScaleEvidence | None, map_per_window: float) -> ScaleBelief:
        """Hear one window. map_per_window: map units per unit of the window."""
        before, deviation = self._log, np.sqrt(self._variance)
        self._variance += DRIFT_PER_WINDOW**2
        if found is not None:
            self._hear(np.log(found.metres_per_unit / map_per_window), found)
        change = self._log - before
        jump = float(np.exp(change)) if abs(change) > deviation else 1.0
        return replace(self.belief(), jump=jump)

    def belief(self) -> ScaleBelief:
        """What is known now; nothing has just jumped."""
        std = float(np.sqrt(self._variance)) if self._source != "none" else float("nan")
        return ScaleBelief(float(np.exp(self._log)), std, self._source, 1.0, self._refused)

    def rescaled(self, factor: float) -> None:
        """The map's unit shrank: lengths in map units became `factor` times as many."""
        self._log -= float(np.log(factor))

    def _hear(self, measured: float, found: ScaleEvidence) -> None:
        rank = TRUST.index
        if self._source == "none" or rank(found.source) < rank(self._source):
            self._adopt(measured, found)
        elif found.source == self._source:
            variance, surprise = found.relative_std**2, measured - self._log
            if surprise**2 > GATE**2 * (self._variance + variance):
                self._refused += 1
                if self._refused >= PATIENCE:
                    self._adopt(measured, found)
                return
            gain = self._variance / (self._variance + variance)
            self._log += gain * surprise
            floor = LEAST_STD[found.source] ** 2
            self._variance = max((1 - gain) * self._variance, floor)
            self._refused = 0

    def _adopt(self, measured: float, found: ScaleEvidence) -> None:
        self._log, self._variance = measured, found.relative_std**2
        self._source, self._refused = found.source, 0
