# SPDX-License-Identifier: Apache-2.0
"""What messages cost: a large PointCloud2 packed and published, camera images made model input.

One run measures ours and what it is compared with in turns (so that load on the machine meets all
alike) and writes medians in milliseconds and their ratios:
- cloud: 8 x 518 x 392 points of 20 bytes (32 MB) to another process over DDS, by
  `convert.cloud_message`, by the straightforward conversion (sensor_msgs_py where it is installed,
  else its equivalent), and a plain memcpy of the same bytes;
- images: 1280x720 messages to 518-wide model input against cv2.resize alone.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np

from benchmarks.record import record

VIEWS, HEIGHT, WIDTH = 8, 392, 518
IMAGE_PX = (1280, 720)
INPUT_WIDTH_PX = 518
TOPIC = "benchmark/points"
REPETITIONS = 9
ARRIVAL_S = 3.0


def medians_ms(tasks: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median wall time of each task in ms; the tasks take turns, after one round unmeasured."""
    times = {name: [] for name in tasks}
    for repetition in range(repetitions + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repetition:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: _median(values) for name, values in times.items()}


def straightforward_points(points, colours, confidence) -> np.ndarray:
    """The structured array that a user of sensor_msgs_py builds."""
    names = ("x", "y", "z", "rgb", "confidence")
    out = np.empty(points.shape[:-1], [(name, "<f4") for name in names])
    for axis, name in enumerate("xyz"):
        out[name] = points[..., axis]
    r, g, b = (colours[..., channel].astype(np.uint32) for channel in range(3))
    out["rgb"] = (r << 16 | g << 8 | b).view(np.float32)
    out["confidence"] = confidence
    return out.ravel()


def straightforward_cloud(header, fields, points, colours, confidence, **options):
    """A PointCloud2 as commonly made: sensor_msgs_py.create_cloud, or `tobytes` assigned."""
    from sensor_msgs.msg import PointCloud2

    cloud = straightforward_points(points, colours, confidence)
    try:
        from sensor_msgs_py.point_cloud2 import create_cloud
    except ImportError:
        msg = PointCloud2(header=header, fields=fields, height=1, width=cloud.size, **options)
        msg.point_step, msg.row_step, msg.is_dense = 20, 20 * cloud.size, True
        msg.data = cloud.tobytes()
        return msg
    return create_cloud(header, fields, cloud)


def cloud_costs(repetitions: int = REPETITIONS) -> dict[str, object]:
    """Conversion and publication of the large cloud, and their ratios."""
    from g2vlm_ros.ros.conversions import clouds, geometry

    rng = np.random.default_rng(0)
    shape = (VIEWS, HEIGHT, WIDTH)
    points = rng.random((*shape, 3), np.float32)
    colours = rng.integers(0, 256, (*shape, 3), np.uint8)
    confidence = rng.random(shape, np.float32)
    poses = np.tile(np.eye(4), (VIEWS, 1, 1))
    holes = rng.random(shape) < 0.8
    header = geometry.header(1, "map")
    maps = (points, colours, confidence)
    every = np.ones(shape, bool)
    ours = clouds.cloud_message(header, *maps, every)
    reuse = {"out": ours}
    source = np.frombuffer(ours.data, np.uint8).copy()
    target = np.empty_like(source)
    fields = ours.fields
    spare = {name: clouds.cloud_message(header, *maps, holes) for name in ("dense", "organised")}
    conversions = {
        "memcpy": lambda: np.copyto(target, source),
        "ours": lambda: clouds.cloud_message(header, *maps, every, **reuse),
        "ours_to_new_memory": lambda: clouds.cloud_message(header, *maps, every),
        "ours_posed": lambda: clouds.cloud_message(
            header, *maps, every, poses=poses, scale=2.0, **reuse
        ),
        "ours_dense_80_percent": lambda: clouds.cloud_message(
            header, *maps, holes, out=spare["dense"]
        ),
        "ours_organised_80_percent": lambda: clouds.cloud_message(
            header, *maps, holes, organised=True, out=spare["organised"]
        ),
        "straightforward": lambda: straightforward_cloud(header, fields, *maps),
    }
    converted = medians_ms(conversions, repetitions)
    converted["straightforward_fields_checked"] = _checked_ms(header, fields, maps)
    assert straightforward_cloud(header, fields, *maps).data == conversions["ours"]().data

    published = publish_costs(
        {name: conversions[name] for name in ("ours", "straightforward")}, repetitions
    )
    return {
        "points": points.size // 3,
        "bytes": source.size,
        "convert_ms": converted,
        "publish": published,
        "ratios": {
            "ours_to_memcpy": _ratio(converted["ours"], converted["memcpy"]),
            "straightforward_to_ours": _ratio(converted["straightforward"], converted["ours"]),
            "straightforward_fields_checked_to_ours": _ratio(
                converted["straightforward_fields_checked"], converted["ours"]
            ),
            "straightforward_to_ours_published": _ratio(
                published["convert_and_publish_ms"]["straightforward"],
                published["convert_and_publish_ms"]["ours"],
            ),
        },
    }


