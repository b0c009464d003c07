# SPDX-License-Identifier: Apache-2.0
"""Our builder and our engine over the real Python bindings of TensorRT 10.3 to 11.4 and RTX.

The libraries under them are empty, so nothing is built. What is tried: every method, property and
enum that `build_engines`, `versions` and `engine` use exists in each version, and every argument
converts and arrives in C++ as it was given.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from g2vlm_tests.fake_libraries import fake_tensorrt, run_over, wheel

pytest.importorskip("onnx", reason="the builder reads ONNX files")

VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings==10.3.0",
    "10.13.3.9": "tensorrt-cu13-bindings==10.13.3.9",
    "10.16.1.11": "tensorrt-cu13-bindings==10.16.1.11",
    "11.4.0.106": "tensorrt-cu13-bindings==11.4.0.106",
    "rtx": "",
}

SETUP = """
import json, sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
sys.modules["torch"] = None  # engines are built where there is none
sys.path.insert(0, "test")
from g2vlm_tests.real_bindings import PLAN, bindings
from g2vlm_tests.gpu_stand_in import StandInCuda
from g2vlm_ros.export import build_engines as building
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory
from g2vlm_ros.inference.tensorrt.engine import Engine
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineMetadata, Here
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion
name, folder = sys.argv[1], Path(sys.argv[2])
trt, answers = bindings("tensorrt_rtx_bindings" if name == "rtx" else "tensorrt_bindings")
version = TensorRTVersion("rtx" if name == "rtx" else "tensorrt", trt)
answers.fixed |= {"add_optimization_profile": 0, "num_layers": 2, "num_io_tensors": 2,
                  "type": int(trt.LayerType.SOFTMAX), "get_engine_information": '{"Layers": []}'}
cuda = StandInCuda()

@contextmanager
def refused(kind, words):
    try:
        yield
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")
"""

BUILD = """
shown = []
plan = SimpleNamespace(memory_gib=2, level=3)
here = Here("a", "8.9", version.label)
machine = building.Machine(version, here, None if name == "rtx" else cuda)
profiles = [{"x": [[0, 3], [4, 3], [8, 3]]}]
for way in ("fused", "decomposed"):
    building.build_engine(machine, b"a graph", folder / "x.onnx", profiles, plan,
                          folder / "x.engine", folder / "x.timing", way, shown.append)
    assert (folder / "x.engine").read_bytes() == PLAN
if name != "rtx":
    assert (folder / "x.timing").read_bytes() == PLAN
    answers.fixed["set_timing_cache"] = False  # a file of another TensorRT or GPU
    building.build_engine(machine, b"a graph", folder / "x.onnx", profiles, plan,
                          folder / "x.engine", folder / "x.timing", "fused", shown.append)
    assert shown == ["x.timing is damaged or of another machine; kernels are timed anew"]
    answers.fixed["create_timing_cache"] = None  # a damaged one
    answers.fixed["get_timing_cache"] = None  # what it then stays
    before = (folder / "x.timing").read_bytes()
    building.build_engine(machine, b"a graph", folder / "x.onnx", profiles, plan,
                          folder / "x.engine", folder / "x.timing", "fused", shown.append)
    assert (folder / "x.timing").read_bytes() == before
def build():
    building.build_engine(machine, b"a graph", folder / "x.onnx", profiles, plan,
                          folder / "x.engine", folder / "y.timing")
answers.fixed["add_optimization_profile"] = -1
with refused(building.BuildError, "the shapes of the plan do not fit x.onnx: {"):
    build()
answers.fixed["set_shape"] = False  # of which the bindings make a RuntimeError
with refused(building.BuildError, "the shapes of the plan do not fit x.onnx (Shape provided"):
    build()
answers.fixed["parse"] = False
answers.fixed["num_errors"] = 1
with refused(building.BuildError, "refuses x.onnx: text"):
    build()
print(json.dumps(sorted(set(answers.calls))))
"""

RUN = """
values = dict.fromkeys(EngineMetadata.__dataclass_fields__, "")
values |= {"file": "x.engine", "stage": "heads", "precision": "float16", "golden": None,
           "inputs": {"x": ["FLOAT", ["n"]]}, "outputs": {"y": ["FLOAT", ["n", 3]]},
           "profiles": [{"x": [[1], [2], [9]]}, {"x": [[1], [1], [1]]}], "size": None}
metadata = EngineMetadata(**values)
device = DeviceMemory(cuda)
names = iter("xy" * 9)
kind = type(answers).prepare
def prepare(self, name, returns):
    if name == "get_tensor_name":
        self.fixed[name] = next(names)
    kind(self, name, returns)
