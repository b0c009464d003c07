# SPDX-License-Identifier: Apache-2.0
"""Two graphs without weights that copy keys and values inside a device.

For ONNX Runtime, whose Python copies whole arrays only: `store` puts tokens into a buffer from a
place on, and its output is bound to the memory of its input; `load` reads the first tokens.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from g2vlm_ros.checkpoint.config import TextConfig
from g2vlm_ros.checkpoint.onnx_manifest import CACHE_GRAPHS

OPSET, IR_VERSION = 20, 10
"""Whatever the other graphs have: ONNX Runtime 1.23, the last one for Python 3.10, reads up to 23,
so that TensorScatter (24) is not for these two."""
ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int8": TensorProto.FLOAT,
}
"""dtype of an export -> type of its keys and values."""


def copying_graphs(text: TextConfig, dtype: str) -> dict[str, ModelProto]:
    """`store` and `load` for buffers (layers, kv_heads, places, head_dim) of a type."""
    element = ELEMENTS[dtype]

    def array(name: str, tokens: str) -> onnx.ValueInfoProto:
        shape = [text.layers, text.kv_heads, tokens, text.head_dim]
        return helper.make_tensor_value_info(name, element, shape)

    stored = helper.make_tensor_value_info("stored", TensorProto.INT64, [1])
    buffer = array("buffer", "places")
    store = [
        _integers("zero", [0]),
        _integers("one", [1]),
        _integers("two", [2]),
        _integers("column", [1, 1, -1, 1]),
        helper.make_node("Shape", ["tokens"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["count"], axis=0),
        helper.make_node("Add", ["stored", "count"], ["end"]),
        helper.make_node("Squeeze", ["stored", "zero"], ["from"]),
        helper.make_node("Squeeze", ["end", "zero"], ["to"]),
        helper.make_node("Squeeze", ["one", "zero"], ["step"]),
        helper.make_node("Range", ["from", "to", "step"], ["places_in_a_row"]),
        helper.make_node("Reshape", ["places_in_a_row", "column"], ["places_of_tokens"]),
        helper.make_node("Expand", ["places_of_tokens", "shape"], ["places_of_numbers"]),
        helper.make_node(
            "ScatterElements", ["buffer", "places_of_numbers", "tokens"], ["written"], axis=2
        ),
    ]
    load = [
        _integers("first", [0]),
        _integers("axis", [2]),
        helper.make_node("Slice", ["buffer", "first", "stored", "axis"], ["tokens"]),
    ]
    graphs = (
        helper.make_graph(
            store, "store", [buffer, array("tokens", "new"), stored], [array("written", "places")]
        ),
        helper.make_graph(load, "load", [buffer, stored], [array("tokens", "cached")]),
    )
    opset = [helper.make_opsetid("", OPSET)]
    models = (helper.make_model(g, opset_imports=opset, ir_version=IR_VERSION) for g in graphs)
    return dict(zip(CACHE_GRAPHS, models, strict=True))


def _integers(name: str, values: list[int]) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)
