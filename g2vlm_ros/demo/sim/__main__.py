# SPDX-License-Identifier: Apache-2.0
"""Command line: photographs of a walk through a simulated home, with their true poses.

python -m g2vlm_ros.demo.sim --split heldout --home 0 --out frames
python -m g2vlm_ros.demo.sim --split validation --home 0 --walk-hz 5 --flaws typical --out walk

The second writes the whole walk with depth, as `python -m g2vlm_ros.evaluate` reads it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from g2vlm_ros.demo.sim.array_backend import Arrays
from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.camera_flaws import TYPICAL, CameraFlaws, FlawedCamera, pose_at
from g2vlm_ros.demo.sim.movers import PERSON, with_doors, with_walkers
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
    parser.add_argument(
        "--walk-hz", type=float, default=0.0, metavar="HZ",
        help="write the whole walk, with depth, for python -m g2vlm_ros.evaluate",
    )  # fmt: skip
    parser.add_argument(
        "--flaws", default="", metavar="NAME=NUMBER,...",
        help="of the camera on the walk: typical, or exposure_s, readout_s, noise, hunting, "
        "vignetting, dim, seed",
    )  # fmt: skip
    parser.add_argument("--walkers", type=int, default=0, help="people on the walk's way")
    parser.add_argument("--doors", action="store_true", help="doors open as the robot comes")
    options = parser.parse_args(arguments)
    if options.walk_hz > 0:
        typical = options.flaws == "typical"
        flaws = TYPICAL if typical else CameraFlaws.parse(options.flaws)
        scene = make_scene(home_seed(options.split, options.home))
        if options.walkers:
            scene = with_walkers(scene, options.walkers)
        if options.doors:
            scene = with_doors(scene)
        write_walk(scene, options.walk_hz, options.width, flaws, options.out)
        return
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


def write_walk(
    scene: SimulatedScene, rate_hz: float, width: int, flaws: CameraFlaws, out: Path
) -> None:
    """`rgb/`, `depth/` (mm), `K.txt`, `poses.txt` of a walk, as `datasets/hololens.py` reads.

    Where people walk, `masks/` beside them: white where a picture shows one.
    """
    people = [item.id for item in scene.home.items if item.name == PERSON]
    for name in ("rgb", "depth", *(("masks",) if people else ())):
        (out / name).mkdir(parents=True, exist_ok=True)
    camera = lens(width, width * 3 // 4)
    flawed = FlawedCamera(scene, camera, flaws)
    times_s = np.arange(scene.walk.time_s[0], scene.walk.time_s[-1], 1 / rate_hz)
    poses = np.stack([pose_at(scene, time_s) for time_s in times_s])
    for i, (time_s, pose) in enumerate(zip(times_s, poses, strict=True)):
        Image.fromarray(flawed.picture(time_s)).save(out / "rgb" / f"{i:05d}.png")
        now = np.array([time_s])
        view = render(scene.homes, scene.home_index(now), pose[None], now, camera)
        depth_mm = np.rint(1e3 * np.asarray(view.depth_m)[0]).astype(np.uint16)
        Image.fromarray(depth_mm).save(out / "depth" / f"{i:05d}.png")
        if people:
            mask = np.isin(np.asarray(view.items)[0], people)
            Image.fromarray(np.uint8(255) * mask).save(out / "masks" / f"{i:05d}.png")
    np.savetxt(out / "K.txt", camera.matrix())
    np.savetxt(out / "poses.txt", poses.reshape(-1, 16))


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
