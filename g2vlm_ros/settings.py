# SPDX-License-Identifier: Apache-2.0
"""Every parameter of the node, once: default, bounds, unit in the name, one line of documentation.

`ros/parameters.py` declares these as ROS parameters (groups become prefixes: ``window.views``);
`tools/write_parameters.py` makes docs/parameters.md and config/perception.yaml of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from g2vlm_ros.parameter_schema import (
    FRAME,
    FRAME_SUFFIX,
    TOPIC,
    SettingError,
    build,
    check,
    parameter,
    parameters_of,
)

MIN_SIDE_PX = 28
"""Two patches: below, neither encoder has a grid to attend over."""


@dataclass(frozen=True)
class ModelSettings:
    """Which network runs, where, and on images of which size."""

    checkpoint: str = parameter("", "Folder of the checkpoint (Hugging Face layout). Required.")
    backend: str = parameter(
        "auto",
        "What runs the network; auto takes the fastest that is installed.",
        choices=("auto", "torch", "onnx", "tensorrt", "triton"),
    )
    device: str = parameter(
        "auto", "Where it runs; auto takes a GPU if there is one.", choices=("auto", "cpu", "cuda")
    )
    dtype: str = parameter(
        "auto",
        "Arithmetic; auto is bfloat16 on a GPU and float32 on a CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    engines: str = parameter(
        "", "Cache folder of built TensorRT engines; empty for g2vlm_ros in the user's cache."
    )
    dino_windows: str = parameter(
        "auto",
        "Attention windows of the DINO encoder; auto asks the checkpoint.",
        choices=("auto", "released", "aligned"),
    )
    threads: int = parameter(
        0,
        "Threads of ONNX Runtime on the CPU; 0: the cores that the process may use, by affinity "
        "and a container's quota.",
        low=0,
        high=1024,
    )
    max_job_s: float = parameter(
        10.0,
        "A window, or an answer between two tokens, that occupies the device for longer is an "
        "error of the engine in /diagnostics and named in ~/status; raise it for a slow device.",
        low=1,
        high=600,
    )
    cuda_graphs: bool = parameter(
        True,
        "Of backend torch on a GPU: windows and decoding steps are recorded once per shape and "
        "replayed; a recording that fails or computes something else is not used.",
    )
    fused_kernels: bool = parameter(
        True,
        "Of backend torch on a GPU: norms, rotations and gates compiled to one kernel each, which "
        "may take a minute at the first start; without Triton or where results differ they stay "
        "as they are.",
    )
    image_width_px: int = parameter(
        0,
        "Width of the views inside the model, a multiple of 14; height follows the aspect. "
        "0: as the checkpoint was trained, 518 for the released weights.",
        low=0,
        high=2072,
    )
    resample: str = parameter(
        "lanczos",
        "How views are resized: lanczos as released, area is faster and close.",
        choices=("lanczos", "area"),
    )
    triton_url: str = parameter(
        "localhost:8001", "Of backend triton: host:port of the server's gRPC endpoint."
    )
    triton_model: str = parameter("g2vlm", "Of backend triton: name of the model on the server.")
    triton_timeout_s: float = parameter(
        5.0, "Of backend triton: longest wait for one request.", low=0.05, high=600.0
    )
    triton_fallback: str = parameter(
        "",
        "Of backend triton: local backend that takes over while the server does not answer; empty "
        "for none.",
        choices=("", "auto", "torch", "onnx", "tensorrt"),
    )

    def __post_init__(self) -> None:
        for name in ("checkpoint", "engines"):
            folder = getattr(self, name)
            if isinstance(folder, str):  # of another type it is refused by Settings
                object.__setattr__(self, name, os.path.expanduser(folder))


@dataclass(frozen=True)
class WindowSettings:
    """Which recent frames go through the model together."""

    views: int = parameter(4, "Views per window, all cameras counted.", low=1, high=32)
    overlap: int = parameter(
        2,
        "Instants that a window shares with the one before, which joins the two.",
        low=0,
        high=31,
    )
    min_gap_s: float = parameter(
        0.25, "Least time between two instants of a window.", low=0.0, high=60
    )
    min_baseline_m: float = parameter(
        0.0,
        "Least odometry motion between two instants; 0 needs no odometry.",
        low=0.0,
        high=10,
    )
    max_age_s: float = parameter(
        5.0,
        "Longest span of a window; a camera silent for half of it is left out until it is back.",
        low=0.01,
        high=600,
    )
    sync_slop_s: float = parameter(
        0.02,
        "Most stamp difference between cameras of one instant.",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class CloudSettings:
    """What of the point map becomes ~/points; the map has settings of its own (voxel)."""

    stride_px: int = parameter(1, "Take every n-th pixel in x and y.", low=1, high=64)
    organised: bool = parameter(
        False,
        "Publish one organised cloud per view (invalid points NaN) instead of a dense one.",
    )
    min_confidence: float = parameter(
        0.0, "Leave out points below this confidence.", low=0.0, high=1.0
    )
    max_edge_step: float = parameter(
        0.1,
        "Leave out pixels at depth steps above this fraction of depth; 0 keeps all.",
        low=0.0,
        high=10,
    )


@dataclass(frozen=True)
class MapSettings:
    """The map frame, and how windows are joined into it."""

    folder: str = parameter(
        "",
        "Folder that ~/save_map and ~/load_map may not leave; empty: any folder of the robot.",
    )
    frame: str = parameter("map", "Frame of all published geometry (z up, REP-105).", name=FRAME)
    publish_tf: bool = parameter(True, "Publish the pose of the newest view on /tf.")
    publish_odom_tf: bool = parameter(
        True,
        "And of odometry_topic's frame (REP-105's map -> odom); false where a localiser does.",
    )
    tf_child_suffix: str = parameter(
        "_g2vlm",
        "Appended to the camera frame on /tf, so that no frame gets a second parent.",
        name=FRAME_SUFFIX,
    )
    path_length: int = parameter(
        2000, "Most poses kept in ~/path; older ones go.", low=2, high=1000000
    )
    metres_per_unit: float = parameter(
        0.0,
        "Known scale of the model's unit; 0 means unknown, lengths stay relative.",
        low=0.0,
        high=1000,
    )
    refine_poses: bool = parameter(
        True, "Correct the poses of a window by points followed through its images."
    )
    fuse_depth: bool = parameter(True, "Average depth where several views see the same surface.")
    min_registration_inliers: float = parameter(
        0.5,
        "Least share of points that must agree when two windows are registered.",
        low=0.0,
        high=1.0,
        former="min_joint_inliers",
    )
    min_registration_quality: float = parameter(
        0.3,
        "Least quality of a registration: inliers, less where geometry leaves it undetermined.",
        low=0.0,
        high=1.0,
        former="min_joint_quality",
    )
    min_view_overlap: float = parameter(
        0.05,
        "Least share of a view that another one must show to count as connected with it.",
        low=0.0,
        high=1.0,
    )
    odometry_reach_m: float = parameter(
        2.0, "Longest way that odometry carries the map over a gap; 0: none.", low=0.0, high=100
    )
    camera_height_m: float = parameter(
        0.0,
        "Known height of the cameras above the floor, for scale; 0 means unknown.",
        low=0.0,
        high=100,
    )
    rig_baselines: str = parameter(
        "",
        "Known distances between cameras in metres, for scale: left right 0.12, right rear 0.3.",
    )
    max_scale_std: float = parameter(
        0.1,
        "Largest relative standard deviation of the scale at which lengths become metres.",
        low=0.001,
        high=1.0,
    )
    mode: str = parameter(
        "mapping",
        "mapping, or localization: find the robot in a map of ~/load_map, which stays as it is.",
        choices=("mapping", "localization"),
    )
    ignored_labels: str = parameter(
        "person",
        "Labels of query.detections_topic, commas between, whose boxes count as masked; empty for "
        "none.",
    )
    loop_closure: bool = parameter(
        True,
        "Look for places seen before; a candidate costs one more run of the model, or a search "
        "for features.",
    )
    loop_gap_windows: int = parameter(
        10,
        "Least windows between a place and its return, and between two tries.",
        low=2,
        high=1000,
    )
    loop_similarity: float = parameter(
        0.7,
        "Least cosine similarity of descriptors for a try where the map expects no old view.",
        low=0.0,
        high=1.0,
    )
    keyframes: int = parameter(
        100, "Most views remembered, to know places again.", low=3, high=10000
    )
    keyframes_mib: int = parameter(
        64, "Most of them in the file of ~/save_map; 0: none.", low=0, high=1000
    )
    graph_windows: int = parameter(
        128,
        "Most windows that move on their own when a loop closes; older ones move in groups.",
        low=16,
        high=1000,
    )


@dataclass(frozen=True)
class PoseSettings:
    """Poses at the camera's rate."""

    between_windows: bool = parameter(
        True, "Follow frames between windows: ~/pose, ~/odometry and /tf at the camera's rate."
    )
    max_rate_hz: float = parameter(
        30.0, "Frames per second and camera that are followed at most.", low=0.1, high=1000
    )
    odometry_frame: str = parameter(
        "g2vlm_odom",
        "Frame of ~/odometry, in which the camera never jumps; a child of map.frame.",
        name=FRAME,
    )


