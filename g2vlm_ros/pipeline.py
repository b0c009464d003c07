# SPDX-License-Identifier: Apache-2.0
"""Mapping pipeline: frames in, mapped windows out, without ROS.

Data flows one way: `offer` (any thread, cheap) -> window -> `step` (the device's thread: network
-> pose graph -> loop closure -> fused depth) -> `PerceivedWindow`. Newest frames win; what is not
used is counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from g2vlm_ros.geometry.calibration import with_known_cameras
from g2vlm_ros.images.preprocessing import geometry_size
from g2vlm_ros.images.quality import ImageQualityFilter, thumbnail
from g2vlm_ros.mapping.depth_fusion import fuse_depth
from g2vlm_ros.mapping.graph_slam import GraphSlam
from g2vlm_ros.mapping.ignored_pixels import distrusted, with_ignored
from g2vlm_ros.mapping.keyframes import SAVED_MAP, Keyframe
from g2vlm_ros.mapping.localisation import Localiser, hold_to_place
from g2vlm_ros.mapping.loop_closure import LoopDetector, LoopMatch
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.mapping.pose_graph import RECENT
from g2vlm_ros.mapping.pose_refinement import PoseRefiner
from g2vlm_ros.mapping.relocalisation import PlaceHint
from g2vlm_ros.mapping.revisits import RevisitSearch
from g2vlm_ros.mapping.rig_constraint import rig_fit, with_rig
from g2vlm_ros.mapping.stillness import StillnessDetector
from g2vlm_ros.mapping.window_buffer import WindowBuffer
from g2vlm_ros.mapping.window_pose import (
    Localisation,
    LoopOutcome,
    MappedWindow,
    SearchOutcome,
    StartReason,
    WindowPose,
)
from g2vlm_ros.mapping.window_registration import ViewKey, view_key
from g2vlm_ros.perception import Perception, Scene, StageTimer, with_input_sizes
from g2vlm_ros.records import (
    BackendGoneError,
    DropReason,
    Frame,
    MappingError,
    Reconstruction,
    Window,
    newest_view,
)
from g2vlm_ros.settings import MapSettings, Settings


@dataclass(frozen=True, kw_only=True)
class PerceivedWindow(MappedWindow):
    """A mapped window with its views inside the network, where questions are answered."""

    scene: Scene
    rig_off_rad: float = 0.0
    """Turn by which the views contradict the fixed transforms of their cameras, where these are
    not used for it; 0 where they are, or there are none."""


@dataclass(frozen=True)
class Counts:
    """Frames since start: received = used + waiting + all dropped."""

    received: int
    used: int
    dropped: Counter[DropReason]
    windows: int
    loops: Counter[LoopOutcome] = field(default_factory=Counter)
    """Tries to close a loop by outcome."""
    silent: tuple[str, ...] = ()
    """Cameras that windows do without."""
    searches: Counter[SearchOutcome] = field(default_factory=Counter)
    """Tries to find a window in a map by outcome."""
    ready: int = 0
    """Frames with their partners of other cameras that no window has used yet."""
    unpaired: int = 0
    """Frames that still miss a partner."""
    step_s: float = 0.0
    """Time between the last two stamps of a camera, of the slowest one."""
    clock_jumps: int = 0
    """How often the stamps jumped back, so that a new map was begun."""


@dataclass(frozen=True)
class MapSizes:
    """What the pipeline holds; each is bounded by a parameter."""

    graph_nodes: int
    windows: int
    """Whose place is known: nodes, and what was folded into them."""
    max_windows: int
    keyframes: int
    waiting_frames: int


class DecodedFrame(NamedTuple):
    """A frame's image, and a small copy by which it is judged."""

    image: np.ndarray
    thumbnail: np.ndarray


@contextmanager
def mapping_errors() -> Iterator[None]:
    """Whatever is raised inside, but for the end of the device, is a MappingError."""
    try:
        yield
    except (BackendGoneError, MappingError):
        raise
    except Exception as error:
        raise MappingError(f"{type(error).__name__}: {error}") from error


