# SPDX-License-Identifier: Apache-2.0
"""4- or 8-bit weights for the stages of decoding, arithmetic unchanged (W4A16, W8A16).

A decoding step reads every weight for one token, so the bytes of the weights are its time. Each
weight matrix becomes integers and scales behind an ONNX DequantizeLinear: int8 with one scale per
output channel, int4 with one per 64 inputs. Rounding is to nearest and symmetric, nothing is
calibrated. `lm_head` is int8 in both, the embedding stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from g2vlm_ros.inference.tensorrt.device_memory import from_element, to_element
from g2vlm_ros.records import UnfitError

if TYPE_CHECKING:
    import onnx_ir as ir

MAX = {"int8": 127, "int4": 7}
BLOCK = 64
"""Inputs that share a scale in int4; TensorRT's kernels know 64 and 128."""
WEIGHT_ONLY_STAGES = ("language", "next_token")
"""Stages that decoding runs for each token."""
MIN_OPSETS = {"int8": 20, "int4": 24}
"""Of the two that we export; ONNX itself has int4 and blocks from opset 21 on."""


def kind_of(name: str, kind: str) -> str:
    """How a weight is stored: the logits' own matrix never in less than 8 bits."""
    return "int8" if name.startswith("language_model.lm_head.") else kind


def rounded(
    name: str, matrix: np.ndarray, kind: str, element: str
) -> tuple[np.ndarray, np.ndarray]:
    """Integers int8 (in, out) and scales float32 (groups, out) of a float32 (in, out) weight.

    Scales are first rounded to `element`, the type of the arithmetic, so that a dequantised weight
    is just their product. UnfitError where int4 finds no whole blocks.
    """
    inputs, outputs = matrix.shape
    if kind == "int4" and inputs % BLOCK:
        raise UnfitError(
            f"{name} has {inputs} inputs, int4 needs a multiple of {BLOCK}; use int8 weights"
        )
    groups = matrix.reshape(-1, BLOCK if kind == "int4" else inputs, outputs)
    most = MAX[kind]
    scales = from_element(to_element(np.abs(groups).max(axis=1) / most, element), element)
    scales = np.where(scales == 0, np.float32(1), scales)
    integers = np.rint(groups / scales[:, None]).clip(-most, most).astype(np.int8)
    return integers.reshape(matrix.shape), scales


def dequantised(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The float32 (in, out) weight that integers and scales stand for."""
    groups = integers.reshape(len(scales), -1, integers.shape[1])
    return (groups * scales[:, None]).reshape(integers.shape)


def dequantised_weights(network: Any, kind: str, element: str) -> dict[str, Any]:
    """What decoding computes with: parameter name -> torch (out, in)."""
    import torch

    weights = {}
    for module_name, module in network.language_model.named_modules():
        if not isinstance(module, torch.nn.Linear) or "_moe_geo" in module_name:
            continue
        name, weight = f"language_model.{module_name}.weight", module.weight.detach()
        matrix = weight.float().cpu().numpy().T
        real = dequantised(*rounded(name, matrix, kind_of(name, kind), element))
        weights[name] = torch.tensor(real.T.copy()).to(weight)
    return weights


def quantise_weights(model: ir.Model, kind: str, arithmetic: ir.DataType, path: Path) -> None:
    """Replaces the weight matrices of a graph; integers and scales go to `path`.

    Weights are read one at a time.
    """
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    from g2vlm_ros.export.int8 import weight_of, written

    with path.open("wb") as file:
        for node in list(model.graph):
            weight = weight_of(node)
            if weight is None:
                continue
            name, stored_as = weight.name, kind_of(weight.name, kind)
            matrix = weight.const_value.numpy().astype(np.float32).T
            integers, scales = rounded(name, matrix, stored_as, arithmetic.name)
            if stored_as == "int4":
                data, element = _packed(integers), ir.DataType.INT4
                how = {"axis": 0, "block_size": BLOCK}
            else:
                data, element = integers, ir.DataType.INT8
                how, scales = {"axis": 1}, scales[0]
            bits = to_element(scales, arithmetic.name)
            operands = [
                written(
                    model.graph, file, path, f"{name}:{stored_as}", data, element, integers.shape
                ),
                written(model.graph, file, path, f"{name}:scale", bits, arithmetic, bits.shape),
            ]
            real = ir.node("DequantizeLinear", operands, how)
            model.graph.insert_before(node, real)
            node.replace_input_with(1, real.outputs[0])
            if node.op_type == "Gemm":  # the weight was (out, in) and is (in, out) now
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
    passes.RemoveUnusedNodesPass()(model)


def _packed(integers: np.ndarray) -> np.ndarray:
    """Two of them to a byte, the first in the low half, as ONNX has int4."""
    low, high = integers.reshape(-1, 2).T.astype(np.uint8) & 0xF
    return low | high << 4
