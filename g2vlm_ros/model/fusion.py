# SPDX-License-Identifier: Apache-2.0
"""One kernel for each small part between the matrix products, by torch.compile.

On an H100 a window of eight views spent 60 of 142 ms in element-wise kernels: casts around norms
and rotations, gates. Only these parts are compiled, which takes seconds; whole stages did not
compile within a minute.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from g2vlm_ros.model.decoder import GatedMlp, Layer, silu_gate
from g2vlm_ros.model.heads import CrossAttention
from g2vlm_ros.model.layers import LayerNorm, RMSNorm, SelfAttention, layer_norm, rms_norm
from g2vlm_ros.model.network import G2VLM
from g2vlm_ros.model.rope import rotate, rotate_decoder

PARTS: dict[type, tuple[str, Any]] = {
    RMSNorm: ("compute", rms_norm),
    LayerNorm: ("compute", layer_norm),
    GatedMlp: ("compute", silu_gate),
    Layer: ("rotation", rotate),
    SelfAttention: ("rotation", None),
    CrossAttention: ("rotation", rotate_decoder),
}
"""Modules, the attribute that computes the part, and the function there; None: it has its own."""


MAX_VARIANTS = 32
"""Compiled forms of one part, by type, strides, number of dimensions and those of size one. Norms
need about 8, torch's own limit, beyond which a part silently runs as it was."""


def with_fused_parts(network: G2VLM, compiler: Any = "inductor") -> G2VLM:
    """The network, of the same weights, with compiled norms, rotations and gates of any length.

    Numbers differ by rounding. The first call with a new width or type compiles: on a GPU that
    needs Triton, which torch's CUDA build brings, on a CPU a C++ compiler.
    """
    # Takes 2 s to import, which a process that compiles nothing need not spend.
    from torch._dynamo import config as settings

    settings.recompile_limit = max(settings.recompile_limit, MAX_VARIANTS)
    # Else the epsilon of a norm is a tensor on the host, made anew in every call.
    settings.specialize_float = True
    fused = copy.deepcopy(network, {id(p): p for p in network.parameters()})
    compiled: dict[Any, Any] = {}
    for module in fused.modules():
        if type(module) not in PARTS:
            continue
        name, function = PARTS[type(module)]
        function = function or getattr(module, name)
        if function not in compiled:
            compiled[function] = torch.compile(function, backend=compiler, dynamic=True)
        setattr(module, name, compiled[function])
    return fused
