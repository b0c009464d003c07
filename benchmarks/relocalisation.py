# SPDX-License-Identifier: Apache-2.0
"""Does a lost robot find itself in a saved map, in the right place or not at all?

A robot drives through a home, and its keyframes go through a file (as `~/save_map` and
`~/load_map` do). Another day the camera passes the same places up to ASIDE_M beside its old way
and turned by up to ASIDE_RAD. Drives, views and settings are those of `demo_map`, with the demo's
checkpoint as the network. Errors are those of the newest view beside the keyframes
of the saved map that are nearest to where it is said to be (`SavedMap.errors`); `overall_...` is
after one similarity between map and home, which counts what the saved map itself is bent by.

- `places`: a node that starts LOST at each of so many places of the drive and drives on for
  MAX_WINDOWS windows. `right`: LOCALISED within NEAR_M and NEAR_RAD; `at_once`: by its first
  window; `wrong`: LOCALISED elsewhere. `nees`: squared error of the find over its covariance, per
  axis, position and rotation. `search_ms`: the localisation of one window, search and join.
- `second_drive`: one node that drives the whole way again, in the saved map.
- `wrong_home`: windows of another home, which must find nothing.
- `two_rooms`: the map lies there twice, side by side; places must be AMBIGUOUS, and what is
  `right` there is one of two twins that was believed.
- `office`: real pixels (`benchmarks sequence`), true geometry with errors in the network's place:
  the first half of the frames is the map, then all frames pass by again, spoilt anew. Judged are
  windows whose newest view shows MIN_SHARED of what a keyframe shows; none may be wrong anywhere.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import cv2
import numpy as np

from benchmarks.demo_map import LEGS, ROOT, Drive, demo_settings
from benchmarks.office_again import office_passes
from benchmarks.record import record
from benchmarks.saved_map import (
    MAX_WINDOWS,
    NEAR_M,
    NEAR_RAD,
    Find,
    SavedMap,
    find,
    pass_by,
    scores,
)
from g2vlm_ros.demo.sim.camera import world_from_camera
from g2vlm_ros.demo.sim.doubled_map import doubled
from g2vlm_ros.demo.sim.robot_path import RobotPath
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.mapping.window_pose import LocalisationState, SearchOutcome
from g2vlm_ros.perception import Perception, Scene
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame, Reconstruction
from g2vlm_ros.settings import Settings

ASIDE_M, ASIDE_RAD = 0.15, np.deg2rad(10.0)
"""The robot keeps clear of things by its radius of .28 m, so that its camera stays outside."""
SWAY_S = 7.0
"""How long it takes the second drive to sway from one side of the first one to the other."""
AMBIGUOUS_SHARE = 8
"""One place in so many is searched in the doubled map as well."""
SHIFT_M = 30.0
"""Between the two copies of a map that holds everything twice."""


def beside(walk: RobotPath) -> RobotPath:
    """The same walk on another day: a little to the side, looking a little elsewhere."""
    sway = np.sin(np.pi * walk.time_s / SWAY_S), np.cos(np.pi * walk.time_s / (0.7 * SWAY_S))
    left = np.stack([-np.sin(walk.yaw_rad), np.cos(walk.yaw_rad)], -1)
    shift = ASIDE_M * sway[0][:, None] * left
    poses = walk.world_from_camera.copy()
    poses[:, :2, 3] += shift
    turn = world_from_camera(np.zeros((len(shift), 3)), ASIDE_RAD * sway[1], 0.0)
    level = world_from_camera(np.zeros(3), 0.0, 0.0)
    poses[:, :3, :3] = (turn @ np.linalg.inv(level))[:, :3, :3] @ poses[:, :3, :3]
    yaw_rad = walk.yaw_rad + ASIDE_RAD * sway[1]
    return RobotPath(walk.time_s, walk.position_m + shift, yaw_rad, poses)


class Memory:
    """A perception that looks at the same views once: runs over one drive share its windows."""

    def __init__(self, perception: Perception):
        self._perception = perception
        self._said: dict[bytes, Reconstruction] = {}
        self._keys: dict[int, bytes] = {}

    def scene(self, images: Sequence[np.ndarray]) -> Scene:
        """As `Perception.scene`."""
        scene = self._perception.scene(images)
        views = sha256(b"".join(image.tobytes() for image in images)).digest()
        self._keys = {id(scene): views}
        return scene

    def reconstruct(self, scene: Scene) -> Reconstruction:
        """As `Perception.reconstruct`, of the newest scene."""
        views = self._keys[id(scene)]
        if views not in self._said:
            self._said[views] = self._perception.reconstruct(scene)
        return self._said[views]


class SavedHome:
    """A home that was driven through once, and is driven through again."""

    def __init__(self, number: int, split: str, perception: Perception, settings: Settings):
        self.number, self._perception, self._settings = number, Memory(perception), settings
        scene = make_scene(home_seed(split, number), LEGS)
        still = np.zeros(len(scene.walk.time_s), np.int64)
        camera_hz = 1 / settings.window.min_gap_s
        first = Drive([scene.home], scene.walk, still, camera_hz)
        live = MappingPipeline(self._perception, settings)
        for _ in pass_by(live, _frames(first)):
            pass
        self.saved = SavedMap.of(live, _truth(first))
        self._again = Drive([scene.home], beside(scene.walk), still, camera_hz)
        self._true = _truth(self._again)

    def places(self, count: int, saved: SavedMap | None = None) -> list[Find]:
        """Searches from so many places of the second drive, evenly spaced: where a window of it
        begins, so that the network sees each window once."""
        window = self._settings.window
        step = window.views - window.overlap
        need = window.views + step * (MAX_WINDOWS - 1)
        starts = np.arange(0, len(self._again.images) - need + 1, step)
        evenly = np.linspace(0, len(starts) - 1, count).round().astype(int)
        return [
            find(
                MappingPipeline(self._perception, self._settings),
                saved or self.saved,
                _frames(self._again, int(start)),
                self._true.__getitem__,
            )
            for start in starts[np.unique(evenly)]
        ]

    def twice(self) -> SavedMap:
        """The saved map with everything in it twice, side by side."""
        return replace(self.saved, keyframes=doubled(self.saved.keyframes, SHIFT_M))

    def drive_again(self) -> dict[str, Any]:
        """The whole way in one node, which starts LOST."""
        live = MappingPipeline(self._perception, self._settings)
        live.load(self.saved.keyframes)
        updates = list(pass_by(live, _frames(self._again)))
        found = [u for u in updates if u.localisation.state is LocalisationState.LOCALISED]
        off = [
            np.linalg.norm(
                self.saved.errors(u, self._true[u.window.frames[u.window.newest].stamp_ns]), axis=1
            )
            for u in found
        ]
        near = [bool(m < NEAR_M and r < NEAR_RAD) for m, r in off]
        overall_m = [
            self.saved.overall(u, self._true[u.window.frames[u.window.newest].stamp_ns])[0]
            for u in found
        ]
        first = next((i for i, u in enumerate(updates) if u in found), len(updates))
        return {
            "windows": len(updates),
            "lost_first": first,
            "in_saved_map": len([u for u in found if u.placement.map_id == 0]),
            "near": sum(near),
            "median_m": round(float(np.median([m for m, _ in off])), 3) if off else None,
            "worst_m": round(float(max(m for m, _ in off)), 3) if off else None,
            "overall_m": round(float(np.median(overall_m)), 3) if off else None,
        }

    def strangers(self, other: SavedHome) -> Counter[str]:
        """How windows of the second drive end in the map of another home."""
        live = MappingPipeline(self._perception, self._settings)
        live.load(other.saved.keyframes)
        return Counter(
            str(update.localisation.search or update.localisation.state)
            for update in pass_by(live, _frames(self._again))
        )


def _frames(drive: Drive, start: int = 0) -> Iterable[Frame]:
    return (drive.frame(n) for n in range(start, len(drive.images)))


def _truth(drive: Drive) -> dict[int, np.ndarray]:
    return {drive.frame(n).stamp_ns: pose for n, pose in enumerate(drive.poses)}


@dataclass(frozen=True)
class HomeSearches:
    """What was measured in one home."""

    row: dict[str, Any]
    finds: list[Find]
    ambiguous: list[Find]
    """In the map that holds everything twice."""
    strangers: Counter[str]
    """How windows ended in the map of another home."""


def measure(home: SavedHome, other: SavedHome, count: int) -> HomeSearches:
    """One home, from so many places, and its windows in the map of another one."""
    finds, drive = home.places(count), home.drive_again()
    row = {
        "home": home.number,
        "keyframes": len(home.saved.keyframes),
        "file_mib": round(home.saved.file_mib, 2),
        "places": scores(finds),
        "second_drive": drive,
    }
    print(row, flush=True)
    ambiguous = home.places(-(-count // AMBIGUOUS_SHARE), home.twice())
    strangers = home.strangers(other) if other is not home else Counter()
    return HomeSearches(row, finds, ambiguous, strangers)


def summary(homes: Sequence[HomeSearches]) -> dict[str, Any]:
    """Of all homes together."""
    drives = [home.row["second_drive"] for home in homes]
    counted = ("windows", "lost_first", "in_saved_map", "near")
    return {
        "places": scores([find for home in homes for find in home.finds]),
        "second_drive": {name: sum(drive[name] for drive in drives) for name in counted},
        "wrong_home": dict(sum((home.strangers for home in homes), Counter())),
        "two_rooms": scores([find for home in homes for find in home.ambiguous]),
        "homes": [home.row for home in homes],
    }


def _two_rooms(options: argparse.Namespace, perception: Perception, settings: Settings) -> int:
    """So many places of doubled maps alone; fails where one of two twins is believed."""
    finds = []
    for number in options.homes:
        home = SavedHome(number, options.split, perception, settings)
        finds += home.places(-(-options.places // len(options.homes)), home.twice())
        print(number, scores(finds), flush=True)
    return int(any(find.windows for find in finds))


def main() -> int:
    """Measure and record; fails where any place is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--homes", type=int, nargs="+", default=[3, 5, 8])
    parser.add_argument("--split", choices=("heldout", "validation"), default="heldout")
    parser.add_argument("--places", type=int, default=100, help="of all homes together")
    parser.add_argument("--skip-office", action="store_true")
    parser.add_argument(
        "--two-rooms", action="store_true", help="only the doubled maps; nothing is recorded"
    )
    options = parser.parse_args()
    cv2.setNumThreads(1)
    settings = demo_settings({"model.checkpoint": str(ROOT / "engines" / "demo")})
    perception = Perception.open(settings)
    if options.two_rooms:
        return _two_rooms(options, perception, settings)
    result: dict[str, Any] = {"split": options.split}
    saved = [SavedHome(number, options.split, perception, settings) for number in options.homes]
    each = -(-options.places // len(saved))
    result |= summary([measure(home, saved[k - 1], each) for k, home in enumerate(saved)])
    if not options.skip_office:
        result["office"] = office_passes()
    print({name: value for name, value in result.items() if name != "homes"})
    if options.split == "heldout":
        print(record("relocalisation", result))
    parts = [result["places"]]
    parts += [part for part in result.get("office", {}).values() if isinstance(part, dict)]
    strangers = result["wrong_home"].get(str(SearchOutcome.LOCALISED), 0)
    twins = result["two_rooms"]["ended"].get(str(SearchOutcome.LOCALISED), 0)
    return bool(strangers or twins or any(part["wrong"] for part in parts))


if __name__ == "__main__":
    raise SystemExit(main())
