# SPDX-License-Identifier: Apache-2.0
"""Windows whose points stay on a device, from the network to the map: as those of the host.

The device is the processor (`benchmarks.host_cuda`), the kernels are those of a GPU.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from benchmarks.host_cuda import HostCuda
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.evaluation.stand_in import WIDTH_PX, StandInErrors, StandInPerception
from g2vlm_ros.geometry.confidence import multi_view_confidence
from g2vlm_ros.geometry.point_cloud import POINT_BYTES, affines
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.kernels.cells import PACKED_CELL_BYTES, keys_of_points
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import Settings

FRAMES, WINDOWS = 22, 3
GRID_BYTES, VIEW_BYTES = 1_050_000, 310_000
"""Of small grids in a window, and of what each new view brings beside: a fifth above what came."""
MOST_BYTES = 2_200_000
"""In a window with two new views, one of them a keyframe."""


class DevicePerception(StandInPerception):
    """The stand-in for the network, which leaves its points on a device."""

    kernels: PointKernels | None = None

    def reconstruct(self, numbers):
        result = super().reconstruct(numbers)
        if self.kernels is None:
            return result
        upload = self.kernels.memory.upload
        points = self.kernels.points(upload(result.local_points_u, "FLOAT", "points"))
        confidence = multi_view_confidence(points, result.window_from_camera, result.intrinsics)
        geometry = replace(result.geometry, local_points_u=points)
        return replace(result, geometry=geometry, confidence=confidence)


class Drive:
    """Windows of a walk and the map that they make, with the bytes that each brought to the host
    and back; intrinsics: whether the cameras are calibrated."""

    def __init__(
        self,
        cuda: HostCuda | None,
        calibrated: bool = False,
        masked: bool = False,
        metric: bool = False,
        width_px: int = WIDTH_PX,
    ):
        frames = walk_views(FRAMES)
        settings = Settings.from_flat({"window.views": 4})
        perception = DevicePerception(frames, StandInErrors(), width_px)
        brought = Counter()
        if cuda is not None:
            perception.kernels = PointKernels(DeviceMemory(cuda))
            self.memory = perception.kernels.memory
            brought = self.memory.bytes_down
        pipeline, self.map = MappingPipeline(perception, settings), DenseMap(settings)
        self.updates, self.brought = [], []
        for frame in frames:
            mask = np.zeros(frame.image().shape[:2], bool)
            mask[:, :40] = True
            pipeline.offer(
                Frame(
                    frame.stamp_ns,
                    "camera",
                    "optical",
                    frame.image,
                    frame.intrinsics if calibrated else None,
                    depth=frame.depth_m if metric else None,
                    ignored=(lambda mask=mask: mask) if masked else None,
                )
            )
            before = Counter(brought)
            update = pipeline.step()
            if update is not None:
                self.map.add(update)
                self.updates.append(update)
                self.brought.append(brought - before)

    def voxels(self):
        """Keys of the map's cells, ascending, and the points in them."""
        points = self.map.points()
        places = np.stack([points[axis] for axis in "xyz"], 1).astype(np.float64)
        keys = keys_of_points(places, self.map.voxel_size)
        order = np.argsort(keys)
        return keys[order], places[order], points["confidence"][order]


@cache
def drives(calibrated=False, masked=False):
    return Drive(HostCuda(), calibrated, masked), Drive(None, calibrated, masked)


@pytest.mark.parametrize(("calibrated", "masked"), [(False, False), (True, False), (True, True)])
def test_the_map_is_that_of_points_on_the_host(calibrated, masked):
    there, here = drives(calibrated, masked)
    assert len(there.updates) == len(here.updates) >= WINDOWS
    for one, other in zip(there.updates, here.updates, strict=True):
        assert one.result.device_points_u is not None, "the points left the device"
        np.testing.assert_array_equal(one.map_from_camera, other.map_from_camera)
        np.testing.assert_array_equal(one.result.confidence, other.result.confidence)
        np.testing.assert_array_equal(one.result.local_points_u, other.result.local_points_u)
    keys, places, confidence = there.voxels()
    expected_keys, expected_places, expected_confidence = here.voxels()
    np.testing.assert_array_equal(keys, expected_keys)
    np.testing.assert_allclose(places, expected_places, atol=1e-6)
    np.testing.assert_allclose(confidence, expected_confidence, atol=1e-6)
    assert len(keys) > 1000


def test_little_comes_to_the_host():
    """Of a window that nobody looks at, at the released size, in metres: cells and small grids."""
    drive = Drive(HostCuda(), metric=True, width_px=518)
    assert len(drive.updates) >= WINDOWS and drive.map.metric
    for update, brought in zip(drive.updates, drive.brought, strict=True):
        result = update.result
        assert not result.device_points_u.copied, "all points came to the host"
        assert not result.confidence.copied, "all confidence came to the host"
        grids = brought.total() - brought["cells"]
        new = len(update.new_views)
        assert grids < GRID_BYTES + new * VIEW_BYTES, brought.most_common()
        assert 1000 < brought["cells"] / PACKED_CELL_BYTES < len(drive.map.points())
    assert brought.total() < MOST_BYTES, brought.most_common()


def test_a_listener_costs_the_cloud_and_nothing_else():
    drive = Drive(HostCuda(), metric=True)
    update, memory = drive.updates[-1], drive.memory
    result, views, before = update.result, list(update.trusted_views), Counter(memory.bytes_down)
    up = memory.bytes_up
    moves = affines(len(views), update.map_from_camera[views])
    packed = result.device_points_u.packed(
        views, result.colours, result.confidence, None, moves, 0.0, 0.05
    )
    count = 4
    assert (memory.bytes_down - before).total() == packed.nbytes + count
    assert 1000 < packed.nbytes // POINT_BYTES < np.prod(result.confidence.shape)
    assert memory.bytes_up - up < 1000, "colours or confidence were copied again"


def test_pixels_that_somebody_asks_for_come_alone():
    there, here = (drive.updates[-1] for drive in drives())
    size = here.result.confidence.shape[1:]
    rows, columns = np.random.default_rng(0).integers(0, size, (9, 2)).T
    expected = here.map_points()[1, rows, columns]
    np.testing.assert_allclose(here.map_points_at(1, rows, columns), expected, atol=1e-5)
    np.testing.assert_allclose(there.map_points_at(1, rows, columns), expected, atol=1e-5)


def test_a_backend_of_torch_leaves_its_points_there():
    torch = pytest.importorskip("torch", reason="the backend is of torch")
    from g2vlm_ros.inference.torch_points import points_of

    kernels = PointKernels(DeviceMemory(HostCuda()))
    points = torch.randn(2, 5, 7, 3, dtype=torch.float16)
    there = points_of(kernels, points.transpose(1, 2))
    expected = points.transpose(1, 2).float().numpy()
    points.zero_()  # as the next window does
    np.testing.assert_array_equal(there, expected)
