# SPDX-License-Identifier: Apache-2.0
"""8-bit weights for the CPU: matrix products in integers, activations quantised as they come.

Each weight matrix becomes int8 with one scale per output channel; each activation becomes uint8
with the range that it happens to have (ONNX DynamicQuantizeLinear), so nothing is calibrated.
Processors with VNNI or AMX multiply such numbers faster than float32. Norms, softmax, rotations,
embeddings and the last parts of the heads stay in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from g2vlm_ros.model.network import FLOAT32_PARTS

MAX = 127


def quantise(model: ir.Model, path: Path) -> None:
    """Replaces the products with weight matrices; the int8 weights go to `path`.

    Weights are read one at a time. They are in a file of their own because the checkpoint does
    not hold them.
    """
    with path.open("wb") as file:
        for node in list(model.graph):
            weight = weight_of(node)
            if weight is not None and weight.name.split(".")[0] not in FLOAT32_PARTS:
                _replace(model.graph, node, weight, file, path)
    for each in (
        passes.CommonSubexpressionEliminationPass(),  # q, k and v quantise their input once
        passes.RemoveUnusedNodesPass(),
    ):
        each(model)


def weight_of(node: ir.Node) -> ir.Value | None:
    """The (out, in) weight of a product with its transpose, as linear layers are traced."""
    if node.op_type == "Gemm":
        straight = node.attributes.get_int("transB", 0) == 1
        factor = node.inputs[1] if straight else None
    elif node.op_type == "MatMul":
        source = node.inputs[1].producer()
        transposed = source is not None and source.op_type == "Transpose"
        factor = source.inputs[0] if transposed else None
    else:
        return None
    if factor is not None and (cast := factor.producer()) is not None:
        factor = cast.inputs[0] if cast.op_type == "Cast" else None
    if factor is None or not factor.is_initializer() or len(factor.const_value.shape) != 2:
        return None
    return factor


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, file: BinaryIO, path: Path) -> None:
    matrix = weight.const_value.numpy().astype(np.float32)
    scale = np.maximum(np.abs(matrix).max(axis=1), 1e-12) / MAX
    rounded = np.rint(matrix / scale[:, None]).astype(np.int8).T
    integers, scales = (
        written(graph, file, path, f"{weight.name}:{name}", array, element, array.shape)
        for name, array, element in (
            ("int8", rounded, ir.DataType.INT8),
            ("scale", scale, ir.DataType.FLOAT),
        )
    )
    result = node.outputs[0]
    quantised = ir.node("DynamicQuantizeLinear", [node.inputs[0]], num_outputs=3)
    x, x_scale, x_zero = quantised.outputs
    product = ir.node("MatMulInteger", [x, integers, x_zero])
    real = ir.node("Cast", [product.outputs[0]], {"to": ir.DataType.FLOAT})
    factor = ir.node("Mul", [x_scale, scales])
    scaled = ir.node("Mul", [real.outputs[0], factor.outputs[0]])
    nodes = [quantised, product, real, factor, scaled]
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        nodes.append(ir.node("Add", [scaled.outputs[0], node.inputs[2]]))
    final = nodes[-1].outputs[0]
    final.name, result.name = result.name, f"{result.name}:float"
    final.type, final.shape = result.type, result.shape
    graph.insert_before(node, nodes)
    result.replace_all_uses_with(final, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def written(
    graph: ir.Graph,
    file: BinaryIO,
    path: Path,
    name: str,
    data: np.ndarray,
    element: ir.DataType,
    shape: tuple[int, ...],
) -> ir.Value:
    """An initialiser whose bytes are written to the end of `file`, once per name."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name)
    value.const_value = ir.ExternalTensor(
        path.name,
        file.tell(),
        data.nbytes,
        element,
        shape=ir.Shape(shape),
        name=name,
        base_dir=path.parent,
    )
    file.write(np.ascontiguousarray(data).tobytes())
    value.shape, value.dtype = value.const_value.shape, element
    graph.register_initializer(value)
    return value
