# SPDX-License-Identifier: Apache-2.0
"""The kernels are compiled, found and loaded; all variants give the same bits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from g2vlm_tests.noisy_room import window

from g2vlm_ros.kernels import build, checks
from g2vlm_ros.kernels import library as loader
from g2vlm_ros.kernels.agreement import fusion_factors, multi_view_confidence, scale_points
from g2vlm_ros.kernels.cells import CellSums
from g2vlm_ros.kernels.packing import pack_points, valid_points
from g2vlm_ros.kernels.resize import resize_lanczos

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [file for end in ("cpp", "h", "cuh", "cu") for file in build.SOURCES.glob(f"*.{end}")]


def results():
    """Bytes of what kernels of every kind give."""
    view = window()
    valid = valid_points(view.points, 0.05)
    out = np.zeros(20 * valid.size, np.uint8)
    affines = np.ascontiguousarray(view.poses[:, :3])
    maps = view.points, view.colours, view.confidence, valid
    pack_points(*maps, range(4), affines, out)
    cells, *_ = CellSums().of_views(
        *maps, range(4), affines, np.full(4, 3.0), voxel_size=0.05, stamp_ns=1, window=1
    )
    factor = fusion_factors(view.points, view.j_from_i, view.pinholes, 0.1, 0.2)
    small = np.empty((50, 70, 3), np.uint8)
    resize_lanczos(view.colours[0], 70, 50, small)
    arrays = [valid, out, cells, factor, scale_points(view.points, factor), small]
    arrays.append(multi_view_confidence(view.points, view.j_from_i, view.pinholes, 4, 0.05, 0.1))
    return [array.tobytes() for array in arrays]


def test_variants_give_the_same_bits(monkeypatch):
    fastest, *others = build.variants_here()
    expected = results()
    if not others:
        pytest.skip("this processor can run only one variant")
    for name in others:
        other = loader.library(name)
        monkeypatch.setattr(checks, "library", lambda other=other: other)
        assert results() == expected, f"{name} differs from {fastest}"


def test_no_compiler_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(build.BuildError, match=r"apt install g\+\+") as caught:
        build.compile_library("g2vlm_kernels", tmp_path / "libg2vlm_kernels.so")
    assert "\n" not in str(caught.value)


@pytest.mark.ros
def test_a_node_without_kernels_and_compiler_says_so_in_a_sentence(monkeypatch, tmp_path):
    """It was a traceback in the log."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from rclpy.lifecycle import TransitionCallbackReturn

    from g2vlm_ros.ros.lifecycle import all_or_nothing

    class Node:
        said: list[str] = []

        def get_logger(self):
            return SimpleNamespace(error=self.said.append)

        def undo(self):
            pass

        @all_or_nothing("undo")
        def on_configure(self, state):
            build.compile_library("g2vlm_kernels", tmp_path / "out" / "lib.so")

    monkeypatch.setenv("CXX", "/bin/false")
    assert Node().on_configure(None) == TransitionCallbackReturn.FAILURE
    (sentence,) = Node.said
    assert "cannot compile" in sentence and sentence.endswith("it ended with 1")


def test_a_failing_compiler_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'kernel.h:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    folder = tmp_path / "out"
    with pytest.raises(build.BuildError, match="error: no such thing"):
        build.compile_library("g2vlm_kernels", folder / "libg2vlm_kernels.so")
    assert list(folder.iterdir()) == []


def test_a_read_only_checkout_compiles_into_the_cache(monkeypatch, tmp_path):
    def compile_library(name, target):
        if target.parent != tmp_path / "g2vlm_ros" / "kernels":
            raise PermissionError(target)
        return target

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(loader, "compile_library", compile_library)
    monkeypatch.setattr(loader, "digest", lambda name: "new")
    file = loader.library_file("g2vlm_kernels")
    assert file == tmp_path / "g2vlm_ros" / "kernels" / "libg2vlm_kernels-new.so"


def test_an_installed_package_brings_its_library(monkeypatch, tmp_path):
    monkeypatch.setattr(loader, "SOURCES", tmp_path)
    with pytest.raises(build.BuildError, match="install g2vlm_ros again"):
        loader.library_file("g2vlm_kernels")
    (tmp_path / "libg2vlm_kernels.so").touch()
    assert loader.library_file("g2vlm_kernels") == tmp_path / "libg2vlm_kernels.so"


def test_the_digest_follows_the_sources(monkeypatch, tmp_path):
    for file in SOURCES:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    before = build.digest("g2vlm_kernels")
    with (tmp_path / "kernel.h").open("a") as file:
        file.write("// changed\n")
    assert build.digest("g2vlm_kernels") != before
    assert build.digest("g2vlm_kernels_avx2") != build.digest("g2vlm_kernels")


def test_cmake_uses_the_same_flags():
    text = (ROOT / "CMakeLists.txt").read_text()
    for flag in (*build.FLAGS[1:2], *build.FLAGS[4:], build.SAME_EVERYWHERE, "-mavx2"):
        assert flag in text, f"CMakeLists.txt compiles the kernels without {flag}"
    for name in build.VARIANTS:
        assert re.search(rf"\b{name}\b", text)


def test_building_needs_no_library_of_python():
    code = "import sys; import g2vlm_ros.kernels.build; print('numpy' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    assert output.strip() == "False"


def test_the_sources_are_as_narrow_as_the_python():
    for file in SOURCES:
        lines = file.read_text().splitlines()
        assert lines[0] == "// SPDX-License-Identifier: Apache-2.0"
        wide = [number for number, line in enumerate(lines, 1) if len(line) > 99]
        assert not wide, f"{file.name} has more than 99 columns in lines {wide}"
