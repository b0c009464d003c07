# SPDX-License-Identifier: Apache-2.0
"""The TensorRT backend on a STAND-IN: buffers, cache, order of streams, refusals; no GPU.

The stand-in computes with ONNX Runtime, so values are real; TensorRT's own numerics are not here.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="the stand-in computes with onnxruntime")
pytest.importorskip("torch", reason="golden values are made by torch")

from g2vlm_tests.backend_laws import GRID, PROMPT, SPECIAL, reconstruct  # noqa: E402
from g2vlm_tests.built_engines import (  # noqa: E402
    GOLDEN,
    SIZE,
    Built,
    build_scattering,
    build_stand_ins,
)
from g2vlm_tests.gpu_stand_in import StandInCuda, StandInEngine, Stream, stand_in_version  # noqa: E402
from g2vlm_tests.marks import runs_opset_24  # noqa: E402

from g2vlm_ros.checkpoint.prompt_layout import TokenCursor, text_segment  # noqa: E402
from g2vlm_ros.geometry import point_cloud  # noqa: E402
from g2vlm_ros.inference.backend import Backend, Cache, open_backend  # noqa: E402
from g2vlm_ros.inference.decoding_state import STEPS_AHEAD  # noqa: E402
from g2vlm_ros.inference.tensorrt import backend  # noqa: E402
from g2vlm_ros.inference.tensorrt.backend import TensorRTBackend  # noqa: E402
from g2vlm_ros.inference.tensorrt.cuda import (  # noqa: E402
    CudaError,
    DeviceLostError,
    OutOfMemoryError,
)
from g2vlm_ros.inference.tensorrt.engine import Engine  # noqa: E402
from g2vlm_ros.inference.tensorrt.engine_metadata import EngineError  # noqa: E402
from g2vlm_ros.inference.torch_backend import TorchBackend  # noqa: E402
from g2vlm_ros.records import BackendGoneError, NonFiniteError, UnfitError  # noqa: E402


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_stand_ins(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def stages(built: Built) -> TensorRTBackend:
    return built.open()


@pytest.fixture(scope="module")
def torch_stages() -> TorchBackend:
    return TorchBackend.open(GOLDEN, device="cpu")


@pytest.fixture(scope="module")
def views() -> np.ndarray:
    width, height = SIZE
    return np.random.default_rng(5).integers(0, 256, (4, height, width, 3), dtype=np.uint8)


def answers(stages: Backend, views: np.ndarray) -> list[np.ndarray]:
    """Logits of two questions on forks of one cache, then of the first one going on."""
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    features = stages.encode_geometry(views[:2])
    stages.geometry(features, walk.geometry(2, GRID), cache)
    semantic = stages.encode_semantics(np.ascontiguousarray(views[0, :84, :84]))
    stages.language(walk.semantic((3, 3)), cache, semantic)
    first, second = cache.fork(), cache.fork()
    here = walk.position
    logits = [
        stages.logits(stages.language(text_segment([100, 101, 102], here), first)),
        stages.logits(stages.language(text_segment([200, 201], here), second)),
    ]
    for n in range(3):
        hidden = stages.language(text_segment([n], here + 3 + n), first)
        logits.append(stages.logits(hidden))
    assert first.length == cache.length + 6 and second.length == cache.length + 2
    return logits


def test_reconstruction_equals_torch(
    stages: TensorRTBackend, torch_stages: TorchBackend, views: np.ndarray
) -> None:
    for count in (1, 4):
        actual, want = (reconstruct(s, views[:count]) for s in (stages, torch_stages))
        np.testing.assert_allclose(
            actual.local_points_u, want.local_points_u, rtol=2e-3, atol=1e-3
        )
        np.testing.assert_allclose(actual.window_from_camera, want.window_from_camera, atol=1e-3)


def test_questions_with_forks_equal_torch(
    stages: TensorRTBackend, torch_stages: TorchBackend, views: np.ndarray
) -> None:
    for actual, want in zip(answers(stages, views), answers(torch_stages, views), strict=True):
        np.testing.assert_allclose(actual, want, rtol=1e-3, atol=1e-3)


def test_descriptions_equal_torch(
    stages: TensorRTBackend, torch_stages: TorchBackend, views: np.ndarray
) -> None:
    actual, want = (s.describe(s.encode_geometry(views)) for s in (stages, torch_stages))
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, want, rtol=1e-3, atol=1e-4)


def test_a_long_cache_moves_to_a_larger_buffer(
    stages: TensorRTBackend, torch_stages: TorchBackend
) -> None:
    results = []
    for each in (stages, torch_stages):
        cache, walk = each.new_cache(), TokenCursor(SPECIAL)
        rng = np.random.default_rng(0)
        for _ in range(12):
            last = each.language(walk.text(rng.integers(5, 400, 60)), cache)
        results.append(each.logits(last))
    np.testing.assert_allclose(*results, rtol=1e-3, atol=1e-3)


def take(stages: Backend, cache: Cache, token: int, count: int) -> list[int]:
    with closing(stages.decode(token, cache.length, cache)) as tokens:
        return [next(tokens) for _ in range(count)]


def dialogue(stages: Backend) -> list[int]:
    """Ids of two answers on forks of one cache, the first of which goes on behind a text."""
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    first, second = cache.fork(), cache.fork()
    ids = [*take(stages, first, 3, 7), *take(stages, second, 30, 5)]
    stages.language(text_segment([100, 101, 102], first.length), first)
    ids += take(stages, first, 5, 6)
    assert (first.length, second.length) == (cache.length + 7 + 3 + 6, cache.length + 5)
    return ids


def test_decoding_equals_torch_and_is_replayed_as_one_graph(
    stages: TensorRTBackend, torch_stages: TorchBackend, built: Built
) -> None:
    replays = built.cuda.replays
    assert dialogue(stages) == dialogue(torch_stages)
    # Two steps of four for each answer, and the check of a graph: the two forks have buffers of
    # their own, and the first one's graph is gone when it goes on.
    assert built.cuda.replays - replays == 3 * (2 * STEPS_AHEAD + 1)
    assert len(built.cuda.graphs) == 1


def test_questions_about_one_scene_share_a_graph(stages: TensorRTBackend, built: Built) -> None:
    """A fork of what was computed for a scene has its buffer, as long as it alone goes on."""
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    take(stages, cache, 3, 2)
    graph, copies = built.cuda.graphs[-1], built.cuda.copies
    take(stages, cache, 9, 6)
    assert built.cuda.graphs[-1] is graph
    assert built.cuda.copies == copies + 2, "a burst of steps is fed by one copy"


def test_decoding_uses_the_profile_of_its_bucket(stages: TensorRTBackend, built: Built) -> None:
    dialogue(stages)
    language = next(each for each in stages.engines if each.metadata.stage == "language")
    shapes = {"ids": (1,), "features": (0, 64), "past_keys_0": (1, 2, 256, 16)}
    assert language.profile_for(shapes) == 1
    assert language.profile_for(shapes | {"past_keys_0": (1, 2, 1024, 16)}) == 2
    assert language.profile_for(shapes | {"ids": (2,), "features": (9, 64)}) == 0
    decoding = [each for each in built.cuda.engines if "language" in each.path.name]
    assert any(each.profiles_used[-1:] == [1] for each in decoding)


def test_an_answer_that_outgrows_its_buffer_moves_once_and_says_so(
    stages: TensorRTBackend, torch_stages: TorchBackend, caplog: pytest.LogCaptureFixture
) -> None:
    answers, prompt = [], np.random.default_rng(0).integers(5, 400, (4, 62))
    for each in (stages, torch_stages):
        cache, walk = each.new_cache(), TokenCursor(SPECIAL)
        for part in prompt:
            each.language(walk.text(part), cache)
        with caplog.at_level(logging.INFO):
            answers.append(take(each, cache, 3, 20))
    assert answers[0] == answers[1]
    moves = [line for line in caplog.messages if "outgrows" in line]
    assert moves == [
        "the answer outgrows the 256 places of its buffer, which has 1024 from now on"
    ]


def test_what_no_buffer_holds_is_refused_with_what_helps(stages: TensorRTBackend) -> None:
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    with pytest.raises(EngineError, match="more than the buffers .* hold; .*larger buckets"):
        for _ in range(20):
            stages.language(walk.text(np.full(60, 7)), cache)
    assert cache.length == 1020


def spoil_replays(cuda: StandInCuda) -> None:
    """Engines compute something else whenever a graph replays them."""
    replay = cuda.replay

    def spoilt(graph: list, stream: Stream) -> None:
        stream.put(lambda: set_twist(0.3))
        replay(graph, stream)
        stream.put(lambda: set_twist(0.0))
        cuda.replays -= 1

    def set_twist(twist: float) -> None:
        for engine in cuda.engines:
            engine.twist = twist

    cuda.replay = spoilt


@pytest.mark.parametrize("fault", ["compiler", "capture", "replay"])
def test_decoding_without_a_graph_says_why_and_gives_the_same(
    built: Built, torch_stages: TorchBackend, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No compiler for our kernel, a driver that records nothing, a graph that computes wrongly."""
    place = elsewhere(built)
    fails = mock.Mock(side_effect=CudaError("not here"))
    if fault == "replay":
        spoil_replays(place.cuda)
    else:
        setattr(place.cuda, {"compiler": "compile", "capture": "begin_capture"}[fault], fails)
    stages = place.open()
    assert dialogue(stages) == dialogue(torch_stages)
    assert "decoding without a CUDA graph: " in caplog.text
    assert not place.cuda.graphs and not place.cuda.replays