class MappingPipeline:
    """Windows of frames through the network into one map."""

    def __init__(self, perception: Perception, settings: Settings):
        self._perception = perception
        self._settings = with_input_sizes(settings)
        self._buffer = WindowBuffer(settings.cameras, settings.window, self._clock_jumped)
        self._fixed_map = settings.map.mode == "localization"
        self._slam = GraphSlam(_map_settings(settings))
        self._localiser = Localiser(self._fixed_map)
        self._quality = ImageQualityFilter()
        self._refiner = PoseRefiner()
        self._stillness = StillnessDetector()
        self._last: PerceivedWindow | None = None
        self._loop_detector = LoopDetector(self._settings, self._reconstruct)
        self._revisits = RevisitSearch(settings.map.loop_gap_windows)
        self._lock = threading.Lock()
        self._last_views: set[ViewKey] = set()
        self._images: dict[ViewKey, DecodedFrame] = {}  # of the last window
        self._restart = self._gave_up = False
        self._clock_jumps = 0
        self._session = 0
        self._windows = 0
        self._loops: Counter[LoopOutcome] = Counter()

    def offer(self, frame: Frame) -> None:
        """Take a frame in (any thread)."""
        with self._lock:
            self._buffer.offer(frame)

    def reject(self, reason: DropReason) -> None:
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
                Counter(self._localiser.searches),
                buffer.ready,
                buffer.unpaired,
                buffer.step_s,
                self._clock_jumps,
            )

    @property
    def localisation(self) -> Localisation:
        """Whether the robot knows where it is (any thread)."""
        return self._localiser.now

    def give_hint(self, hint: PlaceHint) -> None:
        """Where somebody says that the robot is, in the map (any thread)."""
        self._localiser.give_hint(hint)

    def load(self, keyframes: Sequence[Keyframe]) -> tuple[int, int]:
        """Forget frames and map, and look for the robot in a saved map (device thread only).

        keyframes: of `keyframe_files.from_bytes`. Returns the `session` of the windows to come
        and the id of the saved map.
        """
        session = self.reset()
        with self._lock:
            self._restart = False
        self._start_over()
        self._loop_detector.keyframes.load(keyframes)
        self._localiser.clear(saved_map=True)
        return session, self._slam.add_saved_map()

    def give_up_map(self, keep_saved: bool) -> int | None:
        """Begin a new map, LOST, because windows cannot be entered into this one (device thread).

        keep_saved: a saved map stays as it is, and the robot is looked for in it. Where nothing
        stays, returns the `session` of the windows to come, as `reset` does.
        """
        keyframes = [k for k in self._loop_detector.keyframes if k.window_id == SAVED_MAP]
        saved_id = None
        if keep_saved and SAVED_MAP in self._slam:
            saved_id = self._slam.map_id_of(SAVED_MAP)
        with self._lock:
            self._buffer.clear()
            self._restart = False
            self._session += saved_id is None
        self._start_over()
        self._gave_up = True
        if saved_id is not None:
            self._loop_detector.keyframes.load(keyframes)
            self._slam.add_saved_map(saved_id)
        self._localiser.lose(saved_map=saved_id is not None)
        return self._session if saved_id is None else None

    def map_views(self) -> list[MapView]:
        """Keyframes of the map that is published, where they lie in it (device thread only)."""
        views = [
            MapView(each, self._slam.map_from(each.window_id))
            for each in self._loop_detector.keyframes
            if each.window_id in self._slam
        ]
        if not views:
            return []
        newest = self._last.placement.map_id if self._last else None
        if newest is None or not self._localiser.now.placed:
            newest = self._slam.map_id_of(views[0].keyframe.window_id)
        return [v for v in views if self._slam.map_id_of(v.keyframe.window_id) == newest]

    def sizes(self) -> MapSizes:
        """What is held now (device thread)."""
        with self._lock:
            waiting = self._buffer.waiting
        slam, keyframes = self._slam, len(self._loop_detector.keyframes)
        return MapSizes(len(slam), slam.windows, slam.max_windows, keyframes, waiting)

    def step(self) -> PerceivedWindow | None:
        """Run the next window, if there is one, through network and map (device thread only).

        Frames that cannot be decoded, or that show a covered, blurred or frozen camera, are
        counted and left out, and so are those of cameras that have not moved: where all are, the
        last window comes once more (`still`), which no map grows by. Otherwise there is no update
        without a new view, nor after a reset meanwhile.
        Raises NonFiniteError, and whatever the backend raises when the device fails; MappingError
        where what it brought cannot be entered into the map.
        """
        window, session = self._take()
        if window is None:
            return None
        timer = StageTimer()
        with mapping_errors():
            with timer.measure("decode"):
                window, images, unmoved = self._decode(window)
            if self._shows_nothing_new(window):
                return self._repeated(unmoved, session) if unmoved else None
        scene = self._perception.scene(images)
        network = self._perception.reconstruct(scene)
        timer.times_s.update(network.stage_times_s)
        with mapping_errors():
            return self._enter(window, scene, network, images, session, timer)

    def _enter(
        self,
        window: Window,
        scene: Scene,
        network: Reconstruction,
        images: list[np.ndarray],
        session: int,
        timer: StageTimer,
    ) -> PerceivedWindow | None:
        """The window as the map takes it; None where a reset came meanwhile."""
        network = with_known_cameras(network, [frame.intrinsics for frame in window.frames])
        network = with_ignored(network, window.frames)
        with timer.measure("poses"):
            result, rig_off_rad = self._with_mended_poses(network, window.frames)
        result = distrusted(result)
        with timer.measure("alignment"):
            mapped = self._place(window, scene, result)
        with timer.measure("localisation"):
            mapped = self._localise(mapped)
        with timer.measure("loop"):
            mapped = self._close_loop(mapped, images)
            self._remember(mapped, images)
        with timer.measure("depth"):
            # Not before windows were joined: a view has the same errors in each of them.
            fused = fuse_depth(result) if self._settings.map.fuse_depth else result
        mapped = replace(
            mapped,
            result=fused,
            rig_off_rad=rig_off_rad,
            stage_times_s=timer.times_s,
            session=session,
        )
        return self._finish(mapped)

    def _take(self) -> tuple[Window | None, int]:
        """The next window and its session; a reset takes effect here."""
        with self._lock:
            window, session = self._buffer.take(), self._session
            restart = window is not None and self._restart
            self._restart = self._restart and not restart
        if restart:
            self._start_over()
        return window, session

    def _start_over(self) -> None:
        self._slam.reset()
        self._loop_detector.clear()
        self._revisits.clear()
        self._localiser.clear()
        self._last_views.clear()
        self._images.clear()
        self._stillness.clear()
        self._refiner.forget_views()
        self._last = None

    def _repeated(self, unmoved: Sequence[Frame], session: int) -> PerceivedWindow | None:
        """The last window with the stamps of frames that show the same; None before the first.

        Nothing was measured anew, so that its covariances stay what they were.
        """
        last = self._last
        if last is None or last.session != session:
            return None
        frames = list(last.window.frames)
        for frame in unmoved:
            views = [i for i, each in enumerate(frames) if each.camera == frame.camera]
            newest = newest_view(frames, views)
            stamp_ns = max(frame.stamp_ns, frames[newest].stamp_ns)
            frames[newest] = replace(frames[newest], stamp_ns=stamp_ns)
        placement = replace(
            last.placement,
            scale=replace(last.placement.scale, jump=1.0, rescaled=1.0),
            new_map=None,
            loop_closed=False,
            merged_map_id=None,
            corrections=(),
            forgotten=(),
        )
        window = Window(last.window.id, tuple(frames))
        self._last = replace(
            last, window=window, placement=placement, new_views=(), stage_times_s={}, still=True
        )
        if self._localiser.hinted:
            self._last = self._localise(self._last)
        return self._last

    def _decode(self, window: Window) -> tuple[Window, list[np.ndarray], list[Frame]]:
        """The window without the frames that cannot be used, the images of the rest, and the
        frames of cameras that have not moved since the last window.

        An image that the window before had is the same object: it is neither decoded nor resized
        (`Perception.scene`) twice.
        """
        earlier, self._images = self._images, {}
        frames, images, unmoved = [], [], []
        for frame in window.frames:
            decoded, fault = earlier.get(view_key(frame)), None
            try:
                if decoded is None:
                    image = frame.decode()
                    decoded = DecodedFrame(image, thumbnail(image))
                if view_key(frame) in self._last_views:
                    pass
                elif not self._fits(decoded.image):
                    fault = DropReason.SIZE
                elif self._stillness.is_still(frame, decoded.thumbnail):
                    fault = DropReason.STILL
                    unmoved.append(frame)
                else:
                    fault = self._quality.fault(frame.camera, decoded.thumbnail)
            except ValueError:
                fault = DropReason.UNDECODABLE
            if fault is None:
                self._images[view_key(frame)] = decoded
                frames.append(frame)
                images.append(decoded.image)
            else:
                with self._lock:
                    self._buffer.discard(frame, fault)
                    if fault is DropReason.STILL:
                        self._buffer.renew(frame.stamp_ns)
        return Window(window.id, tuple(frames)), images, unmoved

    def _fits(self, image: np.ndarray) -> bool:
        """Whether the network can see an image: one too flat or too tall would fail each window
        that holds it."""
        height_px, width_px = image.shape[:2]
        try:
            geometry_size(width_px, height_px, self._settings.model.image_width_px)
        except ValueError:
            return False
        return True

    def _shows_nothing_new(self, window: Window) -> bool:
        return all(view_key(frame) in self._last_views for frame in window.frames)

    def _reconstruct(self, images: list[np.ndarray], frames: list[Frame]) -> Reconstruction:
        """What the network, and the images themselves, say of views that form no window."""
        network = self._perception.reconstruct(self._perception.scene(images))
        network = with_known_cameras(network, [frame.intrinsics for frame in frames])
        return distrusted(self._refine(with_ignored(network, frames)))

    def _with_mended_poses(
        self, network: Reconstruction, frames: Sequence[Frame]
    ) -> tuple[Reconstruction, float]:
        """The window after its rig and its images; `PerceivedWindow.rig_off_rad`."""
        fit = rig_fit(network, frames)
        if fit is None:
            return self._refine(network, frames), 0.0
        if not fit.used:
            return self._refine(network, frames), fit.turn_off_rad
        refined = self._refine(with_rig(network, fit), frames)
        return with_rig(refined, rig_fit(refined, frames)), 0.0

    def _refine(self, network: Reconstruction, frames: Sequence[Frame] = ()) -> Reconstruction:
        if not self._settings.map.refine_poses:
            return network
        odometry = [frame.odom_from_camera for frame in frames]
        return self._refiner.refine(network, odometry, [view_key(frame) for frame in frames])

    def _place(self, window: Window, scene: Scene, result: Reconstruction) -> PerceivedWindow:
        placement = self._slam.place(window, result)
        self._loop_detector.forget(placement.forgotten)
        views = [view_key(frame) for frame in window.frames]
        if placement.new_map is StartReason.FIRST and self._gave_up:
            placement = replace(placement, new_map=StartReason.WINDOWS_FAILED)
        self._gave_up = False
        new_views = tuple(i for i, view in enumerate(views) if view not in self._last_views)
        self._last_views = set(views)
        return PerceivedWindow(window, result, placement, new_views, scene=scene)

    def _localise(self, mapped: PerceivedWindow) -> PerceivedWindow:
        """The window, recognised in a map where the robot was before, if it is lost."""
        keyframes = list(self._loop_detector.keyframes)
        mapped = self._localiser.update(mapped, self._slam, keyframes)
        self._loop_detector.forget(mapped.placement.forgotten)
        return mapped

    def _close_loop(self, mapped: PerceivedWindow, images: list[np.ndarray]) -> PerceivedWindow:
        """Join the window to a place seen long ago, if its newest view seems to show one."""
        if not self._settings.map.loop_closure or self._fixed_map:
            return mapped
        match = self._loop_detector.detect(mapped, images, self._slam.between)
        if match is not None:
            mapped = replace(mapped, placement=self._join(match, mapped.placement))
        if not mapped.placement.loop_closed:
            mapped = self._revisit(mapped)
        if mapped.placement.loop_closed:
            self._loop_detector.closed(mapped.window.id)
            self._revisits.closed(mapped.window.id)
            self._loop_detector.forget(mapped.placement.forgotten)
        return mapped

    def _revisit(self, mapped: PerceivedWindow) -> PerceivedWindow:
        """Hold the window to an old place around it that its features show; a try is counted."""
        place = self._revisits.find(mapped, self._slam, list(self._loop_detector.keyframes))
        if place is None:
            return mapped
        mapped, outcome = hold_to_place(mapped, self._slam, place)
        with self._lock:
            self._loops[outcome] += 1
        return mapped

    def _remember(self, mapped: PerceivedWindow, images: list[np.ndarray]) -> None:
        """Keep the newest view as a keyframe, unless the map is to stay as it is."""
        if not self._fixed_map:
            self._loop_detector.remember(mapped, images)

    def _join(self, match: LoopMatch | LoopOutcome, placement: WindowPose) -> WindowPose:
        """The placement after a try to close a loop, which is counted."""
        outcome = match
        if isinstance(match, LoopMatch):
            placement, outcome = self._slam.close_loop(match, placement)
        with self._lock:
            self._loops[outcome] += 1
        return placement

    def _finish(self, mapped: PerceivedWindow) -> PerceivedWindow | None:
        """The window, counted and compared with from now on, unless a reset came meanwhile."""
        with self._lock:
            if mapped.session != self._session:
                return None
            self._windows += 1
        newest = {frame.camera: frame for frame in mapped.window.frames}
        for frame in newest.values():
            self._stillness.take(frame, self._images[view_key(frame)].thumbnail)
        self._last = mapped
        return mapped

    def _clock_jumped(self) -> None:
        self._restart = True
        self._clock_jumps += 1


def _map_settings(settings: Settings) -> MapSettings:
    """In a fixed map the graph holds no more than tracking needs."""
    if settings.map.mode != "localization":
        return settings.map
    return replace(settings.map, graph_windows=2 * RECENT)
