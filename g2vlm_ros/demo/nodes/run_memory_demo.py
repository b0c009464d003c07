# SPDX-License-Identifier: Apache-2.0
"""The second half of ``make demo``, alone ``make demo-memory``: a robot drives, saves its map and
ends; the next one finds itself in it.

Two sessions, each a process of its own with its own node (`memory_session`): the first drives
through a held-out home and saves the map; the second starts somewhere on that way knowing nothing
but the file, finds itself, drives on, and is asked where it saw things. Exit code 0 only if it
found itself.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from g2vlm_ros.demo.nodes import demo_arguments
from g2vlm_ros.demo.nodes.run_demo import ROOT, prepare_environment
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.ros.end_signals import EndSignals

POLL_S = 0.2
SIZE_PX = 720
MARGIN_M = 0.6
SHADES = {"floor": 40, "thing": 90, "wall": 190}
FIRST, SECOND, FOUND = (200, 120, 40), (60, 200, 60), (60, 60, 240)
"""BGR: the first drive, the second, and where it found itself."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    about = __doc__.split("\n")[0]
    parser = argparse.ArgumentParser(
        "make demo-memory", description=about, usage=argparse.SUPPRESS
    )
    demo_arguments.add_walk(parser)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "engines" / "demo")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=Path("demo_output/memory"))
    options = parser.parse_args(arguments)
    demo_arguments.check_paths(parser, options.out, options.checkpoint)
    return options


def run_session(name: str, options: argparse.Namespace, signals: EndSignals) -> dict[str, Any]:
    """In a process of its own: what one forgets, the next one cannot know.

    A signal ends it, too: SystemExit with the signal's code.
    """
    path = options.out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "g2vlm_ros.demo.nodes.memory_session", name]
    command += [str(options.out), "--home", str(options.home), "--split", options.split]
    command += ["--legs", str(options.legs), "--backend", options.backend]
    command += ["--checkpoint", str(options.checkpoint.resolve())]
    with subprocess.Popen(command, start_new_session=True) as child:
        while child.poll() is None:
            if signals.wait(POLL_S):
                child.terminate()
                child.wait()
    if signals.asked:
        raise SystemExit(signals.exit_code)
    if child.returncode or not path.exists():
        raise SystemExit(f"the session '{name}' failed; its error is above")
    return json.loads(path.read_text())


def picture(options: argparse.Namespace, first: dict[str, Any], second: dict[str, Any]) -> Any:
    """uint8 (h, w, 3) BGR: the home from above, both drives, where the second found itself."""
    from g2vlm_ros.demo.sim.home import STRUCTURE
    from g2vlm_ros.demo.sim.scenes import make_scene
    from g2vlm_ros.demo.sim.splits import home_seed

    home = make_scene(home_seed(options.split, options.home), options.legs).home
    rooms = np.array([room.rectangle for room in home.rooms])
    low, high = rooms[:, :2].min(0) - MARGIN_M, rooms[:, 2:].max(0) + MARGIN_M
    scale = SIZE_PX / float((high - low).max())

    def pixels(places: np.ndarray) -> np.ndarray:
        at = (np.asarray(places, float).reshape(-1, places.shape[-1])[:, :2] - low) * scale
        return np.stack([at[:, 0], (high - low)[1] * scale - at[:, 1]], -1).round().astype(int)

    size = np.ceil((high - low) * scale).astype(int)
    image = np.full((size[1], size[0], 3), 20, np.uint8)
    for x0, y0, x1, y1 in rooms:
        corners = pixels(np.array([[x0, y0], [x1, y1]]))
        cv2.rectangle(image, *map(_point, corners), (SHADES["floor"],) * 3, -1)
        cv2.rectangle(image, *map(_point, corners), (SHADES["wall"],) * 3, 2)
    for item in home.items:
        if item.name in STRUCTURE:
            continue
        x0, y0, x1, y1 = item.footprint()
        corners = pixels(np.array([[x0, y0], [x1, y1]]))
        cv2.rectangle(image, *map(_point, corners), (SHADES["thing"],) * 3, 1)
        name_at = pixels(item.centre_m[None])[0] + (-18, 4)
        cv2.putText(image, item.name, _point(name_at), 0, 0.36, (150,) * 3, 1, cv2.LINE_AA)
    move = first["home_from_map"]
    home_from_map = Sim3(move["scale"], np.array(move["rotation"]), np.array(move["translation"]))
    for path, colour in ((first["path"], FIRST), (second["path"], SECOND)):
        line = pixels(home_from_map.apply(np.array(path)))
        cv2.polylines(image, [line.astype(np.int32)], False, colour, 2, cv2.LINE_AA)
    place = pixels(home_from_map.apply(np.array(second["path"][:1])))[0]
    cv2.circle(image, _point(place), 9, FOUND, 2, cv2.LINE_AA)
    return image


def _point(pixel: np.ndarray) -> tuple[int, int]:
    return int(pixel[0]), int(pixel[1])


def run(options: argparse.Namespace, signals: EndSignals) -> dict[str, Any]:
    """Both sessions, said and drawn as they end; returns a summary for the report.

    `found_off` in it is None where the second one did not find itself.
    """
    print("first session: a drive, and its map in a file", flush=True)
    first = run_session("drive", options, signals)
    print(
        f"  {first['points']} points and {len(first['things'])} things in home.npz "
        f"({first['file_mib']} MiB); trajectory {first['trajectory']['trajectory_error_m']} m off "
        f"over {first['trajectory']['path_m']} m"
    )
    print("second session: a new process, which knows nothing but that file", flush=True)
    second = run_session("return", options, signals)
    print(f"  {', then '.join(second['localised'])}")
    report = {
        "file_mib": first["file_mib"],
        "things": len(first["things"]),
        **{key: second[key] for key in ("found_after_s", "found_off", "median_off", "answers")},
    }
    if second["found_off"] is None:
        print("  it did not find itself")
        return report
    metres, degrees = second["found_off"]
    print(
        f"  first place known by the view {second['found_after_s']} s after the first one: "
        f"{metres} m and {degrees} degrees off; all after it {second['median_off'][0]:.3f} m and "
        f"{second['median_off'][1]:.2f} degrees (median)"
    )
    for each in second["answers"]:
        off = "" if each["off_m"] is None else f" ({each['off_m']} m off)"
        where = "from memory" if each["remembered"] else "in view"
        print(f"  {each['question']} {each['answer']} [{where}]{off}")
    cv2.imwrite(str(options.out / "memory.png"), picture(options, first, second))
    print(f"see {options.out}: home.npz, drive.json, return.json, memory.png")
    return report


def summary(report: dict[str, Any]) -> str:
    """One line about both sessions."""
    if report["found_off"] is None:
        return "memory: the second process did not find itself in the saved map"
    metres, degrees = report["found_off"]
    places = [each["off_m"] for each in report["answers"] if each["off_m"] is not None]
    off = f", {np.median(places):.2f} m off in the middle" if places else ""
    return (
        f"memory: {report['things']} things in a file of {report['file_mib']} MiB; a new process "
        f"found itself {metres} m and {degrees} degrees off and said of {len(places)} of "
        f"{len(report['answers'])} things where it saw them{off}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Both sessions; 0 where the second one found itself."""
    options, signals = parse(arguments), EndSignals()
    prepare_environment()
    return int(run(options, signals)["found_off"] is None)


if __name__ == "__main__":
    raise SystemExit(main())
