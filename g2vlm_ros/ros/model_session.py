# SPDX-License-Identifier: Apache-2.0
"""The model as one question may use it: within its time, with its conversation and examples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from g2vlm_ros.action import AnswerSpatialQuery
from g2vlm_ros.msg import SpatialExample
from g2vlm_ros.perception import Example, Perception
from g2vlm_ros.query.context import ContextStore, ViewSelection
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.prompts import Mark
from g2vlm_ros.ros.conversions import geometry
from g2vlm_ros.ros.query_request import MAX_EXAMPLES
from g2vlm_ros.ros.question import Question
from g2vlm_ros.ros.service_errors import invalid

Feedback = AnswerSpatialQuery.Feedback
FEEDBACK_S = 0.05
"""Least time between two partial answers."""


class ExampleScenes:
    """Scenes of solved examples, kept so that their features are computed once."""

    def __init__(self, perception: Perception, context: ContextStore):
        self._perception, self._context = perception, context
        self._scenes: dict[tuple[str, int], Any] = {}

    def example(self, message: SpatialExample) -> Example:
        """A solved example with its scene; INVALID_REQUEST where its image is not held."""
        key = (message.camera, geometry.stamp_ns(message.stamp))
        if key not in self._scenes:
            image = self._context.image(*key)
            if image is None:
                raise invalid(
                    f"examples: no image of camera '{key[0]}' with stamp {key[1] * 1e-9:.3f} s is "
                    "held; take one of the newest windows"
                )
            while len(self._scenes) >= MAX_EXAMPLES:
                self._scenes.pop(next(iter(self._scenes)))
            self._scenes[key] = self._perception.scene([image])
        return Example(self._scenes[key], message.question, message.answer)

    def clear(self) -> None:
        """Forget all."""
        self._scenes.clear()


class ModelSession:
    """The model for one question about some views.

    is_active(): whether the node still serves. yield_to_others(): lets other jobs pass between
    tokens.
    """

    def __init__(
        self,
        perception: Perception,
        question: Question,
        selection: ViewSelection,
        context: ContextStore,
        examples: ExampleScenes,
        is_active: Callable[[], bool],
        yield_to_others: Callable[[], None],
    ):
        self._perception, self._question, self._selection = perception, question, selection
        self._context, self._examples = context, examples
        self._is_active, self._yield_to_others = is_active, yield_to_others

    def check_time(self, more_s: float = 0.0) -> None:
        """OutOfTimeError where nobody waits any more once so much more time has passed."""
        if self._question.deadline.over(more_s) or not self._is_active():
            raise OutOfTimeError

    def ask(self, prompt: str, marks: Sequence[Mark]) -> str:
        """What the model answers; OutOfTimeError where its asker does not wait that long.

        Words after the first are not begun where they could hardly end in time: what is known by
        then is worth more. NoLanguageError where the checkpoint has no trained language.
        """
        question, deadline = self._question, self._question.deadline
        self.check_time(question.progress.last_words_s + deadline.spare_s)
        if not self._perception.speaks:
            raise NoLanguageError
        request = question.request
        dialogue = self._context.dialogue(request.dialogue) if request.dialogue else None
        answer = self._perception.ask(
            self._selection.scene(self._perception, marks),
            prompt,
            history=list(dialogue.turns) if dialogue else (),
            examples=[self._examples.example(example) for example in request.examples],
            on_text=None if question.quick else self._throttled_feedback(),
            should_stop=self._should_stop,
        )
        question.progress.add_times(answer.stage_times_s)
        question.progress.last_words_s = answer.stage_times_s["decode"]
        if not answer.finished:
            self.check_time(deadline.spare_s)
        question.feedback(Feedback.ANSWERING, answer.text)
        return answer.text

    def _should_stop(self) -> bool:
        if not self._question.quick:
            self._yield_to_others()
        deadline = self._question.deadline
        return deadline.over(deadline.spare_s) or not self._is_active()

    def _throttled_feedback(self) -> Callable[[str], None]:
        """Passes partial answers on, one in FEEDBACK_S at most."""
        last_feedback_s = 0.0

        def on_text(text: str) -> None:
            nonlocal last_feedback_s
            if time.monotonic() - last_feedback_s > FEEDBACK_S:
                last_feedback_s = time.monotonic()
                self._question.feedback(Feedback.ANSWERING, text)

        return on_text
