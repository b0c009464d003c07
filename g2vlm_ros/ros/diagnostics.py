# SPDX-License-Identifier: Apache-2.0
"""~/status and /diagnostics: what came in, what came out, and why not."""

from __future__ import annotations

import math

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from g2vlm_ros.mapping.camera_tracker import TrackingFailure
from g2vlm_ros.mapping.window_pose import (
    Localisation,
    LocalisationState,
    MappedWindow,
    SearchOutcome,
    StartReason,
)
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.pipeline import Counts
from g2vlm_ros.records import DropReason, ScaleState
from g2vlm_ros.ros.camera_tracking import TrackingCounts
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.input_rate import FrameRate, UnusedFrames
from g2vlm_ros.settings import Settings

EXPECTED_DROPS = (
    DropReason.TOO_CLOSE,
    DropReason.SUPERSEDED,
    DropReason.RESET,
    DropReason.STILL,
)
"""Reasons that belong to normal work: more frames came than windows need, or nothing moved."""
MAX_CLOCK_LEAD_S = 0.5
"""A stamp further ahead of the node's clock than this is an error of clocks."""
CLOCK_AGE_S = 86_400.0
"""An image older than a day is one of another clock, not a slow one."""
MAX_JOB_S = 10.0
"""A job of the device that has not come to a pause for so long hangs, by all measurements."""
FOCAL_CLASH = 0.1
"""Relative difference of focal lengths, told and recovered, from which it is reported."""
MAX_CAMERA_HEIGHT_M = 8.0
"""Above the floor: no robot's camera is higher, and depth in tenths of a millimetre makes 10 m of
1 m."""
WINDOWS_FOR_METRES = 3
"""Windows within which a source of metres contributes, or why not is said."""
MISSED_FRAMES = 3.0
"""Periods of a slow camera without a frame before it counts as silent."""
STARTS = {
    StartReason.NO_SHARED_VIEW: "no view is shared with the windows before",
    StartReason.NO_OVERLAP: "the newest view shows nothing that the shared ones do",
    StartReason.POOR_REGISTRATION: "the window does not fit to the ones before",
}
"""Why a map starts, in words; the very first one needs none."""
TRACKING = {
    TrackingFailure.NO_REFERENCE: "no window shows this camera's surroundings yet",
    TrackingFailure.WRONG_SIZE: "frames have another aspect than the window's views",
    TrackingFailure.OUT_OF_ORDER: "frames are older than the newest window",
    TrackingFailure.FEW_CORNERS: "the newest view shows nothing that can be followed",
    TrackingFailure.OUT_OF_VIEW: "the camera looks away from what the newest view shows",
    TrackingFailure.FEW_INLIERS: "too little of the newest view is found again",
}
"""Why frames between windows have no pose, in words."""
LOST_BY = {
    "saved_map": "a map was loaded without a pose",
    "no_saved_map": "map.mode is localization; load a map (~/load_map)",
    "keyframe": "one window was recognised",
    "unconfirmed": "a place was recognised once and not again",
}
SEARCHES = {
    SearchOutcome.LOCALISED: "the place was found",
    SearchOutcome.UNCONFIRMED: "the next window has to confirm it",
    SearchOutcome.AMBIGUOUS: "two places fit about as well; drive on, or give /initialpose",
    SearchOutcome.NOT_FOUND: "nothing in view fits to the map's keyframes",
    SearchOutcome.NO_KEYFRAMES: "the map has no keyframes to compare with",
    SearchOutcome.CONTRADICTS_MAP: "a place fits, but contradicts the map or its metres",
}
LOCALISED = Localisation(LocalisationState.LOCALISED)
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def status_message(
    header: Header,
    counts: Counts,
    update: MappedWindow | None,
    latency_s: float,
    model_version: str,
    backend: str,
    message: str,
    job_s: float = 0.0,
    localisation: Localisation = LOCALISED,
    no_metres: str = "",
) -> ReconstructionStatus:
    """The state after `update`, or before the first window when it is None.

    message: what is wrong, which comes before the remarks. job_s: how long the device's job runs.
    no_metres: said of lengths that are none although a source of them is configured.
    """
    status = ReconstructionStatus(
        header=header,
        metres_per_unit=float("nan"),
        scale_relative_std=float("nan"),
        scale_source=ReconstructionStatus.SOURCE_NONE,
        alignment_quality=-1.0,
        latency_s=latency_s,
        frames_received=counts.received,
        frames_used=counts.used,
        frames_dropped=sum(counts.dropped.values()),
        drop_reasons=[str(reason) for reason in counts.dropped],
        drop_counts=list(counts.dropped.values()),
        model_version=model_version,
        backend=backend,
        message=message,
        job_s=job_s,
        localisation=localisation.state.value,
        localised_since=geometry.stamp(localisation.since_ns),
        localised_by=localisation.by,
        search="" if localisation.search is None else localisation.search.value,
    )
    lost = localisation_remarks(localisation)
    if update is None:
        status.message = message or "; ".join(lost)
        return status
    sentences = lost + silence_remarks(counts) + remarks(update)
    relative = update.placement.scale.state is not ScaleState.METRIC
    if no_metres and relative and counts.windows >= WINDOWS_FOR_METRES:
        sentences.append(no_metres)
    status.message = message or "; ".join(sentences)
    placement, frames = update.placement, update.window.frames
    status.window_id = update.window.id
    status.view_stamps = [geometry.stamp(frame.stamp_ns) for frame in frames]
    status.view_cameras = [frame.camera for frame in frames]
    status.scale_state = int(placement.scale.state)
    status.map_id = placement.map_id
    if placement.scale.state is ScaleState.METRIC:
        status.metres_per_unit = placement.map_from_window.scale
    status.scale_relative_std = placement.scale.relative_std
    status.scale_source = str(placement.scale.source)
    if placement.relative_pose is not None:
        status.alignment_quality = placement.relative_pose.inliers
    status.stage_names = list(update.stage_times_s)
    status.stage_times_s = list(update.stage_times_s.values())
    return status