@dataclass(frozen=True)
class VoxelSettings:
    """The bounded map of coloured voxels, and the occupancy grid made of it.

    Without metres, lengths shrink or grow together so that a voxel is a fiftieth of the windows'
    median depth; where later windows see twice as far, the map is merged into larger voxels.
    """

    size_m: float = parameter(0.05, "Edge of a voxel.", low=0.001, high=10)
    memory_mib: int = parameter(
        256, "Bound of the map's memory; far and old voxels go first.", low=1, high=32768
    )
    min_confidence: float = parameter(
        0.0, "Leave points below this confidence out of the map.", low=0.0, high=1.0
    )
    max_edge_step: float = parameter(
        0.1,
        "Leave pixels at depth steps above this fraction of depth out of the map; 0 keeps all.",
        low=0.0,
        high=10,
    )
    max_depth_m: float = parameter(
        0.0,
        "Leave points farther from their camera out of the map, where a small turn is far off; "
        "0 keeps all.",
        low=0.0,
        high=1000,
    )
    min_ray_confidence: float = parameter(
        0.3, "Rays below this confidence prove nothing empty.", low=0.0, high=1.0
    )
    replaced_per_update: int = parameter(
        15_000, "Voxels moved per window after a loop closure.", low=100, high=10_000_000
    )
    cell_m: float = parameter(0.05, "Edge of a cell of ~/occupancy.", low=0.005, high=10)
    obstacle_low_m: float = parameter(
        0.15, "Height above the floor from which things are in the way.", low=0.01, high=10
    )
    obstacle_high_m: float = parameter(
        1.5, "Height above the floor from which things are out of the way.", low=0.02, high=20
    )
    publish_period_s: float = parameter(
        1.0, "Least time between two ~/map or ~/occupancy messages.", low=0.1, high=3600
    )


