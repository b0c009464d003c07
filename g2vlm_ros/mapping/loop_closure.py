# SPDX-License-Identifier: Apache-2.0
"""Loop closure: places seen long ago that the newest view shows again.

A keyframe of such a place and the newest views go through the network together once more; what
they show must be the same surfaces in the same colours before `GraphSlam` joins the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from g2vlm_ros.geometry.registration import ViewSample, sample_view
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.covisibility import NEAR_SURFACE, depth_ratio, measure_covisibility
from g2vlm_ros.mapping.ignored_pixels import BelievedPoints
from g2vlm_ros.mapping.keyframes import (
    SAVED_MAP,
    Keyframe,
    KeyframeStore,
    compressed,
    decoder,
    pose_gap,
    view_descriptor,
)
from g2vlm_ros.mapping.view_features import FeatureSearch
from g2vlm_ros.mapping.view_images import ViewImage
from g2vlm_ros.mapping.window_pose import LoopOutcome, MappedWindow
from g2vlm_ros.records import Frame, NonFiniteError, Reconstruction
from g2vlm_ros.settings import Settings

MIN_EXPECTED = 0.3
"""Least share of a keyframe's points that the map puts before a view's surfaces, for a loop to be
tried there."""
EXPECTED_STRIDE = 4
"""One point in so many is projected for that: a tenth of a millisecond per keyframe."""
MAX_MOTION = 0.3
"""Farthest such a keyframe may be, as a fraction of the view's median range..."""
MAX_TURN = np.deg2rad(40.0)
"""...and as an angle: reconstructions of two places together by the demo checkpoint are mostly
right within, mostly wrong beyond."""
MIN_OVERLAP = 0.15
"""Least share of a view that both sides of a loop must show."""
MIN_ALIKE = 0.5
"""Least correlation of brightness between the two sides of a loop."""

Between = Callable[[int, int], Sim3 | None]
"""A placed window from another one by their ids, or None in different maps."""


@dataclass(frozen=True)
class LoopMatch:
    """A window and windows of long ago that were seen to show the same place."""

    window_id: int
    result: Reconstruction
    """The window's own."""
    pairs: dict[int, list[tuple[ViewSample, ViewSample]]]
    """By window, the newest first: each of its views in the reconstruction of old and new views
    together, and in the window."""


@dataclass(frozen=True)
class PairReconstruction:
    """Old views and new ones, through the network together."""

    keyframes: Sequence[Keyframe]
    """The old views, which come first."""
    views: Sequence[int]
    """Views of the new window, in order after them."""
    result: Reconstruction


class LoopDetector:
    """Keyframes of the drive, and when which of them is tried. Device thread only.

    reconstruct: images uint8 (h, w, 3) and their frames to a Reconstruction, or NonFiniteError.
    """

    def __init__(
        self,
        settings: Settings,
        reconstruct: Callable[[list[np.ndarray], list[Frame]], Reconstruction],
    ):
        self._settings = settings.map
        self._views = settings.window.views
        self._image_width_px = settings.model.image_width_px
        self._reconstruct = reconstruct
        self._keyframes = KeyframeStore(settings.map.keyframes)
        self.clear()

    @property
    def keyframes(self) -> KeyframeStore:
        """The views that are kept, for reading."""
        return self._keyframes

    def clear(self) -> None:
        """Forget everything."""
        self._keyframes.clear()
        # Windows of the last tries; a loop that closed counts as one by pose.
        self._last_by_pose = self._last_by_appearance = 0

    def forget(self, window_ids: Iterable[int]) -> None:
        """Drop the keyframes of windows that the map no longer holds."""
        self._keyframes.forget(window_ids)

    def detect(
        self, mapped: MappedWindow, images: Sequence[np.ndarray], between: Between
    ) -> LoopMatch | LoopOutcome | None:
        """A place seen again, why a candidate is none, or None where there is no candidate."""
        candidate = self.candidate(mapped, between)
        if candidate is None:
            return None
        try:
            pair = self.reconstruct_pair(candidate, mapped, images)
        except NonFiniteError:
            return LoopOutcome.NON_FINITE
        return refusal(pair.result, len(pair.keyframes)) or self._match(pair, mapped)

    def closed(self, window_id: int) -> None:
        """A loop was closed: the next try has time."""
        self._last_by_pose = window_id

    def candidate(self, mapped: MappedWindow, between: Between) -> Keyframe | None:
        """The keyframe to try: one that the map expects in the newest view, or else one that
        only looks like it."""
        settings, window = self._settings, mapped.window
        gap = settings.loop_gap_windows
        old = self._keyframes.up_to(window.id - gap)
        if window.id - self._last_by_pose >= gap:
            expected = by_pose(old, mapped.result, window.newest, partial(between, window.id))
            if expected is not None:
                self._last_by_pose = window.id
                return expected
        if window.id - max(self._last_by_pose, self._last_by_appearance) >= gap:
            # Where a saved map is not known to be this one, looks alone must not join the two.
            of_this_map = [
                k for k in old if k.window_id != SAVED_MAP or between(window.id, SAVED_MAP)
            ]
            best = by_appearance(of_this_map, view_descriptor(mapped.result, window.newest))
            if best is not None and best[1] >= settings.loop_similarity:
                self._last_by_appearance = window.id
                return best[0]
        return None

    def reconstruct_pair(
        self, candidate: Keyframe, mapped: MappedWindow, images: Sequence[np.ndarray]
    ) -> PairReconstruction:
        """The candidate, its neighbour and the newest views through the network together.

        As many views as it usually sees, the newest one last. Raises NonFiniteError.
        """
        neighbour = self._keyframes.beside(candidate)
        old = [candidate] if neighbour is None else [candidate, neighbour]
        frames, newest = mapped.window.frames, mapped.window.newest
        others = sorted(set(mapped.trusted_views) - {newest}, key=lambda i: -frames[i].stamp_ns)
        room = max(0, self._views - len(old) - 1)
        views = [*others[:room][::-1], newest]
        together = [k.frame.decode() for k in old] + [images[i] for i in views]
        of_views = [k.frame for k in old] + [frames[i] for i in views]
        return PairReconstruction(old, views, self._reconstruct(together, of_views))

    def remember(self, mapped: MappedWindow, images: Sequence[np.ndarray]) -> None:
        """Keep the newest view as a keyframe if it shows something new."""
        newest, result = mapped.window.newest, mapped.result
        pose = mapped.map_from_camera[newest]
        depth = float(result.view_depths_u[newest])
        if not self._keyframes.is_new(pose, depth * mapped.placement.map_from_window.scale):
            return
        frame = mapped.window.frames[newest]
        image, view = images[newest], result.colours[newest]
        if image.shape[1] > view.shape[1]:
            image = view
        jpeg = compressed(image, self._image_width_px)
        shown, camera = ViewImage(view), result.intrinsics[newest]
        points = BelievedPoints(result, newest).halves_at_size(shown.feature_size)
        ignored = None if result.ignored is None else partial(_mask, result.ignored[newest])
        keyframe = Keyframe(
            mapped.window.id,
            Frame(frame.stamp_ns, frame.camera, frame.frame_id, decoder(jpeg), ignored=ignored),
            sample_view(result, newest),
            result.window_from_camera[newest].astype(np.float64),
            view_descriptor(result, newest),
            FeatureSearch(shown, points, camera),
            jpeg,
            mapped.placement.covariance[newest],
            mapped.window.id,
        )
        self._keyframes.add(keyframe, pose)

    def _match(self, pair: PairReconstruction, mapped: MappedWindow) -> LoopMatch:
        result, old = mapped.result, len(pair.keyframes)
        samples = [sample_view(pair.result, i) for i in range(pair.result.views)]
        new = [(samples[old + k], sample_view(result, v)) for k, v in enumerate(pair.views)]
        pairs = {mapped.window.id: new}
        for keyframe, sample in zip(pair.keyframes, samples, strict=False):
            pairs.setdefault(keyframe.window_id, []).append((sample, keyframe.sample))
        return LoopMatch(mapped.window.id, result, pairs)