def remarks(update: MappedWindow) -> list[str]:
    """What people should know of a window, one clause each; empty when all is well."""
    placement, sentences = update.placement, []
    if placement.new_map in STARTS:
        sentences.append(f"map {placement.map_id} starts: {STARTS[placement.new_map]}")
    if placement.by_odometry:
        sentences.append(f"odometry places the window: {STARTS[placement.by_odometry]}")
    lost = update.result.views - len(update.trusted_views)
    if lost:
        sentences.append(
            f"{lost} of {update.result.views} views have no pose: nothing connects them"
        )
    return [
        *sentences,
        *scale_remarks(update),
        *height_remarks(update),
        *camera_remarks(update),
        *rig_remarks(update),
    ]


def localisation_remarks(localisation: Localisation) -> list[str]:
    """Why the robot does not know where it is; empty where it does."""
    if localisation.state is LocalisationState.LOCALISED:
        return []
    reason = LOST_BY.get(localisation.by, STARTS.get(localisation.by, localisation.by))
    if localisation.search is None:
        return [f"{localisation.state}: {reason}"]
    return [f"{localisation.state}: {reason}; {SEARCHES[localisation.search]}"]


def clock_remark(age_s: float) -> str:
    """What is wrong with the clocks where an age cannot be one; empty where it can."""
    if age_s < -MAX_CLOCK_LEAD_S:
        return (
            f"stamps are {-age_s:.1f} s ahead of this node's clock; synchronise the clock of the "
            "camera's host, or check use_sim_time"
        )
    if age_s > CLOCK_AGE_S:
        return (
            f"stamps are {age_s:.0f} s behind this node's clock: another clock (use_sim_time? "
            "time since boot? clock of the camera's host?)"
        )
    return ""


def hang_remark(job_s: float) -> str:
    """What is wrong where the device does not come back; empty where it does."""
    if job_s <= MAX_JOB_S:
        return ""
    return (
        f"the device has been busy with one job for {job_s:.0f} s; if it does not end, restart "
        "the node"
    )


