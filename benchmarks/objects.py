# SPDX-License-Identifier: Apache-2.0
"""What the object memory holds of homes no training saw, and whether it notices what changed.

The robot drives through a home and the same way back; when it turns, some things have been taken
away and some stand elsewhere in their room. Windows are those of `demo_map` (the demo's checkpoint
and settings). The detector is simulated: the box of each thing that shows MIN_PX pixels, by the
name of its kind, shifted by BOX_NOISE_PX; OVERLOOKED of the things are overlooked for OVERLOOK_S
in a row, as a detector does from one side. Judged after the best similarity
of the drive to the truth, at the turn (what is remembered) and at the end (what changed):

- `precision`, `recall`: confirmed objects within NEAR_M of a thing of their name; things that were
  shown in MIN_SIGHTINGS views or more and are confirmed. `duplicates`: objects beyond the first
  of one thing. `distance_m`: from an object to the nearest thing of its name, median. `nees`:
  squared error of the places of those within NEAR_M over what their covariances say, per axis;
  `nees_median`: of all objects, 0.8 would be right.
- `noticed`: things that went (`went`) and whose place was shown to the camera again, of which the
  object is GONE or MOVED, or lies nearer to where the thing stands now, within NOTICE_S of that.
  Counted are all things that are remembered at the turn, wherever: an object is of the thing that
  most of its boxes were of. `near_went`, `near_noticed`: of those within NEAR_M alone.
  `false_gone`: objects of things that never went, but are said to be GONE or MOVED (of `stay`).
- `find_ms`: one search by words among 1 000 objects, the median of 50.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.changed_home import ChangedHome, changed, there_and_back
from benchmarks.demo_map import LEGS, ROOT, Drive, Log, demo_settings
from benchmarks.object_plan import write_plan
from benchmarks.record import record
from g2vlm_ros.demo.sim import drive_metrics
from g2vlm_ros.demo.sim.home import STRUCTURE, Home
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappingPipeline, PerceivedWindow
from g2vlm_ros.query.context import ContextStore, ViewSelection
from g2vlm_ros.query.grounding import measure_detections
from g2vlm_ros.query.map_object import MIN_SIGHTINGS, MapObject
from g2vlm_ros.query.object_memory import LOADED, ObjectMemory
from g2vlm_ros.query.object_sightings import sightings_of
from g2vlm_ros.query.types import Detection
from g2vlm_ros.settings import Settings

MIN_PX = 60
BOX_NOISE_PX = 1.5
OVERLOOKED, OVERLOOK_S = 0.1, 2.0
NEAR_M = 0.3
NOTICE_S = 60.0


class Detector:
    """Boxes of things by their ids in the rendered views."""

    def __init__(self, home: ChangedHome, seen: Drive):
        self._items, self._seen = home.before.items, seen
        self._seed = home.before.seed
        self._rng = np.random.default_rng([self._seed, 22])
        self.views: dict[int, list[int]] = {}
        """Views that showed an item, by its id."""

    def detect(self, selection: ViewSelection, numbers: list[int]) -> dict[int, list[Detection]]:
        """What it says of a window's views, by the id of the item that it is truly of."""
        detections: dict[int, list[Detection]] = defaultdict(list)
        for view, number in enumerate(numbers):
            for item_id, detection in self._of_view(selection, view, number):
                detections[item_id].append(detection)
        return detections

    def _overlooks(self, item_id: int, number: int) -> bool:
        """Whether it does so in the stretch of time that a view lies in."""
        stretch = int(self._seen.time_s[number] // OVERLOOK_S)
        rng = np.random.default_rng([self._seed, 23, item_id, stretch])
        return bool(rng.random() < OVERLOOKED)

    def _of_view(
        self, selection: ViewSelection, view: int, number: int
    ) -> list[tuple[int, Detection]]:
        shown, detections = self._seen.items[number], []
        for item_id in np.unique(shown):
            item = self._items[item_id - 1]
            v, u = np.nonzero(shown == item_id)
            if not item_id or item.name in STRUCTURE or len(u) < MIN_PX:
                continue
            self.views.setdefault(int(item_id), []).append(number)
            if self._overlooks(int(item_id), number):
                continue
            noise = self._rng.normal(0.0, BOX_NOISE_PX, 4)
            corners = np.array([u.min(), v.min(), u.max(), v.max()]) + noise
            if (corners[2:] > corners[:2]).all():
                region = selection.region(view, corners)
                detections.append((int(item_id), Detection(region, item.name, 0.9)))
        return detections


class Observer:
    """A memory that is shown every window of a drive."""

    def __init__(self, home: ChangedHome, seen: Drive, settings: Settings):
        self.memory = ObjectMemory(settings.query.objects)
        self.detector = Detector(home, seen)
        self._context = ContextStore(1, 1)
        self._items: dict[int, Counter[int]] = defaultdict(Counter)

    def take(self, update: PerceivedWindow, numbers: list[int]) -> None:
        """As the node does with each window."""
        selection = self._context.remember(update).select()
        by_item = self.detector.detect(selection, numbers)
        detections = [each for of_item in by_item.values() for each in of_item]
        things = measure_detections(selection.points, detections)
        sightings = sightings_of(selection, things)
        views = {detection.region.view for detection in detections}
        self.memory.observe(update, selection.points, sightings, views)
        boxes = {
            selection.corners(detection.region): item_id
            for item_id, of_item in by_item.items()
            for detection in of_item
        }
        for each in self.memory.objects():
            if each.window_id == update.window.id and each.box_px in boxes:
                self._items[each.id][boxes[each.box_px]] += 1

    def items(self) -> dict[int, int]:
        """The item that most boxes of each confirmed object were of, by the object's id."""
        return {
            each.id: self._items[each.id].most_common(1)[0][0]
            for each in self.memory.objects()
            if self._items[each.id]
        }


def drive(
    number: int,
    split: str,
    perception: Perception,
    settings: Settings,
    plan: Path | None = None,
) -> dict[str, Any]:
    """One home, there and back. plan: where to draw what is remembered at the turn."""
    scene = make_scene(home_seed(split, number), LEGS)
    home, walk = changed(scene.home, scene.walk), there_and_back(scene.walk)
    turn_s = scene.walk.time_s[-1]
    seen = Drive([home.before, home.after], walk, (walk.time_s > turn_s).astype(np.int64))
    again_s = _shown_again(home, seen, turn_s)
    log, observer = Log(), Observer(home, seen, settings)
    live = MappingPipeline(perception, settings)
    numbers = {seen.frame(n).stamp_ns: n for n in range(len(seen.images))}
    at_turn: dict[str, Any] = {}
    owners: dict[int, int] = {}
    near: set[int] = set()
    home_from_map = Sim3.identity()
    noticed: dict[int, float] = {}
    for n in range(len(seen.images)):
        if not at_turn and seen.time_s[n] > turn_s:
            at_turn, near, home_from_map = _judge_memory(observer, home.before, log, seen, plan)
            owners = observer.items()
        live.offer(seen.frame(n))
        while (update := live.step()) is not None:
            views = [numbers[frame.stamp_ns] for frame in update.window.frames]
            log.take(update, views, update.result)
            observer.take(update, views)
            for each in observer.memory.objects():
                if each.id in owners and _differs(each, owners[each.id], home, home_from_map):
                    noticed.setdefault(each.id, float(seen.time_s[n]))
    row = {"home": number, "windows": live.counts().windows, "maps": len(log.windows)}
    row |= at_turn | _judge_changes(observer, home, owners, noticed, again_s)
    owners = {each: item for each, item in owners.items() if each in near}
    row |= {
        f"near_{name}": _judge_changes(observer, home, owners, noticed, again_s)[name]
        for name in ("went", "noticed")
    }
    print(row, flush=True)
    return row


def _differs(each: MapObject, item_id: int, home: ChangedHome, home_from_map: Sim3) -> bool:
    """Whether an object is no longer taken to be where its thing was before."""
    if not each.there:
        return True
    before, after = (which.items[item_id - 1].centre_m for which in (home.before, home.after))
    place = home_from_map.apply(each.centre[None])[0]
    return bool(np.linalg.norm(place - after) < np.linalg.norm(place - before))


def _shown_again(home: ChangedHome, seen: Drive, turn_s: float) -> dict[int, float]:
    """When the place of each thing that went was first shown after the turn, s: by its id.

    Shown: MIN_PX pixels of it would be visible, had it stayed.
    """
    back = np.flatnonzero(seen.time_s > turn_s)
    index = np.zeros(len(back), np.int64)
    views = render([home.before], index, seen.poses[back], seen.time_s[back], seen.camera)
    again: dict[int, float] = {}
    for n, items in zip(back, np.asarray(views.items), strict=True):
        for item in home.gone:
            if np.count_nonzero(items == item) >= MIN_PX:
                again.setdefault(item, float(seen.time_s[n]))
    return again


def _judge_memory(
    observer: Observer, home: Home, log: Log, seen: Drive, plan: Path | None = None
) -> tuple[dict[str, Any], set[int], Sim3]:
    """Scores of what is remembered, the objects within NEAR_M of a thing, and home_from_map."""
    fit = drive_metrics.track(log.track(observer.memory.map_id), dict(enumerate(seen.poses)))
    objects = observer.memory.objects()
    if fit is None or not objects:
        return {"objects": len(objects)}, set(), Sim3.identity()
    home_from_map = fit.home_from_map
    if plan is not None:
        write_plan(plan, home, home_from_map, objects)
    owners, surprises, all_surprises, distances_m = {}, [], [], []
    for each in objects:
        place = home_from_map.apply(each.centre[None])[0]
        alike = [item for item in home.items if item.name == each.label]
        off = {item.id: place - item.centre_m for item in alike}
        nearest = min(off, key=lambda item: float(np.linalg.norm(off[item])), default=None)
        if nearest is None:
            continue
        distances_m.append(float(np.linalg.norm(off[nearest])))
        turned = home_from_map.rotation @ each.covariance @ home_from_map.rotation.T
        all_surprises.append(off[nearest] @ np.linalg.solve(turned, off[nearest]) / 3)
        if distances_m[-1] > NEAR_M:
            continue
        owners[each.id] = nearest
        surprises.append(all_surprises[-1])
    shown = {i for i, views in observer.detector.views.items() if len(views) >= MIN_SIGHTINGS}
    scores = {
        "objects": len(objects),
        "right": len(owners),
        "shown": len(shown),
        "remembered": len(shown & set(owners.values())),
        "duplicates": len(owners) - len(set(owners.values())),
        "nees": round(float(np.mean(surprises)), 2) if surprises else None,
        "nees_median": round(float(np.median(all_surprises)), 2) if all_surprises else None,
        "distance_m": round(float(np.median(distances_m)), 3) if distances_m else None,
        "trajectory_error_m": fit.scores()["trajectory_error_m"],
    }
    return scores, set(owners), home_from_map


def _judge_changes(
    observer: Observer,
    home: ChangedHome,
    owners: Mapping[int, int],
    noticed: Mapping[int, float],
    again_s: Mapping[int, float],
) -> dict[str, Any]:
    """Of the things that were remembered: which changes were noticed in time."""
    went = {item for item in owners.values() if item in home.gone and item in again_s}
    in_time = {
        owners[each]
        for each, at_s in noticed.items()
        if owners.get(each) in went and at_s <= again_s[owners[each]] + NOTICE_S
    }
    stay = [each for each, item in owners.items() if item not in home.gone]
    held = {each.id: each for each in observer.memory.objects()}
    wrong = [each for each in stay if each in held and not held[each].there]
    return {
        "went": len(went),
        "noticed": len(in_time),
        "stay": len(stay),
        "false_gone": len(wrong),
    }


def find_ms(count: int = 1000, tries: int = 50) -> float:
    """Median time of one search by words among so many objects."""
    memory, rng = ObjectMemory(count), np.random.default_rng(0)
    kinds = ("chair", "table", "lamp", "sofa", "plant", "bin", "box", "bed")
    memory.replace_all(
        [
            MapObject(
                id=k + 1,
                label=f"red {kinds[k % len(kinds)]}",
                centre=rng.uniform(-10, 10, 3),
                size=np.full(3, 0.5),
                yaw_rad=0.0,
                covariance=np.eye(3) * 0.01,
                map_id=0,
                window_id=LOADED,
                first_seen_ns=k,
                last_seen_ns=k,
                sightings=MIN_SIGHTINGS,
            )
            for k in range(count)
        ]
    )
    times_ms = []
    for _ in range(tries):
        start = time.perf_counter()
        assert len(memory.find("red chair")) == count // len(kinds)
        times_ms.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times_ms), 2)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares over all homes."""
    total = {
        name: sum(row.get(name) or 0 for row in rows)
        for name in ("objects", "right", "shown", "remembered", "duplicates")
        + ("went", "noticed", "stay", "false_gone", "near_went", "near_noticed")
    }

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row.get(name) is not None]
        return round(float(np.mean(values)), 3) if values else None

    def share(part: str, whole: str) -> float | None:
        return round(total[part] / total[whole], 3) if total[whole] else None

    return {
        "precision": share("right", "objects"),
        "recall": share("remembered", "shown"),
        "duplicates": total["duplicates"],
        "distance_m": mean("distance_m"),
        "nees": mean("nees"),
        "nees_median": mean("nees_median"),
        "noticed": share("noticed", "went"),
        "near_noticed": share("near_noticed", "near_went"),
        "false_gone": share("false_gone", "stay"),
        **{name: total[name] for name in ("objects", "shown", "went", "near_went", "stay")},
    }


def main() -> int:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--homes", type=int, nargs="+", default=[3, 5, 8, 11])
    parser.add_argument("--plan", type=Path, help="a picture of what is remembered at a turn")
    parser.add_argument("--split", choices=("heldout", "validation"), default="heldout")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    settings = demo_settings({"model.checkpoint": str(ROOT / "engines" / "demo")})
    perception = Perception.open(settings)
    rows = [
        drive(home, arguments.split, perception, settings, arguments.plan)
        for home in arguments.homes
    ]
    result = {"split": arguments.split, "mean": summary(rows), "find_ms": find_ms(), "homes": rows}
    print(result["mean"], result["find_ms"])
    if arguments.split == "heldout":
        print(record("objects", result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
