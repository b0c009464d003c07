# SPDX-License-Identifier: Apache-2.0
"""Reconstruct a folder of images without ROS: one window, a coloured PLY cloud.

python3 examples/reconstruct_folder.py CHECKPOINT FOLDER [scene.ply [WIDTH]]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2

from g2vlm_ros.geometry.point_cloud import write_ply
from g2vlm_ros.perception import Perception
from g2vlm_ros.settings import Settings

MAX_VIEWS = 8


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where the folder has no images."""
    checkpoint, folder, *rest = sys.argv[1:] if arguments is None else arguments
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".jpg", ".png"))
    if not files:
        print(f"{folder} has no .jpg or .png", file=sys.stderr)
        return 1
    views = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in files[:MAX_VIEWS]]
    settings = {"model.checkpoint": checkpoint}
    if len(rest) > 1:
        settings["model.image_width_px"] = int(rest[1])
    perception = Perception.open(Settings.from_flat(settings))
    result = perception.reconstruct(views)
    valid = result.valid(max_edge_step=0.1)
    write_ply(rest[0] if rest else "scene.ply", result.points_u()[valid], result.colours[valid])
    print(f"{len(views)} views, {int(valid.sum())} points, in model units")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
