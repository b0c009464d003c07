# SPDX-License-Identifier: Apache-2.0
"""What a window and a question move to a Triton server and back, for one robot and for several.

    python -m g2vlm_ros.export.triton_repository --checkpoint engines/demo --out /tmp/repository
    tritonserver --model-repository /tmp/repository
    python -m benchmarks.fleet --url localhost:8001

Needs the running server; the others of `make bench` do not. Bytes are those of headers and
payloads, without gRPC's own framing.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.record import record
from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.checkpoint.digest import model_version
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.inference.triton_backend import TritonBackend
from g2vlm_ros.inference.triton_transport import GrpcTransport
from g2vlm_ros.perception import Perception
from g2vlm_ros.settings import Settings

DEMO = Path(__file__).resolve().parents[1] / "engines" / "demo"
VIEWS, HEIGHT, WIDTH = 4, 480, 640
WINDOWS = 8
ROBOTS = (1, 2, 4)
MODEL, TIMEOUT_S = "g2vlm", 60.0
"""Name of the model at the server, and how long a request may take while all robots ask."""
QUESTION = "What do you see?"


class Robot:
    """One robot's perception, and what it has moved so far."""

    def __init__(self, url: str, checkpoint: Path, seed: int):
        self.transport = GrpcTransport(url, MODEL, TIMEOUT_S)
        backend = TritonBackend(ModelConfig.read(checkpoint), self.transport)
        backend.check_server(model_version(checkpoint))
        settings = Settings.from_flat({"model.checkpoint": str(checkpoint)})
        self.perception = Perception(backend, Tokenizer.open(checkpoint), settings)
        rng = np.random.default_rng(seed)
        self.images = list(rng.integers(0, 256, (VIEWS, HEIGHT, WIDTH, 3), dtype=np.uint8))
        self.perception.reconstruct(self.images)

    def moved(self) -> np.ndarray:
        """(sent, received) bytes since the start."""
        return np.array([self.transport.bytes_sent, self.transport.bytes_received])

    def windows(self) -> list[float]:
        """Seconds of each of WINDOWS windows."""
        times = []
        for _ in range(WINDOWS):
            start = time.perf_counter()
            self.perception.reconstruct(self.perception.scene(self.images))
            times.append(time.perf_counter() - start)
        return times


def together(robots: list[Robot]) -> list[float]:
    """Seconds of all their windows, while all of them ask."""
    times: list[float] = []
    threads = [threading.Thread(target=lambda r=r: times.extend(r.windows())) for r in robots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def measure(url: str, checkpoint: Path) -> dict[str, object]:
    """Bytes of a window, a first and a second question; seconds by number of robots."""
    robots = [Robot(url, checkpoint, seed) for seed in range(max(ROBOTS))]
    one = robots[0]
    before = one.moved()
    one.windows()
    window = (one.moved() - before) // WINDOWS
    scene = one.perception.scene(one.images)
    one.perception.reconstruct(scene)
    questions = []
    for _ in range(2):
        before = one.moved()
        answer = one.perception.ask(scene, QUESTION)
        sent, received = (one.moved() - before).tolist()
        tokens = len(answer.token_ids)
        questions.append({"sent": sent, "received": received, "tokens": tokens})
    seconds = {}
    for count in ROBOTS:
        start = time.perf_counter()
        times = together(robots[:count])
        spent = time.perf_counter() - start
        seconds[str(count)] = {
            "window_s": round(statistics.median(times), 3),
            "windows_per_s": round(len(times) / spent, 2),
        }
    return {
        "backend": one.perception.backend,
        "views": VIEWS,
        "window_bytes": {"sent": int(window[0]), "received": int(window[1])},
        "questions": questions,
        "robots": seconds,
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--url", default="localhost:8001")
    parser.add_argument("--checkpoint", type=Path, default=DEMO)
    options = parser.parse_args(arguments)
    result = measure(options.url, options.checkpoint)
    result["backend"] = result["backend"].replace(options.url, "localhost")
    print(result)
    print(record("fleet", result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
