# SPDX-License-Identifier: Apache-2.0
"""cuda.py, device memory and point packing over the real cuda-bindings and a FAKE driver.

What is tried: that every call exists in these bindings, takes the arguments that we give and fails
as we say. The fake driver copies by memcpy and runs the packing kernels on the CPU.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from g2vlm_tests.fake_libraries import fake_cuda, run_over, wheel

BINDINGS = ("12.9.2", "13.5.0")
DRIVERS = {"12.6": "12060", "13.0": "13000"}
OPEN = "from g2vlm_ros.inference.tensorrt.cuda import *\ncuda = open_cuda()\n"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel("cuda-pathfinder==1.9.1")
    return fake_cuda(tmp_path_factory.mktemp("driver"), compiler=False)


@pytest.fixture(scope="module")
def driver_and_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel("cuda-pathfinder==1.9.1")
    return fake_cuda(tmp_path_factory.mktemp("toolkit"), compiler=True)


def run(code: str, libraries: Path, bindings: str, **variables: str) -> str:
    """What the code prints."""
    done = attempt(code, libraries, bindings, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def attempt(
    code: str, libraries: Path, bindings: str, **variables: str
) -> subprocess.CompletedProcess:
    wheels = [wheel(f"cuda-bindings=={bindings}"), wheel("cuda-pathfinder==1.9.1")]
    return run_over(code, libraries, wheels, **variables)


COPIES = """
import numpy as np
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
with cuda.active():
    device = DeviceMemory(cuda)
    arrays = [device.upload(np.arange(n), "INT64", "numbers") for n in (1, 1000, 0)]
    twice = device.empty((1000,), "INT64", "twice")
    with device.timed("copy"):
        device.duplicate(twice, arrays[1])
    got = device.download([*arrays, twice])
    assert [len(each) for each in got] == [1, 1000, 0, 1000]
    assert all(np.array_equal(each, np.arange(len(each))) for each in got)
    assert device.times_s == {"copy": 0.002}
    device.scratch(10_000)
    del arrays, twice
    free, total = cuda.memory()
    device.close()
    assert cuda.memory() == (total, total) and free < total
    try:
        cuda.alloc(2 << 30, "everything")
    except OutOfMemoryError as error:
        assert "no room for everything: 2048 MiB asked for" in str(error)
    try:
        cuda.alloc_host(2 << 30)
    except OutOfMemoryError as error:
        assert "no 2048 MiB of pinned memory" in str(error)
print(repr(cuda.gpu), cuda.capability, cuda.driver, cuda.backend)
"""


@pytest.mark.parametrize(("bindings", "level"), [("12.9.2", "12060"), ("12.9.2", "13000"),
                                                 ("13.5.0", "13000")])  # fmt: skip
def test_copies_and_memory(driver: Path, bindings: str, level: str) -> None:
    printed = run(OPEN + COPIES, driver, bindings, FAKE_CUDA_DRIVER=level)
    assert printed == f"'Fake GPU' 8.9 {level} cuda-python\n"


def test_bindings_newer_than_the_driver_are_refused_with_the_pin(driver: Path) -> None:
    """cuda-bindings 13 on JetPack 6, where `pip install cuda-bindings` brings them."""
    done = attempt(OPEN, driver, "13.5.0", FAKE_CUDA_DRIVER="12060")
    assert done.stderr.strip().endswith(
        "no usable NVIDIA GPU 0 here (cuda-bindings 13.5.0 are newer than this driver, which is "
        "of CUDA 12.6; run `pip install 'cuda-bindings==12.9.*'`)"
    )


@pytest.mark.parametrize("bindings", BINDINGS)
def test_no_driver_and_no_gpu_are_sentences(driver: Path, bindings: str, tmp_path: Path) -> None:
    done = attempt(OPEN, tmp_path, bindings)
    assert "UnfitError: no usable NVIDIA GPU 0 here (cuInit cannot be called" in done.stderr
    done = attempt(OPEN, driver, bindings, FAKE_CUDA_NO_DEVICE="1")
    assert "no usable NVIDIA GPU 0 here (cuInit failed: CUDA_ERROR_NO_DEVICE)" in done.stderr


PACK = """
import ctypes, numpy as np
from g2vlm_ros.geometry import point_cloud
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.point_packing import PointPacker
rng = np.random.default_rng(0)
points = rng.normal(0, 1, (3, 37, 41, 3)).astype(np.float32)
points[..., 2] = 2 + 0.3 * points[..., 2]
colours = rng.integers(0, 256, points.shape, dtype=np.uint8)
confidence = rng.random(points.shape[:3]).astype(np.float32)
poses = np.tile(np.eye(4), (3, 1, 1))
poses[:, :3, 3] = rng.normal(size=(3, 3))
chosen = [2, 0]
with cuda.active():
    device = DeviceMemory(cuda)
    packer = PointPacker(device)
    maps = (points, "FLOAT"), (colours, "UINT8"), (confidence, "FLOAT")
    maps = [device.upload(each, kind, "maps") for each, kind in maps]
    moves = point_cloud.affines(2, poses[chosen])
    got = packer.pack(*maps, None, chosen, moves, 0.3, 0.5)