@dataclass(frozen=True)
class QuerySettings:
    """Answers in language."""

    max_tokens: int = parameter(64, "Most tokens of an answer.", low=1, high=1024)
    max_views: int = parameter(
        8,
        "Views above which a question is warned about: answers degrade (released weights).",
        low=1,
        high=32,
    )
    semantic_width_px: int = parameter(
        0,
        "Side of the square view that the semantic encoder sees. 0: as the checkpoint was "
        "trained, 768 for the released weights.",
        low=0,
        high=1792,
    )
    queue: int = parameter(
        8,
        "Most questions of one client that wait, of all clients four times as many; more are "
        "refused as BUSY.",
        low=1,
        high=64,
    )
    reconstruction_share: float = parameter(
        0.3,
        "Least share of the device's time for windows while questions wait as well.",
        low=0.0,
        high=0.9,
    )
    dialogues: int = parameter(
        4,
        "Most conversations remembered, each with its window; the oldest is forgotten.",
        low=1,
        high=64,
    )
    windows: int = parameter(
        3, "Most recent windows kept for questions about a moment.", low=1, high=32
    )
    objects: int = parameter(
        1000,
        "Most objects remembered at their places in the map; 0 remembers none.",
        low=0,
        high=100_000,
    )
    robot_width_m: float = parameter(
        0.0,
        "Width of the robot, for questions whether it fits through; 0 means unknown.",
        low=0.0,
        high=10,
    )
    detections_topic: str = parameter(
        "",
        "vision_msgs/Detection2DArray whose labels questions may use; empty for none.",
        name=TOPIC,
    )
    target_tf: str = parameter(
        "",
        "Child frame under which the last place asked about goes on /tf; empty for none.",
        name=FRAME,
    )


SENSOR_TOPICS = (
    "odometry_topic",
    "depth_topic",
    "imu_topic",
    "mask_topic",
    "query.detections_topic",
)


