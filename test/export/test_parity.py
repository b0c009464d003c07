# SPDX-License-Identifier: Apache-2.0
"""Every array of every reference case, and that the command notices what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from g2vlm_ros.export.parity import check, main
from g2vlm_ros.export.tolerance import Tolerances, compare

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"
CASES = [c["case"] for c in json.loads((GOLDEN / "cases.json").read_text())]
PRESENT = [case for case in CASES if (GOLDEN / f"{case}.safetensors").exists()]


@pytest.fixture(scope="module")
def fp32() -> dict[tuple[str, str], float]:
    return {(line.case, line.array): line.fraction for line in check(GOLDEN, precision="fp32")}


@pytest.mark.parametrize("case", PRESENT)
def test_every_array_is_within_tolerance(case: str, fp32: dict[tuple[str, str], float]) -> None:
    arrays = load_file(GOLDEN / f"{case}.safetensors")
    compared = {array: fraction for (name, array), fraction in fp32.items() if name == case}
    assert compared.keys() == arrays.keys()
    assert {array: f for array, f in compared.items() if not f <= 1} == {}


def one_case(folder: Path, case: str) -> dict[str, np.ndarray]:
    """Copies the set to a folder with a single case and returns its arrays."""
    ignored = [f"{name}.safetensors" for name in CASES if name != case]
    shutil.copytree(GOLDEN, folder, ignore=lambda *_: ignored)
    return load_file(folder / f"{case}.safetensors")


@pytest.mark.parametrize(
    ("array", "index", "change"),
    [
        ("out.points", (0, 0, 3, 4), 0.01),
        ("decode.logits", (7, 100), 0.01),
        ("s2_vit.token_ids", 0, 1),
    ],
)
def test_a_deviation_is_a_miss_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], array: str, index: tuple, change: float
) -> None:
    case = "recon_112_single" if array == "out.points" else "chat_1img"
    arrays = one_case(tmp_path / "set", case)
    arrays[array] = arrays[array].copy()
    arrays[array][index] += change
    save_file(arrays, tmp_path / "set" / f"{case}.safetensors")
    assert main(["--golden", str(tmp_path / "set")]) == 1
    missed = [line for line in capsys.readouterr().out.splitlines() if "MISS" in line]
    assert len(missed) == 1 and array in missed[0]


def test_broken_weights_are_a_miss_not_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_case(tmp_path / "set", "recon_112_single")
    weights = load_file(tmp_path / "set" / "model.safetensors")
    weights["point_head.proj.bias"] = weights["point_head.proj.bias"] * np.float16(np.nan)
    save_file(weights, tmp_path / "set" / "model.safetensors")
    assert main(["--golden", str(tmp_path / "set")]) == 1
    assert "stage 'heads'" in capsys.readouterr().out


def test_bfloat16_stays_within_its_bound(tmp_path: Path) -> None:
    one_case(tmp_path / "set", "chat_1img")
    lines = list(check(tmp_path / "set", precision="bf16"))
    assert len(lines) > 40 and not [line for line in lines if line.missed]
    assert max(line.fraction for line in lines) > 0.01


def test_strides_are_found_and_other_shapes_refused() -> None:
    meta = json.loads((GOLDEN / "meta.json").read_text())
    tolerances = Tolerances(meta, "fp32")
    full = np.random.default_rng(0).normal(size=(1, 50, 40, 3)).astype(np.float32)
    golden = {
        "out.global_points_strided": full[:, ::7, ::7],
        "out.global_points_row31": full[:, :, 31],
        "out.camera_poses": full[:, :3],
    }
    made = {"out.global_points": full[None], "out.camera_poses": full[0]}
    golden = {k: v[None] if "global" in k else v for k, v in golden.items()}
    lines = {line.array: line for line in compare("case", made, golden, tolerances, True)}
    assert lines["out.global_points_strided"].fraction == 0
    assert lines["out.global_points_row31"].missed
    assert lines["out.camera_poses"].missed


def test_sets_that_cannot_be_checked_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--golden", str(tmp_path)]) == 1
    assert "holds no reference vectors (cases.json)" in capsys.readouterr().err
    assert main(["--golden", str(GOLDEN), "--backend", "abacus"]) == 1
    assert "backend 'abacus' is not there" in capsys.readouterr().err
