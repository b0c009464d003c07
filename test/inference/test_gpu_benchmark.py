# SPDX-License-Identifier: Apache-2.0
"""`make gpu` as far as a CPU goes: parts on a tiny network, limits of time, its summary."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def network(gpu):
    from g2vlm_ros.checkpoint.config import ModelConfig

    return gpu.random_network(ModelConfig.read(GOLDEN), "cpu")


def test_decoding_and_windows_run_in_every_design(gpu, network) -> None:
    lines = list(gpu.decoding(network, "cpu", (50,), steps=2))
    assert [line["what"] for line in lines] == ["growing cache", "fixed shapes, no graph"]
    lines += list(gpu.real_size(network.config, "cpu", [1], ((112, 84),)))
    assert not [line for line in lines if "failed" in line]
    assert all(line["s_per_token"] > 0 for line in lines[:2])


def test_a_part_that_takes_too_long_or_fails_is_a_line(gpu) -> None:
    (line,) = gpu.run_part("lost_context", [1], limit_s=0.2)
    assert line == {"failed": "stopped after 0 s"}
    if not torch.cuda.is_available():
        (line,) = gpu.run_part("floors", [1], limit_s=60)
        assert "CUDA" in line["failed"] or "NVIDIA" in line["failed"]
        assert gpu.main([]) == 1


def test_the_command_runs_on_a_cpu_with_a_tiny_network(gpu, tmp_path: Path) -> None:
    """What needs a GPU is a line that says so; the others are measured; all of it is recorded."""
    command = ["--device", "cpu", "--views", "1", "--out", str(tmp_path)]
    skipped = ("parity", "training", "engines", "lost_context", "decoding")
    assert gpu.main([*command, "--skip", *skipped]) == 0
    document = json.loads((tmp_path / "gpu.json").read_text())
    result = document["result"]
    assert document["date"] and result["gpu"]["name"].startswith("none")
    (line,) = result["packing"]
    assert "UnfitError" in line["failed"]  # no GPU, or no package that calls one
    for part in ("floors", "real_size"):
        assert result[part] and not [line for line in result[part] if "failed" in line]
    ours = "ours over eager, 1 views at 112x84"
    assert result["summary"][ours] > 0


def test_the_summary_relates_times_to_the_limits_of_the_card(gpu) -> None:
    parts = {
        "floors": [{"matmul_tflop_per_s": 100.0, "copy_gb_per_s": 1000.0}],
        "decoding": [{"what": "x", "cached": 0, "s_per_token": 0.0062}, {"failed": "y"}],
        "real_size": [
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
