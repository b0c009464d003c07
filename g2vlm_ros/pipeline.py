# SPDX-License-Identifier: Apache-2.0
"""Frames in, map updates out: the live pipeline without ROS.

Data flows one way: `offer` (any thread, cheap) -> window -> `step` (the device's thread: model ->
map -> loop closure) -> `MappedWindow`. Newest frames win; what is not used is counted.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from g2vlm_ros.geometry.registration import sample_view
from g2vlm_ros.images.quality import ImageQualityFilter
from g2vlm_ros.mapping.depth_fusion import fuse_depth
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.keyframes import (
    Keyframe,
    KeyframeStore,
    by_appearance,
    by_pose,
    compressed,
    normalised_descriptors,
)
from g2vlm_ros.mapping.pose_refinement import PoseRefiner
from g2vlm_ros.mapping.stillness import StillnessDetector
from g2vlm_ros.mapping.window_buffer import WindowBuffer
from g2vlm_ros.mapping.window_pose import WindowPose
from g2vlm_ros.perception import Perception, Scene, with_input_sizes
from g2vlm_ros.records import Frame, NonFiniteError, Reconstruction, Window
from g2vlm_ros.settings import Settings


@dataclass(frozen=True)
class MappedWindow:
    """One window after model and map."""

    window: Window
    scene: Scene
    result: Reconstruction
    """The network's, its poses and its depth mended (`refine_poses`, `fuse_depth`)."""
    placement: WindowPose
    map_from_camera: np.ndarray
    """float64 (N, 4, 4) rigid poses of the views in the map (map units, optical axes)."""
    new_views: tuple[int, ...]
    """Indices of views that no earlier window held."""
    stage_times_s: dict[str, float]
    session: int = 0
    """Resets before the window was taken."""
    still: bool = False
    """The cameras have not moved since: the same window once more, with the stamps of the images
    that say so and no new view."""

    @property
    def trusted_views(self) -> tuple[int, ...]:
        """Indices of the views that overlaps connect with what places the window."""
        trusted = self.placement.trusted or (True,) * self.result.views
        return tuple(np.flatnonzero(trusted).tolist())

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
    loops: Counter[str] = field(default_factory=Counter)
    """Tries to close a loop by outcome: "closed", "no_overlap", "looks_different",
    "poor_registration", "contradicts_map", "non_finite"."""
    silent: tuple[str, ...] = ()
    """Cameras that windows do without."""


