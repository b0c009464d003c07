# SPDX-License-Identifier: Apache-2.0
"""Scores of a checkpoint on simulated homes, through the same door that users take.

    python -m g2vlm_ros.demo.train.evaluate --checkpoint engines/demo --out eval_output

Writes scores.json and pictures.png (best, median and worst window). Errors are means over windows.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.contact_sheet import Exhibit, page
from g2vlm_ros.demo.sim.home import STRUCTURE
from g2vlm_ros.demo.sim.question_metrics import Baselines, correct, training_questions
from g2vlm_ros.demo.sim.questions import QuestionAnswer, ask, shares, truth
from g2vlm_ros.demo.sim.scenes import Clips, make_clips, make_scene
from g2vlm_ros.demo.sim.splits import SPLITS, home_seed
from g2vlm_ros.demo.train.config import Data
from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.geometry.registration import fit_sim3
from g2vlm_ros.mapping.depth_fusion import fuse_depth
from g2vlm_ros.mapping.pose_refinement import refine_poses
from g2vlm_ros.perception import Perception
from g2vlm_ros.records import Intrinsics
from g2vlm_ros.settings import Settings

MIN_BASELINE_M = 0.05
"""Pairs of views closer than this have no direction to be wrong about."""
QUESTIONS, LANGUAGE_VIEWS = 12, 4
BASELINES = ("blind", "words", "majority")
"""Answers that look at no image: see `question_metrics.Baselines`."""
TRAINING_SCENES = 400
"""Homes from which the baselines learn."""


def settings_for(checkpoint: Path, backend: str = "torch", device: str = "cpu") -> Settings:
    """How the demo checkpoint is run, whatever backend; its image sizes are its own."""
    return Settings.from_flat(
        {
            "model.checkpoint": str(checkpoint),
            "model.backend": backend,
            "model.device": device,
            "query.max_tokens": 24,
        }
    )


def clips_of(split: str, first: int, count: int) -> Clips:
    """Rendered views of some homes of a split, as the training sees them."""
    data = Data()
    scenes = [make_scene(home_seed(split, first + i)) for i in range(count)]
    return make_clips(scenes, data.views_per_scene, lens(data.width_px, data.height_px))


def depth_scores(
    depth: np.ndarray, true_depth: np.ndarray, things: np.ndarray
) -> dict[str, float]:
    """AbsRel and share within a factor 1.25, after one scale per window and as metres."""
    scale = float(np.median(true_depth / depth))

    def scores(predicted: np.ndarray) -> tuple[np.ndarray, float]:
        ratio = predicted / true_depth
        within = float((np.maximum(ratio, 1 / ratio) < 1.25).mean())
        return np.abs(ratio - 1.0), within

    error, within = scores(depth * scale)
    metric, metric_within = scores(depth)
    return {
        "abs_rel": float(error.mean()),
        "within_1.25": within,
        "objects_abs_rel": float(error[things].mean()) if things.any() else float("nan"),
        "metric_abs_rel": float(metric.mean()),
        "metric_within_1.25": metric_within,
    }


def pose_scores(poses: np.ndarray, true_poses: np.ndarray) -> dict[str, float]:
    """Degrees between relative rotations, and between relative translations, of all pairs."""
    rotation, direction = [], []
    for i in range(len(poses)):
        for j in range(i):
            estimate = np.linalg.inv(poses[i].astype(float)) @ poses[j]
            want = np.linalg.inv(true_poses[i]) @ true_poses[j]
            cosine = (np.trace(estimate[:3, :3].T @ want[:3, :3]) - 1) / 2
            rotation.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
            if np.linalg.norm(want[:3, 3]) > MIN_BASELINE_M:
                direction.append(_angle_deg(estimate[:3, 3], want[:3, 3]))
    return {
        "rotation_deg": float(np.mean(rotation)) if rotation else float("nan"),
        "direction_deg": float(np.mean(direction)) if direction else float("nan"),
    }


def _angle_deg(a: np.ndarray, b: np.ndarray) -> float:
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(a @ b / max(size, 1e-12), -1, 1))))


def point_error_m(points: np.ndarray, true_points: np.ndarray) -> float:
    """Mean distance (m) of all points (N, H, W, 3) after the best similarity transform."""
    source, target = (p.reshape(-1, 3)[::7].astype(np.float64) for p in (points, true_points))
    fit = fit_sim3(source, target, np.ones(len(source)))
    return float(np.linalg.norm(fit.apply(source) - target, axis=1).mean())


def window_scores(
    perception: Perception,
    images: np.ndarray,
    true_depth: np.ndarray,
    things: np.ndarray,
    true_poses: np.ndarray,
    camera: Intrinsics,
) -> tuple[dict[str, float], np.ndarray]:
    """All geometric scores of one window, and the predicted depth (N, H, W).

    Poses and points twice: the network's, and as the node publishes them (`refined_`).
    """
    result = perception.reconstruct(list(images))
    depth = result.local_points_u[..., 2]
    v, u = np.mgrid[0 : camera.height_px, 0 : camera.width_px]
    local = unproject(np.stack([u, v], -1).astype(float), true_depth, camera)
    world = np.einsum("nij,nhwj->nhwi", true_poses[:, :3, :3], local)
    world += true_poses[:, None, None, :3, 3]
    focal = [abs(i.fx_px / camera.fx_px - 1) for i in result.intrinsics if i is not None]
    scores = depth_scores(depth, true_depth, things)
    for name, posed in (("", result), ("refined_", fuse_depth(refine_poses(result)))):
        pose_errors = pose_scores(posed.window_from_camera, true_poses)
        pose_errors["points_m"] = point_error_m(posed.points_u(), world)
        scores |= {name + key: value for key, value in pose_errors.items()}
    scores["focal"] = float(np.mean(focal)) if focal else float("nan")
    return scores, depth


def geometry(
    perception: Perception, split: str, scenes: int, views: Sequence[int], batch: int = 10
) -> tuple[dict[str, dict[str, float]], list[Exhibit]]:
    """Mean scores by number of views, and what is to be shown of each window of the last one."""
    by_views: dict[int, list[dict[str, float]]] = defaultdict(list)
    exhibits: list[Exhibit] = []
    for first in range(0, scenes, batch):
        clips = clips_of(split, first, min(batch, scenes - first))
        poses = clips.world_from_camera()
        for i, scene in enumerate(clips.scenes):
            structure = [item.id for item in scene.home.items if item.name in STRUCTURE]
            for count in views:
                images, depth = clips.images[i, :count], clips.depth_m[i, :count]
                things = ~np.isin(clips.items[i, :count], structure)
                camera = lens(images.shape[2], images.shape[1])
                scores, guess = window_scores(
                    perception, images, depth, things, poses[i, :count], camera
                )
                by_views[count].append(scores)
                if count == 4 or len(views) == 1:
                    exhibits.append(
                        Exhibit(f"home {scene.home.seed}", scores["abs_rel"], images, depth, guess)
                    )
    means = {
        str(count): {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
        for count, rows in by_views.items()
    }
    return means, exhibits


def asked(clips: Clips, views: int, count: int = QUESTIONS) -> list[list[QuestionAnswer]]:
    """Questions about the first views of each scene."""
    poses, times = clips.world_from_camera(), clips.time_s()
    questions = []
    for i, scene in enumerate(clips.scenes):
        facts = truth(
            scene.home, shares(clips.items[i, :views]), poses[i, :views], times[i, :views]
        )
        questions.append(ask(facts, np.random.default_rng([scene.home.seed, 4]), count))
    return questions


def language(
    perception: Perception,
    split: str,
    scenes: int,
    baselines: Baselines,
    views: int = LANGUAGE_VIEWS,
) -> tuple[dict[str, dict[str, float]], list[dict[str, str]]]:
    """Accuracy by kind of question with its baselines, and every question with its answer."""
    rows: list[dict] = []
    for first in range(0, scenes, 10):
        clips = clips_of(split, first, min(10, scenes - first))
        for i, questions in enumerate(asked(clips, views)):
            scene = perception.scene(list(clips.images[i, :views]))
            for qa in questions:
                answer = perception.ask(scene, qa.question).text
                rows.append(
                    {
                        "kind": qa.kind,
                        "question": qa.question,
                        "answer": answer,
                        "truth": qa.answer,
                        "right": correct(qa.kind, answer, qa.answer),
                        "blind": correct(
                            qa.kind, baselines.blind(qa.kind, qa.question), qa.answer
                        ),
                        "words": correct(qa.kind, baselines.words(qa.question), qa.answer),
                        "majority": correct(qa.kind, baselines.majority(qa.kind), qa.answer),
                    }
                )
    kinds = sorted({row["kind"] for row in rows})
    table = {kind: _accuracy([row for row in rows if row["kind"] == kind]) for kind in kinds}
    return table | {"all": _accuracy(rows)}, rows


def _accuracy(rows: list[dict]) -> dict[str, float]:
    means = {
        name: float(np.mean([row[key] for row in rows]))
        for name, key in (("accuracy", "right"), *((name, name) for name in BASELINES))
    }
    return means | {"asked": len(rows)}


def main(arguments: list[str] | None = None) -> None:
    """Evaluates and prints the scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="heldout")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument(
        "--backend",
        nargs="+",
        default=["auto"],
        help="the first in full, the geometry of others beside it: onnx torch tensorrt",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-language", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("eval_output"))
    options = parser.parse_args(arguments)
    perception, *others = (
        Perception.open(settings_for(options.checkpoint, backend, options.device))
        for backend in options.backend
    )
    scores: dict = {
        "backend": perception.backend,
        "split": options.split,
        "scenes": options.scenes,
    }
    scores["geometry"], exhibits = geometry(
        perception, options.split, options.scenes, options.views
    )
    for other in others:
        scores_there, _ = geometry(other, options.split, options.scenes, options.views)
        scores.setdefault("others", {})[other.backend] = scores_there
    options.out.mkdir(parents=True, exist_ok=True)
    page(exhibits).save(options.out / "pictures.png")
    if perception.speaks and not options.no_language:
        baselines = Baselines(training_questions(TRAINING_SCENES, LANGUAGE_VIEWS))
        scores["language"], rows = language(perception, options.split, options.scenes, baselines)
        (options.out / "answers.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = json.dumps(scores, indent=1)
    (options.out / "scores.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
