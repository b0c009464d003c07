# SPDX-License-Identifier: Apache-2.0
"""Nodes and action clients that one thread uses while another spins them.

rclpy keeps the memory of an entity that is in use, but raises InvalidHandle or RCLError in the
executor's thread where an entity goes between "ready", "take" and "reply". Jazzy forgives that of
subscriptions and timers that are taken, not of what their events wait for, of action servers, nor
of services whose callback is still running; the exception would end the executor.

An action client notes who waits for a response after it has sent the request, without a lock: a
response that comes in between is dropped ("Ignoring unexpected goal response").
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient, ActionServer
from rclpy.exceptions import InvalidHandle
from rclpy.impl.implementation_singleton import rclpy_implementation

from g2vlm_ros.ros.late_response import MATCH_S, send_until_matched

RCLError = rclpy_implementation.RCLError
GONE = (InvalidHandle, RCLError)
"""What rclpy raises where an entity is used that another thread has destroyed."""


def drain(executor: Any, timeout_s: float) -> list[BaseException]:
    """What the callbacks raised that an executor had begun when it was shut down.

    A shut-down executor takes away the guard condition that its callbacks trigger as they end:
    what they raise of that is dropped, and rclpy prints nothing of it.
    """
    pool = getattr(executor, "_executor", None)
    if pool is not None:
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + timeout_s
        for thread in list(getattr(pool, "_threads", ())):
            thread.join(max(0.0, deadline - time.monotonic()))
    tasks = [*getattr(executor, "_futures", ()), *(t[0] for t in getattr(executor, "_tasks", ()))]
    errors = [task.exception() for task in tasks if task.done()]
    return [error for error in errors if error is not None and not isinstance(error, GONE)]


class SafeEntities:
    """Mixed into a node: its services, actions and event handlers may go while they are spun."""

    def add_waitable(self, waitable) -> None:
        """Add an event handler, an action server or an action client."""
        super().add_waitable(safe_waitable(waitable))

    def create_service(self, *arguments, **named):
        """A service whose responses reach their clients, or are dropped with a word in the log."""
        service = super().create_service(*arguments, **named)
        return safe_service(service, self.get_logger().warning)

    def destroy_publisher(self, publisher) -> bool:
        """Destroy it; transitions of a lifecycle node do not touch it any more."""
        getattr(self, "_managed_entities", set()).discard(publisher)
        return super().destroy_publisher(publisher)


class SafeActionServer(ActionServer):
    """An action server that may be destroyed while goals are executed."""

    async def _execute_goal(self, execute_callback: Callable, goal_handle: Any) -> None:
        try:
            await super()._execute_goal(execute_callback, goal_handle)
        except (*GONE, KeyError):  # rclpy forgets the goal, too
            if not _destroyed(self):
                raise

    async def _execute_goal_request(self, request_header_and_message: Any) -> None:
        """Accept or refuse a goal; the client is told again where it may not have heard."""
        header, request = request_header_and_message
        start = time.monotonic()
        await super()._execute_goal_request(request_header_and_message)
        if time.monotonic() - start >= MATCH_S:
            response = self._action_type.Impl.SendGoalService.Response()
            response.accepted = bytes(request.goal_id.uuid) in self._goal_handles
            self._send_until_matched(lambda: self._handle.send_goal_response(header, response))

    def _send_result_response(self, request_header: Any, future: Any) -> None:
        self._send_until_matched(
            lambda: self._handle.send_result_response(request_header, future.result())
        )

    def _send_until_matched(self, send: Callable[[], None]) -> None:
        try:
            send_until_matched(send, _dropped(self._action_type.__name__, self._logger.warning))
        except GONE:
            self._logger.warning("a response is dropped: its client has gone")

    async def _execute_expire_goals(self, expired_goals: Any) -> None:
        """Forget goals whose results are old. While a server is destroyed rcl may name goals that
        never were, of memory that is not its any more; there is nothing to forget of them."""
        goals = [g for g in expired_goals if bytes(g.goal_id.uuid) in self._goal_handles]
        await super()._execute_expire_goals(goals)


class SafeActionClient(ActionClient):
    """An action client that any thread may ask while another spins it.

    Nothing is taken between the sending of a request and the note of who waits for its response.
    """

    def __init__(self, *arguments: Any, **named: Any):
        self._sending = threading.RLock()
        super().__init__(*arguments, **named)

    def send_goal_async(self, *arguments: Any, **named: Any) -> Any:
        """A future of the goal's handle."""
        with self._sending:
            return super().send_goal_async(*arguments, **named)

    def take_data(self) -> Any:
        """What has come; for the executor."""
        with self._sending:
            return super().take_data()

    def _get_result_async(self, goal_handle: Any) -> Any:
        with self._sending:
            return super()._get_result_async(goal_handle)

    def _cancel_goal_async(self, goal_handle: Any) -> Any:
        with self._sending:
            return super()._cancel_goal_async(goal_handle)


def safe_service(service: Any, warn: Callable[[str], Any]) -> Any:
    """The service, whose responses wait for clients that are not fully discovered, and go nowhere
    once it is destroyed."""
    send, dropped = service.send_response, _dropped(service.srv_name, warn)

    def send_response(response: Any, header: Any) -> None:
        try:
            send_until_matched(lambda: send(response, header), dropped)
        except GONE:
            if not _destroyed(service.handle):
                raise

    service.send_response = send_response
    return service


def _dropped(name: str, warn: Callable[[str], Any]) -> Callable[[], Any]:
    return lambda: warn(
        f"a response of {name} is dropped: discovery has not found its client's reader; is its "
        "QoS reliable and volatile?"
    )


def safe_waitable(waitable):
    """The waitable, which an executor passes over once it is destroyed."""
    add, ready = waitable.add_to_wait_set, waitable.is_ready
    take, run = waitable.take_data, waitable.execute
    in_wait_set, nothing = [False], object()

    def add_to_wait_set(wait_set) -> None:
        in_wait_set[0] = False
        try:
            add(wait_set)
        except GONE:
            return
        in_wait_set[0] = True

    def is_ready(wait_set) -> bool:
        try:
            return in_wait_set[0] and ready(wait_set)
        except GONE:
            return False

    def take_data() -> Any:
        try:
            return take()
        except GONE:
            return nothing

    async def execute(data: Any) -> None:
        if data is nothing:
            return
        try:
            await run(data)
        except GONE:
            if not _destroyed(waitable):
                raise

    waitable.add_to_wait_set, waitable.is_ready = add_to_wait_set, is_ready
    waitable.take_data, waitable.execute = take_data, execute
    return waitable


def _destroyed(handle: Any) -> bool:
    """Whether a handle of rclpy, or a waitable, cannot be used any more."""
    try:
        with handle:
            return False
    except GONE:
        return True