class MappingPipeline:
    """Windows of frames through the model into one map."""

    def __init__(self, perception: Perception, settings: Settings):
        self._perception = perception
        self._settings = with_input_sizes(settings)
        self._buffer = WindowBuffer(settings.cameras, settings.window, self._clock_jumped)
        self._slam = GraphSlam(settings.map)
        self._quality = ImageQualityFilter()
        self._refiner = PoseRefiner()
        self._stillness = StillnessDetector()
        self._last: MappedWindow | None = None
        self._keyframes = KeyframeStore(settings.map.keyframes)
        # Windows of the last tries by either reason; a loop that closed counts as expected.
        self._last_expected = self._last_alike = 0
        self._lock = threading.Lock()
        self._seen: set[tuple[str, int]] = set()
        self._images: dict[tuple[str, int], np.ndarray] = {}  # of the last window, decoded
        self._restart = False
        self._session = 0
        self._windows = 0
        self._loops: Counter[str] = Counter()

    def offer(self, frame: Frame) -> None:
        """Take a frame in (any thread)."""
        with self._lock:
            self._buffer.offer(frame)

    def reject(self, reason: str) -> None:
        """Count a frame that could not even be offered (any thread)."""
        with self._lock:
            self._buffer.reject(reason)

    def reset(self) -> int:
        """Forget frames and map; the next window starts a new map (any thread).

        A window that is running now comes to nothing. Returns the `session` of those to come.
        """
        with self._lock:
            self._buffer.clear()
            self._restart = True
            self._session += 1
            return self._session

    def counts(self) -> Counts:
        """A consistent snapshot of the counters (any thread)."""
        with self._lock:
            buffer = self._buffer
            return Counts(
                buffer.received,
                buffer.used,
                Counter(buffer.dropped),
                self._windows,
                Counter(self._loops),
                buffer.silent,
            )

    def step(self) -> MappedWindow | None:
        """Run the next window, if there is one, through model and map (device thread only).

        Frames that cannot be decoded, or that show a covered, blurred or frozen camera, are
        counted and left out, and so are those of cameras that have not moved: where all are, the
        last window comes once more (`still`), which no map grows by. Otherwise there is no update
        without a new view, nor after a reset meanwhile.
        Raises NonFiniteError, and whatever the backend raises when the device fails.
        """
        with self._lock:
            window, session = self._buffer.take(), self._session
            restart = window is not None and self._restart
            self._restart = self._restart and not restart
        if window is None:
            return None
        if restart:
            self._forget()
        started = time.perf_counter()
        window, images, unmoved = self._decode(window)
        if all(_key(frame) in self._seen for frame in window.frames):
            return self._repeated(unmoved, session) if unmoved else None
        decoded = time.perf_counter()
        scene = self._perception.scene(images)
        network = self._perception.reconstruct(scene)
        inferred = time.perf_counter()
        result = self._refined(network, [frame.odom_from_camera for frame in window.frames])
        refined = time.perf_counter()
        update = self._place(window, scene, result)
        aligned = time.perf_counter()
        update = replace(self._close_loop(update, images), session=session)
        closed = time.perf_counter()
        if self._settings.map.fuse_depth:
            # Not before windows were joined: a view has the same errors in each of them.
            update = replace(update, result=fuse_depth(update.result))
        update.stage_times_s.update(
            decode=decoded - started,
            **result.stage_times_s,
            poses=refined - inferred,
            alignment=aligned - refined,
            loop=closed - aligned,
            depth=time.perf_counter() - closed,
        )
        with self._lock:
            if session != self._session:
                return None
            self._windows += 1
        for frame, image in zip(window.frames, images, strict=True):
            self._stillness.take(frame, image)
        self._last = update
        return update

    def _repeated(self, unmoved: Sequence[Frame], session: int) -> MappedWindow | None:
        """The last window with the stamps of frames that show the same; None before the first.

        Nothing was measured anew, so that its covariances stay what they were.
        """
        last = self._last
        if last is None or last.session != session:
            return None
        frames = list(last.window.frames)
        for frame in unmoved:
            own = [i for i, each in enumerate(frames) if each.camera == frame.camera]
            newest = max(own, key=lambda i: frames[i].stamp_ns)
            stamp_ns = max(frame.stamp_ns, frames[newest].stamp_ns)
            frames[newest] = replace(frames[newest], stamp_ns=stamp_ns)
        placement = replace(
            last.placement,
            new_map="",
            scale_jump=1.0,
            rescaled=1.0,
            loop_closed=False,
            merged_map_id=None,
            corrections=(),
        )
        window = Window(last.window.id, tuple(frames))
        self._last = replace(
            last, window=window, placement=placement, new_views=(), stage_times_s={}, still=True
        )
        return self._last

    def _forget(self) -> None:
        self._slam.reset()
        self._keyframes.clear()
        self._seen.clear()
        self._images.clear()
        self._stillness.clear()
        self._last = None
        self._last_expected = self._last_alike = 0

    def _decode(self, window: Window) -> tuple[Window, list[np.ndarray], list[Frame]]:
        """The window without the frames that cannot be used, the images of the rest, and the
        frames of cameras that have not moved since the last window.

        An image that the window before had is the same object: it is neither decoded nor resized
        (`Perception.scene`) twice.
        """
        earlier, self._images = self._images, {}
        frames, images, unmoved = [], [], []
        for frame in window.frames:
            image, fault = earlier.get(_key(frame)), None
            try:
                if image is None:
                    image = frame.decode()
                if _key(frame) in self._seen:
                    pass
                elif self._stillness.is_still(frame, image):
                    fault = "still"
                    unmoved.append(frame)
                else:
                    fault = self._quality.fault(frame.camera, image)
            except ValueError:
                fault = "undecodable"
            if fault is None:
                self._images[_key(frame)] = image
                frames.append(frame)
                images.append(image)
            else:
                with self._lock:
                    self._buffer.discard(frame, fault)
                    if fault == "still":
                        self._buffer.renew(frame.stamp_ns)
        return Window(window.id, tuple(frames)), images, unmoved

    def _refined(
        self, network: Reconstruction, odometry: Sequence[np.ndarray | None] = ()
    ) -> Reconstruction:
        if not self._settings.map.refine_poses:
            return network
        return self._refiner.refine(network, odometry)

    def _place(self, window: Window, scene: Scene, result: Reconstruction) -> MappedWindow:
        placement = self._slam.place(window, result)
        self._keyframes.forget(self._slam.forgotten)
        self._slam.forgotten.clear()
        keys = [_key(frame) for frame in window.frames]
        new_views = tuple(i for i, key in enumerate(keys) if key not in self._seen)
        self._seen = set(keys)
        poses = placement.camera_poses(result.window_from_camera)
        return MappedWindow(window, scene, result, placement, poses, new_views, {})

    def _close_loop(self, update: MappedWindow, images: list[np.ndarray]) -> MappedWindow:
        """Join the window to a place seen long ago, if its newest view seems to show one."""
        settings, window = self._settings.map, update.window
        if not settings.loop_closure:
            return update
        newest = max(range(len(window.frames)), key=lambda i: window.frames[i].stamp_ns)
        descriptor = normalised_descriptors(update.result)[newest]
        placement = update.placement
        candidate = self._seen_before(update, newest, descriptor)
        if candidate is not None:
            placement, outcome = self._bridge(update, images, candidate, newest)
            if placement.loop_closed:
                self._last_expected = window.id
            with self._lock:
                self._loops[outcome] += 1
            poses = placement.camera_poses(update.result.window_from_camera)
            update = replace(update, placement=placement, map_from_camera=poses)
        self._remember(update, images[newest], newest, descriptor)
        return update

    def _seen_before(
        self, update: MappedWindow, newest: int, descriptor: np.ndarray
    ) -> Keyframe | None:
        """The keyframe to try a loop with: one that the map expects in the newest view, or else
        one that only looks like it."""
        settings, node = self._settings.map, update.window.id
        gap = settings.loop_gap_windows
        old = self._keyframes.up_to(node - gap)
        if node - self._last_expected >= gap:
            placed = partial(self._slam.between, node)
            expected = by_pose(old, update.result, newest, placed)
            if expected is not None:
                self._last_expected = node
                return expected
        if node - max(self._last_expected, self._last_alike) >= gap:
            alike = by_appearance(old, descriptor)
            if alike is not None and alike[1] >= settings.loop_similarity:
                self._last_alike = node
                return alike[0]
        return None

    def _bridge(
        self, update: MappedWindow, images: list[np.ndarray], candidate: Keyframe, newest: int
    ) -> tuple[WindowPose, str]:
        """Show old and new views to the network together and let the aligner join the two."""
        beside = self._keyframes.beside(candidate)
        old = [candidate] + ([beside] if beside is not None else [])
        others = sorted(set(update.trusted_views) - {newest}, key=lambda i: -_stamp(update, i))
        # The newest view last, and as many views together as the network usually sees.
        views = [*others[: max(0, self._settings.window.views - len(old) - 1)][::-1], newest]
        try:
            mixed = [k.frame.decode() for k in old] + [images[i] for i in views]
            bridge = self._refined(self._perception.reconstruct(self._perception.scene(mixed)))
        except NonFiniteError:
            return update.placement, "non_finite"
        return self._slam.close_loop(
            update.placement,
            update.window,
            update.result,
            [(k.window_id, k.sample) for k in old],
            views,
            bridge,
        )

    def _remember(
        self, update: MappedWindow, image: np.ndarray, newest: int, descriptor: np.ndarray
    ) -> None:
        """Keep the newest view as a keyframe if it shows something new."""
        result, pose = update.result, update.map_from_camera[newest]
        depth = float(np.median(result.local_points_u[newest, ::8, ::8, 2]))
        reach = depth * update.placement.map_from_window.scale
        if not self._keyframes.is_new(pose, reach):
            return
        frame = update.window.frames[newest]
        copy = compressed(image, self._settings.model.image_width_px)
        kept = Frame(frame.stamp_ns, frame.camera, frame.frame_id, copy)
        sample = sample_view(result, newest)
        there = result.window_from_camera[newest].astype(np.float64)
        keyframe = Keyframe(update.window.id, kept, sample, there, descriptor)
        self._keyframes.add(keyframe, pose, reach)

    def _clock_jumped(self) -> None:
        self._restart = True


def _key(frame: Frame) -> tuple[str, int]:
    return frame.camera, frame.stamp_ns


def _stamp(update: MappedWindow, view: int) -> int:
    return update.window.frames[view].stamp_ns
