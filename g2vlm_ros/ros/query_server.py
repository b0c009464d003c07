# SPDX-License-Identifier: Apache-2.0
"""`~/query` and `~/answer`: questions taken in, queued for the device, answered, never raising.

A callback checks its request and returns; everything else happens on the device's thread, and no
question holds a thread of the executor while it waits. A goal is accepted at once, whatever the
device does; what is wrong with it is said in its result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from rclpy.action import CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.query.types import Abstention
from g2vlm_ros.ros import query_request, query_response
from g2vlm_ros.ros.deferred_service import ClientTracker, DeferredService
from g2vlm_ros.ros.inference_scheduler import BusyError, InferenceScheduler
from g2vlm_ros.ros.query_response import Refusal
from g2vlm_ros.ros.query_worker import QueryWorker
from g2vlm_ros.ros.question import Deadline, Question
from g2vlm_ros.ros.rclpy_workarounds import SafeActionServer
from g2vlm_ros.ros.service_errors import Codes, RequestError, inactive
from g2vlm_ros.ros.tf_lookup import TfLookupError
from g2vlm_ros.ros.window_selection import Feedback, NotYetError
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.settings import Settings
from g2vlm_ros.srv import SpatialQuery

GRACE_S = 0.1
"""How long a caller waits past its deadline for the answer that is being written."""
RETRY_S = 0.05
"""How often a goal that waits for a fresh window looks for one."""
BURST = QoSProfile(depth=1000)
"""Requests that may arrive before the first is looked at; none is lost."""


class ClientActionServer(SafeActionServer):
    """An action server that knows which client a goal is of."""

    def __init__(self, *arguments: Any, **options: Any):
        self._tracker = ClientTracker()
        self._client_of_goal: dict[bytes, int] = {}
        super().__init__(*arguments, **options)

    async def _execute_goal_request(self, request_header_and_message: Any) -> None:
        header, goal = request_header_and_message
        number = getattr(header, "sequence_number", 0)
        key = bytes(goal.goal_id.uuid)
        self._client_of_goal[key] = self._tracker.client_of(number)
        try:
            await super()._execute_goal_request(request_header_and_message)
        finally:
            self._client_of_goal.pop(key, None)

    def client_of(self, goal: Any) -> int:
        """The client of a goal that is being accepted."""
        return self._client_of_goal.get(bytes(goal.goal_id.uuid), 0)


class QueryServer:
    """The service, the action and the topics of questions."""

    def __init__(
        self,
        node: LifecycleNode,
        perception: Perception,
        settings: Settings,
        model_version: str,
        device: InferenceScheduler,
        windows: WindowSource,
        objects: ObjectMemory,
        publish_objects: Callable[[], None],
    ):
        """publish_objects: called after each answer, which may have been about a new thing."""
        self._publish_objects = publish_objects
        self._node, self._settings = node, settings
        self._model_version, self._device = model_version, device
        self._windows = windows
        self.worker = QueryWorker(
            node,
            perception,
            settings,
            model_version,
            windows,
            device.yield_to_others,
            objects,
        )
        self._goals: dict[bytes, Question] = {}
        self._lock = threading.Lock()
        group = ReentrantCallbackGroup()
        self._service = DeferredService(
            node,
            SpatialQuery,
            "~/query",
            self.receive,
            callback_group=group,
            qos_profile=BURST,
        )
        self._action = ClientActionServer(
            node,
            AnswerSpatialQuery,
            "~/answer",
            self._deliver,
            callback_group=group,
            handle_accepted_callback=self._accept,
            cancel_callback=self._cancel,
            goal_service_qos_profile=BURST,
            result_service_qos_profile=BURST,
        )

    def remember(self, update: PerceivedWindow) -> None:
        """Hold a window for questions about its moment (device's thread)."""
        self.worker.remember(update)

    def forget(self) -> None:
        """Let all windows, conversations and objects go (device's thread)."""
        self.worker.forget()

    def open_goals(self) -> int:
        """How many goals have no result yet."""
        return len(self._goals)

    def close(self) -> None:
        """Take service, action and topics away; whoever still waits is told so."""
        self._service.close()
        with self._lock:
            waiting = list(self._goals.values())
        for question in waiting:
            if not question.done.is_set():
                sentence = "the node was cleaned up meanwhile"
                question.response = self._refuse(question, Codes.INACTIVE, sentence)
                question.done.set()
        self._action.destroy()
        self.worker.close()

    # Service and action ----------------------------------------------------------------------

    def receive(
        self, request: SpatialQuery.Request, client: int, reply: Callable[[Any], None]
    ) -> None:
        """A question of the service: its response is sent when it is there, or its time over."""
        question = Question(
            request,
            SpatialQuery.Response,
            Deadline(request.max_wait_s),
            quick=True,
            client=f"service {client}",
        )
        question.reply = _once(reply)
        if not self._take(question):
            return
        wait_s = max(0.0, question.deadline.max_wait_s) + GRACE_S
        timer = threading.Timer(wait_s, self._give_up, [question])
        timer.daemon = True
        question.timer = timer
        timer.start()
        if question.done.is_set():
            _without_timer(question)

    def _give_up(self, question: Question) -> None:
        """The asker does not wait any longer; what the device still writes goes nowhere."""
        question.deadline.give_up()
        if question.future is not None:
            question.future.cancel()
        question.reply(self._refuse(question, Codes.TIMEOUT, _too_late(question)))

    def _accept(self, goal: Any) -> None:
        """A goal of the action was accepted; its answer is delivered when it is there."""
        question = Question(
            goal.request,
            AnswerSpatialQuery.Result,
            Deadline(goal.request.max_wait_s, lambda: goal.is_cancel_requested),
            quick=False,
            client=f"action {self._action.client_of(goal)}",
            fresh=goal.request.fresh_window,
        )
        question.feedback = functools.partial(self._feed_back, goal, question)
        with self._lock:
            self._goals[bytes(goal.goal_id.uuid)] = question
        question.feedback(Feedback.QUEUED, "")
        if not self._take(question):
            goal.execute()

    def _feed_back(self, goal: Any, question: Question, phase: int, text: str) -> None:
        """Tell the goal's client; the first phase that is not QUEUED starts its execution."""
        if phase != Feedback.QUEUED and not question.executing:
            question.executing = True
            goal.execute()
        elapsed_s = question.deadline.elapsed_s()
        try:
            goal.publish_feedback(Feedback(phase=phase, partial_answer=text, elapsed_s=elapsed_s))
        except Exception as error:  # the client may be gone; the answer goes on
            self._windows.log_failure("feedback", error)

    def _deliver(self, goal: Any) -> AnswerSpatialQuery.Result:
        """Executes a goal: waits for the device to finish, then says how it ended."""
        question = self._goals[bytes(goal.goal_id.uuid)]
        question.done.wait()
        with self._lock:
            self._goals.pop(bytes(goal.goal_id.uuid), None)
        question.feedback = _no_feedback  # it holds the question, as a timer would
        if goal.is_cancel_requested:
            goal.canceled()
        elif question.response.success:
            goal.succeed()
        else:
            goal.abort()
        return question.response

    def _cancel(self, goal: Any) -> CancelResponse:
        """Always accepted. A goal that still waits for the device need not wait any longer."""
        threading.Timer(RETRY_S, self._drop, [goal]).start()
        return CancelResponse.ACCEPT

    def _drop(self, goal: Any) -> None:
        question = self._goals.get(bytes(goal.goal_id.uuid))
        if question is None or question.future is None or not question.future.cancel():
            return
        self._end(question, self._refuse(question, Codes.UNKNOWN, "the goal was cancelled"))
        goal.execute()

    # Queue -----------------------------------------------------------------------------------

    def _take(self, question: Question) -> bool:
        """Check a question and queue it; False, with its response sent, where it is refused."""
        try:
            if not self._windows.is_active():
                raise inactive()
            query_request.check(question.request, self._settings.cameras, self.worker.now_ns())
            newest = self._windows.newest_window()
            question.after = newest[0].window if newest else None
            self._queue(question)
            return True
        except Exception as error:  # a question that ends without a response would never end
            self._end(question, self._response_to(error, question))
            return False

    def _queue(self, question: Question) -> None:
        try:
            question.future = self._device.ask(
                question.client, lambda: self._work(question), quick=question.quick
            )
        except BusyError as error:
            raise RequestError(Codes.BUSY, f"{error}; ask again in a moment") from error
        except RuntimeError as error:
            raise RequestError(Codes.INACTIVE, f"{error}; configure and activate it") from error

    def _again(self, question: Question) -> None:
        """Queue a goal once more that waits for its fresh window."""
        try:
            self._queue(question)
        except RequestError as error:
            self._finish(question, self._response_to(error, question))

    def _work(self, question: Question) -> None:
        """Answer one question on the device's thread; whatever happens is said in its response."""
        try:
            response = self.worker.answer(question)
        except NotYetError:
            timer = threading.Timer(RETRY_S, self._again, [question])
            timer.daemon = True
            timer.start()
            return
        except Exception as error:  # a question that ends without a response would never end
            response = self._response_to(error, question)
        except BaseException as error:
            self._finish(question, self._response_to(error, question))
            raise
        self._finish(question, response)

    def _response_to(self, error: BaseException, question: Question) -> Any:
        """The response that says why there is no answer, as a code and a sentence."""
        if isinstance(error, RequestError):
            return self._refuse(question, error.code, str(error))
        if isinstance(error, Abstention):
            return self._refuse(question, getattr(Codes, error.reason.name), str(error))
        if isinstance(error, TfLookupError):
            return self._refuse(question, Codes.TF_ERROR, str(error))
        if isinstance(error, NoLanguageError):
            return self._refuse(
                question,
                Codes.NO_MODEL,
                "the language of this checkpoint is not trained; mark what you mean with a pixel "
                "or box, give query.detections_topic, or load a checkpoint that answers",
            )
        if not isinstance(error, OutOfTimeError):
            self._windows.log_failure("a question", error)
            return self._refuse(question, Codes.UNKNOWN, f"{type(error).__name__}: {error}")
        if question.deadline.cancelled():
            return self._refuse(question, Codes.UNKNOWN, "the goal was cancelled")
        if not self._windows.is_active():
            return self._refuse(question, Codes.INACTIVE, "the node was deactivated meanwhile")
        return self._refuse(question, Codes.TIMEOUT, _too_late(question))

    def _refuse(self, question: Question, code: int, sentence: str) -> Any:
        refusal = Refusal(code, sentence, self.worker.now_ns())
        return query_response.encode(question, refusal, self._model_version)

    def _finish(self, question: Question, response: Any) -> None:
        """Send the response, and publish it; starts the delivery of a goal never begun."""
        self._end(question, response)
        try:
            self.worker.topics.publish_answer(question)
            self._publish_objects()
        except Exception as error:  # the node may be closing; the answer goes out
            self._windows.log_failure("last_answer", error)
        if not question.quick and not question.executing:
            question.feedback(Feedback.ANSWERING, "")

    def _end(self, question: Question, response: Any) -> None:
        question.response = response
        question.done.set()
        _without_timer(question)
        question.reply(response)


def _no_feedback(phase: int, text: str) -> None:
    """For a goal that has ended."""


def _without_timer(question: Question) -> None:
    """The timer holds the question, so that a question which held it on would wait for the
    collector of cycles, with the caches of the views that it was answered from."""
    timer, question.timer = question.timer, None
    if timer is not None:
        timer.cancel()


def _once(reply: Callable[[Any], None]) -> Callable[[Any], None]:
    """The first reply is sent, any later one goes nowhere."""
    lock = threading.Lock()

    def send(response: Any) -> None:
        if lock.acquire(blocking=False):
            reply(response)

    return send


def _too_late(question: Question) -> str:
    return (
        f"no answer within max_wait_s = {question.request.max_wait_s:g}; allow more, or ask again "
        "now that the window is encoded"
    )
