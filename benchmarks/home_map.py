# SPDX-License-Identifier: Apache-2.0
"""A walk through a simulated home with exact depth in place of the network, and its picture.

Judges windows, joints, loop closure and map alone: every window comes in a unit and frame of its
own, as from the network, but its geometry is right. Writes the trajectory error and docs/map.png
(the live map from above and from the side, with the estimated path in red).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from benchmarks.record import record
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import SimulatedScene, make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.images.map_preview import picture
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, RawGeometry, Reconstruction
from g2vlm_ros.settings import Settings

PICTURE = Path(__file__).parents[1] / "docs" / "map.png"
WIDTH_PX, GAP_S = 224, 0.4


class ExactPerception:
    """Knows the depth and pose of every view; tells views by their looks."""

    def __init__(self, scene: SimulatedScene, most_views: int, width_px: int = WIDTH_PX):
        steps = np.arange(0, len(scene.walk.time_s), round(GAP_S * RATE_HZ))[:most_views]
        self.time_s = scene.walk.time_s[steps]
        self.world_from_camera = scene.walk.world_from_camera[steps]
        self.camera = lens(width_px, width_px * 3 // 4)
        views = render(
            [scene.home],
            np.zeros(len(steps), np.int64),
            self.world_from_camera,
            self.time_s,
            self.camera,
        )
        self.images, self.depth_m = np.array(views.images), np.asarray(views.depth_m)
        self._small = np.stack([_thumbnail(image) for image in self.images])
        self._rng = np.random.default_rng(0)

    def frame(self, number: int) -> Frame:
        """The view as a camera would send it."""
        stamp_ns = 10**9 + round(self.time_s[number] * 1e9)
        return Frame(stamp_ns, "camera", "optical", lambda: self.images[number])

    def scene(self, images: list[np.ndarray]) -> list[int]:
        """Which views these are."""
        differences = (np.abs(self._small - _thumbnail(image)).sum((1, 2, 3)) for image in images)
        return [int(np.argmin(difference)) for difference in differences]

    def reconstruct(self, numbers: list[int]) -> Reconstruction:
        """Their true geometry in a random unit and frame."""
        turn, _ = np.linalg.qr(self._rng.normal(size=(3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        unit = Sim3(float(self._rng.uniform(0.3, 3)), turn, self._rng.normal(size=3))
        rows, columns = np.mgrid[0 : self.camera.height_px, 0 : self.camera.width_px]
        pixels = np.stack([columns, rows], -1)
        local = np.stack([unproject(pixels, self.depth_m[n], self.camera) for n in numbers])
        local = (unit.scale * local).astype(np.float32)
        poses = np.stack([unit.apply_pose(self.world_from_camera[n]) for n in numbers])
        nine = poses[:, :3, :3].reshape(-1, 9).astype(np.float32)
        raw = RawGeometry(local, poses.astype(np.float32), nine)
        sure = np.ones(local.shape[:3], np.float32)
        intrinsics = (self.camera,) * len(numbers)
        return Reconstruction(raw, self.images[numbers], sure, intrinsics, {})


def _thumbnail(image: np.ndarray) -> np.ndarray:
    """float32 (12, 16, 3): survives the compression of stored keyframes."""
    return cv2.resize(image, (16, 12), interpolation=cv2.INTER_AREA).astype(np.float32)


def drive(home: int, most_views: int) -> dict:
    """Drive through a held-out home; returns the figures and writes the picture."""
    settings = Settings.from_flat({"window.max_age_s": 10.0, "voxel.max_edge_step": 0.1})
    perception = ExactPerception(make_scene(home_seed("heldout", home), legs=12), most_views)
    live, dense_map, places, windows = (
        MappingPipeline(perception, settings),
        DenseMap(settings),
        {},
        0,
    )
    for number in range(len(perception.images)):
        live.offer(perception.frame(number))
        while (update := live.step()) is not None:
            dense_map.add(update)
            windows += 1
            if update.placement.new_map:
                places.clear()
            for view, frame in enumerate(update.window.frames):
                places[frame.stamp_ns] = update.map_from_camera[view][:3, 3]
    stamps = {perception.frame(n).stamp_ns: n for n in range(len(perception.images))}
    numbers = [stamps[stamp] for stamp in sorted(places)]
    track = np.stack([places[stamp] for stamp in sorted(places)])
    truth = perception.world_from_camera[numbers][:, :3, 3]
    world_from_map = fit_sim3(track, truth, np.ones(len(track)))
    error_m = np.linalg.norm(world_from_map.apply(track) - truth, axis=1)
    length_m = float(np.linalg.norm(np.diff(truth, axis=0), axis=1).sum())
    draw(dense_map, world_from_map, track)
    return {
        "home": home,
        "views": len(numbers),
        "windows": windows,
        "path_m": round(length_m, 2),
        "error_rms_m": round(float(np.sqrt((error_m**2).mean())), 4),
        "error_percent_of_path": round(100 * float(np.sqrt((error_m**2).mean())) / length_m, 4),
        "voxels": len(dense_map.points()),
        "loops": dict(live.counts().loops),
    }


def draw(dense_map: DenseMap, world_from_map: Sim3, track: np.ndarray) -> None:
    """The map below head height, so that one looks into the rooms."""
    points = dense_map.points()
    positions = world_from_map.apply(np.stack([points[axis] for axis in "xyz"], -1))
    low = positions[:, 2] < 1.9
    rgb = points["rgb"][low]
    colours = np.stack([rgb >> 16 & 255, rgb >> 8 & 255, rgb & 255], -1).astype(np.uint8)
    image = picture(positions[low], colours, world_from_map.apply(track))
    PICTURE.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(PICTURE), image[..., ::-1])


def main() -> int:
    """Measure, draw, record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--home", type=int, default=8, help="index of a held-out home")
    parser.add_argument("--views", type=int, default=200, help="most views of the walk")
    options = parser.parse_args()
    print(record("home_map", drive(options.home, options.views)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