@runs_opset_24
def test_a_stage_that_puts_tokens_in_place_itself(
    built: Built, torch_stages: TorchBackend, tmp_path: Path
) -> None:
    """Opset 24: an engine per bucket, whose outputs are the memory of its inputs."""
    newer = build_scattering(tmp_path)
    names = [e.file for e in newer.engines if e.stage == "language"]
    assert [name.split(".")[1] for name in names] == ["256places", "1024places"]
    stages = newer.open()
    assert dialogue(stages) == dialogue(torch_stages)
    assert newer.cuda.replays and len(newer.cuda.graphs) == 1
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    for part in np.random.default_rng(0).integers(5, 400, (5, 60)):
        hidden = stages.language(walk.text(part), cache)
    assert cache.places == 1024
    other, walk = torch_stages.new_cache(), TokenCursor(SPECIAL)
    for part in np.random.default_rng(0).integers(5, 400, (5, 60)):
        want = torch_stages.language(walk.text(part), other)
    np.testing.assert_allclose(
        stages.logits(hidden), torch_stages.logits(want), rtol=1e-3, atol=1e-3
    )


def test_a_second_window_needs_no_new_memory_or_events(
    stages: TensorRTBackend, built: Built, views: np.ndarray
) -> None:
    reconstruct(stages, views)
    gc.collect()
    before = built.cuda.allocations, built.cuda.events
    for _ in range(3):
        reconstruct(stages, views)
        gc.collect()
    assert (built.cuda.allocations, built.cuda.events) == before


