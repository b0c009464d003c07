# SPDX-License-Identifier: Apache-2.0
"""The kernels of a GPU for a window's points, run by the processor, against those of the host,
whose oracles are in test_kernels.py.

That they run on a GPU, only a GPU can show (`benchmarks.gpu`, part points).
"""

from __future__ import annotations

import importlib

import cv2
import numpy as np
import pytest
from g2vlm_tests.gpu_stand_in import StandInCuda
from g2vlm_tests.noisy_room import window
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.host_cuda import HostCuda
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.inference.points_on_device import PointKernels
from g2vlm_ros.inference.tensorrt.cuda import CudaError, nvrtc_compile
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import SOURCE as PACKING
from g2vlm_ros.kernels.agreement import (
    covisibility,
    fuse_points,
    multi_view_confidence,
    pick_halves,
    pick_points,
    scale_points,
)
from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.kernels.device_free_space import DeviceDepth, DeviceFreeSpace
from g2vlm_ros.kernels.device_points import DevicePoints
from g2vlm_ros.kernels.device_source import WINDOW_POINTS, device_source
from g2vlm_ros.kernels.free_space import FreeSpace
from g2vlm_ros.kernels.packing import valid_points
from g2vlm_ros.kernels.pinholes import pinholes_of_points, points_on_rays
from g2vlm_ros.kernels.records import VOXEL
from g2vlm_ros.kernels.surfaces import surfaces
from g2vlm_ros.kernels.window_adjustment import see_points

SIZE = 0.05


def on_device(points, cuda=None):
    device = DeviceMemory(cuda or HostCuda())
    return PointKernels(device).points(device.upload(points, "FLOAT", "points"))


DEVICES = {
    "at once": HostCuda,
    "as late as streams allow": lambda: StandInCuda(others_first=True),
    "by threads that disturb each other": lambda: HostCuda(threads=3),
}


@pytest.fixture(params=DEVICES)
def both(request):
    """Point maps with what networks give at worst, on the host and on a device."""
    points = window().points.copy()
    points[0, 3, 5] = np.nan
    points[1, 10, 20, 2] = -1.0
    points[2, 0, 0] = np.inf
    points[3, -1, -1, 2] = 0.0
    return points, on_device(points, DEVICES[request.param]())


def affines(views):
    affine = window().poses[views, :3].astype(np.float64)
    affine[..., :3] *= 1.3
    affine[..., 3] += [0.3, -0.2, 0.1]
    return affine.astype(np.float32)


def test_parts_are_those_of_an_array(both):
    points, there = both
    assert there.shape == points.shape and len(there) == 4
    for key in (
        np.s_[:, ::8, ::8, 2], np.s_[2, ::3, ::5], np.s_[1, ..., 2], 3, np.s_[-1], np.s_[:, -1],
        np.s_[1:3, 10, 4:9, ::-1], np.s_[..., np.int64(0)], np.s_[0, 0, 0, 0], np.s_[:, 5:5],
    ):  # fmt: skip
        np.testing.assert_array_equal(there[key], points[key])
        assert there[key].shape == points[key].shape
    assert not there.copied, "a part brought all of it"
    with pytest.raises(IndexError):
        there[4]
    np.testing.assert_array_equal(there[[0, 2], [1, 2]], points[[0, 2], [1, 2]])
    np.testing.assert_array_equal(np.asarray(there), points)
    assert not np.asarray(there).flags.writeable and np.array(there).flags.writeable
    assert np.asarray(there) is np.asarray(there), "it is copied again"


def test_points_are_moved_as_on_the_host(both):
    points, there = both
    rng, lens = np.random.default_rng(0), window().pinholes
    np.testing.assert_array_equal(pick_points(there, 13, 17), pick_points(points, 13, 17))
    factor = rng.uniform(0.5, 2, (4, 21, 28)).astype(np.float32)
    np.testing.assert_array_equal(scale_points(there, factor), scale_points(points, factor))
    lens = lens * np.float32(1.1)
    lens[1] = 0  # unknown
    moved = points_on_rays(there, lens)
    np.testing.assert_array_equal(moved, points_on_rays(points, lens))
    np.testing.assert_array_equal(moved[1], points[1])
    np.testing.assert_array_equal(np.asarray(there), points)  # itself it stays


def test_depth_is_fused_and_agreement_found_as_on_the_host(both):
    points, there = both
    view = window()
    arguments = view.j_from_i, view.pinholes * np.float32(0.5), (42, 56), 0.1, 0.2
    fused = fuse_points(there, *arguments)
    assert isinstance(fused, DevicePoints)
    here = fuse_points(points, *arguments)
    assert (here != points).mean() > 0.5
    np.testing.assert_array_equal(fused, here)
    arguments = view.j_from_i, view.pinholes, 4, 0.05, 0.1
    confidence = multi_view_confidence(there, *arguments)
    expected = multi_view_confidence(points, *arguments)
    assert 0.05 < np.isnan(expected).mean() < 0.9
    np.testing.assert_array_equal(confidence, expected)


