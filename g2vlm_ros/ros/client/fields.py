# SPDX-License-Identifier: Apache-2.0
"""Values from outside put into a message: each converted and checked before any C code sees it.

rclpy's messages take anything, and the C code behind them ends the process where an int is given
for a float. Here an int is a float where one is due; what does not fit is a ValueError that names
the field, its value, the bound and the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

_INTEGER = re.compile(r"(u?)int(\d+)|(byte|octet)")
_FLOAT_MAX = {"float": float(np.finfo(np.float32).max), "double": float(np.finfo(np.float64).max)}
_SEQUENCE = re.compile(r"sequence<(.+?)(?:, (\d+))?>|(.+)\[(\d+)\]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
"""Control characters that are no white space, as the node refuses them."""
SHOWN = 60
"""Characters of a value in an error message."""


def message(kind: type, **values: Any) -> Any:
    """A message, request or goal with these fields; ValueError says which does not fit."""
    types = kind.get_fields_and_field_types()
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise ValueError(
            f"{_name(kind)} has no field {', '.join(unknown)}; it has {', '.join(types)}"
        )
    return kind(**{field: converted(field, types[field], values[field]) for field in values})


def converted(field: str, kind: str, value: Any) -> Any:
    """A value as the type of a message's field ("float", "sequence<string>", ...) wants it."""
    many = _SEQUENCE.fullmatch(kind)
    if many:
        inner, most = many[1] or many[3], many[2] or many[4]
        return _converted_sequence(field, inner, value, most and int(most), exact=bool(many[4]))
    if kind in _FLOAT_MAX:
        return _converted_float(field, kind, value)
    if kind == "boolean":
        if not isinstance(value, bool | np.bool_):
            raise _misfit(field, value, "true or false")
        return bool(value)
    if kind == "string" or kind.startswith("string<"):
        return _converted_string(field, value)
    integer = _INTEGER.fullmatch(kind)
    if integer:
        return _converted_integer(field, value, bool(integer[1] or integer[3]), integer[2] or 8)
    return _converted_message(field, kind, value)


def _converted_float(field: str, kind: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise _misfit(field, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        raise _misfit(field, value, f"within {_FLOAT_MAX[kind]:.3g}") from None
    if math.isfinite(number) and abs(number) > _FLOAT_MAX[kind]:
        raise _misfit(field, value, f"within {_FLOAT_MAX[kind]:.3g}")
    if not math.isfinite(number):
        raise _misfit(field, value, "finite")
    return number


def _converted_integer(field: str, value: Any, unsigned: bool, bits: int | str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _misfit(field, value, "a whole number")
    bits = int(bits)
    low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if not low <= value <= high:
        raise _misfit(field, value, f"from {low} to {high}")
    return int(value)


def _converted_string(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _misfit(field, value, "text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field} has an unpaired surrogate at character {error.start}; send Unicode"
        ) from error
    control = CONTROL.search(value)
    if control:
        # The node could not refuse U+0000: strings end there on their way through DDS.
        raise ValueError(
            f"{field} holds the control character U+{ord(control[0]):04X} at character "
            f"{control.start()}; send plain text"
        )
    return value


def _converted_sequence(
    field: str, kind: str, value: Any, most: int | None, exact: bool
) -> list[Any]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence | np.ndarray):
        raise _misfit(field, value, f"a list of {kind}")
    if most is not None and exact and len(value) != most:
        raise _misfit(field, value, f"a list of {most} {kind}")
    if most is not None and len(value) > most:
        raise _misfit(field, value, f"a list of at most {most} {kind}")
    return [converted(f"{field}[{index}]", kind, item) for index, item in enumerate(value)]


def _converted_message(field: str, kind: str, value: Any) -> Any:
    """A message is taken as it is; a dict of its fields cannot be: its class is not known here."""
    if _name(type(value)) != kind.rpartition("/")[2]:
        raise _misfit(field, value, f"a {kind} message")
    return value


def _name(kind: type) -> str:
    return kind.__name__.partition("_")[0] if "_" in kind.__name__ else kind.__name__


def _misfit(field: str, value: Any, expected: str) -> ValueError:
    text = repr(value)
    if len(text) > SHOWN:
        text = f"{text[:SHOWN]}…"
    return ValueError(f"{field} is {text}; it must be {expected}")