def publish_costs(
    conversions: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, object]:
    """Medians of converting and publishing, and until another process has the message.

    The next cloud is sent when the last one has arrived, or is given up after ARRIVAL_S.
    """
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    rclpy.init()
    node = rclpy.create_node("benchmark_messages")
    publisher = node.create_publisher(PointCloud2, TOPIC, QoSProfile(depth=1))
    listener = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.messages", "--listen"],
        stdout=subprocess.PIPE,
        text=True,
    )
    arrived = queue.SimpleQueue()
    threading.Thread(
        target=lambda: [arrived.put(line) for line in listener.stdout], daemon=True
    ).start()
    called_ms = {name: [] for name in conversions}
    arrived_ms = {name: [] for name in conversions}
    try:
        _wait_for(lambda: publisher.get_subscription_count() > 0, "the listening process")
        for _ in range(repetitions):
            for name, convert_cloud in conversions.items():
                start = time.perf_counter()
                publisher.publish(convert_cloud())
                called_ms[name].append((time.perf_counter() - start) * 1e3)
                with suppress(queue.Empty):
                    arrived.get(timeout=ARRIVAL_S)
                    arrived_ms[name].append((time.perf_counter() - start) * 1e3)
    finally:
        listener.terminate()
        listener.wait()
        node.destroy_node()
        rclpy.shutdown()
    return {
        "sent": {name: len(values) for name, values in called_ms.items()},
        "received_by_other_process": {name: len(values) for name, values in arrived_ms.items()},
        "convert_and_publish_ms": {name: _median(values) for name, values in called_ms.items()},
        "until_received_ms": {name: _median(values) for name, values in arrived_ms.items()},
    }


def _median(values: list[float]) -> float | None:
    return round(statistics.median(values), 3) if values else None


def _checked_ms(header, fields, maps) -> float | None:
    """One straightforward conversion with field checks, which Humble cannot switch off."""
    start = time.perf_counter()
    try:
        straightforward_cloud(header, fields, *maps, check_fields=True)
    except AssertionError:  # a distribution without the switch
        return None
    return round((time.perf_counter() - start) * 1e3, 3)


def _ratio(slow: float | None, fast: float) -> float | None:
    return None if slow is None else round(slow / fast, 2)


def _wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not appear within {timeout_s} s")
        time.sleep(0.05)


def listen() -> None:
    """Print the number of points of every cloud that arrives, until terminated."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import PointCloud2

    rclpy.init()
    node = rclpy.create_node("benchmark_listener")
    node.create_subscription(
        PointCloud2,
        TOPIC,
        lambda msg: print(msg.width * msg.height, flush=True),
        QoSProfile(depth=1),
    )
    with suppress(ExternalShutdownException, KeyboardInterrupt):
        rclpy.spin(node)


def image_costs(repetitions: int = 3 * REPETITIONS) -> dict[str, object]:
    """Milliseconds per megapixel from message to model input, and their ratio to cv2.resize."""
    from g2vlm_ros.images.preprocessing import geometry_size, resize_views
    from g2vlm_ros.ros.conversions import images

    messages, picture = image_messages()
    size = geometry_size(*IMAGE_PX, INPUT_WIDTH_PX)
    tasks: dict[str, Callable[[], object]] = {
        "cv2_resize": lambda: cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    }
    for name, msg in messages.items():
        compressed = name == "jpeg"
        read = images.frame_from_compressed if compressed else images.frame_from_image
        tasks[f"{name}_decode"] = lambda read=read, msg=msg: read(msg, "front").decode()
        for resample in ("area", "lanczos"):
            tasks[f"{name}_{resample}"] = lambda read=read, msg=msg, resample=resample: (
                resize_views([read(msg, "front").decode()], INPUT_WIDTH_PX, resample)
            )
    megapixels = IMAGE_PX[0] * IMAGE_PX[1] / 1e6
    per_megapixel = {
        name: round(ms / megapixels, 3) for name, ms in medians_ms(tasks, repetitions).items()
    }
    base = per_megapixel["cv2_resize"]
    return {
        "from_px": IMAGE_PX,
        "to_px": size,
        "ms_per_megapixel": per_megapixel,
        "ratio_to_cv2_resize": {n: _ratio(ms, base) for n, ms in per_megapixel.items()},
    }


def image_messages() -> tuple[dict[str, object], np.ndarray]:
    """One synthetic picture as rgb8, bgr8, nv12 and JPEG messages, and its pixels."""
    from sensor_msgs.msg import CompressedImage, Image

    from g2vlm_ros.ros.conversions import geometry

    width, height = IMAGE_PX
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    picture = cv2.resize(coarse, IMAGE_PX, interpolation=cv2.INTER_CUBIC)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    i420 = cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420).reshape(-1)
    luma, chroma = np.split(i420, [width * height])
    nv12 = np.concatenate([luma, chroma.reshape(2, -1).T.ravel()])
    messages: dict[str, object] = {}
    for name, data, step in (
        ("rgb8", picture, 3 * width),
        ("bgr8", bgr, 3 * width),
        ("nv12", nv12, width),
    ):
        msg = Image(height=height, width=width, encoding=name, step=step)
        msg.data.frombytes(data.tobytes())
        messages[name] = msg
    messages["jpeg"] = CompressedImage(format="jpeg")
    messages["jpeg"].data.frombytes(cv2.imencode(".jpg", bgr)[1].tobytes())
    for msg in messages.values():
        msg.header = geometry.header(1, "front")
    return messages, picture


def run() -> dict[str, object]:
    """Both measurements, with what they ran on."""
    return {
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "cloud": cloud_costs(),
        "images": image_costs(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and record; `--listen` is the receiving process of the cloud measurement."""
    parser = argparse.ArgumentParser(description="Costs of large messages and camera images.")
    parser.add_argument("--listen", action="store_true", help=argparse.SUPPRESS)
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if parser.parse_args(arguments).listen:
        listen()
    else:
        print(record("messages", run()).name)


if __name__ == "__main__":
    main()
