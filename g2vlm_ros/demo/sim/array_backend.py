# SPDX-License-Identifier: Apache-2.0
"""numpy and torch under one set of names, so that the renderer is written once.

Most functions exist in both with the same meaning (torch takes numpy's `axis`); `Arrays` adds the
few that differ. All floats are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Arrays:
    """The array functions of numpy, or those of torch on a device."""

    def __init__(self, device: str | None = None):
        """device: None for numpy, else what torch calls it ("cpu", "cuda")."""
        self.device = device
        if device is None:
            self._lib: Any = np
        else:
            import torch

            self._lib = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def asarray(self, array: np.ndarray) -> Any:
        """A numpy array on this backend; float64 becomes float32."""
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return array if self.device is None else self._lib.as_tensor(array, device=self.device)

    def stable_order(self, keys: Any) -> Any:
        """Indices that sort keys; equal ones keep their order."""
        if self.device is None:
            return np.argsort(keys, kind="stable")
        return self._lib.argsort(keys, stable=True)

    def full(self, shape: tuple[int, ...], value: float | int | bool) -> Any:
        """A filled array; the dtype follows the Python type of the value."""
        kind = {bool: "bool", int: "int64", float: "float32"}[type(value)]
        if self.device is None:
            return np.full(shape, value, getattr(np, "bool_" if kind == "bool" else kind))
        dtype = getattr(self._lib, kind)
        return self._lib.full(shape, value, dtype=dtype, device=self.device)

    def nonzero(self, mask: Any) -> tuple[Any, ...]:
        """Indices of the true entries, one array per axis, in row-major order."""
        if self.device is None:
            return np.nonzero(mask)
        return self._lib.nonzero(mask, as_tuple=True)

    def numpy(self, array: Any) -> np.ndarray:
        """Back to numpy."""
        return array if self.device is None else array.cpu().numpy()
