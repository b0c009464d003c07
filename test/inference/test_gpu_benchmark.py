# SPDX-License-Identifier: Apache-2.0
"""`make gpu` as far as a CPU goes: parts on a tiny network, limits of time, its summary."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
from g2vlm_tests.fake_libraries import fake_cuda, run_over, wheel

from g2vlm_ros.export import export_onnx
from g2vlm_ros.export.build_plan import BuildPlan
from g2vlm_ros.inference.tensorrt import versions
from g2vlm_ros.inference.tensorrt.versions import TensorRTVersion

torch = pytest.importorskip("torch", reason="the benchmark is of torch")

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "test" / "data" / "golden" / "A"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("benchmarks.gpu")
    finally:
        sys.path.remove(str(ROOT))


def lines_of(gpu: ModuleType, part: str, capsys: pytest.CaptureFixture) -> list[dict]:
    """The results of a part that runs in this process as far as a CPU goes."""
    gpu.serve(part, gpu.Scale.of("cpu", [1, 2]))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_every_design_runs_on_a_tiny_network(
    gpu: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same code as on a GPU: graphs are functions, and parts are traced."""
    measured = importlib.import_module("benchmarks.gpu_network")
    once = partial(measured.seconds, rounds=1, warm_up=1)
    monkeypatch.setattr(measured, "seconds", lambda run, device, *_, **__: once(run, device))
    tokens, images = lines_of(gpu, "decoding", capsys), lines_of(gpu, "windows", capsys)
    fused = lines_of(gpu, "fused", capsys)
    lines = [*tokens, *images, *fused]
    assert not [line for line in lines if "failed" in line or line.get("fell_back")]
    designs = [line["what"] for line in tokens]
    assert designs == ["growing cache", "fixed shapes, CUDA graph", "fixed shapes, no graph"]
    windows = ["ours", "eager", "ours as CUDA graphs"]
    assert [x["what"] for x in images] == [
        "parameters", *windows, *windows, "encode_semantics", "language", "language",
    ]  # fmt: skip
    assert images[-1]["cached"] == 11 + 2 * (8 * 6 + 2) and images[-1]["text_prefill_s"] > 0
    assert all(x["s_per_token"] > 0 for x in (*tokens, fused[0]))
    small = "small parts fused"
    assert [small in x["what"] for x in fused] == [True] * 3
    ratios = gpu.summary({"windows": images, "fused": fused})
    assert len(ratios) == 6, ratios


def test_training_reads_its_options_where_it_does_not_run(
    gpu: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    (line,) = lines_of(gpu, "training", capsys)
    assert line == {
        "what": "training on cpu",
        "skipped": "on a CPU it would render homes for minutes",
    }


def test_packing_and_a_lost_context_run_over_a_fake_driver(tmp_path: Path) -> None:
    """The context last, because nothing runs in that process afterwards."""
    wheels = [wheel("cuda-bindings==13.5.0"), wheel("cuda-pathfinder==1.9.1")]
    fakes = fake_cuda(tmp_path, compiler=True)
    code = (
        "from benchmarks.gpu import main\n"
        "for part in ('packing', 'lost_context'):\n"
        "    main(['--device', 'cpu', '--views', '1', '2', '--part', part])\n"
    )
    done = run_over(code, fakes, wheels)
    assert done.returncode == 0, done.stderr[-2000:]
    *packed, first, again = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["passed"] for line in packed] == [True, True]
    assert first["recognised"] and "start it again" in first["says"]
    assert not again["possible"]


def test_windows_on_a_device_run_over_a_fake_driver(tmp_path: Path) -> None:
    """Every kernel with the arguments that the driver reads from memory by their types."""
    wheels = [wheel("cuda-bindings==13.5.0"), wheel("cuda-pathfinder==1.9.1")]
    code = (
        "import json\n"
        "from benchmarks.device_drive import windows_on_device\n"
        "from benchmarks.device_points import window_on_device\n"
        "from g2vlm_ros.inference.tensorrt.cuda import open_cuda\n"
        "cuda = open_cuda()\n"
        "print(json.dumps([window_on_device(cuda, 2, 112, 84), windows_on_device(cuda, 4)]))\n"
    )
    done = run_over(code, fake_cuda(tmp_path, compiler=True), wheels)
    assert done.returncode == 0, done.stderr[-2000:]
    window, drive = json.loads(done.stdout.splitlines()[-1])
    assert window["passed"] and window["equal"]
    assert drive["passed"] and drive["poses_off"] == 0 and drive["share_equal"] == 1
    assert drive["bytes_to_host"] < 3_000_000, drive["bytes_to_host_by_what"]