def test_overlaps_and_surfaces_are_those_of_the_host(both):
    points, there = both
    view = window()
    named = {"step": 5, "agreement": 0.1, "nearness": 0.5, "min_points": 20}
    maps = view.colours, view.poses, view.pinholes
    actual, expected = (covisibility(each, *maps, **named) for each in (there, points))
    assert 0.1 < np.nanmean(expected[0]) < 1
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    named = {"reach": 3, "step": 4, "max_bend": 0.05, "side": 4}
    actual, expected = (surfaces(each, view.poses, **named) for each in (there, points))
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(expected[0]) > 100
    lenses = pinholes_of_points(there, 3), pinholes_of_points(points, 3)
    np.testing.assert_allclose(*lenses, rtol=1e-9)
    assert not there.copied, "all points came to the host"


def cells_of(points, confidence, ignored, views, affine, per_depth, **limits):
    """Of both ways, in the order of their keys; points added; points out of range."""
    view, step = window(), limits.pop("max_edge_step")
    colours = view.colours[tuple(map(slice, points.shape))]
    named = {"voxel_size": SIZE, "stamp_ns": 7, "window": 3, **limits}
    there = points if isinstance(points, DevicePoints) else on_device(points)
    which = views, affine, per_depth
    actual = there.cells(colours, confidence, ignored, *which, max_edge_step=step, **named)
    valid = valid_points(np.asarray(points), step)
    valid = valid if ignored is None else valid & ~ignored
    expected = CellSums().of_views(np.asarray(points), colours, confidence, valid, *which, **named)
    for name, got, want in zip(("cells", "added", "outside"), actual, expected, strict=True):
        if name != "cells":
            assert got == want, name
            continue
        got, want = (each[np.argsort(each["key"])] for each in (got, want))
        for field in ("key", "count", "stamp_ns", "window"):
            np.testing.assert_array_equal(got[field], want[field], err_msg=field)
        np.testing.assert_allclose(got["weight"], want["weight"], rtol=1e-7)
        for field, off in (("position", SIZE / 2**17), ("colour", 0.5)):  # as they are packed
            means = (each[field] / each["weight"][:, None] for each in (got, want))
            np.testing.assert_allclose(*means, rtol=1e-10, atol=1.0001 * off)
    return actual


@pytest.mark.parametrize("views", [[0, 1, 2, 3], [3, 1], []])
@pytest.mark.parametrize("samples", [0.0, 40.0])
def test_cells_are_those_of_the_host(both, views, samples):
    ignored = np.zeros(window().points.shape[:3], bool)
    ignored[:, 20:40] = True
    limits = {"max_edge_step": 0.05, "min_confidence": 0.2, "contradicted": 0.05,
              "max_depth": 4.0}  # fmt: skip
    per_depth = np.full(len(views), samples)
    which = views, affines(views), per_depth
    for mask in (None, ignored):
        cells, added, _ = cells_of(both[1], window().confidence, mask, *which, **limits)
        assert len(cells) > 50 and added >= len(cells) or not views
    limits |= {"min_confidence": 0.0, "max_depth": np.inf}
    cells, more, _ = cells_of(both[1], window().confidence, None, *which, **limits)
    assert more > added or not views


def test_a_table_that_is_too_small_grows(both):
    there = both[1]
    there.device.table_bits = 4
    views, limits = [0, 1, 2, 3], {"min_confidence": 0.0, "contradicted": 0.0}
    which = views, affines(views), np.zeros(4)
    limits |= {"max_edge_step": 0.0, "max_depth": np.inf}
    cells, _, _ = cells_of(there, window().confidence, None, *which, **limits)
    assert 16 < len(cells) < 1 << there.device.table_bits


def test_an_upload_is_made_once(both):
    points, _ = both
    there = on_device(points)
    view, memory = window(), there.device.memory
    confidence = multi_view_confidence(there, view.j_from_i, view.pinholes, 4, 0.05, 0.1)
    which = [0, 1, 2, 3], affines([0, 1, 2, 3]), np.zeros(4)
    limits = {"max_edge_step": 0.0, "min_confidence": 0.0, "contradicted": 0.0,
              "max_depth": np.inf}  # fmt: skip
    taken = []
    for _ in range(2):
        before = memory.bytes_up, memory.bytes_down.total()
        cells_of(scale_points(there, np.ones((4, 2, 2))), confidence, None, *which, **limits)
        taken.append((memory.bytes_up - before[0], memory.bytes_down.total() - before[1]))
    small = 1000
    assert view.colours.nbytes < taken[0][0] < view.colours.nbytes + small
    assert taken[1][0] < small, "colours or confidence were copied again"


