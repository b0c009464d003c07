"""The packing kernel: compiled by nvcc, its arithmetic run as C++ on the CPU against numpy.

That the kernels run on a GPU, only a GPU can show.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from g2vlm_ros.core.cloud import POINT_BYTES, pack, valid_points
from g2vlm_ros.runtime.cuda import Cuda
from g2vlm_ros.runtime.device import Device
from g2vlm_ros.runtime.pack_points import SOURCE, THREADS, PointPacker
from test.runtime.gpu_stand_in import StandInCuda, at

DRIVER = r"""
#define PACK_ON_CPU
#include "{source}"
extern "C" int pack(const float* points, const unsigned char* colours, const float* confidence,
                    const float* affines, int pixels, int pixels_per_view, float min_confidence,
                    float max_depth, PackedPoint* out)
{{
    int n = 0;
    for (int i = 0; i < pixels; ++i) {{
        if (is_valid(points + 3ll * i, confidence[i], min_confidence, max_depth)) {{
            const float* affine = affines + 12 * (i / pixels_per_view);
            out[n++] = pack_point(points + 3ll * i, colours + 3ll * i, confidence[i], affine);
        }}
    }}
    return n;
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The source compiled as C++, without its parallel part."""
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    folder = tmp_path_factory.mktemp("pack")
    (folder / "pack.cpp").write_text(DRIVER.format(source=SOURCE))
    target = folder / "pack.so"
    flags = ["-O1", "-Wall", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(folder / "pack.cpp"), "-o", str(target)], check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def maps() -> tuple[np.ndarray, ...]:
    """Points, colours, confidence and poses of three views, with all that can be invalid."""
    rng = np.random.default_rng(0)
    points = rng.normal(0, 2, (3, 37, 41, 3)).astype(np.float32)
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


@pytest.mark.parametrize("limits", [(0.0, None), (0.4, None), (0.0, 1.5), (0.7, 2.5)])
def test_arithmetic_equals_numpy(
    library: ctypes.CDLL, maps: tuple[np.ndarray, ...], limits: tuple
) -> None:
    points, colours, confidence, poses = maps
    min_confidence, max_depth = limits
    valid = valid_points(points, confidence, min_confidence, max_depth=max_depth)
    want = np.frombuffer(pack(points, colours, confidence, valid, poses=poses, scale=1.7), "V20")
    affines = poses[:, :3].copy()
    affines[..., :3] *= 1.7
    affines = np.ascontiguousarray(affines, np.float32)
    got = np.zeros((valid.size, POINT_BYTES), np.uint8)
    pointers = [a.ctypes.data_as(ctypes.c_void_p) for a in (points, colours, confidence, affines)]
    count = library.pack(
        *pointers, valid.size, valid[0].size, ctypes.c_float(min_confidence),
        ctypes.c_float(max_depth or 0.0), got.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    assert count == np.count_nonzero(valid) == len(want)
    fields = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("confidence", "<f4")])
    got, want = got[:count].reshape(-1).view(fields), want.view(fields)
    assert np.array_equal(got["rgb"], want["rgb"])
    np.testing.assert_array_equal(got["confidence"], want["confidence"])
    np.testing.assert_allclose(got["xyz"], want["xyz"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("architecture", ["sm_87", "sm_89", "sm_90", "sm_120"])
def test_nvcc_compiles_the_kernels(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("there is no nvcc; the CUDA toolkit has it")
    target = tmp_path / "pack.cubin"
    done = subprocess.run(
        [nvcc, "-cubin", f"-arch={architecture}", "-Werror=all-warnings", str(SOURCE),
         "-o", str(target)],
        capture_output=True, text=True,
    )  # fmt: skip
    if "is not defined for option 'gpu-architecture'" in done.stderr:
        pytest.skip(f"this nvcc does not know {architecture}")
    assert done.returncode == 0, done.stderr
    for kernel in (b"count_points", b"sum_counts", b"write_points"):
        assert kernel in target.read_bytes()


def test_the_source_and_python_agree_on_the_block() -> None:
    assert f"#define THREADS {THREADS}" in SOURCE.read_text()


class PythonKernels(StandInCuda):
    """A STAND-IN that runs the three kernels in Python, block by block."""

    def compile(self, source: str) -> str:
        return source

    def function(self, module: str, name: str) -> str:
        assert f"void {name}(" in module
        return name

    def launch(self, function, blocks, threads, arguments, stream) -> None:  # noqa: ANN001
        assert threads in (1, THREADS)
        stream.put(lambda: getattr(self, function)(blocks, *arguments))

    def count_points(self, blocks, points, confidence, pixels, low, far, counts) -> None:  # noqa: ANN001
        valid = self._valid(points, confidence, pixels, low, far)
        valid = np.pad(valid, (0, blocks * THREADS - len(valid)))
        at(int(counts), 4 * blocks).view(np.uint32)[:] = valid.reshape(blocks, -1).sum(1)

    def sum_counts(self, _, counts, blocks) -> None:  # noqa: ANN001
        held = at(int(counts), 4 * (int(blocks) + 1)).view(np.uint32)
        held[:] = np.concatenate(([0], np.cumsum(held[:-1])))

    def write_points(
        self, blocks, points, colours, confidence, moves, pixels, per_view, low, far, counts, out
    ) -> None:  # noqa: ANN001
        valid = self._valid(points, confidence, pixels, low, far)
        shape = (int(pixels) // int(per_view), int(per_view))
        affine = at(int(moves), 48 * shape[0]).view(np.float32).reshape(-1, 3, 4)
        poses = np.concatenate((affine, np.tile([[[0, 0, 0, 1]]], (shape[0], 1, 1))), axis=1)
        data = pack(
            at(int(points), 12 * int(pixels)).view(np.float32).reshape(*shape, 3),
            at(int(colours), 3 * int(pixels)).reshape(*shape, 3),
            at(int(confidence), 4 * int(pixels)).view(np.float32).reshape(shape),
            valid.reshape(shape), poses=poses,
        )  # fmt: skip
        at(int(out), len(data))[:] = np.frombuffer(data, np.uint8)

    def _valid(self, points, confidence, pixels, low, far) -> np.ndarray:  # noqa: ANN001
        p = at(int(points), 12 * int(pixels)).view(np.float32).reshape(-1, 1, 3)
        c = at(int(confidence), 4 * int(pixels)).view(np.float32).reshape(-1, 1)
        return valid_points(p, c, float(low), max_depth=float(far) or None).reshape(-1)


def test_the_packer_passes_the_right_memory(maps: tuple[np.ndarray, ...]) -> None:
    points, colours, confidence, poses = maps
    cuda: Cuda = PythonKernels()
    device = Device(cuda)
    arrays = (
        device.upload(points, "FLOAT", "points"),
        device.upload(colours, "UINT8", "colours"),
        device.upload(confidence, "FLOAT", "confidence"),
    )
    got = PointPacker(device).pack(*arrays, poses[:, :3], 0.3, 2.0)
    valid = valid_points(points, confidence, 0.3, max_depth=2.0)
    want = pack(points, colours, confidence, valid, poses=poses)
    got, want = got.view("<f4").reshape(-1, 5), np.frombuffer(want, "<f4").reshape(-1, 5)
    np.testing.assert_allclose(got[:, :3], want[:, :3], rtol=1e-5, atol=2e-6)
    assert np.array_equal(got[:, 3:].view(np.uint32), want[:, 3:].view(np.uint32))
    assert "pack_points" in device.times_s
