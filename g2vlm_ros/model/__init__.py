# SPDX-License-Identifier: Apache-2.0
"""The network of G²VLM (arXiv 2511.21688) in torch: encoders, trunk, heads and checkpoints."""
