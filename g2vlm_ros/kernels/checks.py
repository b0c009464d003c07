# SPDX-License-Identifier: Apache-2.0
"""The one place where arrays are checked before a kernel gets their address.

Inputs of another memory order are copied, those of another type or shape refused (ValueError).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from g2vlm_ros.kernels.library import library

I64, i64 = ctypes.c_int64, ctypes.c_int64
f32, f64 = ctypes.c_float, ctypes.c_double


def call(name: str, result: type | None, *arguments) -> Any:
    """Run a kernel; arrays among the arguments are passed by address.

    result: its C type, None for void.
    """
    kernel = getattr(library(), name)
    kernel.restype = result
    return kernel(
        *[_address(each) if isinstance(each, np.ndarray) else each for each in arguments]
    )


def _address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def shape_of(array: np.ndarray, name: str, expected: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape of an array; ValueError unless it is `expected`, where None is any length."""
    shape = np.shape(array)
    fits = shape == expected or (
        len(shape) == len(expected)
        and all(
            size is None or length == size for length, size in zip(shape, expected, strict=True)
        )
    )
    if not fits:
        text = "x".join("?" if n is None else str(n) for n in expected)
        raise ValueError(f"{name} is {shape}; it must be {text}")
    return shape


def input_array(
    array: np.ndarray, name: str, dtype, expected: tuple[int | None, ...]
) -> np.ndarray:
    """The array, or a copy in C order; ValueError when type or shape do not fit."""
    if np.shape(array) != expected:
        shape_of(array, name, expected)
    if array.dtype != dtype:
        raise ValueError(f"{name} is {array.dtype}; it must be {np.dtype(dtype)}")
    return np.ascontiguousarray(array)


def check_in_place(array: np.ndarray, name: str, dtype, expected: tuple[int | None, ...]) -> None:
    """ValueError for an array that a kernel cannot read or write where it lies."""
    shape_of(array, name, expected)
    if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.writeable):
        raise ValueError(
            f"{name} is {array.dtype}, contiguous {array.flags.c_contiguous}, writeable "
            f"{array.flags.writeable}; it must be {np.dtype(dtype)}, contiguous and writeable"
        )


def view_indices(views: Sequence[int], count: int) -> np.ndarray:
    """Indices of views as int64 (V,), each below `count`."""
    index = np.array(views, np.int64).reshape(-1)
    check_indices(index, count, "views")
    return index


def check_indices(index: np.ndarray, end: int, name: str) -> None:
    """ValueError unless all of `index` are 0 to end - 1."""
    if index.size and not (index.min() >= 0 and index.max() < end):
        raise ValueError(f"{name} are {index.min()} to {index.max()}; they must be 0 to {end - 1}")


def nearest_pixels(count: int, length: int) -> np.ndarray:
    """int64 (count,): those of a row of `length` pixels nearest to the pixels of another size."""
    pixels = ((np.arange(positive(count, "size")) + 0.5) * length / count).astype(np.int64)
    check_indices(pixels, length, "rows or columns")
    return pixels


def positive(value: int, name: str) -> int:
    """The value; ValueError below 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return int(value)


def length(value: float) -> float:
    """The size of a voxel; ValueError unless finite and above 0."""
    if not 0 < value < np.inf:
        raise ValueError(f"voxel size is {value}; it must be a length above 0")
    return float(value)
