# SPDX-License-Identifier: Apache-2.0
"""Keyframes on their way into a map's file and back, which belong to the device's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

from g2vlm_ros.mapping.keyframe_files import KeyframeOrigin, from_bytes, to_bytes
from g2vlm_ros.mapping.keyframes import Keyframe
from g2vlm_ros.mapping.map_view import MapView
from g2vlm_ros.ros.service_errors import RequestError
from g2vlm_ros.settings import MapSettings
from g2vlm_ros.srv import LoadMap

DEVICE_WAIT_S = 30.0
"""For the jobs that are before it: a window and an answer take seconds at most."""


class KeyframeKeeper:
    """What `MapServices` needs of the pipeline, whose keyframes belong to the device's thread."""

    def __init__(
        self,
        settings: MapSettings,
        origin: KeyframeOrigin,
        on_device: Callable[..., Any],
        map_views: Callable[[], list[MapView]],
        look_for: Callable[[Sequence[Keyframe]], int],
        log: Callable[[str], None],
    ):
        """on_device: submits a function and gives its future; look_for: makes the node LOST in a
        map of keyframes, whose id it returns."""
        self._max_bytes, self._origin = settings.keyframes_mib << 20, origin
        self._on_device, self._log = on_device, log
        self._map_views, self._look_for = map_views, look_for

    def saved(self) -> bytes:
        """Of the map that is published; what does not fit into map.keyframes_mib is logged."""
        views = self._wait_for(self._map_views)
        content, count = to_bytes(views, self._origin, self._max_bytes)
        self._log(
            f"{count} of {len(views)} keyframes are saved, {len(content) / 2**20:.1f} MiB"
            + ("" if count == len(views) else "; map.keyframes_mib has no room for the others")
        )
        return content

    def read(self, content: bytes) -> list[Keyframe]:
        """Of a file; KeyframeFileError where they are damaged or of something else."""
        return from_bytes(content, self._origin)

    def look_for(self, keyframes: Sequence[Keyframe]) -> int:
        """Forget the live map and be LOST in a saved one; the id of that."""
        return self._wait_for(self._look_for, keyframes)

    def _wait_for(self, function: Callable, *arguments: Any) -> Any:
        try:
            return self._on_device(function, *arguments).result(DEVICE_WAIT_S)
        except FutureTimeoutError as error:
            raise RequestError(
                LoadMap.Response.UNKNOWN,
                f"the device has been busy for {DEVICE_WAIT_S:.0f} s; try again",
            ) from error
