# SPDX-License-Identifier: Apache-2.0
"""The command line without ROS: a recording in, a coloured cloud, poses and answers out.

    python -m g2vlm_ros FOLDER_OR_VIDEO --checkpoint DIR --out scene.ply
    python -m g2vlm_ros FOLDER_OR_VIDEO --checkpoint DIR --question "How far is ...?"

Exit code 2 and one sentence where the input is wrong, 1 where the network fails on it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from g2vlm_ros.geometry.point_cloud import valid_points, write_ply, write_poses_csv
from g2vlm_ros.geometry.sim3 import ZUP_FROM_OPTICAL, Sim3
from g2vlm_ros.images.sources import open_source
from g2vlm_ros.perception import Perception, Scene
from g2vlm_ros.records import NonFiniteError, Reconstruction
from g2vlm_ros.settings import Settings

CAMERA = "camera"
DEFAULT_VIEWS = 8
CANDIDATES_PER_VIEW = 4
"""Frames decoded at least per view, of which the most evenly spread ones are taken."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    try:
        return _run(_parse(arguments))
    except NonFiniteError as error:
        return _refuse(str(error), 1)
    except ImportError as error:
        return _refuse(f"{error}; install it or choose another --backend", 2)
    except (OSError, ValueError) as error:
        return _refuse(str(error), 2)


def read_views(path: str | Path, views: int) -> list[tuple[np.ndarray, int]]:
    """At most `views` frames (image uint8 (h, w, 3) RGB, stamp_ns), evenly spread over `path`.

    FileNotFoundError or ValueError as `images.sources.open_source`.
    """
    source = open_source(path)
    length = source.length or sum(1 for _ in source)
    stride = max(1, length // (CANDIDATES_PER_VIEW * views))
    candidates = list(range(0, length, stride))
    indices = set(np.linspace(0, len(candidates) - 1, min(views, len(candidates))).round())
    return [frame for i, frame in enumerate(open_source(path, stride=stride)) if i in indices]


def write_results(
    result: Reconstruction,
    stamps_ns: Sequence[int],
    settings: Settings,
    ply: Path | None,
    csv: Path | None,
) -> int:
    """Write the cloud and the poses, where wanted, in the map frame; returns the point count.

    The map is the node's: z up, the first camera at the origin, lengths in model units.
    """
    map_from_window = _level_first_camera(result.window_from_camera[0])
    cloud = settings.cloud
    valid = valid_points(
        np.asarray(result.local_points_u),
        np.asarray(result.confidence),
        cloud.min_confidence,
        cloud.max_edge_step,
    )
    if ply:
        points = map_from_window.apply(result.points_u()[valid])
        write_ply(ply, points, result.colours[valid], result.confidence[valid])
    if csv:
        poses = map_from_window.apply_pose(result.window_from_camera)
        rows = (
            (ns, CAMERA, settings.map.frame, pose)
            for ns, pose in zip(stamps_ns, poses, strict=True)
        )
        write_poses_csv(csv, rows)
    return int(valid.sum())


def _level_first_camera(window_from_camera: np.ndarray) -> Sim3:
    """map_from_window, where the first camera (4, 4) is the origin and level: x forward, z up."""
    rotation = ZUP_FROM_OPTICAL @ window_from_camera[:3, :3].T.astype(np.float64)
    return Sim3(1.0, rotation, -rotation @ window_from_camera[:3, 3])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m g2vlm_ros",
        description="Reconstruct a folder of images or a video, or ask questions about it.",
    )
    add = parser.add_argument
    add("source", metavar="FOLDER_OR_VIDEO", help="images in the order of their names, or a video")
    add("--checkpoint", metavar="DIR", required=True, help="folder of a G2VLM checkpoint")
    add(
        "--question",
        metavar="Q",
        action="append",
        default=[],
        help="ask about the views; may be repeated, each question stands alone",
    )
    add(
        "--out",
        metavar="PLY",
        type=Path,
        help="write the coloured cloud (scene.ply if nothing else is asked for)",
    )
    add("--poses", metavar="CSV", type=Path, help="write the camera poses")
    add("--backend", default="auto", help="what runs the network (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    add(
        "--views",
        type=int,
        default=DEFAULT_VIEWS,
        help="how many, evenly spread over the recording (default: %(default)s)",
    )
    add(
        "--width",
        type=int,
        default=0,
        help="of the views in the model, px (default: as the checkpoint was trained)",
    )
    add(
        "--semantic-width",
        type=int,
        default=0,
        help="side of the squares that questions are answered from, px (default: as trained)",
    )
    add("--min-confidence", type=float, default=0.0, help="leave out points below, 0 to 1")
    add("--json", action="store_true", help="print one JSON object instead of text")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> int:
    settings = Settings.from_flat(
        {
            "model.checkpoint": options.checkpoint,
            "model.backend": options.backend,
            "model.device": options.device,
            "model.image_width_px": options.width,
            "query.semantic_width_px": options.semantic_width,
            "cloud.min_confidence": options.min_confidence,
        }
    )
    _check(options)
    progress = ProgressBar(2 + bool(options.out or options.poses) + len(options.question))
    try:
        progress.begin(f"reading {options.source}")
        images, stamps_ns = zip(*read_views(options.source, options.views), strict=True)
        if options.question:
            _warn_of_many_views(len(images), settings.query.max_views)
        progress.begin(f"loading {options.checkpoint}")
        perception = Perception.open(settings)
        for sentence in perception.warnings:
            print(f"warning: {sentence}", file=sys.stderr)
        scene = perception.scene(images)
        report = {"views": len(images), "backend": perception.backend}
        if options.out or options.poses:
            progress.begin(f"reconstructing {len(images)} views")
            result = perception.reconstruct(scene)
            points = write_results(result, stamps_ns, settings, options.out, options.poses)
            report |= _written(options, points, result.stage_times_s)
        report["answers"] = [
            _answer(perception, scene, question, progress) for question in options.question
        ]
    finally:
        progress.end()
    print(json.dumps(report, indent=1) if options.json else _text(report))
    return 0


