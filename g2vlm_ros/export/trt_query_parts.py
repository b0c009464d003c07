# SPDX-License-Identifier: Apache-2.0
"""Attention over a part of the queries at a time, for engines that do not fuse it.

Where no kernel computes a whole attention, the scores of all queries stand in memory: 12 x 8 304 x
10 352 of them in `geometry` for eight views at 518x392 behind 2 048 tokens, 2 GB in half precision
for every layer. Rows of scores do not depend on each other, so the queries are cut into as many
parts as a window has views at most: the scores that exist at a time are then those of one view.

Only for products around a softmax, as opset 20 has them. An Attention node is one kernel wherever
there is one, and behind a Slice of computed size TensorRT-RTX 1.7 ends the process over it.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from onnx import GraphProto, NodeProto, TensorProto, helper

TOKEN_AXIS = 2
"""Of queries (1, heads, tokens, D), and of what attention gives for them."""


class WholeAttention(NamedTuple):
    """An attention without a mask."""

    nodes: list[NodeProto]
    """The product of queries and keys, the softmax, the product with the values."""

    @property
    def queries(self) -> str:
        return self.nodes[0].input[0]

    @property
    def output(self) -> str:
        return self.nodes[-1].output[0]


def in_parts(graph: GraphProto, parts: int) -> int:
    """Cuts the queries of every attention without a mask into parts; how many attentions.

    Masked ones have rows of masks as well; those of this project are of few queries.
    """
    attentions = {attention.output: attention for attention in whole_attentions(graph)}
    inside = [node for attention in attentions.values() for node in attention.nodes]
    nodes: list[NodeProto] = []
    bounds: list[tuple[str, str]] = []
    for node in graph.node:
        attention = attentions.get(node.output[0])
        if attention is not None:
            if not bounds:  # queries of all layers are equally many
                bounds = _bounds(nodes, attention.queries, parts)
            nodes += _cut(attention, bounds)
        elif not any(node is other for other in inside):
            nodes.append(node)
    copies = []
    for node in nodes:
        copies.append(NodeProto())
        copies[-1].CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)
    return len(attentions)


def whole_attentions(graph: GraphProto) -> list[WholeAttention]:
    """Those whose queries can be cut into parts."""
    producer = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    attentions = []
    for node in graph.node:
        if node.op_type == "Softmax":
            scores = producer.get(node.input[0])
            products = consumers.get(node.output[0], [])
            chain = [scores, *products]
            if len(products) == 1 and all(n and n.op_type == "MatMul" for n in chain):
                attentions.append(WholeAttention([scores, node, products[0]]))
    return attentions


def _bounds(nodes: list[NodeProto], queries: str, parts: int) -> list[tuple[str, str]]:
    """Names of the first and the last place of each part, which the added nodes compute.

    Parts of equal size, the last one perhaps smaller: at most what one of so many views has.
    """
    rows, step = f"{queries}:rows", f"{queries}:step"
    nodes.append(
        helper.make_node("Shape", [queries], [rows], start=TOKEN_AXIS, end=TOKEN_AXIS + 1)
    )
    more, count = _constant(nodes, f"{step}:more", parts - 1), _constant(nodes, f"{step}:n", parts)
    nodes.append(helper.make_node("Add", [rows, more], [f"{step}:sum"]))
    nodes.append(helper.make_node("Div", [f"{step}:sum", count], [step]))
    places = []
    for index in range(parts + 1):
        number = _constant(nodes, f"{step}:{index}", index)
        places.append(f"{step}:place_{index}")
        nodes.append(helper.make_node("Mul", [step, number], [places[-1]]))
    _constant(nodes, _axis_name(queries), TOKEN_AXIS)
    return list(itertools.pairwise(places))


def _cut(attention: WholeAttention, bounds: list[tuple[str, str]]) -> list[NodeProto]:
    """The nodes of an attention once for each part, and what puts their results together."""
    nodes, results = [], []
    axis = _axis_name(bounds[0][0].rsplit(":step:", 1)[0])
    for index, (start, end) in enumerate(bounds):
        renamed = {attention.queries: f"{attention.output}:queries_{index}"}
        nodes.append(
            helper.make_node(
                "Slice", [attention.queries, start, end, axis], [renamed[attention.queries]]
            )
        )
        for node in attention.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}:part_{index}"
            copy.input[0] = renamed[node.input[0]]
            renamed[node.output[0]] = copy.output[0] = f"{node.output[0]}:part_{index}"
            nodes.append(copy)
        results.append(renamed[attention.output])
    nodes.append(helper.make_node("Concat", results, [attention.output], axis=TOKEN_AXIS))
    return nodes


def _axis_name(queries: str) -> str:
    return f"{queries}:axis"


def _constant(nodes: list[NodeProto], name: str, value: int) -> str:
    tensor = helper.make_tensor("", TensorProto.INT64, [1], [value])
    nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    return name
