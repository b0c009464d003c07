# SPDX-License-Identifier: Apache-2.0
"""Windows held for questions: their scenes and point maps, and the conversations about them.

What was computed for a window (features, key/value cache, point map) stays with it and is shared
by all questions about it. How much is held is bounded: recent windows, conversations, turns.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from g2vlm_ros.images.preprocessing import PixelMap
from g2vlm_ros.perception import Perception, Scene
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query import prompts
from g2vlm_ros.query.point_map import PointMap, Region
from g2vlm_ros.query.point_parser import Pointed
from g2vlm_ros.records import Frame, newest_view

MAX_TURNS = 8
"""Turns of a conversation that the model is given; earlier ones are left out."""
MAX_MARKED_SCENES = 2
"""Scenes with drawn marks, or of some of the cameras, kept per selection of views."""
MAX_SELECTIONS = 4
"""Selections of views kept per window: all of them, and those of the cameras asked about last."""


MAX_SCENES = 1 + MAX_SELECTIONS * MAX_MARKED_SCENES
"""Of a window: its own, and those of its selections."""


class ViewSelection:
    """Some views of a window, as a question sees them. Views are counted within the selection."""

    def __init__(self, update: PerceivedWindow, views: Sequence[int]):
        self.update, self.views = update, tuple(views)
        self.frames: tuple[Frame, ...] = tuple(update.window.frames[i] for i in self.views)
        self.points = self._points()
        self._scenes: OrderedDict[tuple[prompts.Mark, ...], Scene] = OrderedDict()

    def _points(self) -> PointMap:
        update = self.update
        stamps_ns = [frame.stamp_ns for frame in update.window.frames]
        points = PointMap.of_window(update.result, update.placement, stamps_ns)
        return points.part(self.views, newest_view(self.frames))

    def renew(self, update: PerceivedWindow) -> None:
        """The window has come once more, because its cameras stand still: newer stamps, and maybe
        another place in the map."""
        earlier, self.update = self.update, update
        self.frames = tuple(update.window.frames[i] for i in self.views)
        if update.placement.map_from_window is not earlier.placement.map_from_window:
            self.points = self._points()

    @property
    def stamp_ns(self) -> int:
        """Acquisition of the newest view."""
        return self.frames[newest_view(self.frames)].stamp_ns

    def scene(self, perception: Perception, marks: Sequence[prompts.Mark] = ()) -> Scene:
        """The views inside the model, with marks drawn on them where there are any."""
        all_views = len(self.views) == len(self.update.window.frames)
        if not marks and all_views:
            return self.update.scene
        key = tuple(marks)
        if key not in self._scenes:
            self._scenes[key] = perception.scene(self._images(key))
            while len(self._scenes) > MAX_MARKED_SCENES:
                self._scenes.popitem(last=False)
        self._scenes.move_to_end(key)
        return self._scenes[key]

    def drawn_scenes(self) -> list[Scene]:
        """Those held beside that of the window (any thread)."""
        return list(self._scenes.values())

    def image(self, view: int) -> np.ndarray:
        """A view's camera image, uint8 (h, w, 3) RGB."""
        return self.update.scene.images[self.views[view]]

    def pixel_map(self, view: int) -> PixelMap:
        """Pixels of a view's camera image <-> those at model size."""
        height, width = self.image(view).shape[:2]
        return PixelMap((width, height), self.points.size_px)

    def region(self, view: int, corners: Sequence[float]) -> Region:
        """A region at model size of corners (u0, v0, u1, v1) in the camera image."""
        low, high = self.pixel_map(view).model_from_image(np.reshape(corners, (2, 2)))
        edge = np.subtract(self.points.size_px, 1)
        low, high = np.clip(low, 0, edge), np.clip(high, 0, edge)
        return Region(view, tuple(low.tolist()), tuple(high.tolist()))

    def corners(self, region: Region) -> tuple[float, float, float, float]:
        """(u0, v0, u1, v1) in the camera image of a region at model size."""
        both = self.pixel_map(region.view).image_from_model([region.low_px, region.high_px])
        return tuple(both.ravel().tolist())

    def pointed(self, place: Pointed) -> Region | None:
        """What the model pointed at; None outside the images, or of several without a frame."""
        view = place.view
        if view is None and len(self.views) == 1:
            view = 0
        if view is None or view >= len(self.views):
            return None
        corners = place.pixels(*self.pixel_map(view).image_size_px)
        return None if corners is None else self.region(view, corners)

    def _images(self, marks: Sequence[prompts.Mark]) -> list[np.ndarray]:
        images = [self.image(view) for view in range(len(self.views))]
        for view, image in enumerate(images):
            marks_here = [mark for mark in marks if mark.view == view]
            if marks_here:
                images[view] = prompts.draw(image, marks_here)
        return images


