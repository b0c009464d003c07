# SPDX-License-Identifier: Apache-2.0
"""ONNX files as tests change them."""

from __future__ import annotations

import onnx


def without_hints(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the hint to TensorRT, which ONNX does not know."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        kept = [a for a in node.attribute if a.name != "TRT_decomposable"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy
