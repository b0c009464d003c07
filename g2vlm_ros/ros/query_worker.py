# SPDX-License-Identifier: Apache-2.0
"""One question answered on the device's thread: which window, which views, steps, fields."""

from __future__ import annotations

import concurrent.futures
import functools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos import QoSProfile
from tf2_msgs.msg import TFMessage

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.msg import SpatialExample
from g2vlm_ros.perception import Example, Perception
from g2vlm_ros.pipeline import MappedWindow
from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.context import CachedWindow, ContextStore, ViewSelection
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.prompts import Mark
from g2vlm_ros.query.question_parser import AnswerType
from g2vlm_ros.query.types import Query, ReferenceFrame
from g2vlm_ros.ros import query_messages
from g2vlm_ros.ros.answer_image_publisher import AnswerImagePublisher
from g2vlm_ros.ros.conversions import messages
from g2vlm_ros.ros.inputs.detections import Detections
from g2vlm_ros.ros.point_service import RequestError
from g2vlm_ros.ros.publishers import LATCHED
from g2vlm_ros.ros.query_messages import Codes, Target
from g2vlm_ros.ros.tf_lookup import TfLookup
from g2vlm_ros.settings import Settings
from g2vlm_ros.srv import SpatialQuery

Feedback = AnswerSpatialQuery.Feedback
SPARE = 0.15
"""Share of an asker's time that the model's words leave to measuring and answering."""
FEEDBACK_S = 0.05
"""Least time between two partial answers."""


class NotYetError(Exception):
    """A goal for a fresh window must be tried again: the window is not there yet."""


@dataclass(eq=False)
class Question:
    """One question on its way, with what its asker wants to hear meanwhile."""

    request: Any
    response: Any
    fresh: bool = False
    cancelled: Callable[[], bool] = lambda: False
    feedback: Callable[[int, str], None] = lambda phase, text: None
    after_window: int = 0
    """For `fresh`: the newest window when it was asked."""
    given_up: bool = False
    started: bool = False
    future: concurrent.futures.Future | None = None
    asked_s: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    stage_times_s: dict[str, float] = field(default_factory=dict)
    told_s: float = 0.0
    """How long the model took to say its last words."""
    steps: list[str] = field(default_factory=list)

    @property
    def quick(self) -> bool:
        """A question of the service: its asker blocks meanwhile."""
        return isinstance(self.request, SpatialQuery.Request)

    def elapsed_s(self) -> float:
        return time.monotonic() - self.asked_s

    @property
    def spare_s(self) -> float:
        return SPARE * min(self.request.max_wait_s, query_messages.MAX_WAIT_S)

    def late(self, more_s: float = 0.0) -> bool:
        """Whether its asker will have gone when so much more time has passed."""
        return self.elapsed_s() + more_s > min(self.request.max_wait_s, query_messages.MAX_WAIT_S)


class QueryWorker:
    """Answers questions, one at a time; owns what is remembered of windows and conversations.

    newest: the newest Update and its age, or None. run_window: makes the next window, if frames
    for one are here. breathe: lets others pass between tokens. active: whether questions are
    answered.
    """

    def __init__(
        self,
        node: LifecycleNode,
        perception: Perception,
        settings: Settings,
        newest: Callable[[], tuple[MappedWindow, float] | None],
        run_window: Callable[[], None],
        yield_to_others: Callable[[], None],
        active: Callable[[], bool],
    ):
        self._node, self._perception, self._settings = node, perception, settings
        self._newest, self._run_window, self._active = newest, run_window, active
        self._breathe = yield_to_others
        self._memory = ContextStore(settings.query.windows, settings.query.dialogues)
        self._examples: dict[tuple[str, int], Any] = {}
        self._frames = TfLookup(node, settings.map.frame)
        self._detections = Detections(node, settings.query.detections_topic)
        self._target = node.create_lifecycle_publisher(PoseStamped, "~/query/last_target", LATCHED)
        self._pictures = AnswerImagePublisher(node)
        self._answer = node.create_lifecycle_publisher(
            SpatialExample, "~/query/last_answer", LATCHED
        )
        self._tf = None
        if settings.query.target_tf:
            self._tf = node.create_lifecycle_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def remember(self, update: MappedWindow) -> None:
        """Hold a window for questions about its moment."""
        self._memory.remember(update)

    def forget(self) -> None:
        """Let all windows and conversations go."""
        self._memory.clear()
        self._examples.clear()
        self._pictures.forget()

    def close(self) -> None:
        """Take the topics away and forget."""
        made = (self._target, self._answer, self._tf)
        for publisher in filter(None, made):
            self._node.destroy_publisher(publisher)
        self._pictures.close()
        self._detections.close()
        self._frames.close()
        self.forget()

    def answer(self, question: Question) -> None:
        """Fill in the response; raises what `QueryServer` turns into codes."""
        asked = question.request
        self._check_time(question)
        held = self._window(question)
        question.feedback(Feedback.ANSWERING, "")
        look = held.look(self._views(held.update, asked.camera_ids))
        query_messages.describe_window(question.response, look, self._now_ns())
        target = self._target_of(asked, look)
        regions = tuple(query_messages.region_in(region, look) for region in asked.regions)
        query = Query(
            asked.question,
            AnswerType(asked.answer_kind),
            ReferenceFrame(asked.reference),
            regions,
            self._detections.of(look),
            query_messages.marks_of(regions, look),
            query_messages.known_of(regions, look),
            target.from_map,
            self._settings.query.robot_width_m,
            asked.min_confidence,
        )
        ask_model = functools.partial(self._say, question, look)
        pointed = look.pointed if self._perception.can_point else None
        composer = Answerer(look.points, query, ask_model, pointed)
        question.steps = composer.steps
        start = time.perf_counter()
        result = composer.answer()
        spent = time.perf_counter() - start - sum(question.stage_times_s.values())
        question.stage_times_s["measure"] = max(0.0, spent)
        query_messages.fill(question.response, result, look, target)
        answered_ns = self._pictures.stamp_ns()
        question.response.age_s = (answered_ns - look.stamp_ns) * 1e-9
        if result.kind in (AnswerType.POINT, AnswerType.POSE) and result.pose is not None:
            self._publish_target(question.response.pose, result.pose, look)
        self._pictures.show(answered_ns, asked.question, result, look)
        if asked.dialogue:
            self._memory.told(asked.dialogue, held, asked.question, result.text)

    def _check_time(self, question: Question, more_s: float = 0.0) -> None:
        late = question.late(more_s)
        if question.given_up or question.cancelled() or late or not self._active():
            raise OutOfTimeError

    def _window(self, question: Question) -> CachedWindow:
        """The window to answer from: the conversation's, that of the stamp, or the newest."""
        asked = question.request
        if question.fresh:
            return self._fresh_window(question)
        stamp_ns = messages.stamp_ns(asked.stamp)
        if stamp_ns:
            return self._window_at(stamp_ns, asked.max_age_s)
        dialogue = self._memory.dialogue(asked.dialogue) if asked.dialogue else None
        if dialogue is not None and self._age_s(dialogue.held) <= asked.max_age_s:
            return dialogue.held
        held = self._newest_held()
        if held is None or self._age_s(held) > asked.max_age_s:
            question.feedback(Feedback.RECONSTRUCTING, "")
            self._run_window()
            held = self._newest_held()
        if held is None:
            raise RequestError(
                Codes.NO_GEOMETRY,
                "no window has been reconstructed yet; see ~/status for frames and drops",
            )
        if self._age_s(held) > asked.max_age_s:
            raise RequestError(
                Codes.NO_GEOMETRY,
                f"the newest window is {self._age_s(held):.1f} s old, max_age_s is "
                f"{asked.max_age_s:g}; wait for frames or allow more",
            )
        return held

    def _fresh_window(self, question: Question) -> CachedWindow:
        """A window newer than the goal; NotYetError until there are frames for one."""
        question.feedback(Feedback.RECONSTRUCTING, "")
        held = self._newest_held()
        if held is None or held.update.window.id <= question.after_window:
            self._run_window()
            held = self._newest_held()
        if held is None or held.update.window.id <= question.after_window:
            raise NotYetError
        return held

    def _window_at(self, stamp_ns: int, max_gap_s: float) -> CachedWindow:
        """The held window with a view nearest to a moment; max_age_s bounds how near."""
        self._newest_held()
        gaps = [
            (min(abs(frame.stamp_ns - stamp_ns) for frame in held.update.window.frames), held)
            for held in self._memory.recent
        ]
        gap_ns, held = min(gaps, key=lambda pair: pair[0], default=(0, None))
        if held is None or gap_ns * 1e-9 > max_gap_s:
            raise RequestError(
                Codes.NO_GEOMETRY,
                "no window of that moment is kept any more; ask sooner, or raise query.windows",
            )
        return held

    def _newest_held(self) -> CachedWindow | None:
        newest = self._newest()
        return None if newest is None else self._memory.remember(newest[0])

    def _age_s(self, held: CachedWindow) -> float:
        return (self._now_ns() - held.update.window.stamp_ns) * 1e-9

    def _views(self, update: MappedWindow, cameras: Sequence[str]) -> list[int]:
        frames = update.window.frames
        views = [i for i, frame in enumerate(frames) if not cameras or frame.camera in cameras]
        if not views:
            raise RequestError(
                Codes.NOT_VISIBLE,
                f"the window has no view of {', '.join(cameras)}; ask without camera_ids, or wait "
                "for its frames",
            )
        return views

    def _target_of(self, asked: Any, look: ViewSelection) -> Target:
        map_frame = self._settings.map.frame
        frame_id = asked.target_frame or map_frame
        poses = look.points.map_from_camera
        from_map = self._frames.target_from_map(frame_id, look.frames, poses, look.stamp_ns)
        return Target(frame_id, from_map)

    def _say(
        self, question: Question, look: ViewSelection, prompt: str, marks: Sequence[Mark]
    ) -> str:
        """What the model answers; OutOfTimeError where its asker does not wait that long.

        Words after the first are not begun where they could hardly end in time: what is known by
        then is worth more. SilentModelError where the checkpoint has no trained language.
        """
        self._check_time(question, question.told_s + question.spare_s)
        if not self._perception.speaks:
            raise NoLanguageError
        asked, last = question.request, [0.0]
        dialogue = self._memory.dialogue(asked.dialogue) if asked.dialogue else None

        def should_stop() -> bool:
            if not question.quick:
                self._breathe()
            late = question.late(question.spare_s)
            return question.given_up or question.cancelled() or late or not self._active()

        def on_text(text: str) -> None:
            if time.monotonic() - last[0] > FEEDBACK_S:
                last[0] = time.monotonic()
                question.feedback(Feedback.ANSWERING, text)

        answer = self._perception.ask(
            look.scene(self._perception, marks),
            prompt,
            history=list(dialogue.turns) if dialogue else (),
            examples=[self._example(example) for example in asked.examples],
            on_text=None if question.quick else on_text,
            should_stop=should_stop,
        )
        for stage, spent in answer.stage_times_s.items():
            question.stage_times_s[stage] = question.stage_times_s.get(stage, 0.0) + spent
        question.told_s = answer.stage_times_s["decode"]
        if not answer.finished:
            self._check_time(question, question.spare_s)
        question.feedback(Feedback.ANSWERING, answer.text)
        return answer.text

    def _example(self, example: Any) -> Example:
        """A solved example; its scene is kept, so that its features are computed once."""
        key = (example.camera, messages.stamp_ns(example.stamp))
        if key not in self._examples:
            image = self._memory.image(*key)
            if image is None:
                raise query_messages.invalid(
                    f"examples: no image of camera '{key[0]}' with stamp {key[1] * 1e-9:.3f} s is "
                    "held; take one of the newest windows"
                )
            while len(self._examples) >= query_messages.MAX_EXAMPLES:
                self._examples.pop(next(iter(self._examples)))
            self._examples[key] = self._perception.scene([image])
        return Example(self._examples[key], example.question, example.answer)

    def _publish_target(
        self, stamped: PoseStamped, in_map: np.ndarray, look: ViewSelection
    ) -> None:
        """Latch the last place that was asked about, and put it on /tf if that is wanted."""
        self._target.publish(stamped)
        if self._tf is not None:
            header = messages.header(look.stamp_ns, self._settings.map.frame)
            transform = messages.transform_message(header, self._settings.query.target_tf, in_map)
            self._tf.publish(TFMessage(transforms=[transform]))

    def publish_answer(self, question: Question) -> None:
        """Latch a question that came to its turn, with the answer or why there is none."""
        asked, response = question.request, question.response
        self._answer.publish(
            SpatialExample(
                camera=response.evidence[0].camera if response.evidence else "",
                stamp=response.stamp,
                question=asked.question,
                answer=response.answer if response.success else response.error_msg,
            )
        )

    def _now_ns(self) -> int:
        return self._node.get_clock().now().nanoseconds
