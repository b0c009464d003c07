# SPDX-License-Identifier: Apache-2.0
"""`~/query` and `~/answer`: questions taken in, queued for the device, answered, never raising.

A callback checks its request and returns or waits; everything else happens on the device's thread.
A goal is accepted at once, whatever the device does; what is wrong with it is said in its result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import MappedWindow
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.types import Abstention
from g2vlm_ros.ros import query_messages
from g2vlm_ros.ros.inference_scheduler import BusyError, InferenceScheduler
from g2vlm_ros.ros.point_service import RequestError
from g2vlm_ros.ros.query_messages import Codes
from g2vlm_ros.ros.query_worker import Feedback, NotYetError, QueryWorker, Question
from g2vlm_ros.ros.tf_lookup import TfLookupError
from g2vlm_ros.settings import Settings
from g2vlm_ros.srv import SpatialQuery

GRACE_S = 0.1
"""How long a caller waits past its deadline for the answer that is being written."""
RETRY_S = 0.05
"""How often a goal that waits for a fresh window looks for one."""
BURST = QoSProfile(depth=1000)
"""Requests that may arrive before the first is looked at; none is lost."""


class QueryServer:
    """The service, the action and the topics of questions.

    newest: the newest Update and its age, or None. run_window: makes the next window, if frames
    for one are here (device's thread). active: whether questions are answered.
    """

    def __init__(
        self,
        node: LifecycleNode,
        perception: Perception,
        settings: Settings,
        model_version: str,
        device: InferenceScheduler,
        newest: Callable[[], tuple[MappedWindow, float] | None],
        run_window: Callable[[], None],
        active: Callable[[], bool],
        log_failure: Callable[[str, Exception], None],
    ):
        self._node, self._settings = node, settings
        self._model_version, self._device = model_version, device
        self._newest, self._active = newest, active
        self._log_failure = log_failure
        self._answerer = QueryWorker(
            node, perception, settings, newest, run_window, device.yield_to_others, active
        )
        group = ReentrantCallbackGroup()
        self._service = node.create_service(
            SpatialQuery, "~/query", self._serve, callback_group=group, qos_profile=BURST
        )
        self._action = ActionServer(
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
        self._goals: dict[bytes, Question] = {}

    def remember(self, update: MappedWindow) -> None:
        """Hold a window for questions about its moment (device's thread)."""
        self._answerer.remember(update)

    def forget(self) -> None:
        """Let all windows and conversations go (device's thread)."""
        self._answerer.forget()

    def close(self) -> None:
        """Take service, action and topics away. No question is waiting any more."""
        self._action.destroy()
        self._node.destroy_service(self._service)
        self._answerer.close()

    # Service and action ----------------------------------------------------------------------

    def _serve(self, asked: SpatialQuery.Request, response: SpatialQuery.Response):
        """One question of the service; waits for its answer, at most as long as its asker."""
        question = Question(asked, SpatialQuery.Response())
        if self._take(question):
            wait_s = min(asked.max_wait_s, query_messages.MAX_WAIT_S) + GRACE_S
            if not question.done.wait(wait_s):
                question.given_up = True
                question.future.cancel()
                question.response = response
                query_messages.clear(response, asked.answer_kind)
                self._refuse(question, Codes.TIMEOUT, _too_late(question))
        return question.response

    def _accept(self, goal: Any) -> None:
        """A goal of the action was accepted; its answer is delivered when it is there."""
        feedback = functools.partial(self._feed_back, goal)
        question = Question(
            goal.request,
            AnswerSpatialQuery.Result(),
            goal.request.fresh_window,
            lambda: goal.is_cancel_requested,
        )
        question.feedback = functools.partial(feedback, question)
        self._goals[bytes(goal.goal_id.uuid)] = question
        question.feedback(Feedback.QUEUED, "")
        if not self._take(question):
            goal.execute()

    def _feed_back(self, goal: Any, question: Question, phase: int, text: str) -> None:
        """Tell the goal's client; the first phase that is not QUEUED starts its execution."""
        if phase != Feedback.QUEUED and not question.started:
            question.started = True
            goal.execute()
        try:
            goal.publish_feedback(
                Feedback(phase=phase, partial_answer=text, elapsed_s=question.elapsed_s())
            )
        except Exception as error:  # the client may be gone; the answer goes on
            self._log_failure("feedback", error)

    def _deliver(self, goal: Any) -> AnswerSpatialQuery.Result:
        """Executes a goal: waits for the device to finish, then says how it ended."""
        question = self._goals.pop(bytes(goal.goal_id.uuid))
        question.done.wait()
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
        self._refuse(question, Codes.UNKNOWN, "the goal was cancelled")
        self._end(question)
        goal.execute()

    # Queue -----------------------------------------------------------------------------------

    def _take(self, question: Question) -> bool:
        """Check a question and queue it; False, with `done` set, where it is refused."""
        try:
            query_messages.clear(question.response, question.request.answer_kind)
            if not self._active():
                raise RequestError(
                    Codes.INACTIVE,
                    "the node is not active; activate it (ros2 lifecycle set ... activate)",
                )
            query_messages.check(question.request, self._settings.cameras, self._now_ns())
            newest = self._newest()
            question.after_window = newest[0].window.id if newest else 0
            self._queue(question)
            return True
        except RequestError as refused:
            self._refuse(question, refused.code, str(refused))
        except Exception as error:
            self._failed(question, error)
        self._end(question)
        return False

    def _queue(self, question: Question) -> None:
        try:
            question.future = self._device.ask(
                question.request.dialogue, lambda: self._work(question), quick=question.quick
            )
        except BusyError as error:
            raise RequestError(Codes.BUSY, f"{error}; ask again in a moment") from error
        except RuntimeError as error:
            raise RequestError(Codes.INACTIVE, f"{error}; configure and activate it") from error

    def _again(self, question: Question) -> None:
        """Queue a goal once more that waits for its fresh window."""
        try:
            self._queue(question)
        except RequestError as refused:
            self._refuse(question, refused.code, str(refused))
            self._finish(question)

    def _work(self, question: Question) -> None:
        """Answer one question on the device's thread; whatever happens is said in its response."""
        try:
            self._answerer.answer(question)
            question.response.success = True
        except NotYetError:
            threading.Timer(RETRY_S, self._again, [question]).start()
            return
        except RequestError as refused:
            self._refuse(question, refused.code, str(refused))
        except Abstention as abstained:
            self._refuse(question, getattr(Codes, abstained.reason.name), str(abstained))
        except TfLookupError as error:
            self._refuse(question, Codes.TF_ERROR, str(error))
        except NoLanguageError:
            self._refuse(
                question,
                Codes.NO_MODEL,
                "the language of this checkpoint is not trained; mark what you mean with a pixel "
                "or box, give query.detections_topic, or load a checkpoint that answers",
            )
        except OutOfTimeError:
            self._out_of_time(question)
        except Exception as error:  # a question that ends without a response would never end
            self._failed(question, error)
        self._finish(question)

    def _finish(self, question: Question) -> None:
        """Complete the response and wake who waits; starts the delivery of a goal never begun."""
        self._end(question)
        try:
            self._answerer.publish_answer(question)
        except Exception as error:  # the node may be closing; the answer goes out
            self._log_failure("last_answer", error)
        if not question.quick and not question.started:
            question.feedback(Feedback.ANSWERING, "")

    def _end(self, question: Question) -> None:
        response = question.response
        response.reasoning = list(question.steps)
        response.stage_names = list(question.stage_times_s)
        response.stage_times_s = list(question.stage_times_s.values())
        response.model_version = self._model_version
        question.done.set()

    def _refuse(self, question: Question, code: int, sentence: str) -> None:
        question.response.success = False
        question.response.error_code, question.response.error_msg = code, sentence

    def _failed(self, question: Question, error: Exception) -> None:
        self._log_failure("a question", error)
        self._refuse(question, Codes.UNKNOWN, f"{type(error).__name__}: {error}")

    def _out_of_time(self, question: Question) -> None:
        if question.cancelled():
            self._refuse(question, Codes.UNKNOWN, "the goal was cancelled")
        elif not self._active():
            self._refuse(question, Codes.INACTIVE, "the node was deactivated meanwhile")
        else:
            self._refuse(question, Codes.TIMEOUT, _too_late(question))

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _too_late(question: Question) -> str:
    return (
        f"no answer within max_wait_s = {question.request.max_wait_s:g}; allow more, or ask again "
        "now that the window is encoded"
    )
