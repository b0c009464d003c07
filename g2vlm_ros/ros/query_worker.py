# SPDX-License-Identifier: Apache-2.0
"""One question answered on the device's thread: views selected, decoded, answered, encoded."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.msg import SpatialExample
from g2vlm_ros.perception import Example, Perception
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.context import CachedWindow, ContextStore, ViewSelection
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError, measure_detections
from g2vlm_ros.query.object_association import sightings_of
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.query.prompts import Mark
from g2vlm_ros.query.question_plan import AnswerType
from g2vlm_ros.query.types import Query, Result
from g2vlm_ros.ros import query_messages
from g2vlm_ros.ros.answer_image_publisher import AnswerImagePublisher
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.inputs.detections import Detections
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.query_messages import Answer, Target
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.service_errors import Codes, RequestError, check_age, invalid
from g2vlm_ros.ros.tf_lookup import TfLookup
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.settings import Settings

Feedback = AnswerSpatialQuery.Feedback
FEEDBACK_S = 0.05
"""Least time between two partial answers."""


class NotYetError(Exception):
    """A goal for a fresh window must be tried again: the window is not there yet."""


class QueryWorker:
    """Answers questions, one at a time; owns what is remembered of windows and conversations.

    yield_to_others: lets others pass between tokens. objects: what was seen of the map.
    """

    def __init__(
        self,
        node: LifecycleNode,
        perception: Perception,
        settings: Settings,
        model_version: str,
        windows: WindowSource,
        yield_to_others: Callable[[], None],
        objects: ObjectMemory,
    ):
        self._node, self._perception, self._settings = node, perception, settings
        self._model_version = model_version
        self._windows, self._objects = windows, objects
        self._yield_to_others = yield_to_others
        self._context = ContextStore(settings.query.windows, settings.query.dialogues)
        self._examples: dict[tuple[str, int], Any] = {}
        self._tf_lookup = TfLookup(node, settings.map.frame)
        self.detections = Detections(node, settings.query.detections_topic)
        self._target = node.create_lifecycle_publisher(PoseStamped, "~/query/last_target", LATCHED)
        self.pictures = AnswerImagePublisher(node)
        self._answer = node.create_lifecycle_publisher(
            SpatialExample, "~/query/last_answer", LATCHED
        )
        self._tf = None
        if settings.query.target_tf:
            self._tf = node.create_lifecycle_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def remember(self, update: PerceivedWindow) -> None:
        """Hold a window for questions about its moment, and its objects for those about later."""
        selection = self._context.remember(update).select()
        detections = self.detections.of(selection)
        sightings = sightings_of(
            update,
            selection.points,
            measure_detections(selection.points, detections),
            selection.corners,
        )
        views = {detection.region.view for detection in detections}
        self._objects.observe(update, selection.points, sightings, views)

    def forget(self) -> None:
        """Let all windows, conversations and objects go."""
        self._context.clear()
        self._objects.clear()
        self._examples.clear()
        self.pictures.forget()

    def close(self) -> None:
        """Take the topics away and forget."""
        for publisher in (self._target, self._answer, self._tf):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
        self.pictures.close()
        self.detections.close()
        self._tf_lookup.close()
        self.forget()

    def held(self) -> tuple[int, list[str]]:
        """How many windows are held, and the names of the conversations."""
        return len(self._context.recent), self._context.dialogues()

    def answer(self, question: Question) -> Any:
        """The response, decoded, answered and encoded; `QueryServer` turns what it raises into
        codes."""
        self._check_time(question)
        request, progress = question.request, question.progress
        window = self._window(question)
        question.feedback(Feedback.ANSWERING, "")
        selection = window.select(self._views(window.update, request.camera_ids))
        progress.selection = selection
        target = self._target_of(request.target_frame, selection)
        query = query_messages.decode(
            request,
            selection,
            self.detections.of(selection),
            self._objects.objects(),
            target.from_map,
            self._settings.query.robot_width_m,
            self.now_ns(),
        )
        result = self._answer_query(question, query, selection)
        outcome = Answer(result, selection, target, self.pictures.stamp_ns())
        response = query_messages.encode(question, outcome, self._model_version)
        self._publish_target(response, result, selection)
        self.pictures.show(outcome.stamp_ns, request.question, result, selection)
        if request.dialogue:
            self._context.add_turn(request.dialogue, window, query.question, result.text)
        return response

    def _answer_query(self, question: Question, query: Query, selection: ViewSelection) -> Result:
        """The result; the time that no stage of the model took is that of measuring."""
        start = time.perf_counter()
        answerer = Answerer(
            selection.points,
            query,
            functools.partial(self._ask_model, question, selection),
            selection.pointed if self._perception.can_point else None,
        )
        question.progress.steps = answerer.steps
        result = answerer.answer()
        stages_s = sum(question.progress.stage_times_s.values())
        measure_s = time.perf_counter() - start - stages_s
        question.progress.stage_times_s["measure"] = max(0.0, measure_s)
        return result

    def _check_time(self, question: Question, more_s: float = 0.0) -> None:
        if question.deadline.over(more_s) or not self._windows.is_active():
            raise OutOfTimeError

    # Which views -----------------------------------------------------------------------------

    def _window(self, question: Question) -> CachedWindow:
        """The window to answer from: the conversation's, that of the stamp, or the newest."""
        request = question.request
        if question.fresh:
            return self._fresh_window(question)
        stamp_ns = geometry.stamp_ns(request.stamp)
        if stamp_ns:
            return self._window_at(stamp_ns, request.max_age_s)
        dialogue = self._context.dialogue(request.dialogue) if request.dialogue else None
        if dialogue is not None and abs(self._age_s(dialogue.window)) <= request.max_age_s:
            return dialogue.window
        window = self._newest()
        if window is None or abs(self._age_s(window)) > request.max_age_s:
            question.feedback(Feedback.RECONSTRUCTING, "")
            self._windows.run_window()
            window = self._newest()
        if window is None:
            raise RequestError(
                Codes.NO_GEOMETRY,
                "no window has been reconstructed yet; see ~/status for frames and drops",
            )
        check_age(self._age_s(window), request.max_age_s)
        return window

    def _fresh_window(self, question: Question) -> CachedWindow:
        """A window newer than the goal; NotYetError until there are frames for one."""
        question.feedback(Feedback.RECONSTRUCTING, "")
        window = self._newest()
        if window is None or window.update.window.id <= question.after_window:
            self._windows.run_window()
            window = self._newest()
        if window is None or window.update.window.id <= question.after_window:
            raise NotYetError
        return window

    def _window_at(self, stamp_ns: int, max_gap_s: float) -> CachedWindow:
        """The held window with a view nearest to a moment; max_age_s bounds how near."""
        self._newest()
        nearest = self._context.nearest(stamp_ns)
        if nearest is None or nearest.gap_s(stamp_ns) > max_gap_s:
            raise RequestError(
                Codes.NO_GEOMETRY,
                "no window of that moment is kept any more; ask sooner, or raise query.windows",
            )
        return nearest

    def _newest(self) -> CachedWindow | None:
        newest = self._windows.newest_window()
        return None if newest is None else self._context.remember(newest[0])

    def _age_s(self, window: CachedWindow) -> float:
        return (self.now_ns() - window.update.window.stamp_ns) * 1e-9

    def _views(self, update: PerceivedWindow, cameras: Sequence[str]) -> list[int]:
        frames = update.window.frames
        views = [i for i, frame in enumerate(frames) if not cameras or frame.camera in cameras]
        if not views:
            raise RequestError(
                Codes.NOT_VISIBLE,
                f"the window has no view of {', '.join(cameras)}; ask without camera_ids, or wait "
                "for its frames",
            )
        return views

    def _target_of(self, target_frame: str, selection: ViewSelection) -> Target:
        frame_id = target_frame or self._settings.map.frame
        poses = selection.points.map_from_camera
        from_map = self._tf_lookup.target_from_map(
            frame_id, selection.frames, poses, selection.stamp_ns
        )
        return Target(frame_id, from_map)

    # The model -------------------------------------------------------------------------------

    def _ask_model(
        self, question: Question, selection: ViewSelection, prompt: str, marks: Sequence[Mark]
    ) -> str:
        """What the model answers; OutOfTimeError where its asker does not wait that long.

        Words after the first are not begun where they could hardly end in time: what is known by
        then is worth more. NoLanguageError where the checkpoint has no trained language.
        """
        deadline = question.deadline
        self._check_time(question, question.progress.last_words_s + deadline.spare_s)
        if not self._perception.speaks:
            raise NoLanguageError
        request = question.request
        dialogue = self._context.dialogue(request.dialogue) if request.dialogue else None
        last_feedback_s = 0.0

        def should_stop() -> bool:
            if not question.quick:
                self._yield_to_others()
            return deadline.over(deadline.spare_s) or not self._windows.is_active()

        def on_text(text: str) -> None:
            nonlocal last_feedback_s
            if time.monotonic() - last_feedback_s > FEEDBACK_S:
                last_feedback_s = time.monotonic()
                question.feedback(Feedback.ANSWERING, text)

        answer = self._perception.ask(
            selection.scene(self._perception, marks),
            prompt,
            history=list(dialogue.turns) if dialogue else (),
            examples=[self._example(example) for example in request.examples],
            on_text=None if question.quick else on_text,
            should_stop=should_stop,
        )
        question.progress.add_times(answer.stage_times_s)
        question.progress.last_words_s = answer.stage_times_s["decode"]
        if not answer.finished:
            self._check_time(question, deadline.spare_s)
        question.feedback(Feedback.ANSWERING, answer.text)
        return answer.text

    def _example(self, example: SpatialExample) -> Example:
        """A solved example; its scene is kept, so that its features are computed once."""
        key = (example.camera, geometry.stamp_ns(example.stamp))
        if key not in self._examples:
            image = self._context.image(*key)
            if image is None:
                raise invalid(
                    f"examples: no image of camera '{key[0]}' with stamp {key[1] * 1e-9:.3f} s is "
                    "held; take one of the newest windows"
                )
            while len(self._examples) >= query_messages.MAX_EXAMPLES:
                self._examples.pop(next(iter(self._examples)))
            self._examples[key] = self._perception.scene([image])
        return Example(self._examples[key], example.question, example.answer)

    # Topics ----------------------------------------------------------------------------------

    def _publish_target(self, response: Any, result: Result, selection: ViewSelection) -> None:
        """Latch the last place that was asked about; on /tf as well where `query.target_tf` is."""
        if result.kind not in (AnswerType.POINT, AnswerType.POSE) or result.pose is None:
            return
        self._target.publish(response.pose)
        if self._tf is not None:
            header = geometry.header(selection.stamp_ns, self._settings.map.frame)
            child = self._settings.query.target_tf
            transform = geometry.transform_message(header, child, result.pose)
            self._tf.publish(TFMessage(transforms=[transform]))

    def publish_answer(self, question: Question) -> None:
        """Latch a question that came to its turn, with the answer or why there is none."""
        request, response = question.request, question.response
        self._answer.publish(
            SpatialExample(
                camera=response.evidence[0].camera if response.evidence else "",
                stamp=response.stamp,
                question=request.question,
                answer=response.answer if response.success else response.error_msg,
            )
        )

    def now_ns(self) -> int:
        """The node's time."""
        return self._node.get_clock().now().nanoseconds
