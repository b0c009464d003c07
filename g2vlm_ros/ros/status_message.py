# SPDX-License-Identifier: Apache-2.0
"""The message of `~/status`: the newest window, where it lies, what became of frames."""

from __future__ import annotations

from std_msgs.msg import Header

from g2vlm_ros.mapping.window_pose import Localisation, LocalisationState, MappedWindow
from g2vlm_ros.msg import ReconstructionStatus
from g2vlm_ros.pipeline import Counts
from g2vlm_ros.records import ScaleState
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.remarks import localisation_remarks, remarks, silence_remarks

WINDOWS_FOR_METRES = 3
"""Windows within which a source of metres contributes, or why not is said."""
LOCALISED = Localisation(LocalisationState.LOCALISED)


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
