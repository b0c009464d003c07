# SPDX-License-Identifier: Apache-2.0
"""Windows as jobs of the device's thread: reconstructed, entered into the map, published."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import wait

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.rooms import RoomMap
from g2vlm_ros.mapping.keyframes import Keyframe
from g2vlm_ros.pipeline import MappingPipeline, PerceivedWindow, mapping_errors
from g2vlm_ros.records import Frame, MappingError
from g2vlm_ros.ros.camera_tracking import CameraTracking
from g2vlm_ros.ros.inference_scheduler import InferenceScheduler
from g2vlm_ros.ros.object_services import ObjectServices
from g2vlm_ros.ros.publishers import Publishers
from g2vlm_ros.ros.query_server import QueryServer
from g2vlm_ros.ros.repeated_faults import RepeatedFaults


class WindowWorker:
    """Implements `WindowSource`. Any thread may call it unless a method says otherwise.

    `connect` comes before the first frame. log_failure(what, error): logs a fault with where it
    happened; log_error: a sentence.
    """

    def __init__(
        self,
        scheduler: InferenceScheduler,
        pipeline: MappingPipeline,
        dense_map: DenseMap,
        rooms: RoomMap,
        outputs: Publishers,
        now_ns: Callable[[], int],
        log_failure: Callable[[str, BaseException], None],
        log_error: Callable[[str], object],
        faults: RepeatedFaults,
    ):
        self._scheduler, self._pipeline = scheduler, pipeline
        self._map, self._rooms, self._outputs = dense_map, rooms, outputs
        self._now_ns, self.log_failure = now_ns, log_failure
        self._log_error, self._faults = log_error, faults
        self._queries: QueryServer | None = None
        self._objects: ObjectServices | None = None
        self._report: Callable[[], None] = lambda: None
        self._input_problem: Callable[[], str] = str
        self._waiting, self._running = threading.Event(), threading.Event()
        self.active = False
        """Whether windows are made and requests served."""
        self.tracking: CameraTracking | None = None
        """Follows frames between windows, while the node is active and wants it."""
        self.newest: PerceivedWindow | None = None
        self.session = 0
        """Grows with each reset; what belongs to an earlier one is thrown away."""
        self.latency_s = math.nan
        """Age of the newest window when it was published."""
        self.problem = ""
        """Why the last window failed; empty where it did not."""

    def connect(
        self,
        queries: QueryServer,
        objects: ObjectServices,
        report: Callable[[], None],
        input_problem: Callable[[], str],
    ) -> None:
        """Who else gets each window. report: publishes the status after one. input_problem: why
        frames make no window, empty where they can."""
        self._queries, self._objects, self._report = queries, objects, report
        self._input_problem = input_problem

    def offer(self, frame: Frame) -> None:
        """Take a frame in and see to it that its window is made."""
        self._pipeline.offer(frame)
        if (tracking := self.tracking) is not None:
            tracking.offer(frame)
        self._schedule()

    def idle(self) -> bool:
        """Whether no window job is queued or running."""
        return not (self._waiting.is_set() or self._running.is_set())

    def listened_to(self) -> bool:
        """Whether anybody subscribes to something that needs the model."""
        return self._outputs.wanted() or self._objects.wanted()

    # WindowSource ----------------------------------------------------------------------------

    def is_active(self) -> bool:
        """Whether requests are served."""
        return self.active

    def newest_window(self) -> tuple[PerceivedWindow, float] | None:
        """The newest window and its age in seconds, or None before the first, and while nothing
        tells where it lies in the map."""
        update = self.newest
        if update is None or not update.localisation.placed:
            return None
        return update, self._age_s(update)

    def why_no_window(self) -> str:
        """What keeps windows from being made, in words."""
        counts = self._pipeline.counts()
        reason = self.problem or self._input_problem()
        if not reason and not counts.received:
            reason = "no frame has come; compare topic names and QoS (ros2 topic info -v)"
        return reason or "see ~/status for frames and drops"

    def refresh(self, timeout_s: float) -> None:
        """Run a window although nobody listens, and wait for it."""
        wait([self._scheduler.submit(self.run_window)], timeout_s)

    def run_window(self) -> None:
        """Make and publish the next window, if frames for one are here (device's thread)."""
        self._running.set()
        self._waiting.clear()
        try:
            if self.active and self._step():
                self._schedule()
        except BaseException as error:  # a SystemExit of a library ends no window in silence
            self.problem = str(error) if isinstance(error, MappingError) else _named(error)
            self.log_failure("window", error)
            if self._faults.update(error):
                self._give_up_map()
        finally:
            self._running.clear()

    def _schedule(self) -> None:
        """Queue a window job unless one is queued already; a running one does not count."""
        if self.active and not self._waiting.is_set() and self.listened_to():
            self._waiting.set()
            try:
                self._scheduler.submit(self.run_window)
            except RuntimeError:  # cleaned up meanwhile
                self._waiting.clear()

    def _step(self) -> bool:
        """Make and publish the next window; False when there are too few frames for one."""
        update = self._pipeline.step()
        if update is None:
            return False
        with mapping_errors():
            self._show(update)
        self._faults.clear()
        if update.session < self.session:
            return True  # forgotten while it was published
        self._objects.publish()
        self.newest, self.problem = update, ""
        self.latency_s = self._age_s(update)
        self._report()
        return True

    def _show(self, update: PerceivedWindow) -> None:
        """Enter a window into the map that is published, and let questions know of it."""
        self._map.add(update)
        self._outputs.publish(update)
        if update.localisation.placed:
            if (tracking := self.tracking) is not None:
                tracking.add(update)
            self._queries.remember(update)

    def _age_s(self, update: PerceivedWindow) -> float:
        return (self._now_ns() - update.window.stamp_ns) * 1e-9

    # Forgetting ------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget frames, map, rooms, and what questions know."""
        self._begin(self._pipeline.reset())
        self._faults.clear()
        self._rooms.clear()
        self._scheduler.submit(self._queries.forget)

    def look_for(self, keyframes: Sequence[Keyframe]) -> int:
        """Be LOST in a saved map; its id (device's thread)."""
        session, map_id = self._pipeline.load(keyframes)
        self._faults.clear()
        self._begin(session)
        self._queries.forget()
        return map_id

    def _give_up_map(self) -> None:
        """Begin a new map: window after window could not be entered into this one.

        A saved map is kept the first time, and the robot looked for in it.
        """
        session = self._pipeline.give_up_map(keep_saved=self._faults.maps == 1)
        if session is not None:
            self._begin(session)
            self._rooms.clear()
            self._queries.forget()
        self.newest = None
        self.problem = (
            "window after window could not be entered into the map, the last one by "
            f"{self.problem}; it was given up, a new map starts"
        )
        if self._faults.maps == 1:
            self._log_error(self.problem)

    def _begin(self, session: int) -> None:
        """A new session: nothing of an earlier one is shown any more."""
        self.session = session
        self._map.reset(session)
        if (tracking := self.tracking) is not None:
            tracking.reset(session)
        self._outputs.retract(session, self._now_ns())
        self.newest = None


def _named(error: BaseException) -> str:
    """An exception in one sentence."""
    return f"{type(error).__name__}: {error}"
