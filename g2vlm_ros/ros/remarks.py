# SPDX-License-Identifier: Apache-2.0
"""What is not well, in words: of a window, its clocks, its metres and its cameras.

`~/status` joins these sentences, `/diagnostics` sorts them by task.
"""

from __future__ import annotations

import math

import numpy as np

from g2vlm_ros.mapping.window_pose import (
    Localisation,
    LocalisationState,
    MappedWindow,
    SearchOutcome,
    StartReason,
)
from g2vlm_ros.pipeline import Counts
from g2vlm_ros.records import ScaleState
from g2vlm_ros.settings import Settings

MAX_CLOCK_LEAD_S = 0.5
"""A stamp further ahead of the node's clock than this is an error of clocks."""
CLOCK_AGE_S = 86_400.0
"""An image older than a day is one of another clock, not a slow one."""
FOCAL_CLASH = 0.1
"""Relative difference of focal lengths, told and recovered, from which it is reported."""
MAX_CAMERA_HEIGHT_M = 8.0
"""Above the floor: no robot's camera is higher, and depth in tenths of a millimetre makes 10 m of
1 m."""
STARTS = {
    StartReason.NO_SHARED_VIEW: "no view is shared with the windows before",
    StartReason.NO_OVERLAP: "the newest view shows nothing that the shared ones do",
    StartReason.POOR_REGISTRATION: "the window does not fit to the ones before",
    StartReason.WINDOWS_FAILED: "window after window failed in the map before; the log says why",
}
"""Why a map starts, in words; the very first one needs none."""
LOST_BY = {
    "saved_map": "a map was loaded without a pose",
    "no_saved_map": "map.mode is localization; load a map (~/load_map)",
    "keyframe": "one window was recognised",
    "unconfirmed": "a place was recognised once and not again",
    "windows_failed": "window after window failed, and their map was given up",
}
SEARCHES = {
    SearchOutcome.LOCALISED: "the place was found",
    SearchOutcome.UNCONFIRMED: "the next window has to confirm it",
    SearchOutcome.AMBIGUOUS: "two places fit about as well; drive on, or give /initialpose",
    SearchOutcome.NOT_FOUND: "nothing in view fits to the map's keyframes",
    SearchOutcome.NO_KEYFRAMES: "the map has no keyframes to compare with",
    SearchOutcome.CONTRADICTS_MAP: "a place fits, but contradicts the map or its metres",
}


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


def hang_remark(job_s: float, max_job_s: float) -> str:
    """What is wrong where the device does not come back; empty where it does.

    max_job_s: of the setting `model.max_job_s`.
    """
    if job_s <= max_job_s:
        return ""
    return (
        f"the device has been busy with one job for {job_s:.0f} s; if it does not end, restart "
        "the node, or raise model.max_job_s where the device is that slow"
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
