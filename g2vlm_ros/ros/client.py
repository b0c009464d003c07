"""Asks the perception node from Python: a synchronous and an asyncio client.

    with SpatialClient() as robot:
        answer = robot.ask("How far is the red box?")
        if answer.success:
            print(answer.number, answer.unit)

    async with AsyncSpatialClient() as robot:
        answer = await robot.ask("Go to the red chair")

Both have a node and an executor thread of their own, so they work in any program, with or without
a spinning node. Answers are SpatialQuery responses as they are: look at `success` and `error_msg`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.srv import GetPoints, SpatialQuery

PATIENCE_S = 2.0
"""How long a client waits past the question's own max_wait_s before it gives the node up."""
DISCOVERY_S = 5.0


class UnreachableError(ConnectionError):
    """The node does not offer the service, or does not respond."""


class _Connection:
    """A node with the clients, spun by a thread."""

    def __init__(self, node: str = "/perception", context: Any = None):
        self._own_context = context is None
        self._context = context or rclpy.Context()
        if self._own_context:
            rclpy.init(args=[], context=self._context)
        self._name = node
        self._node = rclpy.create_node(
            "spatial_client", context=self._context, start_parameter_services=False
        )
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self.query = self._node.create_client(SpatialQuery, f"{node}/query")
        self.points = self._node.create_client(GetPoints, f"{node}/get_points")
        self.answer = ActionClient(self._node, AnswerSpatialQuery, f"{node}/answer")
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass

    def send(self, client: Any, request: Any) -> concurrent.futures.Future:
        """Call a service; a future of this process, whoever waits for it."""
        if not client.wait_for_service(DISCOVERY_S):
            raise UnreachableError(
                f"{client.srv_name} is not offered; start and configure the perception node"
            )
        done: concurrent.futures.Future = concurrent.futures.Future()
        sent = client.call_async(request)
        sent.add_done_callback(lambda future: done.done() or done.set_result(future.result()))
        # A caller that stops waiting leaves nothing behind.
        done.add_done_callback(lambda future: client.remove_pending_request(sent))
        return done

    def picture(self) -> concurrent.futures.Future:
        """The latched picture of the last answer."""
        done: concurrent.futures.Future = concurrent.futures.Future()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        subscription = self._node.create_subscription(
            Image, f"{self._name}/query/picture",
            lambda message: done.done() or done.set_result(message), latched,
        )  # fmt: skip
        self._executor.wake()
        done.add_done_callback(lambda _: self._node.destroy_subscription(subscription))
        return done

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._thread.join(timeout=2)
        self.answer.destroy()
        self._node.destroy_node()
        if self._own_context:
            rclpy.try_shutdown(context=self._context)


def _silent(timeout_s: float) -> UnreachableError:
    return UnreachableError(
        f"no response within {timeout_s:.1f} s; is the perception node still running?"
    )


def request(question: str, **fields: Any) -> SpatialQuery.Request:
    """A request; fields as in SpatialQuery.srv. ValueError for text that cannot be sent."""
    try:
        question.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the question has an unpaired surrogate at character {error.start}; send Unicode"
        ) from error
    wrong = set(fields) - set(SpatialQuery.Request.get_fields_and_field_types())
    if wrong:
        known = ", ".join(SpatialQuery.Request.get_fields_and_field_types())
        raise ValueError(f"SpatialQuery has no field {', '.join(sorted(wrong))}; it has {known}")
    return SpatialQuery.Request(question=question, **fields)


class SpatialClient:
    """Blocks until the answer is there. Threads may share one client."""

    def __init__(self, node: str = "/perception", context: Any = None):
        self._connection = _Connection(node, context)

    def __enter__(self) -> SpatialClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, question: str, **fields: Any) -> SpatialQuery.Response:
        """The answer to a question; raises UnreachableError where the node does not respond."""
        asked = request(question, **fields)
        return self._wait(
            self._connection.send(self._connection.query, asked), asked.max_wait_s + PATIENCE_S
        )

    def locate(self, thing: str, **fields: Any) -> SpatialQuery.Response:
        """Where a thing is: `pose` and its covariance in target_frame."""
        kind = SpatialQuery.Request.POINT
        return self.ask(f"Where is the {thing}?", answer_kind=kind, **fields)

    def points(
        self, camera: str, u_px: list[float], v_px: list[float], **fields: Any
    ) -> GetPoints.Response:
        """The 3D points of pixels of a camera's newest view."""
        asked = GetPoints.Request(camera=camera, u_px=u_px, v_px=v_px, **fields)
        return self._wait(
            self._connection.send(self._connection.points, asked), DISCOVERY_S + PATIENCE_S
        )

    def picture(self) -> Image:
        """The last answer (whoever asked) drawn on the camera image that it rests on."""
        return self._wait(self._connection.picture(), DISCOVERY_S)

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
        asked = request(question, **fields)
        return await self._call(self._connection.query, asked, asked.max_wait_s + PATIENCE_S)

    async def locate(self, thing: str, **fields: Any) -> SpatialQuery.Response:
        """Where a thing is: `pose` and its covariance in target_frame."""
        kind = SpatialQuery.Request.POINT
        return await self.ask(f"Where is the {thing}?", answer_kind=kind, **fields)

    async def points(
        self, camera: str, u_px: list[float], v_px: list[float], **fields: Any
    ) -> GetPoints.Response:
        """The 3D points of pixels of a camera's newest view."""
        asked = GetPoints.Request(camera=camera, u_px=u_px, v_px=v_px, **fields)
        return await self._call(self._connection.points, asked, DISCOVERY_S + PATIENCE_S)

    async def _call(self, client: Any, asked: Any, timeout_s: float) -> Any:
        loop = asyncio.get_running_loop()
        sent = await loop.run_in_executor(None, self._connection.send, client, asked)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(sent), timeout_s)
        except asyncio.TimeoutError:
            raise _silent(timeout_s) from None
