# SPDX-License-Identifier: Apache-2.0
"""Who may look: pages of other sites, rebound names and crowds are turned away.

A browser lets any page open a websocket to this machine; it then says in `Origin` where the page
came from, and in `Host` by which name it found us. viser checks neither.
"""

from __future__ import annotations

import http
import ipaddress
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

MAX_VISITORS = 16
"""Browsers at once; each gets its own copy of everything that is shown."""
ANY_ADDRESS = ("0.0.0.0", "::", "")


def refusal(host: str, headers: Any, visitors: int) -> str:
    """Why a request is turned away, in a sentence; empty where it is not.

    host: the address that is served. headers: of the request.
    """
    by_name = headers.get("Host", "")
    if not _is_ours(host, urlsplit(f"//{by_name}").hostname or ""):
        return f"this page is not served under the name {by_name!r}"
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != by_name:
        return f"a page of {origin!r} may not look at this robot"
    if headers.get("Upgrade", "").lower() == "websocket" and visitors >= MAX_VISITORS:
        return f"{MAX_VISITORS} browsers look on already; close one"
    return ""


def _is_ours(host: str, name: str) -> bool:
    """Whether a name in a URL can be ours: an address cannot be rebound, other names can."""
    if name in ("localhost", host):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        # The robot's own name, such as robot.local, where other machines are let in at all.
        return host in ANY_ADDRESS and ("." not in name or name.endswith(".local"))
    return host in ANY_ADDRESS or address.is_loopback


@contextmanager
def guarded(host: str, visitors: Callable[[], int]) -> Iterator[None]:
    """While a viser server is made: puts `refusal` before what it does with a request."""
    from websockets.asyncio import server
    from websockets.datastructures import Headers
    from websockets.http11 import Response

    serve = server.serve

    def guarded_serve(*arguments: Any, **named: Any) -> Any:
        answer = named.get("process_request")

        def process_request(connection: Any, request: Any) -> Any:
            sentence = refusal(host, request.headers, visitors())
            if sentence:
                body = f"{sentence}\n".encode()
                headers = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body))})
                return Response(http.HTTPStatus.FORBIDDEN.value, "Forbidden", headers, body)
            return None if answer is None else answer(connection, request)

        return serve(*arguments, **{**named, "process_request": process_request})

    server.serve = guarded_serve
    try:
        yield
    finally:
        server.serve = serve