def silence_remarks(counts: Counts) -> list[str]:
    """Which cameras windows do without."""
    names = ", ".join(counts.silent)
    return [f"windows do without {names}: silent, or the stamps are far behind"] if names else []


def no_metres(settings: Settings) -> str:
    """Why lengths are no metres yet: what each configured source of them waits for."""
    waits = [
        sentence
        for source, sentence in (
            (settings.odometry_topic, "odometry says nothing before 0.1 m of motion in a window"),
            (settings.depth_topic, "depth images do not fit the views: registered, in metres?"),
            (settings.map.rig_baselines, "no window has both cameras of map.rig_baselines"),
            (settings.map.camera_height_m, "no floor is seen for map.camera_height_m"),
        )
        if source
    ]
    reason = "; ".join(waits) or "set map.metres_per_unit if you know it"
    return f"lengths are model units, not metres; {reason}"


def scale_remarks(update: MappedWindow) -> list[str]:
    """What contradicts the scale."""
    placement, sentences = update.placement, []
    if placement.scale.clash:
        sentences.append(
            f"metres by {placement.scale.clash} contradict those by {placement.scale.source} and "
            "are not used"
        )
    if placement.scale.refused:
        sentences.append(f"{placement.scale.refused} measurements of scale in a row do not fit")
    return sentences


def height_remarks(update: MappedWindow) -> list[str]:
    """Where cameras so far above the floor show that metres are none."""
    placement = update.placement
    if placement.scale.state is not ScaleState.METRIC or not math.isfinite(placement.floor_z):
        return []
    heights_m = [update.map_from_camera[i][2, 3] - placement.floor_z for i in update.trusted_views]
    height_m = float(np.median(heights_m)) if heights_m else math.nan
    if not height_m > MAX_CAMERA_HEIGHT_M:
        return []
    return [
        f"the cameras are {height_m:.0f} m above the floor by metres of {placement.scale.source}: "
        "is its unit right? (depth: 32FC1 in metres, 16UC1 in millimetres)"
    ]


def camera_remarks(update: MappedWindow) -> list[str]:
    """Where camera_info and the focal length recovered from the points differ."""
    clashes = {}
    result = update.result
    cameras = result.recovered_intrinsics or result.intrinsics
    for frame, recovered in zip(update.window.frames, cameras, strict=True):
        if frame.intrinsics is None or recovered is None:
            continue
        calibrated = frame.intrinsics.resized(recovered.width_px, recovered.height_px)
        for axis, says, points in (
            ("x", calibrated.fx_px, recovered.fx_px),
            ("y", calibrated.fy_px, recovered.fy_px),
        ):
            if abs(says / points - 1) > FOCAL_CLASH:
                clashes[frame.camera] = (
                    f"camera_info of {frame.camera} says focal length {says:.0f} px, the points "
                    f"say {points:.0f} px (in {axis}, at {recovered.width_px} px width)"
                )
    return list(clashes.values())


def rig_remarks(update: MappedWindow) -> list[str]:
    """Where the fixed transforms between cameras and what they see contradict each other."""
    off_deg = math.degrees(getattr(update, "rig_off_rad", 0.0))
    if not off_deg:
        return []
    return [
        f"the views contradict /tf_static of their cameras by {off_deg:.0f} degrees: it is not "
        "used; check it, its optical frames above all"
    ]


class Diagnostics:
    """One diagnostic task per thing that can fail, from the difference to the last report."""

    def __init__(self, name: str, hardware_id: str, settings: Settings):
        self._name = name
        self._hardware_id = hardware_id
        self._cameras = settings.cameras
        self._no_metres = no_metres(settings)
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
    ) -> DiagnosticArray:
        """What happened since the last report, `now_s` by the node's clock.

        job_s: how long the device's job runs. failures: callbacks that raised, since the start.
        tracking: frames followed between windows; None where they are not.
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
        regular = span_s < MISSED_FRAMES * self.frame_rate.period_s < math.inf
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
        if job_s > MAX_JOB_S:
            problem = hang_remark(job_s)
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
