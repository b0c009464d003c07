# SPDX-License-Identifier: Apache-2.0
"""Who may look: only who has the token of the address, and not a crowd.

The token is the first part of the page's path, so the browser repeats it in every request that the
page makes, its websocket included. Beside it `Host` and `Origin` are checked: a browser lets any
page open a websocket to this machine, and viser checks neither.
"""

from __future__ import annotations

import dataclasses
import http
import ipaddress
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

ANY_ADDRESS = ("0.0.0.0", "::", "")
TOKEN_BYTES = 16
"""Of a made token: 128 random bits cannot be guessed over a network."""
MIN_TOKEN_LENGTH = 8
"""Of a given one: eight letters and digits are 47 bits."""


def make_token() -> str:
    """A new random token, safe in a URL."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_fault(token: str) -> str:
    """What is wrong with a given token, in words; empty where nothing is."""
    plain = token.isascii() and token.replace("-", "").replace("_", "").isalnum()
    if len(token) >= MIN_TOKEN_LENGTH and plain:
        return ""
    return (
        f"token has {len(token)} characters; it must have {MIN_TOKEN_LENGTH} or more of "
        "A-Z, a-z, 0-9, - and _, or be empty for a new one at each start"
    )


@dataclasses.dataclass(frozen=True)
class VisitorRules:
    """Who is let in at the address that is served."""

    host: str
    """The address that is served."""
    token: str
    max_visitors: int
    """Browsers at once; each gets its own copy of everything that is shown."""

    def refusal(self, path: str, headers: Any, visitors: int) -> str:
        """Why a request is turned away, in a sentence; empty where it is not."""
        # Each field may come more than once, and what stands in it may be no URL.
        by_name = ", ".join(headers.get_all("Host"))
        if not self._is_ours(_name_in(f"//{by_name}")):
            return f"this page is not served under the name {by_name!r}"
        for origin in headers.get_all("Origin"):
            if _place_in(origin) != by_name:
                return f"a page of {origin!r} may not look at this robot"
        if not self._has_token(path):
            return "this address lacks the token; open the one that the viewer's log shows"
        upgrades = "websocket" in ", ".join(headers.get_all("Upgrade")).lower()
        if upgrades and visitors >= self.max_visitors:
            return f"{self.max_visitors} browsers look on already; close one"
        return ""

    def path_behind_token(self, path: str) -> str:
        """What the page's own path is: viser knows of no token."""
        return path[1 + len(self.token) :] or "/"

    def _has_token(self, path: str) -> bool:
        first = path.partition("?")[0].split("/")[1:2]
        return secrets.compare_digest("".join(first).encode(), self.token.encode())

    def _is_ours(self, name: str) -> bool:
        """Whether a name in a URL can be ours: an address cannot be rebound, other names can."""
        if name in ("localhost", self.host):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            # The robot's own name, such as robot.local, where other machines are let in at all.
            return self.host in ANY_ADDRESS and ("." not in name or name.endswith(".local"))
        return self.host in ANY_ADDRESS or address.is_loopback


def _place_in(url: str) -> str:
    """Host and port of a URL; empty where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""


def _name_in(url: str) -> str:
    """The host of a URL; empty where it is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


@contextmanager
def guarded(rules: VisitorRules) -> Iterator[None]:
    """While a viser server is made: puts `rules` before what it does with a request.

    Visitors are counted by their open websockets: viser's own clients are those that have told
    it where their camera is, and whoever does not gets all that is shown as well.
    """
    from websockets.asyncio import server
    from websockets.datastructures import Headers
    from websockets.frames import CloseCode
    from websockets.http11 import Response

    serve, visitors = server.serve, 0

    def guarded_serve(handler: Any, *arguments: Any, **named: Any) -> Any:
        answer = named.get("process_request")

        async def counted(connection: Any) -> None:
            nonlocal visitors
            if visitors >= rules.max_visitors:  # several came at the same moment
                await connection.close(CloseCode.TRY_AGAIN_LATER)
                return
            visitors += 1
            try:
                await handler(connection)
            finally:
                visitors -= 1

        def process_request(connection: Any, request: Any) -> Any:
            sentence = rules.refusal(request.path, request.headers, visitors)
            if sentence:
                body = f"{sentence}\n".encode()
                headers = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body))})
                return Response(http.HTTPStatus.FORBIDDEN.value, "Forbidden", headers, body)
            inner = dataclasses.replace(request, path=rules.path_behind_token(request.path))
            return None if answer is None else answer(connection, inner)

        return serve(counted, *arguments, **{**named, "process_request": process_request})

    server.serve = guarded_serve
    try:
        yield
    finally:
        server.serve = serve