@dataclass(eq=False)
class CachedWindow:
    """A window with what questions about it have computed."""

    update: PerceivedWindow
    _selections: OrderedDict[tuple[int, ...], ViewSelection] = field(default_factory=OrderedDict)

    def select(self, views: Sequence[int] | None = None) -> ViewSelection:
        """Those views of the window, all by default; the same object for the same views.

        Of MAX_SELECTIONS: the least recently used one goes.
        """
        key = tuple(range(len(self.update.window.frames)) if views is None else views)
        if key not in self._selections:
            self._selections[key] = ViewSelection(self.update, key)
            while len(self._selections) > MAX_SELECTIONS:
                self._selections.popitem(last=False)
        self._selections.move_to_end(key)
        return self._selections[key]

    def renew(self, update: PerceivedWindow) -> None:
        """The window has come once more, because its cameras stand still."""
        self.update = update
        for selection in self._selections.values():
            selection.renew(update)

    def scenes(self) -> list[Scene]:
        """All that it holds inside the model (any thread)."""
        further = [each.drawn_scenes() for each in list(self._selections.values())]
        return [self.update.scene, *itertools.chain.from_iterable(further)]

    def gap_s(self, stamp_ns: int) -> float:
        """Seconds between a moment and the view nearest to it."""
        frames = self.update.window.frames
        return min(abs(frame.stamp_ns - stamp_ns) for frame in frames) * 1e-9


@dataclass(eq=False)
class Dialogue:
    """A conversation about one window at a time."""

    window: CachedWindow
    turns: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=MAX_TURNS))
    """Questions and answers, oldest first."""


@dataclass(frozen=True)
class ContextSizes:
    """What is held for questions."""

    windows: int
    """Recent ones; those of conversations may be others."""
    dialogues: int
    caches: int
    """Scenes with a key/value cache."""
    cache_tokens: int
    """Tokens in all of them."""
    max_caches: int


class ContextStore:
    """The recent windows and the conversations. Used on the device's thread only."""

    def __init__(self, max_windows: int, max_dialogues: int):
        self.recent: deque[CachedWindow] = deque(maxlen=max_windows)
        self._dialogues: OrderedDict[str, Dialogue] = OrderedDict()
        self._max_dialogues = max_dialogues
        self._max_windows = max_windows

    def remember(self, update: PerceivedWindow) -> CachedWindow:
        """Hold a window; the oldest one goes unless a conversation is about it."""
        if update.still and self.recent and self._same(self.recent[-1].update, update):
            self.recent[-1].renew(update)
        elif not self.recent or self.recent[-1].update is not update:
            self.recent.append(CachedWindow(update))
        return self.recent[-1]

    @staticmethod
    def _same(one: PerceivedWindow, other: PerceivedWindow) -> bool:
        """Whether a window came once more because its cameras stand still."""
        return (one.window.id, one.session) == (other.window.id, other.session)

    def nearest(self, stamp_ns: int) -> CachedWindow | None:
        """The window with the view nearest to a moment; None while there is no window."""
        return min(self.recent, key=lambda window: window.gap_s(stamp_ns), default=None)

    def dialogue(self, name: str) -> Dialogue | None:
        """The conversation of that name, if it is still remembered."""
        return self._dialogues.get(name)

    def dialogues(self) -> list[str]:
        """Names of the remembered conversations, the least recently used first."""
        return list(self._dialogues)

    def sizes(self) -> ContextSizes:
        """What is held now (any thread)."""
        recent, dialogues = list(self.recent), list(self._dialogues.values())
        windows = {id(w): w for w in [*recent, *(dialogue.window for dialogue in dialogues)]}
        scenes = [scene for window in windows.values() for scene in window.scenes()]
        prefixes = [scene.prefix for scene in scenes if scene.prefix is not None]
        return ContextSizes(
            len(recent),
            len(dialogues),
            len(prefixes),
            sum(prefix.length for prefix in prefixes),
            (self._max_windows + self._max_dialogues) * MAX_SCENES,
        )

    def add_turn(self, name: str, window: CachedWindow, question: str, answer: str) -> None:
        """A turn of a conversation; makes room by forgetting the least recently used one."""
        dialogue = self._dialogues.pop(name, None) or Dialogue(window)
        dialogue.window = window
        dialogue.turns.append((question, answer))
        self._dialogues[name] = dialogue
        while len(self._dialogues) > self._max_dialogues:
            self._dialogues.popitem(last=False)

    def image(self, camera: str, stamp_ns: int) -> np.ndarray | None:
        """An image that some held window still has, uint8 (h, w, 3) RGB."""
        windows = [*self.recent, *(dialogue.window for dialogue in self._dialogues.values())]
        for each in windows:
            for frame, image in zip(
                each.update.window.frames, each.update.scene.images, strict=True
            ):
                if (frame.camera, frame.stamp_ns) == (camera, stamp_ns):
                    return image
        return None

    def clear(self) -> None:
        """Forget everything."""
        self.recent.clear()
        self._dialogues.clear()
