"""Frames in, map updates out: the live pipeline without ROS.

Data flows one way: `offer` (any thread, cheap) -> window -> `step` (the device's thread: model ->
map) -> `Update`. Newest frames win; what is not used is counted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

import numpy as np

from g2vlm_ros.core.alignment import MapAligner, Placement
from g2vlm_ros.core.datatypes import Frame, Reconstruction, Window
from g2vlm_ros.core.settings import Settings
from g2vlm_ros.core.window import WindowBuffer
from g2vlm_ros.perception import Perception, Scene


@dataclass(frozen=True)
class Update:
    """One window after model and map."""

    window: Window
    scene: Scene
    result: Reconstruction
    placement: Placement
    map_from_camera: np.ndarray
    """float64 (N, 4, 4) rigid poses of the views in the map (map units, optical axes)."""
    new_views: tuple[int, ...]
    """Indices of views that no earlier window held."""
    stage_times_s: dict[str, float]

    def map_points(self) -> np.ndarray:
        """float32 (N, H, W, 3): the points of all views in the map (map units)."""
        return self.placement.map_from_window.apply(self.result.points_u())


@dataclass(frozen=True)
class Counts:
    """Frames since start: received = used + waiting + all dropped."""

    received: int
    used: int
    dropped: Counter[str]
    windows: int


class LiveMapping:
    """Windows of frames through the model into one map."""

    def __init__(self, perception: Perception, settings: Settings):
        self._perception = perception
        self._buffer = WindowBuffer(settings.cameras, settings.window, self._clock_jumped)
        self._aligner = MapAligner(settings.map)
        self._lock = threading.Lock()
        self._seen: set[tuple[str, int]] = set()
        self._restart = False
        self._windows = 0

    def offer(self, frame: Frame) -> None:
        """Take a frame in (any thread)."""
        with self._lock:
            self._buffer.offer(frame)

    def reject(self, reason: str) -> None:
        """Count a frame that could not even be offered (any thread)."""
        with self._lock:
            self._buffer.reject(reason)

    def reset(self) -> None:
        """Forget frames and map; the next window starts a new sub-map (any thread)."""
        with self._lock:
            self._buffer.clear()
            self._restart = True

    def counts(self) -> Counts:
        """A consistent snapshot of the counters (any thread)."""
        with self._lock:
            buffer = self._buffer
            return Counts(buffer.received, buffer.used, Counter(buffer.dropped), self._windows)

    def step(self) -> Update | None:
        """Run the next window, if there is one, through model and map (device thread only).

        Frames that cannot be decoded are counted and left out. Raises NonFiniteError, and
        whatever the backend raises when the device fails.
        """
        with self._lock:
            window = self._buffer.take()
            if window is not None and self._restart:
                self._aligner.reset()
                self._seen.clear()
                self._restart = False
        if window is None:
            return None
        started = time.perf_counter()
        window, images = self._decode(window)
        if not images:
            return None
        decoded = time.perf_counter()
        scene = self._perception.scene(images)
        result = self._perception.reconstruct(scene)
        inferred = time.perf_counter()
        update = self._place(window, scene, result)
        update.stage_times_s.update(
            decode=decoded - started,
            **result.stage_times_s,
            alignment=time.perf_counter() - inferred,
        )
        with self._lock:
            self._windows += 1
        return update

    def _decode(self, window: Window) -> tuple[Window, list[np.ndarray]]:
        """The window without the frames that cannot be decoded, and the images of the rest."""
        frames, images = [], []
        for frame in window.frames:
            try:
                image = frame.decode()
            except ValueError:
                with self._lock:
                    self._buffer.discard(frame, "undecodable")
                continue
            frames.append(frame)
            images.append(image)
        return Window(window.id, tuple(frames)), images

    def _place(self, window: Window, scene: Scene, result: Reconstruction) -> Update:
        placement = self._aligner.place(window, result)
        keys = [(frame.camera, frame.stamp_ns) for frame in window.frames]
        new_views = tuple(i for i, key in enumerate(keys) if key not in self._seen)
        self._seen = set(keys)
        poses = placement.camera_poses(result.window_from_camera)
        return Update(window, scene, result, placement, poses, new_views, {})

    def _clock_jumped(self) -> None:
        self._restart = True
