# SPDX-License-Identifier: Apache-2.0
"""Engine records, refusals and device arrays; engines run on the STAND-IN, no GPU."""

from __future__ import annotations

import json
import mmap
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the stand-in computes with onnxruntime")
torch = pytest.importorskip("torch", reason="golden values are made by torch")

from g2vlm_tests.built_engines import Built, build_stand_ins  # noqa: E402
from g2vlm_tests.gpu_stand_in import StandInContext, StandInCuda, stand_in_version  # noqa: E402

from g2vlm_ros.checkpoint.onnx_manifest import MANIFEST, Manifest  # noqa: E402
from g2vlm_ros.inference.tensorrt import versions  # noqa: E402
from g2vlm_ros.inference.tensorrt.cuda import (  # noqa: E402
    CudaPython,
    DeviceLostError,
    OutOfMemoryError,
    failure,
)
from g2vlm_ros.inference.tensorrt.device_memory import DeviceMemory, from_element, to_element  # noqa: E402
from g2vlm_ros.inference.tensorrt.engine import Engine  # noqa: E402
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError, EngineMetadata, Here  # noqa: E402
from g2vlm_ros.inference.tensorrt.golden import deviation, read_golden, verify  # noqa: E402
from g2vlm_ros.inference.tensorrt.kv_cache import TensorRTCache  # noqa: E402
from g2vlm_ros.inference.tensorrt.versions import installed  # noqa: E402
from g2vlm_ros.records import UnfitError  # noqa: E402

SIGNS = {"keys": 1, "values": -1}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_stand_ins(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Built:
    """Engines that a test may damage."""
    cache = tmp_path / "cache"
    shutil.copytree(built.cache, cache)
    return replace(built, cache=cache)


def engine_path(built: Built, stage: str = "geometry") -> Path:
    (path,) = built.cache.glob(f"*/{stage}.*.engine")
    return path


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


# --- refusals ------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"has \d+ bytes instead of \d+; run `python -m g2vlm_ros.export.build_engines"),
        (flip, "is damaged or was changed; run `"),
        (Path.unlink, "is missing; run `"),
    ],
)
def test_a_damaged_engine_is_refused(
    copied: Built, damage: Callable[[Path], None], message: str
) -> None:
    damage(engine_path(copied))
    with pytest.raises(EngineError, match=message):
        copied.open()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensorrt": "trt10.4.0"}, "built for TensorRT trt10.4.0, here it is trt10.3.0; run `"),
        ({"gpu": "Other GPU"}, "built for GPU Other GPU, here it is Stand In GPU"),
        ({"capability": "8.6"}, "built for compute capability 8.6, here it is 8.9"),
        ({"onnx_sha256": "0" * 64}, "built for ONNX file 000000000000, here it is"),
        ({"weights": "0" * 64}, "built for checkpoint 000000000000, here it is"),
    ],
)
def test_an_engine_of_something_else_is_refused(copied: Built, change: dict, message: str) -> None:
    edit(engine_path(copied).with_name(engine_path(copied).name + ".json"), **change)
    with pytest.raises(EngineError, match=f"no engine for geometry: .*{message}"):
        copied.open()


def test_an_engine_built_elsewhere_for_this_capability_fits(copied: Built) -> None:
    for path in copied.cache.glob("*/*.json"):
        edit(path, gpu="sm89", verified=None)
    assert isinstance(copied.open().backend, str)


def test_a_stale_onnx_file_makes_its_engine_unfit(built: Built, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(built.checkpoint, checkpoint)
    manifest = Manifest.read(checkpoint)
    graphs = tuple(
        replace(g, sha256="f" * 64) if g.stage == "heads" else g for g in manifest.graphs
    )
    (checkpoint / MANIFEST).unlink()
    replace(manifest, graphs=graphs).write(checkpoint)
    with pytest.raises(EngineError, match="no engine for heads: .* built for ONNX file"):
        replace(built, checkpoint=checkpoint).open()


def test_damaged_metadata_or_golden_values_are_refused(copied: Built) -> None:
    folder = engine_path(copied).parent
    (golden,) = folder.glob("geometry.*.golden.npz")
    flip(golden)
    with pytest.raises(EngineError, match="golden.npz is damaged or was changed"):
        copied.open()
    record = engine_path(copied, "heads").with_name(engine_path(copied, "heads").name + ".json")
    record.write_text(record.read_text()[:-20])
    with pytest.raises(EngineError, match="damaged or of another version"):
        EngineMetadata.read(record)
    with pytest.raises(EngineError, match="no engine for heads"):
        copied.open()


def test_an_engine_that_went_wrong_is_noticed_at_the_start(built: Built) -> None:
    cuda = StandInCuda()
    wrong = replace(built, cuda=cuda, version=stand_in_version(cuda, {"fused": 0.01}))
    with pytest.raises(EngineError, match=r"computes wrong values: .* is off by 0\.01.*run `"):
        wrong.open()


