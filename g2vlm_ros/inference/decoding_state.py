# SPDX-License-Identifier: Apache-2.0
"""What one decoding step leaves for the next: names and sizes that files and runtimes share."""

from __future__ import annotations

import numpy as np

STATE = ("ids", "positions", "stored", "recent")
"""The token to feed, its position on three axes, the tokens in the cache, the newest ids."""
RECENT_TOKENS = 8
"""Ids that are remembered: a host need look at what was decoded only once in so many steps."""
STEPS_AHEAD = 4
"""After how many steps a host looks. A GPU is not held up by it then; on an AGX Orin an answer
comes on in pieces of about .1 s, and what is decoded behind its end is at most three tokens."""


def first_state(token: int, position: int, stored: int) -> dict[str, np.ndarray]:
    """The state before the first step: a token, fed at a position behind `stored` tokens."""
    return {
        "ids": np.array([token], np.int64),
        "positions": np.full((3, 1), position, np.int64),
        "stored": np.array([stored], np.int64),
        "recent": np.zeros(RECENT_TOKENS, np.int64),
    }


def layer_names(layers: int) -> list[str]:
    """Names of the keys and values of each layer, as the language stage has them in buffers."""
    return [f"{side}_{layer}" for layer in range(layers) for side in ("keys", "values")]
