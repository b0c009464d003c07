# SPDX-License-Identifier: Apache-2.0
"""Responses to clients whose reader the server has not discovered yet.

A client may send as soon as it knows both ends of a server. The server knows the client's writer
by then, for it has the request, but perhaps not its reader of responses: discovery announces them
one by one. rmw_fastrtps waits MATCH_S for the reader, then drops the response with a Python
warning (Humble: an RCLError), and the client waits for ever. Here it is sent again. A response
that comes twice is ignored by its client: nobody waits for its number any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation

MATCH_S = 0.1
"""How long rmw_fastrtps waits for a client's reader; a send that took less has found it."""
PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Before each further try. They cover two of the announcements that DDS repeats every 3 s, and are
far apart because rclpy holds the interpreter's lock while rmw waits."""
MAX_LATE = 16
"""Responses that wait at once: clients that never listen must not take all threads."""

_late = threading.BoundedSemaphore(MAX_LATE)


def send_until_matched(send: Callable[[], None], dropped: Callable[[], None]) -> None:
    """Send a response now, and again later while its client's reader is not known.

    send: raises InvalidHandle where the server has gone. dropped: called where the response was
    given up, on any thread.
    """
    if _sent(send):
        return
    if _late.acquire(blocking=False):
        threading.Thread(
            target=_send_again, args=[send, dropped], name="late response", daemon=True
        ).start()
    else:
        dropped()


def _send_again(send: Callable[[], None], dropped: Callable[[], None]) -> None:
    try:
        for pause_s in PAUSES_S:
            time.sleep(pause_s)
            if _sent(send):
                return
        dropped()
    except InvalidHandle:
        pass  # the server was destroyed meanwhile
    finally:
        _late.release()


def _sent(send: Callable[[], None]) -> bool:
    """Whether the response went to a reader for certain: a busy machine may be as slow as rmw."""
    start = time.monotonic()
    try:
        send()
    except rclpy_implementation.RCLError:
        return False
    return time.monotonic() - start < MATCH_S
