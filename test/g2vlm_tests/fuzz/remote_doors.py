# SPDX-License-Identifier: Apache-2.0
"""Doors to other machines: browsers that ask for the viewer, both ends of a Triton server."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
from g2vlm_tests.fuzz.door import GOLDEN, Door, altered, as_json, damaged
from hypothesis import strategies as st

TOKEN = "token-of-the-viewer"
HOSTS = st.sampled_from(
    "localhost 127.0.0.1:8080 [::1]:8080 [::1 [v1.a] robot.local http://[ \xe9 : @ 1.2.3.4".split()
)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
"""What a field of a request may hold at all."""
SETTINGS = {
    "model.checkpoint": str(GOLDEN),
    "model.image_width_px": 56,
    "query.semantic_width_px": 56,
    "query.max_tokens": 6,
}
HEADERS = st.sampled_from(["Host", "Origin", "Upgrade", "host"])
PATHS = st.sampled_from([f"/{TOKEN}", f"/{TOKEN}/assets/a.js?x", "/", "//", ""]) | st.text()


def remote_doors() -> list[Door]:
    """The viewer's visitors, and both ends of a Triton server."""
    replies = st.sampled_from(range(len(served()))).flatmap(
        lambda index: st.tuples(st.just(index), messages(served()[index][1]))
    )
    return [
        Door(
            "viewer's visitors",
            st.tuples(PATHS, st.lists(st.tuples(HEADERS, HOSTS | TEXTS), max_size=5)),
            visit,
            (),
        ),
        Door("requests to a server", st.sampled_from(asked()).flatmap(messages), serve, batch=20),
        Door("replies of a server", replies, take_replies, REFUSALS, batch=20),
    ]


def visit(request: tuple[str, list[tuple[str, str]]]) -> None:
    """A request for a page: let in, or turned away with one of the sentences."""
    from websockets.datastructures import Headers

    from g2vlm_ros.ros.viewer.visitors import VisitorRules

    path, fields = request
    rules, headers = VisitorRules("127.0.0.1", TOKEN, 4), Headers(fields)
    if not rules.refusal(path, headers, 0):
        assert rules.path_behind_token(path).startswith(("/", "?"))


# A Triton server ------------------------------------------------------------------------------


Message = tuple[bytes, bytes]
"""Header and payload, as they travel."""
REFUSALS = (ValueError, RuntimeError)
"""A fault of one window; ServerError, where another backend takes over, is a RuntimeError."""


def messages(message: Message) -> st.SearchStrategy:
    """Its bytes damaged, or values of its header others."""
    header, payload = message
    heads = damaged(header) | altered(json.loads(header)).map(as_json)
    return st.tuples(heads, st.just(payload) | damaged(payload))


def as_bytes(message: Any) -> Message:
    from g2vlm_ros.inference.triton_transport import packed

    header, payload = packed(*message)
    return bytes(header), bytes(payload)


def read(message: Message) -> Any:
    from g2vlm_ros.inference.triton_transport import unpacked

    return unpacked(*(np.frombuffer(part, np.uint8) for part in message))


class Server:
    """Serves the golden checkpoint; `answer` may put another reply in the place of its own."""

    name = "server"

    def __init__(self, answer: Any = None):
        from g2vlm_ros.inference.stage_service import StageService

        self.service, self.answer = StageService(stages()), answer
        self.exchanges: list[tuple[Message, Message]] = []

    def call(self, header: Any, arrays: Any) -> Any:
        request = as_bytes((header, arrays))
        reply = self.answer(len(self.exchanges)) if self.answer else None
        if reply is None:
            reply = as_bytes(self.service.handle(*read(request)))
        self.exchanges.append((request, reply))
        return read(reply)


@cache
def stages() -> Any:
    from g2vlm_ros.inference.onnx_backend import OnnxBackend

    return OnnxBackend.open(GOLDEN, device="cpu")


def look_and_ask(server: Server) -> None:
    """A window and a question, as a robot has them."""
    from g2vlm_ros.checkpoint.config import ModelConfig
    from g2vlm_ros.checkpoint.tokenizer import Tokenizer
    from g2vlm_ros.inference.triton_backend import TritonBackend
    from g2vlm_ros.perception import Perception
    from g2vlm_ros.settings import Settings

    backend = TritonBackend(ModelConfig.read(GOLDEN), server)
    sees = Perception(backend, Tokenizer.open(GOLDEN), Settings.from_flat(SETTINGS))
    scene = sees.scene([np.full((48, 64, 3), 90, np.uint8)] * 2)
    sees.reconstruct(scene)
    sees.ask(scene, "What is there?")


@cache
def served() -> list[tuple[Message, Message]]:
    """Requests and replies of a window and a question."""
    server = Server()
    look_and_ask(server)
    return server.exchanges


def asked() -> list[Message]:
    return [request for request, _ in served()]


def serve(message: Message) -> None:
    """A request as a server's model takes it behind a window: no message, or a reply."""
    server = Server()
    server.service.handle(*read(asked()[0]))
    as_bytes(server.service.handle(*read(message)))


def take_replies(case: tuple[int, Message]) -> None:
    """One of the replies is another."""
    index, reply = case
    look_and_ask(Server(lambda count: reply if count == index else None))
