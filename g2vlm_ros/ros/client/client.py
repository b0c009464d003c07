# SPDX-License-Identifier: Apache-2.0
"""Asks the perception node from Python: a synchronous and an asyncio client.

    with SpatialClient() as robot:
        answer = robot.ask("How far is the red box?")
        if answer.success:
            print(answer.number, answer.unit)

    async with AsyncSpatialClient() as robot:
        answer = await robot.ask("Go to the red chair")
        slow = await robot.answer("What is there?", fresh_window=True, on_feedback=print)

Both have a node and an executor thread of their own, so they work in any program, with or without
a spinning node. Answers are SpatialQuery responses as they are: look at `success` and `error_msg`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import threading
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import Image

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.parameter_schema import MAX_NAME, TOPIC
from g2vlm_ros.ros.client.answer_images import AnswerImages
from g2vlm_ros.ros.client.errors import PictureMissedError, UnreachableError
from g2vlm_ros.ros.client.fields import message
from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient, SafeEntities
from g2vlm_ros.ros.start_errors import start_errors
from g2vlm_ros.srv import EditObject, FindObjects, GetPoints, SpatialQuery

PATIENCE_S = 2.0
"""How long a client waits past the question's own max_wait_s before it gives the node up."""
DISCOVERY_S = 15.0
"""How long to look for the node: DDS repeats a lost announcement every 3 s."""
LOOK_S = 0.2
"""How often a client's thread looks whether the client was closed. Spinning until a future is done
would do it at once, but rclpy adds a callback to that future with every message."""
MAX_QUESTIONS_FOR_A_PICTURE = 3
"""The first picture may be missed while the node finds the new listener; a third one was never."""


class _Peer(SafeEntities, Node):
    """Pictures are listened to and let go of beside the thread that spins."""


class _Connection:
    """A node with the clients, spun by a thread."""

    def __init__(self, node: str = "/perception", context: Any = None):
        if not TOPIC.pattern.fullmatch(node) or len(node) > MAX_NAME:
            raise ValueError(f"node is {node!r}; it must be {TOPIC.sentence}")
        self._own_context = context is None
        self._context = context or rclpy.Context()
        self._name = node
        with start_errors():
            if self._own_context:
                rclpy.init(args=[], context=self._context)
            self.node = _Peer(
                "spatial_client", context=self._context, start_parameter_services=False
            )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.query = self.node.create_client(SpatialQuery, f"{node}/query")
        self.points = self.node.create_client(GetPoints, f"{node}/get_points")
        self.objects = self.node.create_client(FindObjects, f"{node}/find_objects")
        self.answer = SafeActionClient(self.node, AnswerSpatialQuery, f"{node}/answer")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        """Until the client is closed: a callback that raises costs no other its answer."""
        while self._context.ok() and not self._closed.is_set():
            try:
                self._executor.spin_once(timeout_sec=LOOK_S)
            except ExternalShutdownException:
                return
            except Exception:
                self.node.get_logger().error(f"a callback failed: {traceback.format_exc()}")

    def send(self, client: Any, request: Any) -> concurrent.futures.Future:
        """Call a service; a future of this process, whoever waits for it."""
        if not client.wait_for_service(DISCOVERY_S):
            raise UnreachableError(
                f"{client.srv_name} is not offered; start and configure the perception node"
            )
        done: concurrent.futures.Future = concurrent.futures.Future()
        reply = client.call_async(request)
        reply.add_done_callback(lambda future: done.done() or done.set_result(future.result()))
        # A caller that stops waiting leaves nothing behind.
        done.add_done_callback(lambda future: client.remove_pending_request(reply))
        return done

    @functools.cached_property
    def edits(self) -> Any:
        """Made by who edits only: a policy need not grant it to who asks."""
        return self.node.create_client(EditObject, f"{self._name}/edit_object")

    def pictures(self) -> AnswerImages:
        """Listens to the pictures of answers from now on."""
        return AnswerImages(self.node, f"{self._name}/query/picture", DISCOVERY_S)

    def goal(
        self, request: AnswerSpatialQuery.Goal, on_feedback: Callable[[Any], None] | None
    ) -> _Goal:
        """A goal of the action, not sent yet."""
        return _Goal(self.answer, request, on_feedback)

    def close(self) -> None:
        """Leave the graph."""
        # The thread goes first: Executor.shutdown takes away what a running spin still needs.
        self._closed.set()
        self._thread.join(timeout=2)
        self._executor.shutdown()
        self.answer.destroy()
        self.node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown(context=self._context)


