# SPDX-License-Identifier: Apache-2.0
"""The stages of a backend for callers elsewhere: several robots, each with results of its own.

A request is a list of steps. Each runs one stage and keeps its result under a number that the
caller gave it; later steps name their inputs by these numbers, so features and key/value caches
stay here. Results are never changed once they are there: appending to a cache makes another. What
was forgotten is named in the reply, and the caller sends the steps that make it again.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.backend import Backend
from g2vlm_ros.records import BackendGoneError, NonFiniteError, RawGeometry

Arrays = dict[str, np.ndarray]

MAX_RESULTS = 96
"""Of one robot: a window leaves 3, a conversation about it 2; callers say what they no longer
need, so this bounds those that do not."""
MAX_ROBOTS = 16
"""Whose results are kept; the one that has been silent longest goes."""
MAX_DECODED = 64
"""Tokens of one step, so that no caller keeps the device from the others for long."""
TOP_LOGITS = 32
"""Logits that go back of one token: the largest. All of a vocabulary of 152 k are 0.6 MB."""

STEP_ERRORS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a request that is none raises, and what a stage does: both are its caller's alone."""


@dataclass
class Result:
    """What a step left: features or hidden states, a cache, or both."""

    features: Any = None
    cache: Any = None


class MissingError(Exception):
    """Results that a request names and that are not here."""

    def __init__(self, numbers: list[int]):
        super().__init__(f"results {numbers} are not here")
        self.numbers = numbers


class StageService:
    """Runs steps on a backend; one thread at a time."""

    def __init__(self, backend: Backend, model_version: str = ""):
        self._backend, self._model_version = backend, model_version
        self._robots: OrderedDict[str, OrderedDict[int, Result]] = OrderedDict()

    def handle(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The reply to a request; what a stage raises is in its header and not raised.

        header: {"robot", "steps": [...], "release": [numbers], "all_logits"}; no steps ask who
        is here. Arrays of step n are called "n.name".
        """
        try:
            return self._run(header, arrays)
        except MissingError as error:
            return {"missing": error.numbers}, {}
        except NonFiniteError as error:
            return {"error": "NonFiniteError", "stage": error.stage, "message": str(error)}, {}
        except BackendGoneError:
            raise
        except STEP_ERRORS as error:
            return {"error": type(error).__name__, "message": str(error)}, {}

    def count(self, robot: str) -> int:
        """How many results are kept for a robot."""
        return len(self._robots.get(robot, ()))

    def _run(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        results = self._results_of(str(header["robot"]))
        for number in header.get("release", ()):
            results.pop(number, None)
        reply: dict[str, Any] = {"backend": self._backend.backend, "model": self._model_version}
        reply["times_s"] = {}
        reply_arrays: Arrays = {}
        for index, step in enumerate(header["steps"]):
            step_arrays = {
                name.partition(".")[2]: array
                for name, array in arrays.items()
                if name.partition(".")[0] == str(index)
            }
            start = time.perf_counter()
            result, outputs = self._step(
                step, step_arrays, results, bool(header.get("all_logits"))
            )
            time_s = time.perf_counter() - start
            stage = step["stage"]
            reply["times_s"][stage] = reply["times_s"].get(stage, 0.0) + time_s
            if result.features is not None or result.cache is not None:
                results[step["number"]] = result
            reply_arrays |= {f"{index}.{name}": array for name, array in outputs.items()}
        while len(results) > MAX_RESULTS:
            results.popitem(last=False)
        return reply, reply_arrays

    def _results_of(self, robot: str) -> OrderedDict[int, Result]:
        results = self._robots.setdefault(robot, OrderedDict())
        self._robots.move_to_end(robot)
        while len(self._robots) > MAX_ROBOTS:
            self._robots.popitem(last=False)
        return results

    def _step(
        self,
        step: Mapping[str, Any],
        arrays: Arrays,
        results: OrderedDict[int, Result],
        all_logits: bool,
    ) -> tuple[Result, Arrays]:
        """One stage: what it leaves here, and what goes back."""
        inputs = {name: step[name] for name in ("features", "cache") if step.get(name) is not None}
        missing = [number for number in inputs.values() if number not in results]
        if missing:
            raise MissingError(missing)
        for number in inputs.values():
            results.move_to_end(number)
        features = results[inputs["features"]].features if "features" in inputs else None
        backend, stage = self._backend, step["stage"]
        if stage == "encode_geometry":
            features = backend.encode_geometry(arrays["images"])
            return Result(features), {"descriptor": backend.describe(features)}
        if stage == "encode_semantics":
            return Result(backend.encode_semantics(arrays["image"])), {}
        if stage == "heads":
            grid_hw = tuple(int(side) for side in step["grid_hw"])
            raw = backend.heads(features, grid_hw, bool(step.get("global_points")))
            return Result(), geometry_arrays(raw)
        if stage == "fetch":
            return Result(), {"values": backend.fetch(features)}
        if stage == "logits":
            logits = backend.logits(features)
            return Result(), {"logits": logits} if all_logits else top(logits)
        stored = results[inputs["cache"]].cache if "cache" in inputs else None
        cache = backend.new_cache() if stored is None else stored.fork()
        if stage == "decode":
            return Result(cache=cache), {"ids": self._decoded(step, cache)}
        segment = segment_of(step["segment"], arrays)
        if stage == "geometry":
            return Result(backend.geometry(features, segment, cache), cache), {}
        if stage == "language":
            return Result(backend.language(segment, cache, features), cache), {}
        raise ValueError(f"no stage '{stage}'")

    def _decoded(self, step: Mapping[str, Any], cache: Any) -> np.ndarray:
        """int64 (count,): the ids behind the token of a step."""
        count = min(int(step["count"]), MAX_DECODED)
        with closing(
            self._backend.decode(int(step["token"]), int(step["position"]), cache)
        ) as tokens:
            return np.array([next(tokens) for _ in range(count)], np.int64)


def top(logits: np.ndarray) -> Arrays:
    """The largest logits and their ids, by id so that equal ones keep their order."""
    count = min(TOP_LOGITS, len(logits))
    ids = np.sort(np.argpartition(-logits, count - 1)[:count])
    best = int(np.argmax(logits))
    if best not in ids:  # equal ones at the border: the first of them is the one that counts
        ids[-1] = best
        ids = np.sort(ids)
    return {"top_ids": ids.astype(np.int64), "top_logits": logits[ids].astype(np.float32)}


def geometry_arrays(raw: RawGeometry) -> Arrays:
    """The arrays of a RawGeometry that there are."""
    fields = ("local_points_u", "window_from_camera", "rotation9", "confidence", "global_points_u")
    arrays = {name: getattr(raw, name) for name in fields}
    return {name: array for name, array in arrays.items() if array is not None}


def segment_header(segment: Segment) -> dict[str, Any]:
    """What of a segment is no array."""
    return {
        "kind": segment.kind,
        "causal": segment.causal,
        "next_position": int(segment.next_position),
    }


def segment_of(header: Mapping[str, Any], arrays: Arrays) -> Segment:
    """The segment of a request."""
    return Segment(
        str(header["kind"]),
        arrays["token_ids"],
        arrays["slots"],
        arrays["positions"],
        bool(header["causal"]),
        int(header["next_position"]),
    )