def test_tensorrt_that_cannot_load_an_engine(built: Built) -> None:
    device, record = DeviceMemory(built.cuda), built.engines[0]
    with pytest.raises(EngineError, match="trt10.3.0 cannot load .*; it was built by trt10.3.0"):
        Engine(built.version, device, record, b"rubbish")
    other = replace(record, outputs={"else": ["FLOAT", [1]]})
    with pytest.raises(EngineError, match="has the tensors descriptor, features, images"):
        Engine(built.version, device, other, engine_path(built, record.stage).read_bytes())


def test_a_cut_batch_of_golden_values_does_not_pass(built: Built) -> None:
    """The check itself can fail: with one wrong number in a thousand of double size."""
    record = next(r for r in built.engines if r.stage == "heads")
    path = engine_path(built, "heads")
    device = DeviceMemory(built.cuda)
    engine = Engine(built.version, device, record, path.read_bytes())
    cases = read_golden(path.parent, record)
    assert max(verify(engine, device, cases).values()) < 2e-3
    points = cases[0][1]["local_points"].reshape(-1)
    points[::1000] *= 2
    with pytest.raises(EngineError, match="local_points is off"):
        verify(engine, device, cases)


def test_inputs_that_do_not_fit_together_are_seen_at_the_first_run(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is the one that verifies the engine; later ones do not spend the time."""
    record = next(r for r in built.engines if r.stage == "heads")
    path = engine_path(built, "heads")
    device = DeviceMemory(built.cuda)
    cases = read_golden(path.parent, record)
    answers = [["features"], RuntimeError("infer_shapes error code: -1"), []]
    infer = mock.Mock(side_effect=answers)
    monkeypatch.setattr(StandInContext, "infer_shapes", infer)
    engine = Engine(built.version, device, record, path.read_bytes())
    with pytest.raises(EngineError, match=r"heads\..* was given no shape for features"):
        verify(engine, device, cases)
    with pytest.raises(EngineError, match="cannot infer its shapes from these .*error code: -1"):
        verify(engine, device, cases)
    for _ in range(2):
        verify(engine, device, cases)
    assert infer.call_count == len(answers)


# --- numbers -------------------------------------------------------------------------------------


def test_bfloat16_is_rounded_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=10_000).astype(np.float32) * 10.0 ** rng.integers(-30, 30, 10_000)
    values = np.concatenate((values, [0, -0.0, np.inf, -np.inf, 1.00390625, 3.3895e38]))
    values = values.astype(np.float32)
    want = torch.tensor(values).bfloat16().float().numpy()
    assert np.array_equal(from_element(to_element(values, "BFLOAT16"), "BFLOAT16"), want)
    assert np.isnan(from_element(to_element(np.float32([np.nan]), "BFLOAT16"), "BFLOAT16"))[0]


def test_deviation_is_infinite_for_what_is_not_a_number() -> None:
    want = np.ones(4, np.float32)
    assert deviation(want, want) == 0.0
    assert deviation(np.float32([1, 1, 1, np.nan]), want) == np.inf
    assert deviation(np.ones(3, np.float32), want) == np.inf
    assert deviation(2 * want, want) == pytest.approx(1.0)


# --- streams -------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["lazily", "others first"])
def device(request: pytest.FixtureRequest) -> DeviceMemory:
    return DeviceMemory(StandInCuda(others_first=request.param))


def test_work_waits_for_its_upload(device: DeviceMemory) -> None:
    source = device.upload(np.full(64, 3.0, np.float32), "FLOAT", "source")
    target = device.empty((64,), "FLOAT", "target")
    device.duplicate(target, source)
    assert np.all(device.download([target])[0] == 3.0)


def test_tokens_are_stored_head_by_head_and_a_larger_buffer_keeps_them(
    device: DeviceMemory,
) -> None:
    """Three layers of two heads; free places are zeros, as they are read under a mask."""
    sizes = {5: 8, 9: 16}
    cache = TensorRTCache(
        device, (3, 2, 0, 16), "FLOAT", lambda n: next(s for most, s in sizes.items() if n <= most)
    )
    tokens = np.random.default_rng(0).normal(size=(3, 2, 9, 16)).astype(np.float32)
    fork = None
    for part in np.split(tokens, [2, 5], axis=2):
        new = {side: device.upload(part * sign, "FLOAT", side) for side, sign in SIGNS.items()}
        cache.store(new, part.shape[2])
        cache.commit(part.shape[2])
        fork = fork or cache.fork()
    assert (cache.length, cache.places) == (9, 16) and (fork.length, fork.places) == (2, 8)
    keys, values = device.download(list(cache.reserve(0)))
    assert np.array_equal(keys[:, :, :9], tokens) and np.array_equal(values, -keys)
    assert not keys[:, :, 9:].any()
    for each in (cache, fork):
        compact, newest = each.compact(), each.newest(2)
        arrays = device.download([compact["past_keys"], compact["past_values"], newest["keys"]])
        assert np.array_equal(arrays[0], tokens[:, :, : each.length])
        assert np.array_equal(arrays[1], -arrays[0])
        assert np.array_equal(arrays[2], arrays[0][:, :, -2:])
    for part in cache.reserve(0).of_layers().values():
        assert part.shape == (1, 2, 16, 16) and part.address % 256 == 0


def test_a_block_used_again_waits_for_who_had_it(device: DeviceMemory) -> None:
    """Upload, compute, let go, upload again into the same block: the first result stands."""
    source = device.upload(np.full(64, 1.0, np.float32), "FLOAT", "first")
    kept = device.empty((64,), "FLOAT", "kept")
    device.duplicate(kept, source)
    address = source.address
    del source
    again = device.upload(np.full(64, 2.0, np.float32), "FLOAT", "second")
    assert again.address == address
    (actual,) = device.download([kept])
    assert np.all(actual == 1.0)


def test_many_uploads_before_anything_runs(device: DeviceMemory) -> None:
    """Staging memory is not written over while an upload still has to read it."""
    arrays = [np.full(1000 + n, n, np.int64) for n in range(50)]
    uploaded = [device.upload(a, "INT64", "ids") for a in arrays]
    for actual, want in zip(device.download(uploaded), arrays, strict=True):
        assert np.array_equal(actual, want)


def test_idle_memory_is_given_back_before_a_refusal() -> None:
    device = DeviceMemory(StandInCuda(total=1 << 20))
    first = device.empty((700, 1000), "UINT8", "first")
    del first
    second = device.empty((900, 1000), "UINT8", "second")
    assert device.cuda.used >= second.bytes


def test_pinned_memory_that_the_host_has_not_is_a_sentence() -> None:
    """Over the real module with a driver that answers as CUDA does."""
    status = type("CUresult", (), {"__int__": lambda self: 2})()
    status.name = "CUDA_ERROR_OUT_OF_MEMORY"

    class FullHost(CudaPython):
        def __init__(self) -> None:
            self._driver = SimpleNamespace(cuMemHostAlloc=lambda *_: (status, None))

    with pytest.raises(OutOfMemoryError, match="no 64 MiB of pinned memory .* fewer views"):
        FullHost().alloc_host(64 << 20)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("CUDA_ERROR_ILLEGAL_ADDRESS", True),
        ("cuStreamSynchronize failed: launch failed", True),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", True),
        ("CUDA_ERROR_INVALID_VALUE", False),
        ("CUDA_ERROR_NOT_READY", False),
    ],
)
def test_which_errors_mean_a_lost_context(name: str, lost: bool) -> None:
    assert isinstance(failure("call", name), DeviceLostError) is lost


# --- versions ------------------------------------------------------------------------------------


def test_which_tensorrt_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there: dict[str, str] = {}

    def fake_import(name: str) -> object:
        if name not in there:
            raise ImportError(f"no module {name}")
        return type("Module", (), {"__version__": there[name]})

    monkeypatch.setattr(versions, "import_module", fake_import)
    with pytest.raises(UnfitError, match="no TensorRT here.*pip install tensorrt-rtx"):
        installed()
    there["tensorrt_rtx"] = "1.7.1.116"
    assert installed(capability="8.9").label == "rtx1.7.1.116"
    with pytest.raises(UnfitError, match="does not run on compute capability 8.7"):
        installed(capability="8.7")
    there["tensorrt"] = "10.3.0"
    assert installed(capability="8.7").label == "trt10.3.0"
    assert installed("rtx", "8.9").name == "rtx"
    there["tensorrt"] = "8.6.1"
    with pytest.raises(UnfitError, match="TensorRT 8.6.1 is older than 10.3"):
        installed("tensorrt")
    with pytest.raises(UnfitError, match="flavour is 'best'"):
        installed("best")


def test_here_is_part_of_every_name(built: Built) -> None:
    here = Here(built.cuda.gpu, built.cuda.capability, built.version.label)
    for record in built.engines:
        assert record.file.startswith(record.stage)
        assert record.file.endswith(f"stand-in-gpu-{here.tensorrt}-float32.engine")


# --- what is known of versions and kernels -------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "fused"),
    [
        ([], 0),
        (["a MatMul", "_gemm_mha_v2_0"], 1),
        (
            [{"Name": "x", "TacticName": "fmha_v2_flash"}, {"Name": "softmax", "Metadata": "mha"}],
            1,
        ),
        (["mha_0", "mha_1", "mha_0 [profile 1]"], 1),
        (None, None),
    ],
)
def test_fused_attention_in_what_the_inspector_says(layers: list | None, fused: int) -> None:
    """The profile with the fewest counts; metadata of the graph does not."""
    text = "nonsense" if layers is None else json.dumps({"Layers": layers})
    assert versions.count_fused(text) == fused


def test_attention_that_is_not_fused_is_in_the_record_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = build_stand_ins(tmp_path, precision="float32")
    record = next(e for e in built.engines if e.stage == "geometry")
    # No kernel computes a whole attention in float32, so each of 2 is one of 8 views at a time.
    assert (record.attention, record.attentions, record.fused_attentions) == ("fused", 16, 0)
    assert record.unfused == ""  # nobody fuses in float32
    half = replace(record, precision="float16", fused_attentions=1)
    assert "computes 15 of 16 attentions without a fused kernel" in half.unfused
    assert replace(half, fused_attentions=16).unfused == ""
    assert replace(half, fused_attentions=None).unfused == ""


def test_versions_that_are_reported_to_be_wrong_are_named() -> None:
    for label in ("trt10.3.0", "trt10.4.1"):
        assert "NVIDIA/TensorRT#4419" in versions.doubt(label)
        assert "checked on golden values" in versions.doubt(label)
    for label in ("trt10.6.0", "trt10.16.1.11", "trt10.30.0", "rtx1.7.1.116"):
        assert versions.doubt(label) == ""


@pytest.mark.parametrize(("capability", "refused"), [("7.5", True), ("8.0", False),
                                                     ("12.0", False)])  # fmt: skip
def test_bfloat16_needs_ampere(capability: str, refused: bool) -> None:
    versions.check_precision("float16", capability)
    if refused:
        with pytest.raises(UnfitError, match="GeForce 20 and older.* precision float16"):
            versions.check_precision("bfloat16", capability)
    else:
        versions.check_precision("bfloat16", capability)


def test_an_engine_record_of_an_earlier_version_is_refused(copied: Built) -> None:
    path = engine_path(copied, "heads")
    edit(path.with_name(path.name + ".json"), format=1)
    with pytest.raises(EngineError, match=r"no engine for heads: .* of another version"):
        copied.open()


def test_a_library_that_cannot_be_loaded_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(versions, "import_module", broken)
    with pytest.raises(UnfitError, match="cannot be imported .libnvinfer.so.10"):
        installed()


def test_rows_of_an_empty_array() -> None:
    device = DeviceMemory(StandInCuda())
    array = device.empty((0, 5), "FLOAT", "nothing")
    assert array.rows(0, 0).shape == (0, 5) and array.rows(0, 0).address == array.address


def test_engines_are_mapped_and_not_read(built: Built) -> None:
    record = next(e for e in built.engines if e.stage == "heads")
    data = record.load(engine_path(built, "heads").parent, "")
    assert isinstance(data, mmap.mmap) and bytes(data).startswith(b"engine of")


def test_golden_values_hold_a_decoding_step_behind_a_long_cache(built: Built) -> None:
    """Kernels for long sequences are others; of the cache a block is written, and how often."""
    record = next(e for e in built.engines if e.stage == "language")
    cases = read_golden(engine_path(built, "language").parent, record)
    lengths = [inputs["past_keys"].shape[2] for inputs, _ in cases]
    assert max(lengths) == 1023 // 64 * 64 and len(cases[-1][0]["ids"]) == 1
    (path,) = engine_path(built, "language").parent.glob("language.*.golden.npz")
    with np.load(path) as arrays:
        assert sorted(n for n in arrays if "/repeat/" in n)[0].endswith("past_keys")
        assert max(arrays[n].shape[2] for n in arrays if n.endswith("in/past_keys")) < 300
