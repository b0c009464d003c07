# SPDX-License-Identifier: Apache-2.0
"""Questions about held-out simulated homes, scored by kind.

Always: answers measured in the point map with boxes of a perfect detector, the points off by a
stated smooth noise, the model silent; against the majority and the best answer that only reads the
question. With a checkpoint (``--checkpoint DIR``, engines/demo where it is there) also with the
model's own points, their unit in metres taken from the truth; and where its language is trained,
the model's words alone, both together, and the model without images (grey ones). Calibration is
the confidence against how often it was right. "At least 0.8 m", said of a thing that the image
cuts, is never counted as right; how many there were, and how many held, is told beside it.
Abstention is judged on what can be measured: was the thing indeed not there?
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.record import record
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.question_metrics import (
    Baselines,
    bound_holds,
    calibration_error,
    calibration_table,
    correct,
)
from g2vlm_ros.demo.sim.questions import (
    MIN_SHARE,
    QuestionAnswer,
    VisibleFacts,
    ask,
    metres,
    shares,
    truth,
)
from g2vlm_ros.demo.sim.scenes import make_clips, make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.images.preprocessing import PixelMap
from g2vlm_ros.mapping.depth_fusion import fuse_depth
from g2vlm_ros.mapping.pose_refinement import refine_poses
from g2vlm_ros.perception import Perception
from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.grounding import NoLanguageError, OutOfTimeError
from g2vlm_ros.query.point_map import PointMap, Region
from g2vlm_ros.query.question_parser import parse
from g2vlm_ros.query.question_plan import QuestionType
from g2vlm_ros.query.types import Abstention, Detection, Query, Result
from g2vlm_ros.settings import Settings

VIEWS, CAMERA = 4, lens(224, 168)
NOISE = 0.03
"""Relative, on blocks of 14 pixels, and half of it for a whole view."""
HEAD = 0.02
"""Relative error of the scale."""
MEASURED = (
    "distance",
    "size",
    "direction",
    "beside",
    "closer",
    "nearest",
    "fits",
    "count",
    "exists",
    "absent",
)
"""Kinds that geometry has an answer to; the others are about looks."""
MIN_GAIN = 0.2
"""By which geometry must beat the blind baseline on what it measures, or the benchmark fails."""
DEMO = Path(__file__).parents[1] / "engines" / "demo"
COLUMNS = (
    "majority",
    "blind",
    "model_without_images",
    "model",
    "geometry",
    "other_words",
    "both",
    "both_other_words",
    "own_points",
)
OTHER_WORDS = {
    "distance": (
        "What is the range to the {0}?",
        "Measure the distance from you to the {0}.",
        "Is it far to the {0}, and how far is it?",
    ),
    "height": ("Say how high the {0} stands.", "What is the vertical size of the {0}?"),
    "width": ("How much width does the {0} take up?", "From left to right, how wide is the {0}?"),
    "closer": (
        "Of the {0} and the {1}, which is nearer?",
        "Is it the {0} or the {1} that is nearer to you?",
    ),
    "beside": (
        "Does the {0} stand left or right of the {1}?",
        "Relative to the {1}, is the {0} left or right?",
    ),
    "direction": ("To which side must I turn for the {0}?", "Which way must I look for the {0}?"),
    "nearest": ("Name the nearest thing.", "What thing is closest?"),
    "count": ("How many {0} does the room hold?", "Could you count the {0}?"),
    "exists": ("Is a {0} in sight?", "Does any camera show a {0}?"),
    "fits": (
        "Will a {w:.1f} metres wide cart get past between the {0} and the {1}?",
        "I am {w:.1f} m wide; can I go between the {0} and the {1}?",
    ),
}
"""Wordings that neither the rules of query/ nor the training were made with."""


@dataclass
class Window:
    """One window of a home with what a detector and the point map show of it."""

    truth: VisibleFacts
    images: np.ndarray
    depth_m: np.ndarray
    points: PointMap
    detections: tuple[Detection, ...]
    questions: list[QuestionAnswer]


@dataclass
class Score:
    """Right answers, answers with a confidence, and abstentions."""

    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[bool] = field(default_factory=list)
    """For each question that might be abstained from, whether it was answered, and wrongly."""
    sure: list[tuple[float, bool]] = field(default_factory=list)
    abstained: list[bool] = field(default_factory=list)
    """For each abstention, whether the thing was indeed not there."""
    bounds: list[bool] = field(default_factory=list)
    """For each lower bound, whether it holds."""

    def result(self) -> dict[str, Any]:
        """Accuracy per kind, on all and on what can be measured; calibration; abstention."""
        every = [right for rights in self.right.values() for right in rights]
        measured = [right for kind in MEASURED for right in self.right[kind]]
        scores: dict[str, Any] = {
            "accuracy": {k: round(float(np.mean(r)), 3) for k, r in self.right.items() if r},
            "all_kinds": round(float(np.mean(every)), 3),
            "measurable_kinds": round(float(np.mean(measured)), 3),
        }
        if self.wrong:
            scores["answered_wrongly"] = round(float(np.mean(self.wrong)), 3)
        if self.sure:
            scores["calibration_error"] = round(calibration_error(self.sure), 3)
            scores["calibration"] = calibration_table(self.sure)
        if self.bounds:
            scores |= {
                "bounds": len(self.bounds),
                "bounds_hold": round(float(np.mean(self.bounds)), 3),
            }
        if self.abstained and self.right["absent"]:
            absent = len(self.right["absent"])
            scores["abstention_precision"] = round(float(np.mean(self.abstained)), 3)
            scores["abstention_recall"] = round(sum(self.abstained) / absent, 3)
        return scores


def windows(split: str, count: int, questions: int) -> Iterator[Window]:
    """Windows of different homes of a split, one at a time."""
    for index in range(count):
        scene = make_scene(home_seed(split, index))
        clips = make_clips([scene], VIEWS, CAMERA, samples=1)
        steps = clips.steps[0]
        poses, times = scene.walk.world_from_camera[steps], scene.walk.time_s[steps]
        share = shares(clips.items[0])
        true = truth(scene.home, share, poses, times)
        rng = np.random.default_rng(index)
        pairs = ask(true, rng, questions)
        yield Window(
            true,
            clips.images[0],
            clips.depth_m[0],
            noisy(clips.depth_m[0], poses, rng),
            detected(true, clips.items[0]),
            pairs,
        )


def noisy(depth_m: np.ndarray, poses: np.ndarray, rng: np.random.Generator) -> PointMap:
    """The true points, wrong as a network's are, with a confidence that fits."""
    views, height, width = depth_m.shape
    shape = (views, -(-height // 14), -(-width // 14))
    blocks = rng.normal(0, NOISE, shape).repeat(14, 1).repeat(14, 2)[:, :height, :width]
    wrong = depth_m * (1 + blocks + rng.normal(0, NOISE / 2, (views, 1, 1)))
    wrong = wrong * (1 + rng.normal(0, HEAD))
    v, u = np.mgrid[:height, :width]
    local = unproject(np.stack([u, v], -1).astype(float), wrong, CAMERA)
    points = np.einsum("nij,nhwj->nhwi", poses[:, :3, :3], local) + poses[:, None, None, :3, 3]
    sure = np.full(depth_m.shape, np.exp(-NOISE / 0.05), np.float32)
    return PointMap(
        points.astype(np.float32),
        wrong.astype(np.float32),
        sure,
        poses,
        views - 1,
        True,
        HEAD,
        0.0,
    )


def detected(true: VisibleFacts, items: np.ndarray) -> tuple[Detection, ...]:
    """Boxes around what is seen of each thing, by a detector that never errs."""
    detections = []
    for thing in true.things:
        label = thing.phrase if thing.unique else f"{thing.item.colour} {thing.item.name}"
        for view, share in enumerate(thing.share):
            if share < MIN_SHARE:
                continue
            rows, columns = np.nonzero(items[view] == thing.item.id)
            low, high = (
                (float(columns.min()), float(rows.min())),
                (float(columns.max()), float(rows.max())),
            )
            detections.append(Detection(Region(view, low, high), label, 1.0))
    return tuple(detections)


def compose(window: Window, question: str, ask_model: Callable) -> Result | None:
    """The composed answer, or None for an abstention."""
    query = Query(question, detections=window.detections)
    try:
        return Answerer(window.points, query, ask_model, None).answer()
    except (Abstention, OutOfTimeError):
        return None


def phrased(result: Result, question: str) -> str:
    """An answer in the words of the simulation's."""
    if result.yes_no is not None:
        return "Yes." if result.yes_no else "No."
    plan = parse(question)
    if result.number is not None:
        return (
            f"{result.number.value:.0f}."
            if plan.question_type is QuestionType.COUNT
            else metres(result.number.value)
        )
    if plan.question_type in (QuestionType.CLOSER, QuestionType.NEAREST) and result.things:
        return f"The {result.things[0].label}."
    for words in ("in front of you", "behind you", "to your left", "to your right"):
        if plan.question_type is QuestionType.WHERE and words in result.text:
            return f"It is {words}."
    if plan.question_type is QuestionType.SIDE:
        return "Left." if " is left of " in result.text else "Right."
    return result.text


def reworded(qa: QuestionAnswer, rng: np.random.Generator) -> QuestionAnswer | None:
    """The same question in words of OTHER_WORDS, or None where there are none."""
    plan = parse(qa.question)
    wordings = OTHER_WORDS.get(plan.word if qa.kind == "size" else qa.kind)
    if wordings is None or ("{1}" in wordings[0] and len(plan.things) < 2):
        return None
    wording = str(rng.choice(wordings)).format(*_named(plan.things), w=plan.width_m or 0.0)
    return dataclasses.replace(qa, question=wording)


def _named(things: tuple[str, ...]) -> list[str]:
    return [re.sub(r"^an? ", "", thing) for thing in things]


def silent(prompt: str, marks: object) -> str:
    """No model."""
    raise OutOfTimeError


def judge(score: Score, window: Window, qa: QuestionAnswer, ask_model: Callable) -> None:
    """Ask the answerer one question and book the outcome."""
    outcome = compose(window, qa.question, ask_model)
    if outcome is None:
        if qa.kind in MEASURED:
            score.abstained.append(qa.kind == "absent")
        score.right[qa.kind].append(qa.kind == "absent")
        score.wrong.append(False)
        return
    text = phrased(outcome, qa.question)
    if qa.kind == "size" and " at least " in outcome.text:
        holds = bound_holds(text, qa.answer)
        score.bounds.append(holds)
        score.right[qa.kind].append(False)
        score.wrong.append(not holds)
        return
    right = correct(qa.kind, text, qa.answer)
    score.right[qa.kind].append(right)
    score.wrong.append(not right)
    if outcome.confidence >= 0:
        score.sure.append((outcome.confidence, right))


def run(homes: int, questions: int, model: Model | None) -> dict[str, Any]:
    """All scores."""
    training = [qa for w in windows("train", homes, questions) for qa in w.questions]
    baselines = Baselines(training)
    scores = {name: Score() for name in COLUMNS}
    count, total_s, rng = 0, 0.0, np.random.default_rng(0)
    for window in windows("heldout", homes, questions):
        for qa in window.questions:
            count += 1
            scores["majority"].right[qa.kind].append(
                correct(qa.kind, baselines.majority(qa.kind), qa.answer)
            )
            scores["blind"].right[qa.kind].append(
                correct(qa.kind, baselines.blind(qa.kind, qa.question), qa.answer)
            )
            start = time.perf_counter()
            judge(scores["geometry"], window, qa, silent)
            total_s += time.perf_counter() - start
            other = reworded(qa, rng)
            if other is not None:
                judge(scores["other_words"], window, other, silent)
            if model:
                model.judge(scores, window, qa, other)
    return {
        "questions": count,
        "homes": homes,
        "views": VIEWS,
        "noise": NOISE,
        "scale_error": HEAD,
        "measuring_ms_per_question": round(1000 * total_s / count, 1),
        **{name: score.result() for name, score in scores.items() if score.right},
    }


class Model:
    """A checkpoint's language and points, with and without seeing."""

    def __init__(self, perception: Perception):
        self._perception = perception
        self._window: Window | None = None

    @property
    def speaks(self) -> bool:
        """Whether the checkpoint's language is trained."""
        return self._perception.speaks

    def judge(
        self,
        scores: dict[str, Score],
        window: Window,
        qa: QuestionAnswer,
        other: QuestionAnswer | None,
    ) -> None:
        """Book the model's words alone, without images, and together with geometry.

        other: the same question in other words.
        """
        if window is not self._window:
            grey = [np.full_like(image, 128) for image in window.images]
            self._window = window
            self._seen = self._perception.scene(list(window.images))
            self._grey = self._perception.scene(grey)
            self._own = self._with_own_points(window)
        judge(scores["own_points"], self._own, qa, self._say)
        if not self.speaks:
            return
        judge(scores["both"], window, qa, self._say)
        if other is not None:
            judge(scores["both_other_words"], window, other, self._say)
        for name, scene in (("model", self._seen), ("model_without_images", self._grey)):
            text = self._perception.ask(scene, qa.question).text
            scores[name].right[qa.kind].append(correct(qa.kind, text, qa.answer))

    def _say(self, prompt: str, marks: object) -> str:
        if not self.speaks:
            raise NoLanguageError
        return self._perception.ask(self._seen, prompt).text

    def _with_own_points(self, window: Window) -> Window:
        """The window with the points that the node makes; the poses and one scale are true."""
        estimate = fuse_depth(refine_poses(self._perception.reconstruct(self._seen)))
        local, poses = estimate.local_points_u, window.points.map_from_camera
        height, width = local.shape[1:3]
        pixels = PixelMap((CAMERA.width_px, CAMERA.height_px), (width, height))
        v, u = np.mgrid[:height, :width]
        at = np.rint(pixels.image_from_model(np.stack([u, v], -1).reshape(-1, 2))).astype(int)
        true = window.depth_m[:, at[:, 1], at[:, 0]].reshape(local.shape[:3])
        local = local * np.float32(np.median(true / local[..., 2]))
        points = np.einsum("nij,nhwj->nhwi", poses[:, :3, :3], local) + poses[:, None, None, :3, 3]
        point_map = PointMap(
            points.astype(np.float32),
            local[..., 2],
            estimate.confidence,
            poses,
            window.points.viewer,
            True,
            HEAD,
            0.0,
        )
        detections = tuple(
            dataclasses.replace(one, region=_resized(one.region, pixels))
            for one in window.detections
        )
        return dataclasses.replace(window, points=point_map, detections=detections)


def _resized(region: Region, pixels: PixelMap) -> Region:
    low, high = pixels.model_from_image(np.array([region.low_px, region.high_px]))
    return Region(region.view, tuple(low.tolist()), tuple(high.tolist()))


def opened(folder: Path, width_px: int = 0, semantic_px: int = 0) -> Perception:
    """A checkpoint; sizes that are 0 are those that it was trained on."""
    flat = {
        "model.checkpoint": str(folder),
        "model.image_width_px": width_px,
        "query.semantic_width_px": semantic_px,
    }
    return Perception.open(Settings.from_flat(flat))


def main(arguments: list[str] | None = None) -> int:
    """Run, record, print; exit code 1 where measuring is not worth it."""
    parser = argparse.ArgumentParser(prog="query", description=__doc__.split("\n")[0])
    parser.add_argument("--homes", type=int, default=60)
    parser.add_argument("--questions", type=int, default=20, help="per home")
    parser.add_argument("--checkpoint", type=Path, default=DEMO if DEMO.exists() else None)
    parser.add_argument("--width", type=int, default=0, help="of its views, px; 0: as trained")
    parser.add_argument(
        "--semantic", type=int, default=0, help="of its squares, px; 0: as trained"
    )
    options = parser.parse_args(arguments)
    model = None
    if options.checkpoint:
        model = Model(opened(options.checkpoint, options.width, options.semantic))
    result = run(options.homes, options.questions, model)
    result["checkpoint"] = options.checkpoint.name if options.checkpoint else ""
    result["language_trained"] = model is not None and model.speaks
    print(f"{result['questions']} questions; {record('query', result)}")
    print(table(result))
    gain = result["geometry"]["measurable_kinds"] - result["blind"]["measurable_kinds"]
    return int(gain < MIN_GAIN)


def table(result: dict[str, Any]) -> str:
    """Accuracy by kind and column, then what else is known of each column, in Markdown."""
    columns = [name for name in COLUMNS if name in result]
    rows = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    more = (
        "measurable_kinds",
        "all_kinds",
        "answered_wrongly",
        "bounds_hold",
        "calibration_error",
        "abstention_precision",
        "abstention_recall",
    )
    for kind in [*result["geometry"]["accuracy"], *more]:
        cells = [result[name]["accuracy"].get(kind, result[name].get(kind)) for name in columns]
        texts = ["" if cell is None else f"{cell:.2f}" for cell in cells]
        rows.append(f"| {kind} | {' | '.join(texts)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(main())
