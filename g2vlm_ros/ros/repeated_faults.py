# SPDX-License-Identifier: Apache-2.0
"""When windows that fail one after another mean that their map cannot go on."""

from __future__ import annotations

from g2vlm_ros.records import MappingError
from g2vlm_ros.settings import Settings

MIN_FAULTS = 5
"""Windows in a row: seconds at the usual rates, longer than a burst of bad input lasts."""
MAX_FAULTS = 80
"""Where new maps do not help either: the number doubles with each, up to this."""


class RepeatedFaults:
    """Counts windows that could be perceived and not be entered into the map.

    What the device does wrong does not count: a new map would not help. Device's thread only.
    """

    def __init__(self, settings: Settings):
        window = settings.window
        instants = window.views // len(settings.cameras)
        # One bad frame is in so many windows: the map may well go on after it.
        windows_of_a_frame = -(-instants // (instants - window.overlap))
        self._least = max(MIN_FAULTS, windows_of_a_frame + 2)
        self.clear()

    def clear(self) -> None:
        """A window went well."""
        self._count, self._bound = 0, self._least
        self.maps = 0
        """Given up since the last window that went well."""

    def update(self, error: BaseException) -> bool:
        """One window failed; whether its map is to be given up."""
        if not isinstance(error, MappingError):
            return False
        self._count += 1
        if self._count < self._bound:
            return False
        self._count, self._bound = 0, min(2 * self._bound, MAX_FAULTS)
        self.maps += 1
        return True
