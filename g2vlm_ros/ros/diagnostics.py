# SPDX-License-Identifier: Apache-2.0
"""~/status and /diagnostics: what came in, what came out, and why not."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Header

from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.pipeline import Counts, MappedWindow
from g2vlm_ros.records import ScaleState
from g2vlm_ros.ros.conversions import messages
from g2vlm_ros.settings import Settings

EXPECTED_DROPS = ("too_close", "superseded", "reset")
"""Reasons that belong to normal work: more frames came than windows need."""
FOCAL_CLASH = 0.1
"""Relative difference of focal lengths, told and recovered, from which it is reported."""
STARTS = {
    "no_shared_view": "no view is shared with the windows before",
    "no_overlap": "the newest view shows nothing that the shared ones do",
    "poor_registration": "the window does not fit to the ones before",
}
"""Why a map starts, in words; the very first one needs none."""
OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def status_message(
    header: Header,
    counts: Counts,
    update: MappedWindow | None,
    latency_s: float,
    model_version: str,
    backend: str,
    message: str,
) -> ReconstructionStatus:
    """The state after `update`, or before the first window when it is None."""
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
        drop_reasons=list(counts.dropped),
        drop_counts=list(counts.dropped.values()),
        model_version=model_version,
        backend=backend,
        message=message,
    )
    if update is None:
        return status
    status.message = message or "; ".join(silence_remarks(counts) + remarks(update))
    placement, frames = update.placement, update.window.frames
    status.window_id = update.window.id
    status.view_stamps = [messages.stamp(frame.stamp_ns) for frame in frames]
    status.view_cameras = [frame.camera for frame in frames]
    status.scale_state = int(placement.scale_state)
    status.map_id = placement.map_id
    if placement.scale_state is ScaleState.METRIC:
        status.metres_per_unit = placement.map_from_window.scale
    status.scale_relative_std = placement.scale_std
    status.scale_source = placement.scale_source
    if placement.relative_pose is not None:
        status.alignment_quality = placement.relative_pose.inliers
    status.stage_names = list(update.stage_times_s)
    status.stage_times_s = list(update.stage_times_s.values())
    return status


def remarks(update: MappedWindow) -> list[str]:
    """What people should know of a window, one clause each; empty when all is well."""
    placement, told = update.placement, []
    if placement.new_map in STARTS:
        told.append(f"map {placement.map_id} starts: {STARTS[placement.new_map]}")
    if placement.by_odometry:
        told.append(f"odometry places the window: {STARTS[placement.by_odometry]}")
    lost = update.result.views - len(update.trusted_views)
    if lost:
        told.append(f"{lost} of {update.result.views} views have no pose: nothing connects them")
    return told + scale_remarks(update) + camera_remarks(update)


def silence_remarks(counts: Counts) -> list[str]:
    """Which cameras windows do without."""
    names = ", ".join(counts.silent)
    return [f"windows do without {names}: silent, or the stamps are far behind"] if names else []


def scale_remarks(update: MappedWindow) -> list[str]:
    """What contradicts the scale."""
    placement, told = update.placement, []
    if placement.scale_clash:
        told.append(
            f"metres by {placement.scale_clash} contradict those by {placement.scale_source} and "
            "are not used"
        )
    if placement.scale_refused:
        told.append(f"{placement.scale_refused} measurements of scale in a row do not fit")
    return told


def camera_remarks(update: MappedWindow) -> list[str]:
    """Where camera_info and the focal length recovered from the points differ."""
    told = {}
    for frame, recovered in zip(update.window.frames, update.result.intrinsics, strict=True):
        if frame.intrinsics is None or recovered is None:
            continue
        known = frame.intrinsics.resized(recovered.width_px, recovered.height_px)
        if abs(known.fx_px / recovered.fx_px - 1) > FOCAL_CLASH:
            told[frame.camera] = (
                f"camera_info of {frame.camera} says focal length {known.fx_px:.0f} px, the "
                f"points say {recovered.fx_px:.0f} px (at {recovered.width_px} px width)"
            )
    return list(told.values())


class Diagnostics:
    """One diagnostic task per thing that can fail, from the difference to the last report."""

    def __init__(self, name: str, hardware_id: str, settings: Settings):
        self._name = name
        self._hardware_id = hardware_id
        self._cameras = settings.cameras
        self._last = Counts(0, 0, {}, 0)
        self._last_s: float | None = None

    def report(
        self,
        header: Header,
        now_s: float,
        counts: Counts,
        update: MappedWindow | None,
        latency_s: float,
        problem: str,
        listened: bool,
    ) -> DiagnosticArray:
        """What happened since the last report, `now_s` by the node's clock."""
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
                self._calibration(update),
                self._engine(problem),
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

    def _input(self, frames: int, span_s: float, told: list[str]) -> DiagnosticStatus:
        rate_hz = frames / span_s if span_s > 0 else float("nan")
        if frames or span_s == 0:
            message, level = "; ".join(told) or "frames arrive", WARN if told else OK
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
        return self._task("drops", OK, "only surplus frames are left out", **drops)

    def _latency(self, update: MappedWindow | None, latency_s: float) -> DiagnosticStatus:
        if update is None:
            return self._task("latency", OK, "no window yet")
        times = {f"{stage}_s": f"{t:.4f}" for stage, t in update.stage_times_s.items()}
        return self._task("latency", OK, f"{latency_s:.3f} s from stamp to publishing", **times)

    def _scale(self, update: MappedWindow | None) -> DiagnosticStatus:
        if update is None:
            return self._task("scale", OK, "no window yet")
        placement = update.placement
        values = {"map_id": placement.map_id}
        if placement.relative_pose is not None:
            values["inliers"] = f"{placement.relative_pose.inliers:.3f}"
            values["residual"] = f"{placement.relative_pose.residual:.4f}"
        if placement.scale_state is ScaleState.METRIC:
            told = scale_remarks(update)
            message = "; ".join(told) or "lengths are metres"
            return self._task("scale", WARN if told else OK, message, **values)
        hint = "lengths are model units, not metres; set map.metres_per_unit if you know it"
        return self._task("scale", WARN, hint, **values)

    def _loops(self, counts: Counts) -> DiagnosticStatus:
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.loops.items()))
        return self._task("loops", OK, told or "no place was seen again", **counts.loops)

    def _calibration(self, update: MappedWindow | None) -> DiagnosticStatus:
        told = camera_remarks(update) if update is not None else []
        message = "; ".join(told) or "camera_info and geometry do not contradict each other"
        return self._task("calibration", WARN if told else OK, message)

    def _engine(self, problem: str) -> DiagnosticStatus:
        level = ERROR if problem else OK
        return self._task("engine", level, problem or "running", backend=self._hardware_id)
