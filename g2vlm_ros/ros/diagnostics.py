# SPDX-License-Identifier: Apache-2.0
"""`/diagnostics`: one task for each thing that can fail, and one for what memory holds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from g2vlm_ros.mapping.camera_tracker import TrackingFailure
from g2vlm_ros.mapping.window_pose import Localisation, LocalisationState, MappedWindow
from g2vlm_ros.pipeline import Counts
from g2vlm_ros.records import DropReason, ScaleState
from g2vlm_ros.ros.camera_tracking import TrackingCounts
from g2vlm_ros.ros.input_rate import FrameRate, UnusedFrames
from g2vlm_ros.ros.remarks import (
    camera_remarks,
    clock_remark,
    hang_remark,
    height_remarks,
    localisation_remarks,
    no_metres,
    rig_remarks,
    scale_remarks,
    silence_remarks,
)
from g2vlm_ros.ros.stores import Store
from g2vlm_ros.settings import Settings

EXPECTED_DROPS = (
    DropReason.TOO_CLOSE,
    DropReason.SUPERSEDED,
    DropReason.RESET,
    DropReason.STILL,
)
"""Reasons that belong to normal work: more frames came than windows need, or nothing moved."""
MISSED_FRAMES = 3.0
"""Periods of a slow camera without a frame before it counts as silent."""
TRACKING = {
    TrackingFailure.NO_REFERENCE: "no window shows this camera's surroundings yet",
    TrackingFailure.WRONG_SIZE: "frames have another aspect than the window's views",
    TrackingFailure.OUT_OF_ORDER: "frames are older than the newest window",
    TrackingFailure.FEW_CORNERS: "the newest view shows nothing that can be followed",
    TrackingFailure.OUT_OF_VIEW: "the camera looks away from what the newest view shows",
    TrackingFailure.FEW_INLIERS: "too little of the newest view is found again",
}
"""Why frames between windows have no pose, in words."""
LOCALISED = Localisation(LocalisationState.LOCALISED)
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


class Diagnostics:
    """One diagnostic task per thing that can fail, from the difference to the last report."""

    def __init__(self, name: str, hardware_id: str, settings: Settings):
        self._name = name
        self._hardware_id = hardware_id
        self._cameras = settings.cameras
        self._no_metres = no_metres(settings)
        self._max_job_s = settings.model.max_job_s
        self.frame_rate = FrameRate(settings)
        self.unused_frames = UnusedFrames(settings)
        self._last = Counts(0, 0, {}, 0)
        self._last_s: float | None = None
        self._last_tracked = 0
        self._last_failures = 0

    def report(
        self,
        header: Header,
        now_s: float,
        counts: Counts,
        update: MappedWindow | None,
        latency_s: float,
        problem: str,
        listened: bool,
        job_s: float = 0.0,
        failures: int = 0,
        tracking: TrackingCounts | None = None,
        localisation: Localisation = LOCALISED,
        stores: Sequence[Store] = (),
    ) -> DiagnosticArray:
        """What happened since the last report, `now_s` by the node's clock.

        job_s: how long the device's job runs. failures: callbacks that raised, since the start.
        tracking: frames followed between windows; None where they are not. stores: what is held.
        """
        self.frame_rate.update(now_s, counts.received)
        self.unused_frames.update(counts)
        span_s = now_s - self._last_s if self._last_s is not None else 0.0
        frames = counts.received - self._last.received
        windows = counts.windows - self._last.windows
        drops = {
            reason: n - self._last.dropped.get(reason, 0) for reason, n in counts.dropped.items()
        }
        self._last, self._last_s = counts, now_s
        return DiagnosticArray(
            header=header,
            status=[
                self._input(frames, span_s, silence_remarks(counts)),
                self._windows(windows, span_s, listened, frames),
                self._drops(drops),
                self._latency(update, latency_s),
                self._scale(update),
                self._loops(counts),
                self._localisation(localisation, counts),
                self._calibration(update),
                self._engine(problem, job_s),
                self._callbacks(failures),
                self._tracking(tracking, span_s),
                self._memory(stores),
            ],
        )

    def _task(self, task: str, level: bytes, message: str, **values: object) -> DiagnosticStatus:
        pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
        return DiagnosticStatus(
            level=level,
            name=f"{self._name}: {task}",
            message=message,
            hardware_id=self._hardware_id,
            values=pairs,
        )

    def _input(self, frames: int, span_s: float, sentences: list[str]) -> DiagnosticStatus:
        rate_hz = frames / span_s if span_s > 0 else float("nan")
        slow = self.frame_rate.remark() or self.unused_frames.remark()
        if slow:
            return self._task("input", WARN, slow, rate_hz=f"{1 / self.frame_rate.period_s:.2f}")
        rate = self.frame_rate
        regular = rate.silent_s < MISSED_FRAMES * rate.period_s < math.inf
        if frames or span_s == 0 or regular:
            message, level = "; ".join(sentences) or "frames arrive", WARN if sentences else OK
            return self._task("input", level, message, rate_hz=f"{rate_hz:.2f}")
        hint = "no frames; compare topic names and QoS (ros2 topic info -v), and use_sim_time"
        return self._task("input", WARN, hint, cameras=", ".join(self._cameras))

    def _windows(
        self, windows: int, span_s: float, listened: bool, frames: int
    ) -> DiagnosticStatus:
        rate_hz = windows / span_s if span_s > 0 else float("nan")
        if not listened:
            return self._task("windows", OK, "nobody listens: the model rests", rate_hz=0)
        message = "windows are reconstructed" if windows else "waiting for enough distinct views"
        level = WARN if not windows and frames and self._last.windows == 0 else OK
        return self._task("windows", level, message, rate_hz=f"{rate_hz:.2f}")

    def _drops(self, drops: dict[str, int]) -> DiagnosticStatus:
        bad = {r: n for r, n in drops.items() if n and r not in EXPECTED_DROPS}
        if bad:
            return self._task("drops", WARN, "frames are unusable: " + ", ".join(bad), **drops)
        if drops.get(DropReason.STILL):
            return self._task("drops", OK, "a camera stands still: its view stays", **drops)
        return self._task("drops", OK, "only surplus frames are left out", **drops)

    def _latency(self, update: MappedWindow | None, latency_s: float) -> DiagnosticStatus:
        if update is None:
            return self._task("latency", OK, "no window yet")
        times = {f"{stage}_s": f"{t:.4f}" for stage, t in update.stage_times_s.items()}
        remark = clock_remark(latency_s)
        if remark:
            return self._task("latency", WARN, remark, **times)
        return self._task("latency", OK, f"{latency_s:.3f} s from stamp to publishing", **times)

    def _scale(self, update: MappedWindow | None) -> DiagnosticStatus:
        if update is None:
            return self._task("scale", OK, "no window yet")
        placement = update.placement
        values = {"map_id": placement.map_id}
        if placement.relative_pose is not None:
            values["inliers"] = f"{placement.relative_pose.inliers:.3f}"
            values["residual"] = f"{placement.relative_pose.residual:.4f}"
        if placement.scale.state is ScaleState.METRIC:
            sentences = scale_remarks(update) + height_remarks(update)
            message = "; ".join(sentences) or "lengths are metres"
            return self._task("scale", WARN if sentences else OK, message, **values)
        return self._task("scale", WARN, self._no_metres, **values)

    def _loops(self, counts: Counts) -> DiagnosticStatus:
        values = {str(outcome): n for outcome, n in sorted(counts.loops.items())}
        by_outcome = ", ".join(f"{n} {outcome}" for outcome, n in values.items())
        return self._task("loops", OK, by_outcome or "no place was seen again", **values)

    def _localisation(self, localisation: Localisation, counts: Counts) -> DiagnosticStatus:
        values = {str(outcome): n for outcome, n in sorted(counts.searches.items())}
        since_s = f"{localisation.since_ns * 1e-9:.3f}"
        problems = localisation_remarks(localisation)
        message = "; ".join(problems) or f"{localisation.state} by {localisation.by}"
        level = WARN if problems else OK
        values |= {"since": since_s, "by": localisation.by}
        return self._task("localisation", level, message, **values)

    def _calibration(self, update: MappedWindow | None) -> DiagnosticStatus:
        sentences = camera_remarks(update) + rig_remarks(update) if update is not None else []
        message = "; ".join(sentences) or "camera_info and geometry do not contradict each other"
        return self._task("calibration", WARN if sentences else OK, message)

    def _tracking(self, counts: TrackingCounts | None, span_s: float) -> DiagnosticStatus:
        if counts is None:
            return self._task("tracking", OK, "pose.between_windows is off")
        tracked, failed = counts.tracked, sum(counts.failures.values())
        new, lost = tracked - self._last_tracked, failed - self._last_failures
        self._last_tracked, self._last_failures = tracked, failed
        values = {"skipped": counts.skipped} | dict(counts.failures)
        values["rate_hz"] = f"{new / span_s:.2f}" if span_s > 0 else "nan"
        values["inlier_share"] = f"{counts.inlier_share:.2f}"
        values["frame_ms"] = f"{counts.frame_ms:.1f}"
        if lost > new and counts.newest:
            why = TRACKING[TrackingFailure(counts.newest)]
            return self._task("tracking", WARN, f"frames have no pose: {why}", **values)
        message = "frames are followed between windows" if new else "no frames are followed"
        return self._task("tracking", OK, message, **values)

    def _engine(self, problem: str, job_s: float) -> DiagnosticStatus:
        problem = hang_remark(job_s, self._max_job_s) or problem
        level = ERROR if problem else OK
        return self._task(
            "engine",
            level,
            problem or "running",
            backend=self._hardware_id,
            job_s=f"{job_s:.1f}",
        )

    def _callbacks(self, failures: int) -> DiagnosticStatus:
        if not failures:
            return self._task("callbacks", OK, "none failed")
        sentence = f"{failures} failed since the start; the log has their tracebacks"
        return self._task("callbacks", WARN, sentence, failures=failures)

    def _memory(self, stores: Sequence[Store]) -> DiagnosticStatus:
        values = {store.name: str(store) for store in stores}
        above = [store.name for store in stores if store.held > store.bound]
        if above:
            sentence = f"above their bounds: {', '.join(above)}; report it, this is a bug"
            return self._task("memory", ERROR, sentence, **values)
        full = [store.name for store in stores if store.held == store.bound > 0]
        if full:
            return self._task("memory", OK, f"at their bounds: {', '.join(full)}", **values)
        return self._task("memory", OK, "below all bounds", **values)
