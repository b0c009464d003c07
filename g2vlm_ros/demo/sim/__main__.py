# SPDX-License-Identifier: Apache-2.0
"""Command line: photographs of a walk through a simulated home, with their true poses.

python -m g2vlm_ros.demo.sim --split heldout --home 0 --out frames
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import SimulatedScene, bareness, make_scene
from g2vlm_ros.demo.sim.splits import SPLITS, home_seed


def main(arguments: list[str] | None = None) -> None:
    """Writes frame_<seconds>.jpg and frames_truth.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=SPLITS, default="heldout")
    parser.add_argument("--home", type=int, default=0, help="index of the home in its split")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--gap-s", type=float, default=0.5, help="time between two frames")
    parser.add_argument("--width", type=int, default=640, help="pixels; the images are 4:3")
    parser.add_argument("--quality", type=int, default=85, help="of the JPEG files")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    scene = make_scene(home_seed(options.split, options.home))
    steps = stretch(scene, options.frames, options.gap_s)
    write_frames(scene, steps, options.width, options.quality, options.out)


def stretch(scene: SimulatedScene, frames: int, gap_s: float) -> np.ndarray:
    """int64 (frames,): the evenly spaced stretch of the walk whose views show most."""
    gap = max(1, round(gap_s * RATE_HZ))
    last = len(scene.walk.time_s) - gap * (frames - 1)
    if last < 1:
        raise ValueError(
            f"the walk lasts {scene.walk.time_s[-1]:.1f} s, too short for {frames} frames "
            f"{gap_s} s apart; take fewer or closer ones"
        )
    steps = np.arange(0, len(scene.walk.time_s), gap)
    bare = bareness([scene], steps[None], Arrays())[0]
    windows = np.lib.stride_tricks.sliding_window_view(bare, frames)
    return steps[int(np.argmin(np.maximum(windows, 0.7).mean(1))) :][:frames]


def write_frames(
    scene: SimulatedScene, steps: np.ndarray, width: int, quality: int, out: Path
) -> None:
    """JPEG files named by the time since the first frame, and the truth about them as JSON."""
    out.mkdir(parents=True, exist_ok=True)
    camera = lens(width, width * 3 // 4)
    pose, time = scene.walk.world_from_camera[steps], scene.walk.time_s[steps]
    index = np.zeros(len(steps), np.int64)
    images = render([scene.home], index, pose, time, camera).images
    names = [f"frame_{t - time[0]:.3f}.jpg" for t in time]
    for name, image in zip(names, images, strict=True):
        Image.fromarray(image).save(out / name, quality=quality)
    document = {
        "seed": scene.home.seed,
        "intrinsics_px": {
            "width": camera.width_px,
            "height": camera.height_px,
            "fx": camera.fx_px,
            "fy": camera.fy_px,
            "cx": camera.cx_px,
            "cy": camera.cy_px,
        },
        "frames": [
            {
                "file": name,
                "time_s": round(float(t - time[0]), 3),
                "world_from_camera": np.round(matrix, 6).tolist(),
            }
            for name, t, matrix in zip(names, time, pose, strict=True)
        ],
    }
    (out / "frames_truth.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
