# SPDX-License-Identifier: Apache-2.0
"""One question answered on the device's thread: window selected, decoded, answered, encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.perception import Perception
from g2vlm_ros.pipeline import PerceivedWindow
from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.context import ContextSizes, ContextStore, ViewSelection
from g2vlm_ros.query.grounding import OutOfTimeError, measure_detections
from g2vlm_ros.query.object_memory import ObjectMemory
from g2vlm_ros.query.object_sightings import sightings_of
from g2vlm_ros.query.types import Query
from g2vlm_ros.ros import query_request, query_response
from g2vlm_ros.ros.answer_topics import AnswerTopics
from g2vlm_ros.ros.inputs.detections import Detections
from g2vlm_ros.ros.model_session import ExampleScenes, ModelSession
from g2vlm_ros.ros.query_response import Answer, Target
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.tf_lookup import TfLookup
from g2vlm_ros.ros.window_selection import WindowSelection
from g2vlm_ros.ros.window_source import WindowSource
from g2vlm_ros.settings import Settings

Feedback = AnswerSpatialQuery.Feedback


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
        self._selection = WindowSelection(windows, self._context, self.now_ns)
        self._examples = ExampleScenes(perception, self._context)
        self._tf_lookup = TfLookup(node, settings.map.frame)
        self.detections = Detections(node, settings.query.detections_topic)
        self.topics = AnswerTopics(node, settings)

    def remember(self, update: PerceivedWindow) -> None:
        """Hold a window for questions about its moment, and its objects for those about later."""
        selection = self._context.remember(update).select()
        detections = self.detections.of(selection)
        things = measure_detections(selection.points, detections)
        sightings = sightings_of(selection, things)
        views = {detection.region.view for detection in detections}
        self._objects.observe(update, selection.points, sightings, views)

    def forget(self) -> None:
        """Let all windows, conversations and objects go."""
        self._context.clear()
        self._objects.clear()
        self._examples.clear()
        self.topics.pictures.forget()
        self.topics.retract()

    def close(self) -> None:
        """Take the topics away and forget."""
        self.topics.close()
        self.detections.close()
        self._tf_lookup.close()
        self.forget()

    def held(self) -> tuple[int, list[str]]:
        """How many windows are held, and the names of the conversations."""
        return len(self._context.recent), self._context.dialogues()

    def sizes(self) -> ContextSizes:
        """What windows and conversations hold for questions (any thread)."""
        return self._context.sizes()

    def answer(self, question: Question) -> Any:
        """The response; raises what `QueryServer` turns into error codes."""
        if question.deadline.over() or not self._windows.is_active():
            raise OutOfTimeError
        request = question.request
        window = self._selection.window(question)
        question.feedback(Feedback.ANSWERING, "")
        selection = window.select(self._selection.views(window.update, request.camera_ids))
        question.progress.selection = selection
        target = self._target(request.target_frame, selection)
        query = query_request.decode(
            request,
            selection,
            self.detections.of(selection),
            self._objects.objects(),
            target.from_map,
            self._settings.query.robot_width_m,
            self.now_ns(),
        )
        with question.progress.measuring():
            result = self._answerer(question, query, selection).answer()
        self._objects.observe_answer(selection, result.things)
        answer = Answer(result, selection, target, self.topics.pictures.stamp_ns())
        response = query_response.encode(question, answer, self._model_version)
        self.topics.publish(request.question, answer, response)
        if request.dialogue:
            self._context.add_turn(request.dialogue, window, query.question, result.text)
        return response

    def _answerer(self, question: Question, query: Query, selection: ViewSelection) -> Answerer:
        model = ModelSession(
            self._perception,
            question,
            selection,
            self._context,
            self._examples,
            self._windows.is_active,
            self._yield_to_others,
        )
        return Answerer(
            selection.points,
            query,
            model.ask,
            selection.pointed if self._perception.can_point else None,
            question.progress.steps,
        )

    def _target(self, target_frame: str, selection: ViewSelection) -> Target:
        frame_id = target_frame or self._settings.map.frame
        poses = selection.points.map_from_camera
        from_map = self._tf_lookup.target_from_map(
            frame_id, selection.frames, poses, selection.stamp_ns
        )
        return Target(frame_id, from_map)

    def now_ns(self) -> int:
        """The node's time."""
        return self._node.get_clock().now().nanoseconds
