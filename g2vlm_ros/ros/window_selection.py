# SPDX-License-Identifier: Apache-2.0
"""Which window a question is answered from, and which of its views."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.context import CachedWindow, ContextStore
from g2vlm_ros.records import Window
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.service_errors import Codes, RequestError, check_age
from g2vlm_ros.ros.window_source import WindowSource

Feedback = AnswerSpatialQuery.Feedback


class NotYetError(Exception):
    """A goal for a fresh window must be tried again: the window is not there yet."""


class WindowSelection:
    """Chooses among the windows that are held, or has a new one made (device's thread)."""

    def __init__(self, source: WindowSource, context: ContextStore, now_ns: Callable[[], int]):
        self._source, self._context, self._now_ns = source, context, now_ns

    def window(self, question: Question) -> CachedWindow:
        """The window to answer from: the conversation's, that of the stamp, or the newest."""
        request = question.request
        if question.fresh:
            return self._fresh_window(question)
        stamp_ns = geometry.stamp_ns(request.stamp)
        if stamp_ns:
            return self._window_at(stamp_ns, request.max_age_s)
        dialogue = self._context.dialogue(request.dialogue) if request.dialogue else None
        if dialogue is not None and abs(self._age_s(dialogue.window)) <= request.max_age_s:
            return dialogue.window
        window = self._newest()
        if window is None or abs(self._age_s(window)) > request.max_age_s:
            question.feedback(Feedback.RECONSTRUCTING, "")
            self._source.run_window()
            window = self._newest()
        if window is None:
            raise RequestError(
                Codes.NO_GEOMETRY,
                f"no window has been reconstructed yet; {self._source.why_no_window()}",
            )
        check_age(self._age_s(window), request.max_age_s)
        return window

    def _fresh_window(self, question: Question) -> CachedWindow:
        """A window newer than the goal; NotYetError until there are frames for one.

        While the cameras stand still the last window comes again, with a newer stamp.
        """
        question.feedback(Feedback.RECONSTRUCTING, "")
        window = self._newest()
        if not _newer(window, question.after):
            self._source.run_window()
            window = self._newest()
        if not _newer(window, question.after):
            raise NotYetError
        return window

    def _window_at(self, stamp_ns: int, max_gap_s: float) -> CachedWindow:
        """The held window with a view nearest to a moment; max_age_s bounds how near."""
        self._newest()
        nearest = self._context.nearest(stamp_ns)
        if nearest is None or nearest.gap_s(stamp_ns) > max_gap_s:
            raise RequestError(
                Codes.NO_GEOMETRY,
                "no window of that moment is kept any more; ask sooner, or raise query.windows",
            )
        return nearest

    def _newest(self) -> CachedWindow | None:
        newest = self._source.newest_window()
        return None if newest is None else self._context.remember(newest[0])

    def _age_s(self, window: CachedWindow) -> float:
        return (self._now_ns() - window.update.window.stamp_ns) * 1e-9

    @staticmethod
    def views(update: PerceivedWindow, cameras: Sequence[str]) -> list[int]:
        """Indices of a window's views of some cameras, of all where none is named."""
        frames = update.window.frames
        views = [i for i, frame in enumerate(frames) if not cameras or frame.camera in cameras]
        if not views:
            raise RequestError(
                Codes.NOT_VISIBLE,
                f"the window has no view of {', '.join(cameras)}; ask without camera_ids, or wait "
                "for its frames",
            )
        return views


def _newer(window: CachedWindow | None, before: Window | None) -> bool:
    """Whether a window came after another, or came once more after it."""
    if window is None or before is None:
        return window is not None
    newest = window.update.window
    return (newest.id, newest.stamp_ns) > (before.id, before.stamp_ns)
