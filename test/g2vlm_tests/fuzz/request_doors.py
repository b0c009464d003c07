# SPDX-License-Identifier: Apache-2.0
"""Doors of a running node: its services and its action, with requests that are nearly right.

A response either succeeds, or names one of the codes and a sentence; UNKNOWN, which stands for an
exception nobody foresaw, is a fault.
"""

from __future__ import annotations

import importlib
import math
import re
import threading
from typing import Any

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.srv import (
    EditMap,
    EditObject,
    FindObjects,
    GetPoints,
    LoadMap,
    SaveMap,
    SpatialQuery,
)
from g2vlm_tests.asking import SMALL_QUERY, feed
from g2vlm_tests.asking import goal as send_goal
from g2vlm_tests.fuzz.door import FLOATS, Door, scratch
from g2vlm_tests.fuzz.file_doors import WORDS
from g2vlm_tests.harness import Bench
from hypothesis import strategies as st

from g2vlm_ros.ros.service_errors import Codes

INTEGER = re.compile(r"(u?)int(\d+)")
SEQUENCE = re.compile(r"sequence<(.+?)(?:, \d+)?>")
FLOAT32 = st.floats(width=32)
RESPONSE_S = 60.0
WORD = st.sampled_from(["camera", "map", "optical", "chair", "distance", "where", "rear"])
PATHS = st.sampled_from(["map.npz", "map.ply", "a.pcd", "../out.npz", "~nobody/m.npz", "no/m.npz"])
PATHS |= st.text(max_size=300).map(lambda text: f"{text}.npz")


def values(kind: str) -> st.SearchStrategy:
    """Any value of a field's type, as rclpy takes it."""
    many = SEQUENCE.fullmatch(kind)
    if many:
        return st.lists(values(many[1]), max_size=5)
    integer = INTEGER.fullmatch(kind)
    if integer:
        bits, unsigned = int(integer[2]), bool(integer[1])
        low, high = (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return st.integers(low, min(high, 7)) | st.integers(low, high)
    if kind == "string":
        return WORD | WORDS | st.text(max_size=20)
    if kind in ("float", "double"):
        usual = st.sampled_from([0.0, 0.5, 1.0, 20.0, 1e12])
        return usual | (FLOAT32 if kind == "float" else FLOATS)
    if kind == "boolean":
        return st.booleans()
    package, name = kind.split("/")
    return requests(getattr(importlib.import_module(f"{package}.msg"), name))


@st.composite
def requests(draw: Any, kind: type, **usual: Any) -> Any:
    """A message in which some fields hold anything, the others what is usual or the default."""
    message = kind()
    for field, value in usual.items():
        setattr(message, field, draw(value) if isinstance(value, st.SearchStrategy) else value)
    for field, type_name in kind.get_fields_and_field_types().items():
        if not draw(st.integers(0, 3)):
            setattr(message, field, draw(values(type_name)))
    return message


def check(response: Any) -> None:
    """AssertionError where a response breaks what the interfaces promise."""
    if response.success:
        assert response.error_code == 0 and not response.error_msg, response.error_msg
        number = getattr(response, "number", 0.0)
        assert math.isnan(number) or math.isfinite(number), f"number is {number}"
        return
    assert response.error_code != Codes.UNKNOWN, response.error_msg
    assert response.error_code and response.error_msg, "a refusal without code or sentence"
    assert "\n" not in response.error_msg and len(response.error_msg) <= 2000


class AskedNode:
    """A node with one window, asked through its own handlers."""

    def __init__(self) -> None:
        folder = scratch() / "maps"
        folder.mkdir(exist_ok=True)
        self.bench = Bench(**SMALL_QUERY, **{"map.folder": str(folder)})
        self.bench.start()
        feed(self.bench)
        node = self.bench.node
        self._handlers = {each.srv_type: each.callback for each in node.services}

    def call(self, kind: type, request: Any) -> None:
        """A service whose response comes at once."""
        check(self._handlers[kind](request, kind.Response()))

    def ask(self, request: Any) -> None:
        """A question: exactly one response within its own time."""
        came, responses = threading.Event(), []

        def reply(response: Any) -> None:
            responses.append(response)
            came.set()

        request.max_wait_s = min(request.max_wait_s, RESPONSE_S / 2)
        self.bench.queries.receive(request, 1, reply)
        assert came.wait(RESPONSE_S), "no response"
        assert len(responses) == 1
        check(responses[0])

    def pursue(self, goal: Any) -> None:
        """A goal over DDS: accepted, and one result."""
        fields = {name: getattr(goal, name) for name in goal.get_fields_and_field_types()}
        fields["max_wait_s"] = min(fields["max_wait_s"], 10.0)
        # A fresh window never comes: no camera is there. Most goals need not wait for one.
        _, future, _ = send_goal(self.bench, **fields)
        self.bench.until(future.done, "a result")
        check(future.result().result)
        assert not self.bench.escaped, self.bench.escaped

    def close(self) -> None:
        self.bench.close()


def request_doors(node: AskedNode) -> list[Door]:
    """The seven services and the action of a node."""
    question = {"question": WORDS, "max_age_s": 1e12, "max_wait_s": 5.0}
    pixels = {"u_px": [3.0], "v_px": [4.0], "camera": "camera", "max_age_s": 1e12}

    def service(kind: type, **usual: Any) -> Door:
        inputs = requests(kind.Request, **usual)
        name = f"~/{kind.__name__}"
        return Door(name, inputs, lambda request: node.call(kind, request), (), batch=100)

    return [
        service(GetPoints, **pixels),
        service(SaveMap, path=PATHS),
        service(LoadMap, path=PATHS),
        service(EditMap, action=st.integers(1, 6)),
        service(FindObjects, words=WORDS),
        service(EditObject, id=1, name=WORDS),
        Door("~/SpatialQuery", requests(SpatialQuery.Request, **question), node.ask, (), 20),
        Door("~/AnswerSpatialQuery", goals(question), node.pursue, (), 10),
    ]


def goals(usual: dict[str, Any]) -> st.SearchStrategy:
    return requests(AnswerSpatialQuery.Goal, **{**usual, "max_wait_s": 2.0})
