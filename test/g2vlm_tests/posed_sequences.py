# SPDX-License-Identifier: Apache-2.0
"""A short drive through a simulated home, written in every format that can be read."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import yaml
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from g2vlm_ros.demo.sim.camera import lens
from g2vlm_ros.demo.sim.renderer import render
from g2vlm_ros.demo.sim.robot_path import RATE_HZ
from g2vlm_ros.demo.sim.scenes import make_scene
from g2vlm_ros.demo.sim.splits import home_seed
from g2vlm_ros.geometry.sim3 import quaternion_xyzw
from g2vlm_ros.records import Intrinsics

WIDTH_PX, HEIGHT_PX, RATE = 112, 84, 2.5
FIRST_NS = 1_700_000_000_000_000_000
"""As cameras stamp: too long for a float."""
STEP_NS = 400_000_000
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
BODY_FROM_CAMERA = np.array([[0.0, 0, 1, 0.1], [-1, 0, 0, 0.02], [0, -1, 0, 0.05], [0, 0, 0, 1]])
"""A mount, as on /tf_static or in T_BS."""


@dataclass(frozen=True)
class Drive:
    """Rendered views with what is true of them."""

    camera: Intrinsics
    poses: np.ndarray
    images: np.ndarray
    depths_m: np.ndarray
    stamps_ns: np.ndarray


@cache
def drive(count: int = 12) -> Drive:
    """The first `count` views of a walk."""
    scene = make_scene(home_seed("validation", 0), legs=3)
    steps = np.arange(count) * round(RATE_HZ / RATE)
    camera = lens(WIDTH_PX, HEIGHT_PX)
    poses = scene.walk.world_from_camera[steps]
    views = render(
        [scene.home], np.zeros(count, np.int64), poses, scene.walk.time_s[steps], camera
    )
    stamps = FIRST_NS + STEP_NS * np.arange(count)
    return Drive(camera, poses, np.array(views.images), np.asarray(views.depth_m), stamps)


def _write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


def _write_depth(path: Path, depth_m: np.ndarray, unit_m: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.round(depth_m / unit_m).astype(np.uint16))


def write_hololens(folder: Path, seen: Drive) -> Path:
    """rgb/, depth/, K.txt, poses.txt."""
    for i, (image, depth_m) in enumerate(zip(seen.images, seen.depths_m, strict=True)):
        _write_picture(folder / "rgb" / f"{i:05d}.png", image)
        _write_depth(folder / "depth" / f"{i:05d}.png", depth_m, 1e-3)
    np.savetxt(folder / "K.txt", seen.camera.matrix())
    np.savetxt(folder / "poses.txt", seen.poses.reshape(-1, 16))
    return folder


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns // 10**9}.{stamp_ns % 10**9:09d}"


def _numbers(pose: np.ndarray) -> list[float]:
    return [*pose[:3, 3], *quaternion_xyzw(pose[:3, :3])]


def write_tum(folder: Path, seen: Drive) -> Path:
    """rgb.txt, depth.txt, groundtruth.txt; the truth at twice the rate, between the pictures."""
    rgb, depth, truth = ["# rgb"], ["# depth"], ["# truth"]
    for i, stamp_ns in enumerate(seen.stamps_ns):
        _write_picture(folder / "rgb" / f"{i}.png", seen.images[i])
        _write_depth(folder / "depth" / f"{i}.png", seen.depths_m[i], 1 / 5000)
        rgb.append(f"{_seconds(stamp_ns)} rgb/{i}.png")
        depth.append(f"{_seconds(stamp_ns + 5_000_000)} depth/{i}.png")
        truth.append(" ".join([_seconds(stamp_ns), *map(str, _numbers(seen.poses[i]))]))
    for name, lines in (("rgb", rgb), ("depth", depth), ("groundtruth", truth)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    camera = seen.camera
    values = (camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px)
    (folder / "calibration.txt").write_text(" ".join(map(str, values)))
    return folder


def write_euroc(folder: Path, seen: Drive) -> Path:
    """mav0 with two cameras 0.1 m apart that see the same pictures, an IMU at rest, the truth."""
    root = folder / "mav0"
    right = BODY_FROM_CAMERA.copy()
    right[1, 3] -= 0.1
    camera = seen.camera
    for name, mount in (("cam0", BODY_FROM_CAMERA), ("cam1", right)):
        rows = []
        for i, stamp_ns in enumerate(seen.stamps_ns):
            _write_picture(root / name / "data" / f"{stamp_ns}.png", seen.images[i])
            rows.append((stamp_ns, f"{stamp_ns}.png"))
        _write_csv(root / name / "data.csv", "#timestamp [ns],filename", rows)
        sensor = {
            "sensor_type": "camera",
            "T_BS": {"cols": 4, "rows": 4, "data": mount.reshape(-1).tolist()},
            "resolution": [camera.width_px, camera.height_px],
            "intrinsics": [float(value) for value in camera.matrix()[[0, 1, 0, 1], [0, 1, 2, 2]]],
            "distortion_model": "radial-tangential",
            "distortion_coefficients": [0.0, 0.0, 0.0, 0.0],
        }
        (root / name / "sensor.yaml").write_text(yaml.safe_dump(sensor))
    rows = []
    for stamp_ns, pose in zip(seen.stamps_ns, seen.poses, strict=True):
        body = pose @ np.linalg.inv(BODY_FROM_CAMERA)
        place, turn = _numbers(body)[:3], np.roll(_numbers(body)[3:], 1)
        rows.append((stamp_ns, *place, *turn))
    _write_csv(root / "state_groundtruth_estimate0" / "data.csv", "#truth", rows)
    # The simulated floor is level, and so is the body: gravity pulls along its -z.
    span = range(int(seen.stamps_ns[0]), int(seen.stamps_ns[-1]), 50_000_000)
    samples = [(stamp_ns, 0, 0, 0, 0, 0, 9.81) for stamp_ns in span]
    _write_csv(root / "imu0" / "data.csv", "#imu", samples)
    mount = {"T_BS": {"data": np.eye(4).reshape(-1).tolist()}}
    (root / "imu0" / "sensor.yaml").write_text(yaml.safe_dump(mount))
    return folder


def _write_csv(path: Path, header: str, rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.write(header + "\n")
        csv.writer(file).writerows(rows)


def write_nerfstudio(folder: Path, seen: Drive) -> Path:
    """transforms.json in OpenGL's axes, with depth, in metres."""
    frames = []
    for i, pose in enumerate(seen.poses):
        _write_picture(folder / "images" / f"{i}.png", seen.images[i])
        _write_depth(folder / "depth" / f"{i}.png", seen.depths_m[i], 1e-3)
        frames.append(
            {
                "file_path": f"images/{i}.png",
                "depth_file_path": f"depth/{i}.png",
                "transform_matrix": (pose @ OPENGL).tolist(),
            }
        )
    camera = seen.camera
    content = {
        "camera_model": "OPENCV",
        "fl_x": camera.fx_px,
        "fl_y": camera.fy_px,
        "cx": camera.cx_px + 0.5,
        "cy": camera.cy_px + 0.5,
        "w": camera.width_px,
        "h": camera.height_px,
        "metric": True,
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def write_bag(path: Path, seen: Drive, mcap: bool) -> Path:
    """Pictures, depth, camera_info, Odometry of the base and its mount on /tf_static."""
    types = get_typestore(Stores.ROS2_JAZZY)
    kind = {name.rsplit("/", 1)[-1]: known for name, known in types.types.items()}
    stamps = [kind["Time"](int(ns // 10**9), int(ns % 10**9)) for ns in seen.stamps_ns]
    storage = StoragePlugin.MCAP if mcap else StoragePlugin.SQLITE3
    with Writer(path, version=9, storage_plugin=storage) as bag:

        def topic(name: str, message: str):
            connection = bag.add_connection(name, message, typestore=types)

            def write(at_ns: int, content: object) -> None:
                bag.write(connection, int(at_ns), types.serialize_cdr(content, message))

            return write

        picture = topic("/camera/image_raw", "sensor_msgs/msg/Image")
        depth = topic("/camera/depth", "sensor_msgs/msg/Image")
        info = topic("/camera/camera_info", "sensor_msgs/msg/CameraInfo")
        truth = topic("/truth", "nav_msgs/msg/Odometry")
        static = topic("/tf_static", "tf2_msgs/msg/TFMessage")
        at_ns = int(seen.stamps_ns[0])
        static(at_ns, kind["TFMessage"]([_transform(kind, stamps[0], BODY_FROM_CAMERA)]))
        height, width = seen.images.shape[1:3]
        for i, stamp in enumerate(stamps):
            at_ns = int(seen.stamps_ns[i]) + 3_000_000
            header = kind["Header"](stamp, "optical")
            pixels = np.ascontiguousarray(seen.images[i]).reshape(-1)
            picture(at_ns, kind["Image"](header, height, width, "rgb8", 0, 3 * width, pixels))
            counts = np.round(1e3 * seen.depths_m[i]).astype("<u2").reshape(-1).view(np.uint8)
            depth(at_ns, kind["Image"](header, height, width, "16UC1", 0, 2 * width, counts))
            info(at_ns, _camera_info(kind, header, seen.camera))
            body = seen.poses[i] @ np.linalg.inv(BODY_FROM_CAMERA)
            truth(at_ns, _odometry(kind, stamp, body))
    return path


def _place(kind: dict, pose: np.ndarray) -> tuple[list[float], object]:
    numbers = [float(number) for number in _numbers(pose)]
    return numbers[:3], kind["Quaternion"](*numbers[3:])


def _transform(kind: dict, stamp: object, pose: np.ndarray) -> object:
    place, turn = _place(kind, pose)
    transform = kind["Transform"](kind["Vector3"](*place), turn)
    return kind["TransformStamped"](kind["Header"](stamp, "base"), "optical", transform)


def _odometry(kind: dict, stamp: object, pose: np.ndarray) -> object:
    place, turn = _place(kind, pose)
    zero, covariance = kind["Vector3"](0.0, 0.0, 0.0), np.zeros(36)
    return kind["Odometry"](
        kind["Header"](stamp, "world"),
        "base",
        kind["PoseWithCovariance"](kind["Pose"](kind["Point"](*place), turn), covariance),
        kind["TwistWithCovariance"](kind["Twist"](zero, zero), covariance),
    )


def _camera_info(kind: dict, header: object, camera: Intrinsics) -> object:
    matrix = camera.matrix().reshape(-1)
    projection = np.hstack([camera.matrix(), np.zeros((3, 1))]).reshape(-1)
    region = kind["RegionOfInterest"](0, 0, 0, 0, False)
    return kind["CameraInfo"](
        header, camera.height_px, camera.width_px, "plumb_bob", np.zeros(5), matrix,
        np.eye(3).reshape(-1), projection, 0, 0, region,
    )  # fmt: skip
