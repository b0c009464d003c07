# SPDX-License-Identifier: Apache-2.0
"""What a client raises where the node cannot be reached."""

from __future__ import annotations


class UnreachableError(ConnectionError):
    """The node does not offer the service, or does not respond."""


class PictureMissedError(UnreachableError):
    """The picture of an answer did not come: others were asked about meanwhile."""
