# SPDX-License-Identifier: Apache-2.0
"""The perception node with a network that fails as a file says: a device that hangs, or is lost.

The process is the real one in everything else. The file G2VLM_FAULTS holds one word: hang,
runtime, memory, exit, lost, language, or nothing.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from g2vlm_ros import perception
from g2vlm_ros.records import BackendGoneError
from g2vlm_ros.ros import perception_node

HANG_S = 3600.0
FAULT = Path(os.environ["G2VLM_FAULTS"])


def fault() -> str:
    """What is to fail now."""
    return FAULT.read_text().strip() if FAULT.exists() else ""


def fail() -> None:
    """Do so."""
    kind = fault()
    if kind == "hang":
        end = time.monotonic() + HANG_S
        while fault() == "hang" and time.monotonic() < end:
            time.sleep(0.05)
    elif kind == "runtime":
        raise RuntimeError("the network failed")
    elif kind == "memory":
        raise MemoryError("no memory for the network")
    elif kind == "exit":
        raise SystemExit("a library wants to end the process")
    elif kind == "lost":
        raise BackendGoneError("CUDA_ERROR_ILLEGAL_ADDRESS")


class FailingPerception(perception.Perception):
    """Fails before the network is run."""

    def reconstruct(self, *arguments: Any, **named: Any) -> Any:
        fail()
        return super().reconstruct(*arguments, **named)

    def ask(self, *arguments: Any, **named: Any) -> Any:
        if fault() == "language":
            raise RuntimeError("the language failed")
        return super().ask(*arguments, **named)


if __name__ == "__main__":
    perception_node.Perception = FailingPerception
    raise SystemExit(perception_node.main())