type(answers).prepare = prepare
answers.fixed["device_memory_size_v2"] = 1000
cuda.handle = lambda stream: 77
(folder / "x.engine.jit").write_bytes(b"kernels")
(folder / "engine").write_bytes(b"an engine")
from g2vlm_ros.inference.tensorrt.engine_metadata import map_file
engine = Engine(version, device, metadata, map_file(folder / "engine"), folder)
results = engine.run({"x": device.empty((2,), "FLOAT", "x")})
assert results["y"].shape == (2, 3)
assert answers.arguments[0] == 77  # the stream of execute_async_v3, which was called last
address, size = device.scratch(0)
engine._context.set_device_memory(address, size)
assert answers.arguments[:2] == [address, 1000]
engine._context.set_tensor_address("x", 512)
assert answers.arguments[1] == 512
def run(size):
    engine.run({"x": device.empty((size,), "FLOAT", "x")})
if name != "10.3.0":  # whose bindings end in a segmentation fault, which nobody can catch
    answers.fixed["set_optimization_profile_async"] = False
    for _ in range(2):  # a change that was refused is not taken for done
        with refused(EngineError, "x.engine cannot change to its profile 1"):
            run(1)
    del answers.fixed["set_optimization_profile_async"]
run(1)
answers.fixed["get_tensor_shape"] = (-1, 3)
with refused(EngineError, "x.engine cannot say the shape of y before it runs ((-1, 3))"):
    run(2)
del answers.fixed["get_tensor_shape"]
answers.fixed["set_input_shape"] = False
with refused(EngineError, "x.engine refuses (2,) for x"):
    run(2)
del answers.fixed["set_input_shape"]
answers.fixed["set_tensor_address"] = False
with refused(EngineError, "does not take the address"):
    run(1)
print(engine.fused_attentions)
engine.save_kernels()
engine = Engine(version, device, EngineMetadata(**values | {"stage": "language"}), PLAN, folder) \\
    if next(names) else None
if name == "rtx":
    assert (folder / "x.engine.jit").read_bytes() == PLAN
print(json.dumps(sorted(set(answers.calls))))
"""

WITHOUT_DRIVER = """
answers.fail_factories(True)
for create in (version.builder, version.runtime):
    try:
        create(trt.Logger(trt.Logger.ERROR))
    except EngineError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel(VERSIONS["10.3.0"])
    return fake_tensorrt(tmp_path_factory.mktemp("libraries"))


def run(code: str, version: str, libraries: Path, folder: Path) -> list[str]:
    """The lines that the code prints with the bindings of a version."""
    if version == "rtx":
        if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
            pytest.skip("TensorRT-RTX is not installed: pip install tensorrt-rtx")
        wheels = []
    else:
        wheels = [wheel(VERSIONS[version])]
    done = run_over(SETUP + code, libraries, wheels, version, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_building_calls_exists_and_converts(
    version: str, libraries: Path, tmp_path: Path
) -> None:
    (line,) = run(BUILD, version, libraries, tmp_path)
    calls = set(json.loads(line))
    expected = {"Builder.create_network", "OnnxParser.parse", "IOptimizationProfile.set_shape",
              "IBuilderConfig.progress_monitor=", "INetworkDefinition.mark_debug",
              "Builder.build_serialized_network"}  # fmt: skip
    only = (
        {"IBuilderConfig.set_compute_capability"}
        if version == "rtx"
        else {"IBuilderConfig.set_timing_cache", "IBuilderConfig.profiling_verbosity="}
    )
    assert expected | only <= calls


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_running_calls_exists_and_converts(
    version: str, libraries: Path, tmp_path: Path
) -> None:
    fused, line = run(RUN, version, libraries, tmp_path)
    assert fused == ("None" if version == "rtx" else "0")
    calls = set(json.loads(line))
    expected = {"Runtime.deserialize_cuda_engine", "ICudaEngine.device_memory_size_v2",
              "IExecutionContext.set_optimization_profile_async",
              "IExecutionContext.infer_shapes",
              "IExecutionContext.execute_async_v3"}  # fmt: skip
    only = (
        {"IRuntimeConfig.set_runtime_cache", "IRuntimeConfig.cuda_graph_strategy=",
         "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy="}
        if version == "rtx"
        else {"ICudaEngine.create_engine_inspector"}
    )  # fmt: skip
    assert expected | only <= calls


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_driver_both_factories_are_sentences(
    version: str, libraries: Path, tmp_path: Path
) -> None:
    """The bindings make a TypeError of the null pointer."""
    build, load = run(WITHOUT_DRIVER, version, libraries, tmp_path)
    assert "cannot build here (pybind11::init(): factory function returned nullptr)" in build
    assert "cannot run engines here" in load and "is there an NVIDIA driver" in load