class _Goal:
    """A goal of the action on its way; may be cancelled at any time, by any thread."""

    def __init__(
        self,
        action: SafeActionClient,
        request: AnswerSpatialQuery.Goal,
        on_feedback: Callable[[Any], None] | None,
    ):
        self._action, self._request, self._on_feedback = action, request, on_feedback
        self._handle: Any = None
        self._unwanted = False
        self._lock = threading.Lock()
        self.result: concurrent.futures.Future = concurrent.futures.Future()
        """AnswerSpatialQuery.Result, however the goal ended."""

    def send(self) -> None:
        """Send it; UnreachableError where the action is not offered."""
        if not self._action.wait_for_server(DISCOVERY_S):
            raise UnreachableError("the action is not offered; start and configure the node")
        hear = self._on_feedback and (lambda message: self._on_feedback(message.feedback))
        acceptance = self._action.send_goal_async(self._request, feedback_callback=hear)
        acceptance.add_done_callback(self._accepted)

    def cancel(self) -> None:
        """Ask the node to stop; a goal that is not accepted yet is cancelled once it is."""
        with self._lock:
            self._unwanted = True
            if self._handle is not None:
                self._handle.cancel_goal_async()

    def _accepted(self, acceptance: Any) -> None:
        handle = acceptance.result()
        if not handle.accepted:
            self._end(UnreachableError("the node takes no goals; is it shutting down?"))
            return
        handle.get_result_async().add_done_callback(lambda done: self._end(done.result().result))
        with self._lock:
            self._handle = handle
        if self._unwanted:
            self.cancel()

    def _end(self, result: Any) -> None:
        if self.result.done():
            return
        if isinstance(result, Exception):
            self.result.set_exception(result)
        else:
            self.result.set_result(result)


def _silent(timeout_s: float) -> UnreachableError:
    return UnreachableError(
        f"no response within {timeout_s:.1f} s; is the perception node still running?"
    )


def request(question: str, kind: type = SpatialQuery.Request, **fields: Any) -> Any:
    """A request, or a goal (`kind`); fields as in SpatialQuery.srv.

    ValueError for a value that cannot be sent, and for a field that is not there.
    """
    return message(kind, question=question, **fields)


