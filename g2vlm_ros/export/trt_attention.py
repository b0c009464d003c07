# SPDX-License-Identifier: Apache-2.0
"""Ways in which an engine may compute attention, from fast to safe.

"fused": as TensorRT likes. "decomposed": scores are observable, so that no fused kernel replaces
them. "float32": queries, keys and values are cast to float32 around each attention. Some TensorRT
versions compute fused 16-bit attention wrongly on some GPUs, without an error; a build then goes
on to the next way. "per_view" is for a version that does not fuse though it may: the scores of
one view at a time, as in the safer ways (`trt_query_parts`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from g2vlm_ros.export.trt_query_parts import in_parts

WAYS = ("fused", "decomposed", "float32")
HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BETWEEN = ("Add", "Mul", "Div", "Sub", "Where", "Reshape", "Concat")
"""What may stand between the products and the softmax."""


def ways_for(model: ModelProto, precision: str) -> tuple[str, ...]:
    """The ways that make a difference for a graph.

    An Attention node can be decomposed only by giving it float32, for which there is no fused
    kernel.
    """
    has_node = any(node.op_type == "Attention" for node in model.graph.node)
    ways = ("fused", "float32") if has_node else WAYS
    return ways if precision in HALF else tuple(way for way in ways if way != "float32")


def count_attentions(model: ModelProto) -> int:
    """In how many places one kernel could compute a whole attention.

    Not where past and new tokens are apart, whose scores a Concat puts together: a decoding step
    reads the cache once in any case, and has one row of scores per head.
    """
    producer = {name: node.op_type for node in model.graph.node for name in node.output}
    return sum(
        node.op_type == "Attention"
        or (node.op_type == "Softmax" and producer.get(node.input[0]) != "Concat")
        for node in model.graph.node
    )


def read_graph(path: Path) -> ModelProto:
    """An ONNX file without the weights it points to."""
    return onnx.load(str(path), load_external_data=False)


def arranged(
    model: ModelProto, way: str, precision: str, places: int | None = None, views: int = 1
) -> ModelProto:
    """The graph with its attention as `way` wants it; weights stay outside.

    places: size of the buffers of keys and values, which TensorRT wants fixed where it writes.
    views: most views that attend to each other; where no kernel computes an attention at once,
    the scores of one of them exist at a time.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    if places is not None:
        _fix(copy.graph, "places", places)
    for node in copy.graph.node:
        if node.op_type == "Attention":
            # Ignored where a dedicated kernel exists; without it the build fails where none does.
            node.attribute.append(helper.make_attribute("TRT_decomposable", 1))
    if way == "float32" and precision in HALF:
        _in_float32(copy.graph, HALF[precision])
    if views > 1 and not may_fuse(way, precision):
        in_parts(copy.graph, views)
    return copy


def may_fuse(way: str, precision: str) -> bool:
    """Whether a kernel may compute an attention at once; there are none in float32."""
    return way == "fused" and precision in HALF


def _fix(graph: GraphProto, name: str, size: int) -> None:
    """Gives a free dimension of the inputs and outputs its size."""
    for value in (*graph.input, *graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == name:
                dimension.dim_value = size


def forbid_fusion(network: Any, softmax: Any) -> int:
    """Marks the scores of every attention for debugging; returns how many there are."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    softmaxes = [layer for layer in layers if layer.type == softmax]
    for layer in softmaxes:
        network.mark_debug(layer.get_output(0))
    return len(softmaxes)


def _in_float32(graph: GraphProto, half: int) -> None:
    """Casts around each attention, whether it is one node or products and a softmax."""
    edit = _Edit(graph, half)
    for node in list(graph.node):
        if node.op_type == "Attention":
            for index in range(3):  # a float32 mask is refused by TensorRT-RTX 1.7
                edit.widen(node, index)
            edit.narrow(node)
        elif node.op_type == "Softmax":
            edit.widen_scores(node)
            for product in edit.widen_values(node):
                edit.narrow(product)
    edit.apply()


class _Edit:
    """Casts to be put before and after nodes of a graph."""

    def __init__(self, graph: GraphProto, half: int):
        self.graph, self.half = graph, half
        self.producer = {name: node for node in graph.node for name in node.output}
        self.before: list[tuple[NodeProto, NodeProto]] = []
        self.after: list[tuple[NodeProto, NodeProto]] = []

    def widen(self, node: NodeProto, index: int) -> None:
        source = node.input[index]
        wide = f"{source}:wide_{len(self.before)}"
        cast = helper.make_node("Cast", [source], [wide], to=TensorProto.FLOAT)
        self.before.append((node, cast))
        node.input[index] = wide

    def narrow(self, node: NodeProto) -> None:
        name, wide = node.output[0], f"{node.output[0]}:wide"
        node.output[0] = wide
        self.after.append((node, helper.make_node("Cast", [wide], [name], to=self.half)))

    def widen_scores(self, node: NodeProto) -> None:
        """Walks from a softmax up to the product of queries and keys."""
        for index, name in enumerate(node.input):
            above = self.producer.get(name)
            if above is not None and above.op_type == "MatMul":
                self.widen(above, 0)
                self.widen(above, 1)
            elif above is not None and above.op_type in BETWEEN and self._from_product(above):
                self.widen_scores(above)
            elif not (node.op_type == "Reshape" and index == 1):
                self.widen(node, index)

    def _from_product(self, node: NodeProto) -> bool:
        for name in node.input:
            above = self.producer.get(name)
            if above is None:
                continue
            if above.op_type == "MatMul":
                return True
            if above.op_type in BETWEEN and self._from_product(above):
                return True
        return False

    def widen_values(self, node: NodeProto) -> list[NodeProto]:
        """Walks from a softmax down to the products with the values, which are returned.

        There are two of them where past and new tokens are apart.
        """
        name, products = node.output[0], []
        for below in [n for n in self.graph.node if name in n.input]:
            if below.op_type == "MatMul":
                self.widen(below, 1 - list(below.input).index(name))
                products.append(below)
            else:
                products += self.widen_values(below)
        return products

    def apply(self) -> None:
        for node, cast in self.before:
            self.graph.node.insert(list(self.graph.node).index(node), cast)
        for node, cast in self.after:
            self.graph.node.insert(list(self.graph.node).index(node) + 1, cast)
