# SPDX-License-Identifier: Apache-2.0
"""An object memory that is shown windows of a room of boxes."""

from types import SimpleNamespace

import numpy as np
from g2vlm_tests.room import FOCAL, HEIGHT, WIDTH, box, camera, room

from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.mapping.window_pose import ScaleUpdate
from g2vlm_ros.query.object_measurement import locate
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.query.object_sightings import sightings_of
from g2vlm_ros.records import Intrinsics, ScaleState

CHAIR, TABLE = box(3.0, 0.7), box(4.0, -0.9, size=(0.8, 1.2, 0.7))
LENS = Intrinsics(FOCAL, FOCAL, (WIDTH - 1) / 2, (HEIGHT - 1) / 2, WIDTH, HEIGHT)
SECOND_NS = 1_000_000_000


def selection_of(update, points):
    """All views of a window whose camera images have model size."""
    return SimpleNamespace(
        update=update,
        views=(0,),
        frames=update.window.frames,
        points=points,
        image=lambda view: update.scene.images[view],
        corners=lambda region: (*region.low_px, *region.high_px),
    )


class Drive:
    """A memory that is shown windows of one view each, a second apart."""

    def __init__(self, max_objects=100):
        self.memory, self.windows = ObjectMemory(max_objects), 0
        self.boxes, self.cameras = [], []

    def see(
        self,
        boxes,
        names,
        pose=None,
        corrections=(),
        merged=None,
        map_id=0,
        paint=(255, 0, 0),
        **options,
    ):
        """One window of a room of boxes; names: what a detector calls them, "" for nothing; paint:
        the colour of its images."""
        self.windows += 1
        points, regions = room(boxes, [camera() if pose is None else pose], **options)
        self.regions = regions
        self.update = update = SimpleNamespace(
            window=SimpleNamespace(
                id=self.windows,
                frames=[SimpleNamespace(camera="camera", stamp_ns=self.windows * SECOND_NS)],
            ),
            scene=SimpleNamespace(images=[np.full((HEIGHT, WIDTH, 3), paint, np.uint8)]),
            result=SimpleNamespace(intrinsics=[LENS]),
            placement=SimpleNamespace(
                scale=ScaleUpdate(ScaleState.METRIC if points.metric else ScaleState.RELATIVE),
                map_id=map_id,
                merged_map_id=merged,
                corrections=tuple(corrections),
                map_from_window=Sim3.identity(),
            ),
            new_views=(0,),
            trusted_views=(0,),
        )
        things = [
            locate(points, places[0], name, "detection", 0.9)
            for name, places in zip(names, regions, strict=True)
            if name and places
        ]
        self.selection = selection_of(update, points)
        sightings = sightings_of(self.selection, things)
        self.boxes += [each.box_px for each in sightings[:1]]
        self.cameras.append(points.map_from_camera[0][:3, 3])
        self.memory.observe(update, points, sightings, [0] if any(names) else [])
        return points

    def states(self):
        return {each.label: each.state for each in self.memory.objects()}
