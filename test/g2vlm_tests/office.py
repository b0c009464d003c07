# SPDX-License-Identifier: Apache-2.0
"""Where the recorded office lies, which no repository may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NAME = "hololens_office"
ROOT = Path(__file__).resolve().parents[2]


def office() -> Path:
    """Its folder in G2VLM_SEQUENCES or ../shared/data; skips the test where it is in neither."""
    given = os.environ.get("G2VLM_SEQUENCES")
    places = [Path(given)] if given else []
    # A work tree may lie a folder deeper than the repository.
    places += [ROOT.parent / "shared" / "data", ROOT.parents[1] / "shared" / "data"]
    for place in places:
        if (place / NAME / "poses.txt").is_file():
            return place / NAME
    pytest.skip(f"no {NAME} in G2VLM_SEQUENCES or ../shared/data: it may not be distributed")