def _check(options: argparse.Namespace) -> None:
    """Refuse before the long work what would fail after it; fill in the default of --out."""
    if options.views < 1:
        raise ValueError(f"--views is {options.views}; it must be at least 1")
    if not (options.question or options.out or options.poses):
        options.out = Path("scene.ply")
    for path in filter(None, (options.out, options.poses)):
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path.absolute().parent} does not exist; make the folder first")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file")
    if options.out and options.out.suffix.lower() != ".ply":
        raise ValueError(
            f"{options.out} ends in {options.out.suffix!r}; clouds are written as .ply"
        )


def _warn_of_many_views(views: int, most: int) -> None:
    if views > most:
        print(
            f"warning: {views} views; answers of the released weights degrade above {most}",
            file=sys.stderr,
        )


def _written(options: argparse.Namespace, points: int, times_s: dict[str, float]) -> dict:
    return {
        "points": points,
        "cloud": str(options.out) if options.out else None,
        "poses": str(options.poses) if options.poses else None,
        "scale": "relative",
        "stage_times_s": {stage: round(seconds, 4) for stage, seconds in times_s.items()},
    }


def _answer(perception: Perception, scene: Scene, question: str, progress: ProgressBar) -> dict:
    progress.begin(f"answering {question!r}")
    answer = perception.ask(scene, question)
    return {"question": question, "answer": answer.text, "finished": answer.finished}


def _text(report: dict) -> str:
    lines = [f"{report['views']} views on {report['backend']}"]
    if "points" in report:
        lines.append(f"{report['points']} points, lengths relative (unit of the model)")
        lines += [f"{key} in {report[key]}" for key in ("cloud", "poses") if report[key]]
    for item in report["answers"]:
        cut = "" if item["finished"] else " [cut off]"
        lines.append(f"Q: {item['question']}\nA: {item['answer']}{cut}")
    return "\n".join(lines)


def _refuse(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


class ProgressBar:
    """Steps on stderr: a bar where tqdm is installed and a person watches, else plain lines."""

    def __init__(self, steps: int):
        self._steps, self._begun, self._bar = steps, 0, None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=steps, bar_format="{bar:20} {n_fmt}/{total_fmt} {desc}")

    def begin(self, step: str) -> None:
        """The step before is done, this one begins."""
        self._begun += 1
        if self._bar is None:
            print(f"[{self._begun}/{self._steps}] {step}", file=sys.stderr)
            return
        self._bar.set_description_str(step, refresh=False)
        self._bar.update(1 if self._begun > 1 else 0)
        self._bar.refresh()

    def end(self) -> None:
        """Nothing more comes, whether all steps are done or not."""
        if self._bar is not None:
            self._bar.update(1 if self._begun == self._steps else 0)
            self._bar.close()


if __name__ == "__main__":
    raise SystemExit(main())