class SpatialClient:
    """Blocks until the answer is there. Threads may share one client."""

    def __init__(self, node: str = "/perception", context: Any = None):
        self._connection = _Connection(node, context)

    @property
    def node(self) -> Node:
        """The client's own node, which a thread of the client spins."""
        return self._connection.node

    def __enter__(self) -> SpatialClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: str, **fields: Any) -> SpatialQuery.Response:
        """The answer to a question; raises UnreachableError where the node does not respond."""
        call = request(question, **fields)
        return self._wait(
            self._connection.send(self._connection.query, call), call.max_wait_s + PATIENCE_S
        )

    def ask_and_see(
        self, question: str, **fields: Any
    ) -> tuple[SpatialQuery.Response, Image | None]:
        """The answer, and what it rests on drawn on the camera images (None without answer).

        Asks again where the picture was missed.
        """
        with contextlib.closing(self.pictures()) as pictures:
            for _ in range(MAX_QUESTIONS_FOR_A_PICTURE - 1):
                answer = self.ask(question, **fields)
                try:
                    return answer, pictures.of(answer) if answer.success else None
                except PictureMissedError:
                    pass
            answer = self.ask(question, **fields)
            return answer, pictures.of(answer) if answer.success else None

    def pictures(self) -> AnswerImages:
        """Listens from now on to the pictures that answers rest on."""
        return self._connection.pictures()

    def locate(self, thing: str, **fields: Any) -> SpatialQuery.Response:
        """Where a thing is: `pose` and its covariance in target_frame."""
        kind = SpatialQuery.Request.POINT
        return self.ask(f"Where is the {thing}?", answer_kind=kind, **fields)

    def find(self, words: str = "", **fields: Any) -> FindObjects.Response:
        """What is remembered of things by that name, seen at any time; all without words."""
        request = message(FindObjects.Request, words=words, **fields)
        return self._wait(
            self._connection.send(self._connection.objects, request), DISCOVERY_S + PATIENCE_S
        )

    def look_again(self, object_id: int) -> EditObject.Response:
        """Doubt a remembered thing until the next windows that see its place say whether it is
        there: `find` gives its state, and `seen_from`, a place to look from."""
        request = message(EditObject.Request, action=EditObject.Request.LOOK_AGAIN, id=object_id)
        return self._wait(
            self._connection.send(self._connection.edits, request), DISCOVERY_S + PATIENCE_S
        )

    def points(
        self, camera: str, u_px: list[float], v_px: list[float], **fields: Any
    ) -> GetPoints.Response:
        """The 3D points of pixels of a camera's newest view."""
        request = message(GetPoints.Request, camera=camera, u_px=u_px, v_px=v_px, **fields)
        return self._wait(
            self._connection.send(self._connection.points, request), DISCOVERY_S + PATIENCE_S
        )

    def close(self) -> None:
        """Leave the graph."""
        self._connection.close()

    @staticmethod
    def _wait(future: concurrent.futures.Future, timeout_s: float) -> Any:
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise _silent(timeout_s) from None


class AsyncSpatialClient:
    """The same for asyncio: nothing blocks the event loop."""

    def __init__(self, node: str = "/perception", context: Any = None):
        self._connection = _Connection(node, context)

    async def __aenter__(self) -> AsyncSpatialClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._connection.close)

    async def ask(self, question: str, **fields: Any) -> SpatialQuery.Response:
        """The answer to a question; raises UnreachableError where the node does not respond.

        Cancelling the task forgets the question.
        """
        call = request(question, **fields)
        return await self._call(self._connection.query, call, call.max_wait_s + PATIENCE_S)

    async def answer(
        self, question: str, on_feedback: Callable[[Any], None] | None = None, **fields: Any
    ) -> AnswerSpatialQuery.Result:
        """The answer by the action, with partial answers on the way; fields as in its goal.

        on_feedback runs in the event loop. Cancelling the task cancels the goal, between two
        tokens. Raises UnreachableError where the node does not respond.
        """
        call = request(question, AnswerSpatialQuery.Goal, **fields)
        loop = asyncio.get_running_loop()
        hear = on_feedback and (lambda text: loop.call_soon_threadsafe(on_feedback, text))
        goal = self._connection.goal(call, hear)
        timeout_s = call.max_wait_s + PATIENCE_S
        try:
            await loop.run_in_executor(None, goal.send)
            return await asyncio.wait_for(asyncio.wrap_future(goal.result), timeout_s)
        except asyncio.TimeoutError:
            goal.cancel()
            raise _silent(timeout_s) from None
        except asyncio.CancelledError:
            goal.cancel()
            raise

    async def locate(self, thing: str, **fields: Any) -> SpatialQuery.Response:
        """Where a thing is: `pose` and its covariance in target_frame."""
        kind = SpatialQuery.Request.POINT
        return await self.ask(f"Where is the {thing}?", answer_kind=kind, **fields)

    async def points(
        self, camera: str, u_px: list[float], v_px: list[float], **fields: Any
    ) -> GetPoints.Response:
        """The 3D points of pixels of a camera's newest view."""
        request = message(GetPoints.Request, camera=camera, u_px=u_px, v_px=v_px, **fields)
        return await self._call(self._connection.points, request, DISCOVERY_S + PATIENCE_S)

    async def _call(self, client: Any, request: Any, timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        reply = await loop.run_in_executor(None, self._connection.send, client, request)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reply), timeout_s)
        except asyncio.TimeoutError:
            raise _silent(timeout_s) from None
