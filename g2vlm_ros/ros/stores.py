# SPDX-License-Identifier: Apache-2.0
"""What the node holds, and of how much at most: map, edits, keyframes, objects, questions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.dense_map.map_editor import HISTORY_BYTES, MAX_RULES
from g2vlm_ros.dense_map.occupancy import FAN_BYTES, MAX_FANS
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.query.context import ContextSizes
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.settings import Settings

MIB = 1 << 20


@dataclass(frozen=True)
class Store:
    """Something that grows up to a bound; infinite where only its parts are bounded."""

    name: str
    held: float
    bound: float

    def __str__(self) -> str:
        held = f"{self.held:.1f}" if isinstance(self.held, float) else f"{self.held}"
        return held if math.isinf(self.bound) else f"{held} of {self.bound}"


def stores(
    settings: Settings,
    pipeline: MappingPipeline,
    dense_map: DenseMap,
    objects: ObjectMemory,
    questions: ContextSizes,
) -> tuple[Store, ...]:
    """All of them, whatever other threads hold meanwhile: no lock is waited for that a file or
    the device may keep."""
    sizes, slam = dense_map.sizes(), pipeline.sizes()
    max_aside_mib = settings.voxel.memory_mib + math.ceil(MAX_FANS * FAN_BYTES / MIB)
    return (
        Store("voxels", sizes.voxels, sizes.max_voxels),
        Store("map_mib", sizes.nbytes / MIB, settings.voxel.memory_mib),
        Store("maps_aside", sizes.maps_aside, math.inf),
        Store("maps_aside_mib", sizes.aside_bytes / MIB, max_aside_mib),
        Store("edit_rules", sizes.edits, MAX_RULES),
        Store("undo_mib", sizes.undo_bytes / MIB, HISTORY_BYTES // MIB),
        Store("windows", slam.windows, slam.max_windows),
        Store("keyframes", slam.keyframes, settings.map.keyframes),
        Store("objects", len(objects), settings.query.objects),
        Store("question_windows", questions.windows, settings.query.windows),
        Store("dialogues", questions.dialogues, settings.query.dialogues),
        Store("question_caches", questions.caches, questions.max_caches),
        Store("question_cache_tokens", questions.cache_tokens, math.inf),
    )