def test_engines_call_what_there_is(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Export and commands take what they are given; what fails costs one precision."""
    commands = importlib.import_module("benchmarks.gpu_commands")
    taken, signature = [], inspect.signature(export_onnx.export)
    monkeypatch.setattr(
        export_onnx, "export", lambda *a, **named: taken.append(signature.bind(*a, **named))
    )
    monkeypatch.setattr(commands, "card", lambda: {"capability": "8.9"})
    fake = TensorRTVersion("tensorrt", SimpleNamespace(__version__="10.16.1"))
    monkeypatch.setattr(versions, "installed", lambda *_, **__: fake)

    def run(command: list[str], **_: object) -> SimpleNamespace:
        assert importlib.util.find_spec(command[2])
        if command[2].endswith("build_engines"):
            plan = Path(command[command.index("--plan") + 1])
            BuildPlan.read(plan, command[command.index("--profile") + 1])
        return SimpleNamespace(returncode=0, stdout="a.engine: right\n", stderr="")

    monkeypatch.setattr(commands.subprocess, "run", run)
    lines = list(commands.engines("cuda"))
    builds = ["build gpu", "build gpu", "build int4"]
    assert [x["what"].split(" with")[0] for x in lines] == [
        *builds, "tensorrt bf16", *builds, "tensorrt fp16",
    ]  # fmt: skip
    assert all(line["passed"] for line in lines) and len(taken) == 6
    monkeypatch.setattr(commands.subprocess, "run", mock.Mock(side_effect=OSError("no room")))
    for line in commands.engines("cuda"):
        assert line["failed"] == "OSError: no room" and "engines in" in line["what"]


def test_a_part_that_takes_too_long_is_a_line_and_no_gpu_a_sentence(
    gpu: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    (line,) = gpu.run_part("lost_context", [1], limit_s=0.2)
    assert line == {"failed": "stopped after 0 s"}
    if not torch.cuda.is_available():
        assert gpu.main([]) == 1
        assert "torch finds no CUDA GPU here (" in capsys.readouterr().err


def test_the_command_runs_on_a_cpu_with_a_tiny_network(gpu, tmp_path: Path) -> None:
    """What needs a GPU is a line that says so; the others are measured; all of it is recorded."""
    command = ["--device", "cpu", "--views", "1", "--out", str(tmp_path)]
    skipped = ("parity", "training", "engines", "lost_context", "decoding", "windows", "fused")
    assert gpu.main([*command, "--skip", *skipped]) == 0
    document = json.loads((tmp_path / "gpu.json").read_text())
    result = document["result"]
    assert document["date"] and result["gpu"]["name"].startswith("none")
    (line,) = result["packing"]
    assert "UnfitError" in line["failed"]  # no GPU, or no package that calls one
    assert result["floors"] and not [line for line in result["floors"] if "failed" in line]


def test_the_card_is_known_without_a_context_in_the_process_of_the_parts(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In exclusive-process mode a context here would be the only one that the card takes."""
    (tmp_path / "torch.py").write_text(
        "from types import SimpleNamespace as made\n"
        "card = made(name='a card', total_memory=8 * 2**30, major=8, minor=9)\n"
        "cuda, version = made(get_device_properties=[card].__getitem__), made(cuda='13.0')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("is_available", "get_device_properties", "get_device_name", "init"):
        monkeypatch.setattr(torch.cuda, name, mock.Mock(side_effect=AssertionError))
    monkeypatch.setattr(gpu, "run_part", lambda *_: [{"what": "ran"}])
    assert gpu.main(["--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu.json").read_text())["result"]
    card = {"name": "a card", "cuda": "13.0", "memory_gib": 8.0, "capability": "8.9"}
    assert result["gpu"] == card and result["engines"] == [{"what": "ran"}]


def test_a_line_that_was_cut_with_its_process_is_left_out(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "print('{\"a\": 1}\\nnoise\\n{\"b\": ', end='', flush=True); import time; time.sleep(60)"
    )
    started = subprocess.Popen

    def instead(command: list[str], **named: object) -> subprocess.Popen:
        return started([command[0], "-c", code], **named)

    monkeypatch.setattr(gpu.subprocess, "Popen", instead)
    assert gpu.run_part("floors", [1], limit_s=3) == [{"a": 1}, {"failed": "stopped after 3 s"}]


def test_the_summary_relates_times_to_the_limits_of_the_card(gpu) -> None:
    parts = {
        "floors": [{"matmul_tflop_per_s": 100.0, "copy_gb_per_s": 1000.0}],
        "decoding": [{"what": "x", "cached": 0, "s_per_token": 0.0062}, {"failed": "y"}],
        "windows": [
            {"what": "ours", "size": [518, 392], "views": 8, "seconds": 1.0, "tflop_per_s": 50.0},
            {"what": "eager", "size": [518, 392], "views": 8, "seconds": 3.0},
        ],
    }
    assert gpu.summary(parts) == pytest.approx(
        {
            "x behind 0 tokens, of the bandwidth": 0.5,
            "ours, 8 views, of the matrix product rate": 0.5,
            "ours over eager, 8 views at 518x392": 3.0,
        }
    )
    assert sum(gpu.LIMITS_S[part] for part in gpu.LIMITS_S if part != "engines") <= 480
