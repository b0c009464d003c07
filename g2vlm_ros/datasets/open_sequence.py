# SPDX-License-Identifier: Apache-2.0
"""Opens a sequence of any known format."""

from __future__ import annotations

from pathlib import Path

from g2vlm_ros.datasets import euroc, hololens, nerfstudio, rosbag2, tum_rgbd
from g2vlm_ros.datasets.sequence import (
    PosedSequence,
    ReaderOptions,
    SequenceError,
    SequenceReader,
)

READERS: tuple[SequenceReader, ...] = (tum_rgbd, euroc, nerfstudio, rosbag2, hololens)


def open_sequence(path: str | Path, options: ReaderOptions | None = None) -> PosedSequence:
    """The sequence at `path`; SequenceError says what is wrong, or which formats are known."""
    path = Path(path).expanduser()
    options = options or ReaderOptions()
    if not 0 < options.rate_hz < float("inf"):
        raise SequenceError(f"rate is {options.rate_hz} Hz; it must be above 0")
    if not path.exists():
        raise SequenceError(f"{path} does not exist; give a folder or recording with true poses")
    for reader in READERS:
        if reader.recognises(path):
            return reader.read(path, options)
    formats = ", ".join(reader.FORMAT for reader in READERS)
    raise SequenceError(f"{path} is of no format with true poses that is known here: {formats}")
