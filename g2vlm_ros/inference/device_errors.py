# SPDX-License-Identifier: Apache-2.0
"""Which errors mean that a GPU is lost for this process, whoever reports them.

After an illegal address and the like a CUDA context answers nothing any more. On an H100 the
primary context could then be reset, but no new one could be retained: it is lost for the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from g2vlm_ros.records import BackendGoneError

LOST_STATUS = (
    "ILLEGAL_ADDRESS",
    "ILLEGAL_INSTRUCTION",
    "INVALID_ADDRESS_SPACE",
    "INVALID_PC",
    "MISALIGNED_ADDRESS",
    "LAUNCH_FAILED",
    "LAUNCH_TIMEOUT",
    "HARDWARE_STACK_ERROR",
    "TENSOR_MEMORY_LEAK",
    "ECC_UNCORRECTABLE",
    "CONTAINED",
    "CONTEXT_IS_DESTROYED",
    "ERROR_ASSERT",
    "DEVICE_UNAVAILABLE",
    "EXTERNAL_DEVICE",
    "SYSTEM_NOT_READY",
    "ERROR_UNKNOWN",
)
"""Parts of the names of CUDA's status codes, as cuda-python gives them."""
LOST_TEXT = (
    "illegal memory access",
    "illegal instruction",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "misaligned address",
    "unspecified launch failure",
    "launch failed",
    "launch timed out",
    "hardware stack error",
    "uncorrectable ecc error",
    "context is destroyed",
    "device-side assert",
    "failed: unknown error",
    "cuda error: unknown error",
)
"""The same as sentences of cuGetErrorString, which pycuda, torch and ONNX Runtime pass on."""


def says_lost(reason: str) -> bool:
    """Whether a status name or an error's text means a lost context."""
    text = reason.lower()
    return any(status in reason for status in LOST_STATUS) or any(
        sentence in text for sentence in LOST_TEXT
    )


def lost_sentence(where: str, reason: str) -> str:
    """What a user reads: what happened, what it means, what to do."""
    return (
        f"CUDA was lost in {where}: {reason}; nothing runs on this GPU in this process any more; "
        "start it again, and if it stays so check the GPU with `dmesg`"
    )


@contextmanager
def lost_is_final(where: str) -> Iterator[None]:
    """Makes a BackendGoneError of a RuntimeError that means a lost context; others pass."""
    try:
        yield
    except BackendGoneError:
        raise
    except RuntimeError as error:
        if not says_lost(str(error)):
            raise
        first_line = str(error).strip().split("\n")[0]
        raise BackendGoneError(lost_sentence(where, first_line)) from error
