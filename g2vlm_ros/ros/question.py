# SPDX-License-Identifier: Apache-2.0
"""One question on its way through the node: its messages, and what became of it so far."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from g2vlm_ros.query.context import ViewSelection
from g2vlm_ros.ros.deadline import Deadline


@dataclass(eq=False)
class Question:
    """A request of the service, or a goal of the action, and its response."""

    request: Any
    response: Any
    deadline: Deadline
    quick: bool
    """Of the service: its asker blocks, and it passes slow ones."""
    client: str = ""
    """Who asks, as far as rclpy tells."""
    fresh: bool = False
    """Whether a window newer than the question is wanted."""
    feedback: Callable[[int, str], None] = lambda phase, text: None
    after_window: int = 0
    """For `fresh`: the newest window when it was asked."""
    future: concurrent.futures.Future | None = None
    timer: threading.Timer | None = None
    """Ends the wait of a question of the service."""
    reply: Callable[[Any], None] = lambda response: None
    """Sends the response of the service; the first one counts."""
    done: threading.Event = field(default_factory=threading.Event)
    """Set once the response is complete."""
    executing: bool = False
    """Of the action: whether its goal has left the queue."""
    selection: ViewSelection | None = None
    """The views that it is answered from, once they are chosen."""
    steps: list[str] = field(default_factory=list)
    stage_times_s: dict[str, float] = field(default_factory=dict)
    last_words_s: float = 0.0
    """How long the model took for its last words."""
