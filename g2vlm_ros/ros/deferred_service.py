# SPDX-License-Identifier: Apache-2.0
"""A ROS service that replies later, from any thread, and tells its clients apart.

rclpy's own calls back with a request and sends what the callback returns: each waiting request
holds a thread of the executor, and who sent it is not said.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node

MAX_CLIENTS = 256
"""Clients that are told apart; the one that was silent longest is forgotten."""
MAX_LOST = 64
"""Requests of one client that may be lost between two that arrive."""


class ClientTracker:
    """Tells clients apart by the numbers of their requests: each counts its own, one by one.

    rclpy hides a request's writer. Two clients at the same number may be taken for each other;
    each still counts as one client.
    """

    def __init__(self) -> None:
        self._last: OrderedDict[int, int] = OrderedDict()
        self._clients = 0

    def clients(self) -> int:
        """How many are told apart now."""
        return len(self._last)

    def client_of(self, number: int) -> int:
        """A number for the client whose request has this sequence number."""
        behind = {client: number - last for client, last in self._last.items()}
        candidates = [client for client, gap in behind.items() if 1 <= gap <= MAX_LOST]
        if candidates:
            client = min(candidates, key=lambda each: behind[each])
        else:
            self._clients += 1
            client = self._clients
        self._last[client] = number
        self._last.move_to_end(client)
        while len(self._last) > MAX_CLIENTS:
            self._last.popitem(last=False)
        return client


class DeferredService:
    """Hands requests to `receive(request, client, reply)`; `reply(response)` sends the answer.

    `receive` runs in the executor's thread and returns at once; `reply` may be called once, by any
    thread, also when the service has been destroyed meanwhile.
    """

    def __init__(self, node: Node, kind: Any, name: str, receive: Callable, **options: Any):
        self._node = node
        self._clients = ClientTracker()
        # The request takes the way of a response through rclpy, to come with its header.
        self._service = node.create_service(kind, name, lambda request, _: request, **options)
        self._send = self._service.send_response
        self._service.send_response = lambda request, header: self._taken(receive, request, header)

    def _taken(self, receive: Callable, request: Any, header: Any) -> None:
        number = getattr(header, "request_id", header).sequence_number
        client = self._clients.client_of(number)

        def reply(response: Any) -> None:
            try:
                self._send(response, header)
            except (InvalidHandle, rclpy_implementation.RCLError):
                pass  # the service was destroyed, or the client has gone

        receive(request, client, reply)

    def close(self) -> None:
        """Take the service away."""
        self._node.destroy_service(self._service)
