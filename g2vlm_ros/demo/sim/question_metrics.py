# SPDX-License-Identifier: Apache-2.0
"""Is an answer right, and how far do answers come that never look at the images?"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.questions import (
    KINDS,
    QuestionAnswer,
    ask,
    metres,
    shares,
    truth,
)
from g2vlm_ros.demo.sim.scenes import make_clips, make_scene
from g2vlm_ros.demo.sim.splits import home_seed

LENGTH_KINDS = ("distance", "size")
LENGTH_TOLERANCE = 0.2
"""A length is right within a fifth of it, or within a tenth of a metre."""
LIST_OVERLAP = 0.5
"""A list is right when this share of all things named or true is in both."""
_CANDIDATES = 20


def correct(kind: str, answer: str, true_answer: str) -> bool:
    """Whether the answer counts as right; case, spaces and the full stop do not matter."""
    if kind not in KINDS:
        raise ValueError(f"kind of question is '{kind}'; it must be one of {', '.join(KINDS)}")
    given_text, true_text = _plain(answer), _plain(true_answer)
    if kind in LENGTH_KINDS:
        got_m, want_m = _length(given_text), _length(true_text)
        if got_m is None or want_m is None:
            return given_text == true_text
        return abs(got_m - want_m) <= max(LENGTH_TOLERANCE * want_m, 0.1) + 1e-9
    if kind == "list":
        named, true = _listed(given_text), _listed(true_text)
        return len(named & true) >= LIST_OVERLAP * len(named | true)
    return given_text == true_text


def right_lengths(true_answer: str) -> list[str]:
    """Every length in tenths of a metre, above 0, that counts as right, the shortest first."""
    true_m = _length(_plain(true_answer))
    if true_m is None:
        raise ValueError(f"'{true_answer}' must be a length, like '1.2 metres.'")
    longest = int(10 * (true_m * (1 + LENGTH_TOLERANCE) + 0.1)) + 1
    lengths = [f"{metres(tenths / 10)}." for tenths in range(1, longest + 1)]
    return [length for length in lengths if correct("size", length, true_answer)]


def bound_holds(least: str, true_answer: str) -> bool:
    """Whether a length is at least `least`, with the tolerance of a length."""
    got_m, want_m = _length(_plain(least)), _length(_plain(true_answer))
    if got_m is None or want_m is None:
        raise ValueError(f"'{least}' and '{true_answer}' must both be lengths, like '1.2 metres'")
    return got_m <= want_m + max(LENGTH_TOLERANCE * want_m, 0.1) + 1e-9


def calibration_error(sure: Sequence[tuple[float, bool]], bins: int = 10) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy, by bin.

    sure: confidence 0..1 of each answer, and whether it was right.
    """
    return sum(
        len(here) / len(sure) * abs(float(np.diff(np.mean(here, axis=0))[0]))
        for here in _bins(sure, bins)
    )


def calibration_table(sure: Sequence[tuple[float, bool]], bins: int = 5) -> list[dict[str, float]]:
    """Mean confidence, share of right answers and count, of the bins that hold any."""
    rows = []
    for here in _bins(sure, bins):
        confidence, right = np.mean(here, axis=0)
        rows.append(
            {
                "confidence": round(float(confidence), 2),
                "right": round(float(right), 2),
                "count": len(here),
            }
        )
    return rows


def _bins(sure: Sequence[tuple[float, bool]], bins: int) -> list[np.ndarray]:
    rows = np.array(sure, float).reshape(-1, 2)
    index = np.minimum((rows[:, 0] * bins).astype(int), bins - 1)
    return [rows[index == k] for k in range(bins) if (index == k).any()]


def _plain(text: str) -> str:
    return " ".join(text.lower().rstrip(". \n").split())


def _length(text: str) -> float | None:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) (?:m|metres|meters)", text)
    return float(match[1]) if match else None


def _listed(text: str) -> set[str]:
    return set(re.findall(r"\ban? (\w+)", text))


def training_questions(homes: int, views: int, each: int = 36) -> list[QuestionAnswer]:
    """Questions about windows of training homes, for the baselines and the tokenizer."""
    questions = []
    for index in range(homes):
        scene = make_scene(home_seed("train", index))
        clips = make_clips([scene], views, lens(64, 48), samples=1)
        facts = truth(
            scene.home, shares(clips.items[0]), clips.world_from_camera()[0], clips.time_s()[0]
        )
        questions += ask(facts, np.random.default_rng([scene.home.seed, 4]), each)
    return questions


class Baselines:
    """Answers without images, fitted on training questions.

    `majority` gives each kind the one answer that is right most often; `blind` does so for each
    wording of a question of a kind, and falls back to the kind for a question it never read.
    Both are told the kind, and so that what is asked for is `absent`; `words` is not: it only
    reads the question, which is the same for a lamp that is there.
    """

    def __init__(self, training: Sequence[QuestionAnswer]):
        kinds: dict[str, list[QuestionAnswer]] = defaultdict(list)
        wordings: dict[tuple[str, str], list[QuestionAnswer]] = defaultdict(list)
        questions: dict[str, list[QuestionAnswer]] = defaultdict(list)
        for qa in training:
            kinds[qa.kind].append(qa)
            wordings[qa.kind, qa.question].append(qa)
            questions[qa.question].append(qa)
        self._majority = {kind: _best(pairs) for kind, pairs in kinds.items()}
        self._blind = {wording: _best(pairs) for wording, pairs in wordings.items()}
        self._words = {question: _best(pairs) for question, pairs in questions.items()}

    def majority(self, kind: str) -> str:
        """The best constant answer to this kind."""
        return self._majority.get(kind, "")

    def blind(self, kind: str, question: str) -> str:
        """The best answer that only reads the question and its kind."""
        return self._blind.get((kind, question), self.majority(kind))

    def words(self, question: str) -> str:
        """The best answer that only reads the question; none to one it never read."""
        return self._words.get(question, "")


def _best(pairs: list[QuestionAnswer]) -> str:
    """The answer among the most frequent ones that scores best on all of them."""
    frequent = [
        answer for answer, _ in Counter(qa.answer for qa in pairs).most_common(_CANDIDATES)
    ]
    sample = pairs[:2000]
    return max(frequent, key=lambda one: sum(correct(qa.kind, one, qa.answer) for qa in sample))