FLOATS = st.floats(-1e3, 1e3, width=32) | st.sampled_from(
    np.float32([np.nan, np.inf, -np.inf, 0.0, 1e-38, 3e38, -3e38, 52428.8]).tolist()
)


@settings(deadline=None, max_examples=60)
@given(
    points=arrays(np.float32, (2, 5, 19, 3), elements=FLOATS, fill=st.just(1.5)),
    confidence=arrays(np.float32, (2, 5, 19), elements=FLOATS, fill=st.just(0.5)),
    affine=arrays(np.float32, (2, 3, 4), elements=FLOATS),
    ignored=arrays(np.bool_, (2, 5, 19)),
    per_depth=st.sampled_from([0.0, 3.0, np.nan, np.inf]),
    step=st.sampled_from([0.0, 0.1, np.nan]),
)
def test_nothing_that_a_network_gives_makes_a_difference(
    points, confidence, affine, ignored, per_depth, step
):
    there = on_device(points)
    limits = {"max_edge_step": step, "min_confidence": 0.3, "contradicted": 0.05,
              "max_depth": 100.0}  # fmt: skip
    cells_of(there, confidence, ignored, [1, 0], affine, np.full(2, per_depth), **limits)
    relative = np.stack([affine, affine])
    lens = np.array([[10, 10, 9, 2], [7, 8, 9, 3]], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(
            fuse_points(there, relative, lens, (5, 19), 0.1, 0.2),
            fuse_points(points, relative, lens, (5, 19), 0.1, 0.2),
        )
        np.testing.assert_array_equal(
            multi_view_confidence(there, relative, lens, 2, 0.05, 0.1),
            multi_view_confidence(points, relative, lens, 2, 0.05, 0.1),
        )


def test_clouds_are_those_of_the_host(both):
    points, there = both
    views, moves = [2, 0], affines([2, 0])
    colours, confidence = window().colours[views], window().confidence[views]
    maps = window().colours, window().confidence
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, :3] = moves
    ignored = np.zeros(points.shape[:3], bool)
    ignored[:, 20:40, 10:] = True
    valid, sizes = point_cloud.valid_points(points[views], confidence, 0.3, 0.05), []
    for mask, believed in ((None, valid), (ignored, valid & ~ignored[views])):
        packed = there.packed(views, *maps, mask, moves, 0.3, 0.05)
        expected = point_cloud.pack(points[views], colours, confidence, believed, poses=poses)
        assert packed.tobytes() == bytes(expected)
        sizes.append(packed.size)
    assert 0 < sizes[1] < sizes[0]


def test_arrays_that_do_not_fit_are_refused(both):
    points, there = both
    with pytest.raises(ValueError, match="factor is"):
        there.scaled(np.ones((3, 2, 2), np.float32))
    with pytest.raises(ValueError, match="views are 4 to 4"):
        there.packed([4], points[:1], points[:1, ..., 0], None, np.eye(3, 4)[None], 0.0, 0.0)
    with pytest.raises(ValueError, match="colours is"):
        there.cells(points, points[..., 0], None, [0], affines([0]), np.zeros(1),
                    max_edge_step=0.0, voxel_size=SIZE, stamp_ns=0, window=0,
                    min_confidence=0.0, contradicted=0.0, max_depth=1.0)  # fmt: skip


def test_arguments_of_another_type_than_a_kernel_takes_are_refused(both):
    device = DeviceMemory(HostCuda())
    kernels = PointKernels(device)
    values = device.zeros((4,), "FLOAT", "values")
    with pytest.raises(CudaError, match="find_not_finite takes .*'int64'.* not .*'int32'"):
        kernels.launch("find_not_finite", 4, values, np.int32(4), values)
    assert kernels.is_finite(device.upload(np.ones(300, np.float32), "FLOAT", "values"))
    for value in (np.nan, -np.inf):
        values = np.ones(300, np.float32)
        values[299] = value
        assert not kernels.is_finite(device.upload(values, "FLOAT", "values"))


@pytest.mark.parametrize("capability", ["7.5", "8.7", "9.0", "12.0"])
@pytest.mark.parametrize("file", [WINDOW_POINTS, PACKING], ids=lambda file: file.stem)
def test_nvrtc_compiles_them(capability, file):
    """CUDA's own compiler, which needs no GPU."""
    try:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        code = nvrtc_compile(nvrtc, device_source(file), capability)
    except (ImportError, CudaError) as error:
        if "COMPILATION" in str(error):
            raise
        pytest.skip(f"no NVRTC here ({error}); pip install cuda-bindings nvidia-cuda-nvrtc")
    assert code.startswith(b"\x7fELF")