def test_only_results_are_copied_back(
    stages: TensorRTBackend, built: Built, views: np.ndarray
) -> None:
    before = built.cuda.bytes_down
    raw = reconstruct(stages, views)
    results = raw.window_from_camera.nbytes + raw.rotation9.nbytes
    flag = 4  # whether all points are finite
    assert built.cuda.bytes_down - before == results + flag, "of the prompt nothing is looked at"
    assert np.asarray(raw.local_points_u).nbytes == built.cuda.bytes_down - before - results - flag


def test_features_and_descriptors_equal_torch(
    stages: TensorRTBackend, torch_stages: TorchBackend, views: np.ndarray
) -> None:
    """What parity compares; and of the features only the descriptors come to the host."""
    features, want = stages.encode_geometry(views), torch_stages.encode_geometry(views)
    np.testing.assert_allclose(
        stages.fetch(features), torch_stages.fetch(want), rtol=1e-3, atol=1e-3
    )
    before = stages.device.cuda.bytes_down
    described = stages.describe(features)
    assert stages.device.cuda.bytes_down - before == described.nbytes
    np.testing.assert_allclose(described, torch_stages.describe(want), rtol=1e-3, atol=1e-3)
    cache, walk = stages.new_cache(), TokenCursor(SPECIAL)
    stages.language(walk.text(PROMPT), cache)
    hidden = stages.geometry(features, walk.geometry(len(views), GRID), cache)
    assert stages.fetch(hidden).shape == (len(views), GRID[0] * GRID[1], 64)


