# SPDX-License-Identifier: Apache-2.0
"""The perception node with its books open: what each of its stores holds, over time.

The process is the real one in everything else. Every PERIOD_S a line of JSON goes to the file that
G2VLM_ACCOUNTS names: windows, resident memory, what malloc has given out, maps, and the bytes of
each store of the node's parts.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from g2vlm_tests.accounts import MIB, malloc_mib, resident_bytes, store_bytes

from g2vlm_ros.ros import perception_node

PERIOD_S = 10.0
SMALLEST_MIB = 0.01
"""Stores below it are left out."""
PARTS = (
    "pipeline",
    "dense_map",
    "objects",
    "rooms",
    "windows",
    "queries",
    "object_services",
    "outputs",
    "cameras",
    "perception",
)
"""Of the node, in the order in which they are charged for what they share."""


def accounts(node: perception_node.PerceptionNode) -> dict[str, Any]:
    """One line of the books."""
    parts = {name: getattr(node, name) for name in PARTS}
    stores = store_bytes({name: part for name, part in parts.items() if part is not None})
    counts = node.pipeline.counts()
    return {
        "windows": counts.windows,
        "resident_mib": round(resident_bytes() / MIB, 2),
        "malloc_mib": malloc_mib(),
        **{store.name: round(store.held, 3) for store in node.stores()},
        "stores_mib": {
            name: round(size / MIB, 3)
            for name, size in stores.items()
            if size > SMALLEST_MIB * MIB
        },
    }


class AccountedNode(perception_node.PerceptionNode):
    """Keeps its books from the start."""

    def __init__(self, **node_arguments: Any):
        super().__init__(**node_arguments)
        threading.Thread(target=self._keep_books, name="accounts", daemon=True).start()

    def _keep_books(self) -> None:
        start = time.monotonic()
        with Path(os.environ["G2VLM_ACCOUNTS"]).open("w") as file:
            while True:
                time.sleep(PERIOD_S)
                if self.windows is not None and self.windows.active:
                    row = {"seconds": round(time.monotonic() - start, 1)} | accounts(self)
                    print(json.dumps(row), file=file, flush=True)


if __name__ == "__main__":
    perception_node.PerceptionNode = AccountedNode
    raise SystemExit(perception_node.main())
