# SPDX-License-Identifier: Apache-2.0
"""The stages on another machine: behind NVIDIA Triton (KServe v2 over gRPC), for many robots.

A stage that gives nothing to the host is not sent until a later one needs it: a window is one
request, images up and geometry down. Features and caches stay on the server (`stage_service`).
This side keeps what made each of them, so a server that forgot, was started again, or is another
one gets it once more; and so does the local backend that takes over where none answers in time.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
import weakref
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from g2vlm_ros.checkpoint.config import PATCH_PX, ModelConfig
from g2vlm_ros.checkpoint.digest import model_version
from g2vlm_ros.checkpoint.prompt_layout import Segment
from g2vlm_ros.inference.backend import open_backend
from g2vlm_ros.inference.decoding_state import STEPS_AHEAD
from g2vlm_ros.inference.input_checks import check_images
from g2vlm_ros.inference.stage_service import Arrays, StageService, segment_header
from g2vlm_ros.inference.triton_reply import ReplyError, check_header, results_by_step
from g2vlm_ros.records import NonFiniteError, RawGeometry, UnfitError

RETRY_S = 10.0
"""While the local backend works, the server is tried again this often."""
MAX_REPLAYS = 2
"""How often one request is sent again with what the server had forgotten."""


class ServerError(RuntimeError):
    """No server answered within its time, or it could not serve; says which and why."""


class Transport(Protocol):
    """A way to a StageService."""

    name: str

    def call(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        """The reply to a request; ServerError where none comes in time."""


@dataclass
class InProcess:
    """A service in this process."""

    service: StageService
    name: str

    def call(self, header: Mapping[str, Any], arrays: Arrays) -> tuple[dict[str, Any], Arrays]:
        return self.service.handle(header, arrays)


_numbers = itertools.count(1)


@dataclass(eq=False)
class Step:
    """One stage to run, and what it needs: enough to run it again anywhere."""

    stage: str
    arrays: Arrays = field(default_factory=dict)
    features: Step | None = None
    cache: Step | None = None
    more: dict[str, Any] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))
    there: set[str] = field(default_factory=set)
    """Names of the transports behind which its result is kept, as far as is known."""
    descriptor: np.ndarray | None = None
    holders: int = 0
    """Caches that stand at this step."""

    def header(self) -> dict[str, Any]:
        """The step as a request names it."""
        return {
            "stage": self.stage,
            "number": self.number,
            "features": self.features and self.features.number,
            "cache": self.cache and self.cache.number,
            **self.more,
        }


class RemoteCache:
    """The keys and values of the tokens so far, as the step that left them; None for none.

    abandon: told of a step whose keys and values no cache needs any more.
    """

    def __init__(self, abandon: Callable[[Step], None], step: Step | None = None, length: int = 0):
        self._abandon, self.step, self.length = abandon, step, length
        if step is not None:
            step.holders += 1

    def fork(self) -> RemoteCache:
        return RemoteCache(self._abandon, self.step, self.length)

    def move(self, step: Step | None, length: int) -> None:
        """Hold another step from now on."""
        if step is not None:
            step.holders += 1
        self._let_go()
        self.step, self.length = step, length

    def __del__(self) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self.step is not None:
            self.step.holders -= 1
            if not self.step.holders:
                self._abandon(self.step)


class TritonBackend:
    """Implements `inference.backend.Backend` by requests.

    fallback: opens what takes over where the server does not answer; None where nothing does.
    all_logits: get the whole vocabulary, not the largest alone (the others are -inf then).
    """

    chosen_because = ""

    def __init__(
        self,
        config: ModelConfig,
        server: Transport,
        fallback: Any = None,
        all_logits: bool = False,
    ):
        self.config, self._server, self._all_logits = config, server, all_logits
        self._open_fallback, self._fallback = fallback, None
        self.robot = uuid.uuid4().hex
        self._released: list[int] = []
        self._retry_at_s = 0.0
        self.times_s: dict[str, float] = {}
        self.backend = f"triton {server.name}"

    @classmethod
    def open(
        cls,
        folder: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        dino_windows: str | None = None,
        url: str = "localhost:8001",
        model: str = "g2vlm",
        timeout_s: float = 5.0,
        fallback: str = "",
    ) -> TritonBackend:
        """The checkpoint's stages at a server that serves the same weights.

        fallback: name of the backend that takes over, with device, dtype and dino_windows; empty
        for none. Raises UnfitError where the server has another checkpoint, ServerError without
        an answer and without a fallback.
        """
        from g2vlm_ros.inference.triton_transport import GrpcTransport

        options = {"device": device, "dtype": dtype, "dino_windows": dino_windows}
        take_over = None
        if fallback:
            take_over = lambda: open_backend(fallback, folder, **options)  # noqa: E731
        transport = GrpcTransport(url, model, timeout_s)
        backend = cls(ModelConfig.read(folder), transport, take_over)
        backend.check_server(model_version(folder))
        return backend

    def check_server(self, model_version_here: str) -> None:
        """UnfitError where the server has other weights; a silent one is left to the fallback."""
        try:
            reply, _ = self._server.call({"robot": self.robot, "steps": []}, {})
        except ServerError:
            if self._open_fallback is None:
                raise
            return
        if reply.get("model") != model_version_here:
            raise UnfitError(
                f"{self._server.name} serves {reply.get('model')}, here is {model_version_here}; "
                "give both the same checkpoint"
            )
        self.backend = f"triton {self._server.name} ({reply['backend']})"

    # Stages ----------------------------------------------------------------------------------

    def encode_geometry(self, images: np.ndarray) -> Step:
        check_images("images", images, ndim=4, multiple=PATCH_PX)
        return self._noted(Step("encode_geometry", {"images": images}))

    def encode_semantics(self, image: np.ndarray) -> Step:
        check_images("image", image, ndim=3, multiple=2 * PATCH_PX)
        return self._noted(Step("encode_semantics", {"image": image}))

    def describe(self, features: Step) -> np.ndarray:
        if features.descriptor is None:
            features.there.clear()
            self._run(features)
        return features.descriptor

    def fetch(self, features: Step) -> np.ndarray:
        return self._run(self._noted(Step("fetch", features=features)))["values"]

    def new_cache(self) -> RemoteCache:
        return RemoteCache(self._abandon)

    def geometry(self, features: Step, segment: Segment, cache: RemoteCache) -> Step:
        return self._append("geometry", segment, cache, features)

    def heads(
        self, hidden: Step, grid_hw: tuple[int, int], global_points: bool = False
    ) -> RawGeometry:
        more = {"grid_hw": list(grid_hw), "global_points": global_points}
        return RawGeometry(**self._run(self._noted(Step("heads", features=hidden, more=more))))

    def language(self, segment: Segment, cache: RemoteCache, features: Step | None = None) -> Step:
        return self._append("language", segment, cache, features)

    def logits(self, hidden: Step) -> np.ndarray:
        arrays = self._run(self._noted(Step("logits", features=hidden)))
        if "logits" in arrays:
            return arrays["logits"]
        logits = np.full(self.config.text.vocab_size, -np.inf, np.float32)
        logits[arrays["top_ids"]] = arrays["top_logits"]
        return logits

    def decode(self, token: int, position: int, cache: RemoteCache) -> Generator[int, None, None]:
        while True:
            step = self._decoding(token, position, cache, STEPS_AHEAD)
            ids = [int(n) for n in self._run(step)["ids"]]
            used = 0
            try:
                for newest in ids:
                    used += 1
                    yield newest
            finally:
                if 0 < used < len(ids):  # what was fed for the ids that were taken, if asked for
                    step = self._decoding(token, position, cache, used)
                cache.move(step, cache.length + used)
            token, position = ids[-1], position + len(ids)

    def _decoding(self, token: int, position: int, cache: RemoteCache, count: int) -> Step:
        more = {"token": int(token), "position": int(position), "count": count}
        return self._noted(Step("decode", cache=cache.step, more=more))

    def _append(
        self, stage: str, segment: Segment, cache: RemoteCache, features: Step | None
    ) -> Step:
        arrays = {name: getattr(segment, name) for name in ("token_ids", "slots", "positions")}
        more = {"segment": segment_header(segment)}
        step = self._noted(Step(stage, arrays, features, cache.step, more))
        cache.move(step, cache.length + segment.length)
        return step

    def _abandon(self, step: Step) -> None:
        """Let the server drop what a step left; what made it stays known for who needs it."""
        step.there.clear()
        self._released.append(step.number)

    def _noted(self, step: Step) -> Step:
        """The step; once nobody needs it any more, the next request says so."""
        weakref.finalize(step, self._released.append, step.number).atexit = False
        return step

    # Requests --------------------------------------------------------------------------------

    def _run(self, target: Step) -> Arrays:
        """What a step gives, and whatever it needs: by the server, else by who takes over."""
        if self._fallback is not None and time.monotonic() < self._retry_at_s:
            return self._run_at(self._fallback, target)
        try:
            arrays = self._run_at(self._server, target)
            self._fallback_over()
            return arrays
        except ServerError as error:
            return self._run_at(self._take_over(error), target)

    def _take_over(self, error: ServerError) -> Transport:
        if self._open_fallback is None:
            raise error
        if self._fallback is None:
            service = StageService(self._open_fallback())
            self._fallback = InProcess(service, "fallback")
        logging.getLogger(__name__).warning(
            "%s; the local backend takes over, the server is tried again in %g s", error, RETRY_S
        )
        self._retry_at_s = time.monotonic() + RETRY_S
        return self._fallback

    def _fallback_over(self) -> None:
        if self._retry_at_s:
            logging.getLogger(__name__).warning("%s answers again", self._server.name)
            self._retry_at_s = 0.0

    def _run_at(self, transport: Transport, target: Step) -> Arrays:
        for _ in range(MAX_REPLAYS + 1):
            steps = needed(target, transport.name)
            released, self._released[:] = list(self._released), []
            header = {
                "robot": self.robot,
                "steps": [step.header() for step in steps],
                "release": released,
                "all_logits": self._all_logits,
            }
            arrays = {
                f"{index}.{name}": array
                for index, step in enumerate(steps)
                for name, array in step.arrays.items()
            }
            reply, results = transport.call(header, arrays)
            if "missing" not in reply:
                try:
                    return self._taken(reply, results, steps, transport.name)
                except ReplyError as error:
                    raise ServerError(f"{transport.name}: {error}") from error
            forget(target, transport.name)
        raise ServerError(f"{transport.name} forgets results while a request runs")

    def _taken(
        self, reply: dict[str, Any], results: Arrays, steps: list[Step], name: str
    ) -> Arrays:
        """What the last step gave; raises what a stage raised, ReplyError for no such reply."""
        check_header(reply)
        if reply.get("error") == "NonFiniteError":
            raise NonFiniteError(reply.get("stage", ""))
        if "error" in reply:
            kind = ValueError if reply["error"] == "ValueError" else RuntimeError
            raise kind(f"{name}: {reply['error']}: {reply['message']}")
        stages = [step.stage for step in steps]
        by_step = results_by_step(stages, results, self.config.text.vocab_size)
        self.times_s.update(reply["times_s"])
        for step, arrays in zip(steps, by_step, strict=True):
            step.there.add(name)
            step.descriptor = arrays.get("descriptor", step.descriptor)
        return by_step[-1]


def needed(target: Step, transport: str) -> list[Step]:
    """The steps that a transport has to run for one, inputs first."""
    order: dict[int, Step] = {}
    waiting = [(target, False)]
    while waiting:
        step, inputs_listed = waiting.pop()
        if inputs_listed:
            order.setdefault(step.number, step)
            continue
        if step.number in order or (step is not target and transport in step.there):
            continue
        waiting.append((step, True))
        waiting += [(each, False) for each in (step.features, step.cache) if each is not None]
    return list(order.values())


def forget(target: Step, transport: str) -> None:
    """Nothing that a step needs is taken to be behind the transport any longer."""
    waiting = [target]
    while waiting:
        step = waiting.pop()
        step.there.discard(transport)
        waiting += [each for each in (step.features, step.cache) if each is not None]