def test_compiled_kernels_are_kept_at_the_end(
    built: Built, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorRT-RTX compiles for shapes as they come; at the start only those of golden cases."""
    saved: list[str] = []
    backend = built.open()

    def save(engine: Engine) -> None:
        saved.append(engine.metadata.stage)
        if engine.metadata.stage == "heads":
            raise OSError("the disk is full")

    monkeypatch.setattr(Engine, "save_kernels", save)
    del backend
    gc.collect()
    assert sorted(saved) == sorted(engine.stage for engine in built.engines)
    assert "are not kept: the disk is full" in caplog.text


def test_results_of_one_window_outlive_the_next(
    stages: TensorRTBackend, views: np.ndarray
) -> None:
    first = reconstruct(stages, views)
    kept = np.array(first.local_points_u)
    reconstruct(stages, views[::-1].copy())
    assert np.array_equal(first.local_points_u, kept)


def test_clouds_are_packed_from_the_points_on_the_device(
    stages: TensorRTBackend, built: Built, views: np.ndarray
) -> None:
    first = reconstruct(stages, views)
    reconstruct(stages, views[::-1].copy())
    chosen, limits = [0, 2, 3], (0.5, 1.0)
    confidence = np.random.default_rng(0).random(views.shape[:3]).astype(np.float32)
    maps = np.asarray(first.local_points_u), views, confidence
    poses = first.window_from_camera[chosen]
    before = built.cuda.bytes_down
    affines = point_cloud.affines(3, poses)
    actual = first.local_points_u.packed(chosen, views, confidence, None, affines, *limits)
    local, colours, confidence = (each[chosen] for each in maps)
    valid = point_cloud.valid_points(local, confidence, *limits)
    want = np.frombuffer(
        point_cloud.pack(local, colours, confidence, valid, poses=poses), np.float32
    )
    assert 0 < len(want) < 5 * valid.size
    np.testing.assert_allclose(actual.view(np.float32), want, rtol=1e-5, atol=1e-5)
    assert built.cuda.bytes_down - before == want.nbytes + 4


def test_without_a_compiler_points_go_to_the_host(
    built: Built, views: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with mock.patch.object(StandInCuda, "compile", side_effect=CudaError("there is no nvrtc")):
        stages = built.open()
    assert "points of windows go to the host: there is no nvrtc" in caplog.text
    assert "the host puts decoded tokens in their places: there is no nvrtc" in caplog.text
    assert isinstance(reconstruct(stages, views).local_points_u, np.ndarray)


def test_stage_times(stages: TensorRTBackend, views: np.ndarray) -> None:
    reconstruct(stages, views)
    expected = {"encode_geometry", "geometry", "heads", "language"}
    assert expected <= set(stages.device.times_s)


def test_nan_names_the_stage_that_made_it(built: Built, views: np.ndarray) -> None:
    place = elsewhere(built)
    stages = place.open()
    engine = next(each for each in place.cuda.engines if each.path.name.startswith("geometry"))
    compute = engine.compute

    def poisoned(inputs: dict, outputs: dict) -> None:
        compute(inputs, outputs)
        engine.array("hidden", *outputs["hidden"])[0, 0, 0] = np.nan

    engine.compute = poisoned
    with pytest.raises(NonFiniteError, match="'geometry'"):
        reconstruct(stages, views)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:, :70], "no engine of stage encode_geometry for images of 140x70 pixels"),
        (lambda v: np.concatenate((v, v, v)), r"images is \[12, 84, 140, 3\]; .* takes .*8, 84"),
    ],
)
def test_images_outside_the_profiles(
    stages: TensorRTBackend, views: np.ndarray, change: Callable, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        reconstruct(stages, np.ascontiguousarray(change(views)))


def test_out_of_memory_names_what_and_how_much(built: Built, views: np.ndarray) -> None:
    stages = built.open()
    built.cuda.total = built.cuda.used + (1 << 20)
    try:
        with pytest.raises(OutOfMemoryError, match=r"no room for .* asked for, \d+ of \d+ MiB"):
            reconstruct(stages, np.concatenate((views, views)))
    finally:
        built.cuda.total = 1 << 30


def test_a_lost_context_is_final_and_said_once_in_a_sentence(
    built: Built, views: np.ndarray
) -> None:
    """Nothing is loaded again: addresses of the dead context would be those of others by then."""
    stages = elsewhere(built).open()
    before = reconstruct(stages, views)
    cache = stages.new_cache()
    stages.device.cuda.lose_at = 2
    for _ in range(2):  # the second time without asking the device
        with pytest.raises(
            DeviceLostError, match="ILLEGAL_ADDRESS; nothing runs .*start it again"
        ):
            reconstruct(stages, views)
    with pytest.raises(BackendGoneError):  # what the node ends its process for
        stages.language(text_segment([5], 0), cache)
    with pytest.raises(BackendGoneError):
        np.asarray(before.local_points_u)
    with pytest.raises(DeviceLostError):
        cuda = stages.device.cuda
        replace(built, cuda=cuda, version=stand_in_version(cuda)).open()


def test_two_users_of_one_gpu(built: Built, views: np.ndarray) -> None:
    """Two nodes in one process share a context."""
    one, other = built.open(), built.open()
    want = reconstruct(one, views)
    for stages in (other, one):
        again = reconstruct(stages, views)
        assert np.array_equal(again.local_points_u, want.local_points_u)


def test_two_nodes_on_one_gpu(built: Built, views: np.ndarray) -> None:
    """Two processes: contexts of their own, so that one may lose its own; the memory is shared."""
    one, other = built.open(), elsewhere(built).open()
    want = reconstruct(one, views).local_points_u
    other.device.cuda.lose_at = 1
    with pytest.raises(DeviceLostError):
        reconstruct(other, views)
    assert np.array_equal(reconstruct(one, views).local_points_u, want)
    full = elsewhere(built, total=1 << 16)
    with pytest.raises(EngineError, match="cannot be loaded: .* end other programs on this GPU"):
        full.open()
    assert np.array_equal(reconstruct(one, views).local_points_u, want)


def elsewhere(built: Built, total: int = 1 << 30) -> Built:
    """The same engines in another process, with so much memory left."""
    cuda = StandInCuda(total)
    return replace(built, cuda=cuda, version=stand_in_version(cuda))


def test_no_room_for_an_engine_to_run_in(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT answers with None and a message in its own log."""
    monkeypatch.setattr(StandInEngine, "create_execution_context", lambda *_: None)
    with pytest.raises(EngineError, match="has no room to run .*; end other programs"):
        built.open()


def test_the_folder_of_engines_is_named_at_the_door(
    built: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It reaches this backend alone, and the command that helps."""
    monkeypatch.setattr(backend, "open_cuda", lambda _: built.cuda)
    monkeypatch.setattr(backend, "installed", lambda *_: built.version)
    opened = open_backend("tensorrt", built.checkpoint, engines=str(built.cache), device="cuda")
    assert opened.backend.startswith("tensorrt trt10.3.0")
    with pytest.raises(EngineError, match=f"--onnx .* --out {tmp_path}`"):
        open_backend("tensorrt", built.checkpoint, engines=tmp_path)
    assert open_backend("onnx", built.checkpoint, engines=tmp_path).backend.startswith("onnx")


def test_no_gpu_is_a_sentence() -> None:
    with pytest.raises(UnfitError, match="GPU|pip install"):
        TensorRTBackend.open(GOLDEN, device="cuda:99")


def test_no_engines_is_a_sentence_with_the_command(built: Built, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine for encode_geometry.*build_engines --plan"):
        TensorRTBackend.on(built.cuda, built.version, GOLDEN, engines=tmp_path)
