# SPDX-License-Identifier: Apache-2.0
"""The network of G²VLM (arXiv 2511.21688) in torch: encoders, trunk, heads and checkpoints."""

try:
    import torch as torch
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; this part needs torch: pip install torch, or make test, which brings it",
        name=error.name,
    ) from None
