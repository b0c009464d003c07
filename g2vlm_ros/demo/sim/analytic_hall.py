# SPDX-License-Identifier: Apache-2.0
"""A drive through an analytic building, with perfect or spoilt geometry in place of the network.

A hall of 16 x 12 m with a block in the middle and pillars; the robot drives around the block, so
that it comes back to where it started. Every window comes in a unit and frame of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.window_pose import MappedWindow
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, Intrinsics, RawGeometry, Reconstruction, Window
from g2vlm_ros.settings import MapSettings, Settings

WIDTH_PX, HEIGHT_PX = 64, 48
CAMERA = Intrinsics(46.0, 46.0, 31.5, 23.5, WIDTH_PX, HEIGHT_PX)
HALL_M = np.array([[-8.0, -6.0, 0.0], [8.0, 6.0, 3.0]])
BLOCK_M = np.array([[-4.0, -2.0, 0.0], [4.0, 2.0, 3.0]])
PILLARS_M = np.array([[-6.6, -4.6], [-2, -5], [3, -4.9], [6.8, -1], [6.7, 4.7], [1, 5], [-5, 4.9]])
PILLAR_RADIUS_M = 0.25
HEIGHT_M = 1.3
RADIUS_M = 1.5
HALF_M = np.array([5.7, 3.6])
LAP_M = 4 * (HALF_M.sum() - 2 * RADIUS_M) + 2 * np.pi * RADIUS_M
GAP_NS = 3 * 10**8
BITS = 16


def on_lap(way_m: float) -> tuple[np.ndarray, float]:
    """Position (2,) and heading after a way around the block, a rectangle with round corners."""
    straight = 2 * (HALF_M - RADIUS_M)
    bend = np.pi / 2 * RADIUS_M
    position, heading = np.array([-straight[0] / 2, -HALF_M[1]]), 0.0
    way_m = way_m % LAP_M
    for side in range(4):
        ahead = np.array([np.cos(heading), np.sin(heading)])
        left = np.array([-ahead[1], ahead[0]])
        length = straight[side % 2]
        if way_m <= length:
            return position + way_m * ahead, heading
        position, way_m = position + length * ahead, way_m - length
        if way_m <= bend:
            turn = way_m / RADIUS_M
            arc = ahead * np.sin(turn) + left * (1 - np.cos(turn))
            return position + RADIUS_M * arc, heading + turn
        position, way_m = position + RADIUS_M * (ahead + left), way_m - bend
        heading += np.pi / 2
    return position, heading


def pose_on_lap(way_m: float, yaw_rad: float = 0.0) -> np.ndarray:
    """world_from_camera (4, 4), looking ahead and a little down."""
    position, heading = on_lap(way_m)
    heading += yaw_rad
    c, s = np.cos(heading), np.sin(heading)
    pitch = np.deg2rad(8.0)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    nod = np.array(
        [[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]]
    )
    pose = np.eye(4)
    pose[:3, :3] = turn @ nod @ ZUP_FROM_OPTICAL
    pose[:3, 3] = [*position, HEIGHT_M]
    return pose


@lru_cache(maxsize=256)
def _look(pose: bytes) -> tuple[np.ndarray, np.ndarray]:
    return look(np.frombuffer(pose).reshape(4, 4))


def look(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the camera sees: depth float64 (H, W) and colours uint8 (H, W, 3)."""
    rows, columns = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
    rays = unproject(np.stack([columns, rows], -1), np.ones(rows.shape), CAMERA) @ pose[:3, :3].T
    start = pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = np.sort((HALL_M[:, None, None] - start) / rays, axis=0)
        depth = far.min(-1)
        near, far = np.sort((BLOCK_M[:, None, None] - start) / rays, axis=0)
        enter, leave = near.max(-1), far.min(-1)
    depth = np.where((enter > 0) & (enter < leave), np.minimum(depth, enter), depth)
    for pillar in PILLARS_M:
        offset, flat = start[:2] - pillar, rays[..., :2]
        a, b = (flat**2).sum(-1), flat @ offset
        root = b**2 - a * (offset @ offset - PILLAR_RADIUS_M**2)
        hit = (-b - np.sqrt(np.maximum(root, 0))) / a
        depth = np.where((root > 0) & (hit > 0), np.minimum(depth, hit), depth)
    points = start + rays * depth[..., None]
    return depth, _texture(points)


