# SPDX-License-Identifier: Apache-2.0
"""The packing kernels: compiled by nvcc, and run as C++ on the CPU against those of the host.

That the kernels run on a GPU, only a GPU can show.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from g2vlm_tests.gpu_stand_in import StandInCuda

from g2vlm_ros.geometry.point_cloud import affines, pack, valid_points
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import SOURCE, THREADS, PointPacker


@pytest.fixture(scope="module")
def maps() -> tuple[np.ndarray, ...]:
    """Points, colours, confidence and poses of three views, with all that can be invalid."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 2, (3, 37, 41, 3)).astype(np.float32)
    points[..., 2] = 2 + 0.002 * np.cumsum(points[..., 2], axis=2)
    points[:, 15:, 20:, 2] += 1  # a step
    points[1, :, 30:33, 2] -= 5  # behind the camera
    points[0, :5, :5] = np.nan
    points[1, 3, 4, 0] = np.inf
    points[2, 6, 7, 2] = -np.inf
    points[2, 6, 8, 2] = 0.0
    colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
    confidence = rng.random(points.shape[:3]).astype(np.float32)
    confidence[0, 10:20] = np.nan
    turns = np.linalg.qr(rng.normal(size=(3, 3, 3)))[0]
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3], poses[:, :3, 3] = turns, rng.normal(size=(3, 3))
    return points, colours, confidence, poses


@pytest.mark.parametrize("architecture", ["sm_87", "sm_89", "sm_90", "sm_120"])
def test_nvcc_compiles_the_kernels(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc; the CUDA toolkit has it")
    target = tmp_path / "pack.cubin"
    done = subprocess.run(
        [
            nvcc,
            "-cubin",
            f"-arch={architecture}",
            "-Werror=all-warnings",
            str(SOURCE),
            "-o",
            str(target),
        ],
        capture_output=True,
        text=True,
    )
    if "is not defined for option 'gpu-architecture'" in done.stderr:
        pytest.skip(f"this nvcc does not know {architecture}")
    assert done.returncode == 0, done.stderr
    for kernel in (b"count_points", b"sum_counts", b"write_points"):
        assert kernel in target.read_bytes()


def test_the_source_and_python_agree_on_the_block() -> None:
    assert f"#define THREADS {THREADS}" in SOURCE.read_text()


@pytest.mark.parametrize("limits", [(0.0, 0.0), (0.4, 0.0), (0.0, 0.05), (0.7, 0.02)])
@pytest.mark.parametrize("views", [(0, 1, 2), (2, 0)])
def test_clouds_are_those_of_the_host(
    maps: tuple[np.ndarray, ...], views: tuple[int, ...], limits: tuple[float, float]
) -> None:
    chosen = list(views)
    device, kinds = DeviceMemory(StandInCuda()), ("FLOAT", "UINT8", "FLOAT")
    there = [device.upload(each, kind, "") for each, kind in zip(maps, kinds, strict=False)]
    points, (colours, confidence, poses) = maps[0], (each[chosen] for each in maps[1:])
    actual = PointPacker(device).pack(
        *there, None, views, affines(len(views), poses, 1.7), *limits
    )
    valid = valid_points(points[chosen], confidence, *limits)
    assert 100 < np.count_nonzero(valid) < valid.size
    want = pack(points[chosen], colours, confidence, valid, poses=poses, scale=1.7)
    actual, want = actual.view("<f4").reshape(-1, 5), np.frombuffer(want, "<f4").reshape(-1, 5)
    np.testing.assert_allclose(actual[:, :3], want[:, :3], rtol=1e-5, atol=2e-6)
    assert np.array_equal(actual[:, 3:].view(np.uint32), want[:, 3:].view(np.uint32))
    assert "pack_points" in device.times_s