def _mask(mask: np.ndarray) -> np.ndarray:
    """What `Frame.ignored` of a keyframe gives: it was looked up when the window was mapped."""
    return mask


def by_appearance(
    keyframes: Sequence[Keyframe], descriptor: np.ndarray
) -> tuple[Keyframe, float] | None:
    """The keyframe most similar to a descriptor (C,) of length 1, and its cosine similarity."""
    comparable = [k for k in keyframes if k.descriptor.shape == descriptor.shape]
    if not comparable:
        return None
    similarity = np.stack([k.descriptor for k in comparable]) @ descriptor
    best = int(similarity.argmax())
    return comparable[best], float(similarity[best])


def by_pose(
    keyframes: Sequence[Keyframe],
    result: Reconstruction,
    view: int,
    window_from: Callable[[int], Sim3 | None],
) -> Keyframe | None:
    """The keyframe nearest to a view by the map, of those expected to share MIN_EXPECTED of it.

    window_from: the view's window from an older one by its id; None where the map connects them
    not. None if no keyframe is within MAX_MOTION and MAX_TURN, beyond which networks join views
    badly.
    """
    if result.intrinsics[view] is None:
        return None
    pose = result.window_from_camera[view].astype(np.float64)
    motion = MAX_MOTION * float(result.view_depths_u[view])
    best, least = None, 1.0
    for keyframe in keyframes:
        move = window_from(keyframe.window_id)
        if move is None:
            continue
        gap = pose_gap(move.apply_pose(keyframe.window_from_camera), pose, motion, MAX_TURN)
        if gap <= least:
            points = move.apply(keyframe.sample.points_u[::EXPECTED_STRIDE])
            _, _, off = depth_ratio(result, view, points)
            if (np.abs(off) < NEAR_SURFACE).mean() >= MIN_EXPECTED:
                best, least = keyframe, gap
    return best


def refusal(result: Reconstruction, old: int) -> LoopOutcome | None:
    """Why the first `old` views and the others do not show the same place; None if they do."""
    overlap = measure_covisibility(result)
    shared = np.fmax(overlap.shared[:old, old:], overlap.shared[old:, :old].T)
    if not np.nanmax(shared, initial=0.0) >= MIN_OVERLAP:
        return LoopOutcome.NO_OVERLAP
    best = np.unravel_index(np.nanargmax(shared), shared.shape)
    i, j = int(best[0]), old + int(best[1])
    alike = np.nanmax([overlap.alike[i, j], overlap.alike[j, i], -1.0])
    return None if alike >= MIN_ALIKE else LoopOutcome.LOOKS_DIFFERENT
