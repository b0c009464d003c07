# SPDX-License-Identifier: Apache-2.0
"""The real Python bindings of TensorRT over EMPTY libraries, seen through a proxy.

`bindings(name)` is the module as our code sees it. Each object of TensorRT is the universal one of
fakes/libnvinfer.cpp behind a proxy, which reads from the bindings' own signatures what a call
returns and lets the empty library answer so. Names that do not exist, arguments that do not
convert and properties that cannot be set fail as they would over TensorRT.
"""

from __future__ import annotations

import ctypes
import inspect
import re
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

LIBRARIES = {"10": "libnvinfer.so.10", "11": "libnvinfer.so.11", "rtx": "libtensorrt_rtx.so.1"}
PLAN = b"a serialised engine"
SHAPE = (2, 3)
"""What `get_tensor_shape` answers, unless another shape of two sizes is wanted."""
WITHOUT_CALL: dict[str, Any] = {"infer_shapes": []}
"""Methods that ask an engine and a context in one call, for which one answer is not enough: they
must be there, take nothing, and are answered here."""


class Answers:
    """What the empty library answers, and what it was called with."""

    def __init__(self, library: str):
        self._library = ctypes.CDLL(library)
        self._library.universal_object.restype = ctypes.c_uint64
        self.object = self._library.universal_object()
        self._answer = ctypes.c_uint64.in_dll(self._library, "answer")
        self._shape = ctypes.c_int.in_dll(self._library, "answers_shape")
        self._sizes = (ctypes.c_int64 * 2).in_dll(self._library, "shape")
        self._fail = ctypes.c_int.in_dll(self._library, "factories_fail")
        self._arguments = (ctypes.c_uint64 * 5).in_dll(self._library, "arguments")
        self.fixed: dict[str, Any] = {}
        """Method or property -> answer (bool, int, text, shape, None), where another is wanted."""
        self.calls: list[str] = []
        """Class.name of everything that our code called, read or set."""
        self._texts: list[Any] = []

    def fail_factories(self, fail: bool) -> None:
        """Whether Builder, Runtime and parser get a null pointer, as without a driver."""
        self._fail.value = fail

    @property
    def arguments(self) -> list[int]:
        """Of the last call, as C++ got them behind `this`."""
        return list(self._arguments)

    def prepare(self, name: str, returns: str) -> None:
        """Sets what the next call answers, by the name of what is called and its return type."""
        value = self.fixed[name] if name in self.fixed else self._usual(returns)
        self._shape.value = isinstance(value, tuple)
        if isinstance(value, str):
            self._texts.append(ctypes.create_string_buffer(value.encode()))
            value = ctypes.addressof(self._texts[-1])
        if isinstance(value, tuple):
            self._sizes[:] = value
        else:
            self._answer.value = 0 if value is None else int(value)

    def _usual(self, returns: str) -> Any:
        if "Dims" in returns:
            return SHAPE
        if returns in ("bool", "int", "typing.SupportsInt"):
            return 1
        return "text" if returns == "str" else self.object


class Proxy:
    """One object of TensorRT."""

    def __init__(self, real: Any, answers: Answers):
        object.__setattr__(self, "real_object", real)
        object.__setattr__(self, "_answers", answers)

    def __getattr__(self, name: str) -> Any:
        real, answers = self.real_object, self._answers
        kind = inspect.getattr_static(type(real), name, None)
        if kind is None:
            raise AttributeError(f"{type(real).__name__} of this TensorRT has no {name}")
        answers.calls.append(f"{type(real).__name__}.{name}")
        if isinstance(kind, property):
            answers.prepare(name, _returns(kind.fget.__doc__))
            return wrapped(getattr(real, name), answers)

        if name in WITHOUT_CALL:
            assert re.search(rf"{name}\(self: [\w.]+\) -> ", kind.__doc__), kind.__doc__
            return lambda: answers.fixed.get(name, WITHOUT_CALL[name])

        def call(*arguments: Any, **named: Any) -> Any:
            method = getattr(real, name)
            answers.prepare(name, _returns(method.__doc__))
            result = method(*map(unwrapped, arguments), **_each_unwrapped(named))
            return wrapped(result, answers)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        self._answers.calls.append(f"{type(self.real_object).__name__}.{name}=")
        self._answers.prepare(name, "bool")
        setattr(self.real_object, name, unwrapped(value))


class Module:
    """The module of TensorRT as our code sees it."""

    def __init__(self, real: ModuleType, answers: Answers):
        self._real, self._answers = real, answers

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name not in ("Builder", "Runtime", "OnnxParser"):
            return value  # enums, the logger and classes to derive from, as they are

        def make(*arguments: Any) -> Proxy:
            self._answers.calls.append(name)
            self._answers.prepare(name, "object")
            return Proxy(value(*map(unwrapped, arguments)), self._answers)

        return make


def bindings(name: str) -> tuple[Module, Answers]:
    """tensorrt_bindings or tensorrt_rtx_bindings, which this process has not loaded yet."""
    # Bindings load the libraries that were installed with them, where there are some.
    for libs in ("tensorrt_libs", "tensorrt_rtx_libs"):
        sys.modules[libs] = ModuleType(libs)
    real = import_module(name)
    rtx = name.startswith("tensorrt_rtx")
    answers = Answers(LIBRARIES["rtx" if rtx else real.__version__.split(".")[0]])
    return Module(real, answers), answers


def unwrapped(value: Any) -> Any:
    return value.real_object if isinstance(value, Proxy) else value


def _each_unwrapped(named: dict[str, Any]) -> dict[str, Any]:
    return {name: unwrapped(value) for name, value in named.items()}


def wrapped(value: Any, answers: Answers) -> Any:
    kind = type(value).__name__
    if kind == "IHostMemory":
        # Its bytes would be those at an address that means nothing; that it has some is enough.
        answers.prepare("buffer", "int")
        memoryview(value)
        return PLAN
    foreign = type(value).__module__.startswith("tensorrt")
    is_enum = hasattr(type(value), "__members__")
    return Proxy(value, answers) if foreign and not is_enum and kind != "Dims" else value


def _returns(signature: str | None) -> str:
    found = re.search(r"\) -> ([\w.\[\], |]+)", signature or "")
    return found[1].strip() if found else ""