@dataclass(frozen=True)
class Settings:
    """All settings of the perception node."""

    cameras: list[str] = parameter(
        ["camera"], "Namespaces of the cameras: <camera>/image_raw.", name=TOPIC
    )
    autostart: bool = parameter(
        False,
        "Configure and activate at start, as the launch file has it; false leaves both to a "
        "lifecycle manager or `ros2 lifecycle`.",
    )
    image_transport: str = parameter(
        "raw", "raw or compressed images.", choices=("raw", "compressed")
    )
    odometry_topic: str = parameter(
        "", "nav_msgs/Odometry, for scale and gaps; empty for none.", name=TOPIC
    )
    depth_topic: str = parameter(
        "",
        "Depth images (32FC1, 16UC1) registered to the camera of their frame_id, for scale.",
        name=TOPIC,
    )
    imu_topic: str = parameter(
        "", "sensor_msgs/Imu: which way is up. Empty: floors and walls tell.", name=TOPIC
    )
    mask_topic: str = parameter(
        "",
        "Masks (mono8, non-zero: ignore) of people and what else moves, with the camera's stamp "
        "and frame_id; kept out of map, occupancy and tracking.",
        name=TOPIC,
    )
    max_image_px: int = parameter(
        50_000_000,
        "Largest image accepted, width times height.",
        low=1024,
        high=1_000_000_000,
    )
    status_period_s: float = parameter(
        1.0, "Period of ~/status and /diagnostics.", low=0.1, high=60
    )
    model: ModelSettings = field(default_factory=ModelSettings)
    window: WindowSettings = field(default_factory=WindowSettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    map: MapSettings = field(default_factory=MapSettings)
    pose: PoseSettings = field(default_factory=PoseSettings)
    voxel: VoxelSettings = field(default_factory=VoxelSettings)
    query: QuerySettings = field(default_factory=QuerySettings)

    def __post_init__(self) -> None:
        for name, item in parameters_of(Settings):
            check(name, item, _get(self, name))
        _check_together(self)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from ``{"window.views": 8, ...}``; SettingError names an unknown key."""
        return build(cls, values)


def _get(settings: Settings, name: str) -> Any:
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _check_together(settings: Settings) -> None:
    """Bounds that involve several parameters."""
    cameras, window = settings.cameras, settings.window
    if not settings.map.frame:
        raise SettingError("map.frame is empty; it must name a frame such as map")
    if not cameras or len(set(cameras)) != len(cameras) or not all(cameras):
        raise SettingError(f"cameras is {cameras!r}; it must name at least one camera, each once")
    if window.views % len(cameras):
        raise SettingError(
            f"window.views is {window.views}; with {len(cameras)} cameras it must be a multiple "
            f"of {len(cameras)}"
        )
    instants = window.views // len(cameras)
    if window.overlap >= instants and window.views > 1:
        raise SettingError(
            f"window.overlap is {window.overlap}; it must be below the {instants} instants of a "
            "window"
        )
    if (instants - 1) * window.min_gap_s > window.max_age_s:
        raise SettingError(
            f"window.max_age_s is {window.max_age_s}; {instants} instants {window.min_gap_s} s "
            "apart need more; raise it or lower window.min_gap_s"
        )
    if settings.voxel.obstacle_low_m >= settings.voxel.obstacle_high_m:
        raise SettingError(
            f"voxel.obstacle_low_m is {settings.voxel.obstacle_low_m}; it must be below "
            f"voxel.obstacle_high_m, {settings.voxel.obstacle_high_m}"
        )
    if settings.model.image_width_px % 14:
        raise SettingError(
            f"model.image_width_px is {settings.model.image_width_px}; it must be a multiple of 14"
        )
    for name in ("model.image_width_px", "query.semantic_width_px"):
        if 0 < _get(settings, name) < MIN_SIDE_PX:
            raise SettingError(
                f"{name} is {_get(settings, name)}; it must be {MIN_SIDE_PX} or more, or 0 for "
                "the checkpoint's own"
            )
    if window.min_baseline_m > 0 and not settings.odometry_topic:
        raise SettingError(
            f"window.min_baseline_m is {window.min_baseline_m}; it needs odometry_topic"
        )
    topics = [f"{camera}/image_raw" for camera in cameras]
    topics += [_get(settings, name) for name in SENSOR_TOPICS if _get(settings, name)]
    twice = sorted({topic for topic in topics if topics.count(topic) > 1})
    if twice:
        raise SettingError(
            f"{', '.join(twice)} is given for two inputs; each of the cameras' image_raw, "
            f"{', '.join(SENSOR_TOPICS)} must be a topic of its own"
        )
    # Every pair as `mapping.scale_measurements.rig_baselines_m` reads it: name, name, metres.
    pairs = [entry.split()[:2] for entry in settings.map.rig_baselines.split(",")]
    strangers = sorted({name for pair in pairs for name in pair} - set(cameras))
    if strangers:
        raise SettingError(
            f"map.rig_baselines names {', '.join(strangers)}; cameras has {', '.join(cameras)}"
        )