valid = point_cloud.valid_points(points[chosen], confidence[chosen], 0.3, 0.5)
want = point_cloud.pack(
    points[chosen], colours[chosen], confidence[chosen], valid, poses=poses[chosen]
)
got, want = got.view("<f4").reshape(-1, 5), np.frombuffer(want, "<f4").reshape(-1, 5)
assert 100 < len(got) == len(want) < valid.size
np.testing.assert_allclose(got[:, :3], want[:, :3], rtol=1e-5, atol=2e-6)
assert np.array_equal(got[:, 3:].view(np.uint32), want[:, 3:].view(np.uint32))
fake = ctypes.CDLL("libcuda.so.1")
fake.launched_kernels.restype = ctypes.c_char_p
print(fake.launched_kernels().decode())
"""


@pytest.mark.parametrize("bindings", BINDINGS)
def test_clouds_are_packed_by_kernels_with_the_right_arguments(
    driver_and_compiler: Path, bindings: str
) -> None:
    printed = run(OPEN + PACK, driver_and_compiler, bindings)
    assert printed.split("\n")[:3] == ["count_points 12x256", "sum_counts 1x1",
                                       "write_points 12x256"]  # fmt: skip


STEPS = """
import ctypes, numpy as np
from types import SimpleNamespace
from g2vlm_ros.inference.tensorrt.decoding import DecodingState, TokenDecoder, TokenStore
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.kv_cache import TensorRTCache

class Head:
    # The next place is the position: copies, recorded as an engine's work would be.
    metadata = SimpleNamespace(outputs={"logits": ["FLOAT", [4]]}, precision="float32")
    scratch_bytes = 100
    def run(self, inputs, outputs, timed):
        device.duplicate(outputs["logits"], ones)
        for name in ("positions", "stored", "recent"):
            device.duplicate(outputs[f"next_{name}"], inputs[name])
        device.duplicate(outputs["next_stored"], inputs["positions"].rows(0, 1))

class Language(Head):
    metadata = SimpleNamespace(outputs={"hidden": ["FLOAT", [1, 8]], "keys": None},
                               precision="float32")
    records_itself = False
    def run(self, inputs, outputs, timed):
        for side in ("keys", "values"):
            device.duplicate(outputs[side], token[side])

with cuda.active():
    device = DeviceMemory(cuda)
    ones = device.upload(np.ones(4, np.float32), "FLOAT", "ones")
    rng = np.random.default_rng(0)
    new = {side: rng.normal(size=(2, 3, 1, 8)).astype(np.float32) for side in ("keys", "values")}
    token = {side: device.upload(array, "FLOAT", side) for side, array in new.items()}
    cache = TensorRTCache(device, (2, 3, 0, 8), "FLOAT", lambda n: 64)
    buffers = cache.reserve(1)
    state = DecodingState(device)
    decoder = TokenDecoder(device, state, Language(), Head(), buffers, TokenStore(device))
    decoder.record(buffers, 5, 9, 2)
    assert decoder._graph is not None and decoder.serves(buffers)
    state.begin(5, 9, 40)
    for _ in range(3):
        decoder.step(buffers, -1)
    keys, values = device.download(list(buffers))
    for place in (2, 40, 9):  # tried, then where the state said
        assert np.array_equal(keys[:, :, place], new["keys"][:, :, 0])
        assert np.array_equal(values[:, :, place], new["values"][:, :, 0])
    keys[:, :, [2, 40, 9]] = 0
    assert not keys.any()
    decoder.close()
fake = ctypes.CDLL("libcuda.so.1")
fake.launched_kernels.restype = ctypes.c_char_p
print(fake.launched_kernels().decode())
"""


@pytest.mark.parametrize("bindings", BINDINGS)
def test_a_recorded_step_runs_again_where_its_state_says(
    driver_and_compiler: Path, bindings: str
) -> None:
    """Buffers, the kernel, capture and replay over the real bindings; engines are copies."""
    printed = run(OPEN + STEPS, driver_and_compiler, bindings)
    assert printed.split() == ["store_token", "1x256"] * 2  # tried once, recorded once


@pytest.mark.parametrize("bindings", BINDINGS)
def test_without_nvrtc_compiling_is_a_cuda_error_with_what_to_install(
    driver: Path, bindings: str
) -> None:
    code = OPEN + "try:\n    cuda.compile('x')\nexcept CudaError as error:\n    print(error)\n"
    printed = run(code, driver, bindings)
    assert "nvrtcCreateProgram cannot be called here" in printed
    assert "pip install nvidia-cuda-nvrtc" in printed


@pytest.mark.parametrize("bindings", BINDINGS)
def test_the_log_of_the_compiler_is_written_into_memory_of_ours(
    driver_and_compiler: Path, bindings: str
) -> None:
    """A log of one character would else be written into Python's own b" ", of everybody."""
    code = OPEN + (
        "try:\n    cuda.compile('#error')\nexcept CudaError as error:\n    print(error)\n"
        "print(b' ' * 1 == bytes([32]))\n"
    )
    printed = run(code, driver_and_compiler, bindings)
    assert printed == "nvrtcCompileProgram failed: NVRTC_ERROR_COMPILATION: ?\nTrue\n"


@pytest.mark.parametrize("bindings", BINDINGS)
def test_a_lost_context_is_recognised_at_every_call(driver: Path, bindings: str) -> None:
    code = OPEN + (
        "import ctypes\n"
        "from g2vlm_ros.records import BackendGoneError\n"
        "with cuda.active():\n"
        "    stream = cuda.stream()\n"
        "    ctypes.CDLL('libcuda.so.1').lose_context()\n"
        "    for call in (lambda: cuda.synchronize(stream), lambda: cuda.alloc(8, 'x')):\n"
        "        try:\n"
        "            call()\n"
        "        except BackendGoneError as error:\n"
        "            print(type(error).__name__, error)\n"
    )
    lines = run(code, driver, bindings).splitlines()
    assert len(lines) == 2
    assert all(
        line.startswith("DeviceLostError CUDA was lost in cu")
        and "CUDA_ERROR_ILLEGAL_ADDRESS; nothing runs on this GPU in this process" in line
        for line in lines
    )
