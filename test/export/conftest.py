# SPDX-License-Identifier: Apache-2.0
"""The reference checkpoint exported at opset 24, once for the tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "A"


@pytest.fixture(scope="session")
def opset_24(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `geometry` and `language` in float32."""
    pytest.importorskip("onnxscript", reason="the export needs onnxscript")
    from g2vlm_ros.export.export_onnx import export

    folder = tmp_path_factory.mktemp("opset24")
    for pattern in ("model.safetensors", "*_config.json"):
        for path in GOLDEN.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    export(folder, opset=24, stages=("geometry", "language"))
    return folder