def _texture(points: np.ndarray) -> np.ndarray:
    """Colours that depend on the place alone, with patterns of 0.5 to 5 m."""
    rng = np.random.default_rng(5)
    waves = rng.normal(size=(12, 3)) * np.geomspace(0.6, 4, 12)[:, None]
    phases = rng.uniform(0, 6, (12, 3))
    value = np.sin(points @ waves.T)[..., None] * np.cos(phases) + np.sin(phases)
    return np.clip(128 + 28 * value.sum(-2), 0, 255).astype(np.uint8)


@dataclass
class Noise:
    """How the geometry of a window is spoilt; all zero is perfect."""

    depth: float = 0.0
    """Relative error of depth: half of its variance from pixel to pixel, half in 6 x 8 patches."""
    outliers: float = 0.0
    """Share of pixels whose depth is up to three times too large or small."""
    turn_rad: float = 0.0
    shift: float = 0.0
    """Error of a view's pose in its window: angle per axis, fraction of its median depth."""


class DrivePerception:
    """Knows the truth; images carry the number of their view in a bar that survives JPEG."""

    def __init__(self, poses: np.ndarray, noise: Noise | None = None, seed: int = 0):
        self.poses = poses
        self.noise = noise or Noise()
        self.rng = np.random.default_rng(seed)
        self.log: list[tuple[list[int], Reconstruction]] = []
        self.keep_log = False
        self.window_from_world = Sim3.identity()
        """Of the newest window."""

    def image(self, number: int) -> np.ndarray:
        image = _look(self.poses[number].tobytes())[1].copy()
        bits = (number >> np.arange(BITS)) & 1
        image[:8] = (255 * bits).repeat(WIDTH_PX // BITS)[None, :, None]
        return image

    def scene(self, images) -> list[int]:
        bars = [image[2:6].mean((0, 2)).reshape(BITS, -1).mean(1) > 128 for image in images]
        return [int((bar << np.arange(BITS)).sum()) for bar in bars]

    def reconstruct(self, numbers: list[int]) -> Reconstruction:
        looks = [_look(self.poses[n].tobytes()) for n in numbers]
        unit = self.window_from_world = random_unit(self.rng)
        rows, columns = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX]
        pixels = np.stack([columns, rows], -1)
        local = np.stack([unproject(pixels, d * self._depth_error(), CAMERA) for d, _ in looks])
        reach = [float(np.median(d)) for d, _ in looks]
        poses = [self._spoil(self.poses[n], r) for n, r in zip(numbers, reach, strict=True)]
        poses = np.stack([unit.apply_pose(p) for p in poses])
        raw = RawGeometry(
            (unit.scale * local).astype(np.float32),
            poses.astype(np.float32),
            np.zeros((len(numbers), 9), np.float32),
        )
        result = Reconstruction(
            raw,
            np.stack([c for _, c in looks]),
            np.ones(local.shape[:3], np.float32),
            (CAMERA,) * len(numbers),
            {"heads": 0.0},
        )
        if self.keep_log:
            self.log.append((list(numbers), result))
        return result

    def _depth_error(self) -> np.ndarray:
        shape, noise = (HEIGHT_PX, WIDTH_PX), self.noise
        patches = self.rng.normal(size=(HEIGHT_PX // 6, WIDTH_PX // 8))
        patches = patches.repeat(6, axis=0).repeat(8, axis=1)
        error = noise.depth / np.sqrt(2) * (self.rng.normal(size=shape) + patches)
        wild = np.exp(self.rng.uniform(-np.log(3), np.log(3), shape))
        return np.where(self.rng.random(shape) < noise.outliers, wild, np.maximum(1 + error, 0.2))

    def _spoil(self, pose: np.ndarray, reach: float) -> np.ndarray:
        angles = self.noise.turn_rad * self.rng.normal(size=3)
        spoilt = pose.copy()
        spoilt[:3, :3] = pose[:3, :3] @ rotation(angles)
        spoilt[:3, 3] += self.noise.shift * reach * self.rng.normal(size=3)
        return spoilt


def rotation(vector: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) about a vector by its length (Rodrigues)."""
    angle = max(float(np.linalg.norm(vector)), 1e-12)
    x, y, z = vector / angle
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def up_in(result: Reconstruction) -> np.ndarray:
    """Up, unit (3,), in the frame of a window of `pose_on_lap`, which nods by 8 degrees."""
    nod = np.deg2rad(8.0)
    up = np.array([0.0, -np.cos(nod), -np.sin(nod)])
    mean = (result.window_from_camera[:, :3, :3].astype(float) @ up).mean(0)
    return mean / np.linalg.norm(mean)


def random_unit(rng: np.random.Generator) -> Sim3:
    """A window's own unit and frame."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.sign(np.linalg.det(turn))
    return Sim3(float(rng.uniform(0.2, 5)), turn, rng.normal(size=3))


VALUES = {"window.views": 3, "window.overlap": 1, "window.max_age_s": 4.0}


def make(poses, noise=None, **values):
    """The perception of a drive and live mapping over it; settings as ``map__loop_closure``."""
    perception = DrivePerception(poses, noise)
    flat = {key.replace("__", "."): value for key, value in values.items()}
    return perception, MappingPipeline(perception, Settings.from_flat({**VALUES, **flat}))


def steps(live):
    """All updates that wait."""
    updates = []
    while (update := live.step()) is not None:
        updates.append(update)
    return updates


def run(perception, live, numbers, change=lambda number, frame: frame):
    """Offer these views one by one; `change` may spoil a frame. Returns the updates."""
    updates = []
    for number in numbers:
        live.offer(change(number, frame_of(perception, number)))
        updates += steps(live)
    return updates


def place_drive(poses, noise=None, **options):
    """(placement, map_from_camera of its views) of windows of three views, two shared.

    `known(pose)` are fields of each frame.
    """
    perception, slam = DrivePerception(poses, noise), GraphSlam(MapSettings())
    for first in range(len(poses) - 2):
        numbers = list(range(first, first + 3))
        frames = [
            frame_of(perception, n, **{name: of(poses[n]) for name, of in options.items()})
            for n in numbers
        ]
        result = perception.reconstruct(numbers)
        placement = slam.place(Window(first + 1, tuple(frames)), result)
        yield placement, placement.camera_poses(result.window_from_camera)


@dataclass
class Track:
    """Poses of all views after all corrections, as a consumer of the updates keeps them."""

    windows: dict[int, Sim3] = field(default_factory=dict)
    views: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)

    def take(self, update: MappedWindow, numbers: list[int]) -> None:
        placement = update.placement
        self.windows[update.window.id] = placement.map_from_window
        for window, pose in placement.corrections:
            self.windows[window] = pose
        for i in update.new_views:
            pose = update.result.window_from_camera[i].astype(np.float64)
            self.views[numbers[i]] = (update.window.id, pose)

    def positions(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers (n,) and map positions (n, 3) of the views."""
        numbers = np.array(sorted(self.views))
        places = [self.windows[w].apply(pose[:3, 3]) for w, pose in map(self.views.get, numbers)]
        return numbers, np.stack(places)


def trajectory_error(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square distance after the best similarity, as a fraction of the path's length."""
    moved = fit_sim3(estimate, truth, np.ones(len(truth))).apply(estimate)
    path = np.linalg.norm(np.diff(truth, axis=0), axis=1).sum()
    return float(np.sqrt(((moved - truth) ** 2).sum(1).mean()) / path)


def lap_poses(views: int, step_m: float, weave: float = 0.25) -> np.ndarray:
    """world_from_camera (views, 4, 4): around the block, looking a little left and right."""
    return np.stack([pose_on_lap(k * step_m, weave * np.sin(0.7 * k)) for k in range(views)])


def frame_of(perception: DrivePerception, number: int, **more) -> Frame:
    """The frame of a view."""
    return Frame(
        10**9 + number * GAP_NS, "camera", "optical", lambda: perception.image(number), **more
    )


def drive(perception: DrivePerception, on_update=lambda update, numbers: None, **values) -> Track:
    """Run all views through MappingPipeline; `values` are settings with __ for the dot."""
    flat = {"window.max_age_s": 10.0, "model.image_width_px": 70}
    flat.update({key.replace("__", "."): value for key, value in values.items()})
    live = MappingPipeline(perception, Settings.from_flat(flat))
    track = Track()
    for number in range(len(perception.poses)):
        live.offer(frame_of(perception, number))
        while (update := live.step()) is not None:
            numbers = [(f.stamp_ns - 10**9) // GAP_NS for f in update.window.frames]
            track.take(update, numbers)
            on_update(update, numbers)
    track.counts = live.counts()
    return track