def test_free_space_is_that_of_the_host(both):
    points, there = both
    view, rng = window(), np.random.default_rng(4)
    voxels = np.zeros(9000, VOXEL)
    voxels["position"] = rng.uniform((-4, -3, -1), (4, 6, 3), (9000, 3))
    voxels["stamp_ns"], voxels["count"] = rng.integers(0, 20, 9000), 1
    index = np.zeros((40, 512), np.int32)
    index.reshape(-1)[rng.choice(index.size, 9000, replace=False)] = 1 + np.arange(9000)
    search = np.arange(0, 40, 2), index, voxels, 9000, 0.1, 10
    ground = (0.0, 0.0, 1.0, 0.0), 0.15, 1.5, 0.05, 64, 3
    blocks = {"centre": voxels["position"][:3000].copy(), "voxels": np.ones(3000, np.int32)}
    blocks["stale"] = np.zeros(3000, np.int32)
    counts = []
    for i in range(4):
        place = view.poses[i].astype(np.float64), view.pinholes[i]
        limits = {"scale": 1.3, "min_confidence": 0.05, "tile": 3}
        here = FreeSpace(points[i, ..., 2], view.confidence[i], *place, **limits)
        other = DeviceFreeSpace(DeviceDepth(there, view.confidence, i), None, *place, **limits)
        assert here.reach == other.reach > 1
        slots = here.seen_through(*search)
        np.testing.assert_array_equal(other.seen_through(*search), slots)
        rows = here.blocks(blocks, 3000, 0.1)
        np.testing.assert_array_equal(other.blocks(blocks, 3000, 0.1), rows)
        edges = here.ground(*ground)
        np.testing.assert_array_equal(other.ground(*ground), edges)
        counts.append((len(slots), len(rows), edges is not None))
    assert all(np.max(counts, axis=0) > (50, 50, 0)), counts
    assert not there.copied


@settings(deadline=None, max_examples=100)
@given(
    points=arrays(
        np.float32, (1, 4, 5, 3), elements=st.floats(width=32) | st.floats(-70000, 70000, width=32)
    )
)
def test_halves_are_those_of_numpy(points):
    actual = pick_halves(on_device(points), 4, 5, 0)
    np.testing.assert_array_equal(actual, pick_halves(points, 4, 5, 0))


def test_pixels_are_read_by_their_places(both):
    points, there = both
    rng, view = np.random.default_rng(0), window()
    cameras = view.j_from_i, view.pinholes, 4, 0.05, 0.1
    confidence, whole = (multi_view_confidence(each, *cameras) for each in (there, points))
    views, rows, columns = (rng.integers(-n, n, 50) for n in points.shape[:3])
    for key in (np.s_[views, rows, columns], np.s_[2, rows, columns], np.s_[-1, rows, columns, 2]):
        np.testing.assert_array_equal(there[key], points[key])
        if len(key) == 3:
            np.testing.assert_array_equal(confidence[key], whole[key])
    np.testing.assert_array_equal(confidence[1, ::7, ::7], whole[1, ::7, ::7])
    with pytest.raises(ValueError, match="pixels are"):
        there[0, rows + points.shape[1], columns]
    masks = rng.random(whole.shape) < 0.3
    left = confidence.without(masks)
    assert not there.copied and not confidence.copied
    np.testing.assert_array_equal(left, np.where(masks, np.float32(0), whole))


def test_images_are_warped_as_opencv_does(both):
    points, there = both
    view = window()
    rng = np.random.default_rng(0)
    grey = cv2.GaussianBlur(rng.integers(0, 256, points.shape[1:3], np.uint8), (0, 0), 1.0)
    outside = 0.0
    for target, source in ((0, 1), (2, 1), (3, 0)):
        pose, camera = view.j_from_i[source, target], view.pinholes[source]
        places, _ = see_points(points[target].reshape(-1, 3), pose, camera)
        places = places.reshape(*grey.shape, 2)
        expected = cv2.remap(grey, places, None, cv2.INTER_LINEAR)
        off = np.abs(there.warped(target, pose, camera, grey).astype(int) - expected)
        outside += (expected == 0).mean()
        # OpenCV before 5 rounds places to a 32nd of a pixel.
        exact = cv2.__version__ >= "5"
        assert off.max() <= (1 if exact else 12) and (off > 0).mean() < (1e-3 if exact else 0.4)
    assert 0.05 < outside < 2 and not there.copied


@pytest.mark.parametrize("step", [0.05, 0.0])
def test_edges_are_those_of_the_host(both, step):
    points, there = both
    smooth, kernel = valid_points(points, step), np.ones((3, 3), np.uint8)
    expected = [cv2.dilate((~each).view(np.uint8), kernel) for each in smooth]
    actual = there.uneven(step)
    assert 0 < actual.mean() < 0.9
    np.testing.assert_array_equal(actual, np.stack(expected).astype(bool))
