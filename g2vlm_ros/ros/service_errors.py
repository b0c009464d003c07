# SPDX-License-Identifier: Apache-2.0
"""Requests that cannot be served: codes, sentences with a remedy, and their way into a response.

Codes are those of SpatialQuery; other services have those of them that they need.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable

from g2vlm_ros.srv import SpatialQuery

Codes = SpatialQuery.Response
MAX_SENTENCE = 500
"""Characters of an error message: fields of a request may be of any length."""
MAX_CLOCK_ERROR_S = 86400.0
"""Geometry older than a day is not old: its stamps are of another clock."""


class RequestError(Exception):
    """A request that cannot be served: an error code and one sentence with the remedy."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def invalid(sentence: str) -> RequestError:
    """INVALID_REQUEST with its sentence."""
    return RequestError(Codes.INVALID_REQUEST, sentence)


def inactive() -> RequestError:
    """INACTIVE, with the command that changes it."""
    return RequestError(
        Codes.INACTIVE, "the node is not active; activate it (ros2 lifecycle set ... activate)"
    )


def check_map_frame(field: str, frame: str, map_frame: str) -> None:
    """RequestError for a field that is in another frame than the map's."""
    if frame != map_frame:
        raise RequestError(
            Codes.TF_ERROR, f"{field} is '{frame}'; only the map frame '{map_frame}' is served"
        )


def check_age(age_s: float, max_age_s: float) -> None:
    """RequestError for geometry that is too old, or whose stamps are not of this node's clock."""
    if abs(age_s) <= max_age_s:
        return
    if age_s < 0 or age_s > MAX_CLOCK_ERROR_S:
        side = "ahead of" if age_s < 0 else "behind"
        raise RequestError(
            Codes.NO_GEOMETRY,
            f"the stamps of the images are {abs(age_s):.1f} s {side} this node's clock, so their "
            "age is not known; set use_sim_time for simulated or recorded time, or set the clock "
            "of the camera's host",
        )
    raise RequestError(
        Codes.NO_GEOMETRY,
        f"the newest window is {age_s:.1f} s old, max_age_s is {max_age_s:g}; wait for "
        "frames or allow more",
    )


def one_line(text: str, max_characters: int = MAX_SENTENCE) -> str:
    """Text from outside as it may go into a log or a message: one line, no control characters."""
    line = "".join(_escaped(character) for character in text[: max_characters + 1])
    return line if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


def _escaped(character: str) -> str:
    if character in "\n\t":
        return " "
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return f"\\x{ord(character):02x}"
    return character


def refuse(response, code: int, sentence: str) -> None:
    """Say in a response why the request is not served."""
    response.success = False
    response.error_code, response.error_msg = code, one_line(sentence)


def reply_errors(handler: Callable) -> Callable:
    """Turns a handler's RequestError, or any failure, into the error fields of its response."""

    @functools.wraps(handler)
    def answer(self, request, response):
        try:
            handler(self, request, response)
            response.success = True
        except RequestError as error:
            refuse(response, error.code, str(error))
        except Exception as error:  # a service callback that raises would leave the caller waiting
            self.log_failure(handler.__name__, error)
            refuse(response, Codes.UNKNOWN, f"{type(error).__name__}: {error}")
        return response

    return answer
