# SPDX-License-Identifier: Apache-2.0
"""Threads follow the quota of a container, not the cores of its host."""

import os
from pathlib import Path

import numpy as np
import pytest

from g2vlm_ros.inference.cpu_quota import usable_cores


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("max 100000", 16),
        ("", 16),
    ],
)
def test_the_quota_of_a_control_group_bounds_the_threads(tmp_path, monkeypatch, text, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == cores


def test_version_1_of_control_groups_and_none_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_cores(tmp_path) == 16
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 2
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(tmp_path) == 16


def test_the_parameter_overrules_the_cores(monkeypatch):
    """`model.threads` reaches the sessions of ONNX Runtime; 0 leaves it to the quota."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from g2vlm_ros.checkpoint.onnx_manifest import ManifestError
    from g2vlm_ros.inference import backend, onnx_backend

    thread_counts = []

    def session(path, options, providers):
        thread_counts.append(options.intra_op_num_threads)
        raise RuntimeError("no session in this test")

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnx_backend, "usable_cores", lambda: 5)
    folder = Path(__file__).parents[2] / "engines" / "demo"
    for threads in (0, 3):
        stages = backend.open_backend("onnx", folder, threads=threads, device="cpu")
        with pytest.raises(ManifestError, match="no session in this test"):
            stages.encode_geometry(np.zeros((1, 168, 224, 3), np.uint8))
    assert thread_counts == [5, 3]
