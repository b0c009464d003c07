# SPDX-License-Identifier: Apache-2.0
"""The doctor finds planted mistakes, names a remedy for each, and leaves a healthy graph alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")

from g2vlm_tests.harness import GOLDEN, Bench, image  # noqa: E402
from geometry_msgs.msg import TransformStamped  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, Imu, PointCloud2  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

from g2vlm_ros.ros.doctor import observer  # noqa: E402
from g2vlm_ros.ros.doctor.doctor import examine, main, parse  # noqa: E402
from g2vlm_ros.ros.doctor.findings import Finding, Level, as_json, as_text  # noqa: E402
from g2vlm_ros.ros.doctor.graph_checks import check_graph  # noqa: E402
from g2vlm_ros.ros.doctor.installation import (  # noqa: E402
    check_checkpoint,
    check_engines,
    check_gpu,
    check_middleware,
    check_shared_memory,
    judged_tensorrt,
    tried_in_a_child,
)
from g2vlm_ros.ros.doctor.snapshot import Endpoint, Graph, ImageSamples  # noqa: E402

pytestmark = pytest.mark.ros
IMAGE = "sensor_msgs/msg/Image"


def healthy() -> Graph:
    """A graph in which nothing is wrong: two cameras at 10 Hz, odometry, mounts."""
    parameters = {
        "cameras": ["left", "right"],
        "image_transport": "raw",
        "odometry_topic": "odom",
        "window.views": 4,
        "window.max_age_s": 5.0,
        "use_sim_time": False,
    }
    times = list(np.arange(1e9, 1e9 + 5, 0.1))
    cameras = {
        name: ImageSamples(
            stamps_s=[t - 0.03 for t in times],
            received_s=times,
            frame_ids={f"{name}_optical"},
            size=(640, 480),
            bytes=100_000,
            info_size=(640, 480),
        )
        for name in ("left", "right")
    }
    driver = {
        f"/{name}/image_raw": [Endpoint(f"/{name}/usb_cam", IMAGE, reliable=False)]
        for name in cameras
    }
    listener = {topic: [Endpoint("/perception", IMAGE, reliable=False)] for topic in driver}
    return Graph(
        "/perception",
        nodes=["/perception", "/left/usb_cam", "/right/usb_cam"],
        state="active",
        parameters=parameters,
        publishers={**driver, "/odom": [Endpoint("/wheels", "nav_msgs/msg/Odometry")]},
        subscriptions=listener,
        cameras=cameras,
        parents={"left_optical": {"base_link"}, "right_optical": {"base_link"}},
        static_frames={"left_optical", "right_optical"},
        sensor_messages={"odometry_topic": 50},
        seconds=5.0,
    )


def problems(graph: Graph) -> dict[str, Finding]:
    return {each.check: each for each in check_graph(graph) if each.level is not Level.OK}


def test_a_healthy_graph_has_no_complaint():
    assert problems(healthy()) == {}


def no_node(graph):
    graph.nodes = ["/talker"]


def two_of_one_name(graph):
    graph.nodes.append("/perception")


def inactive(graph):
    graph.state = "inactive"


def no_camera(graph):
    del graph.publishers["/left/image_raw"]


def another_type(graph):
    other = Endpoint("/left/usb_cam", "sensor_msgs/msg/CompressedImage", reliable=False)
    graph.publishers["/left/image_raw"] = [other]


def silent(graph):
    graph.cameras["left"] = ImageSamples()


def best_effort_for_reliable(graph):
    graph.publishers["/perception/points"] = [Endpoint("/perception", "x", reliable=False)]
    graph.subscriptions["/perception/points"] = [Endpoint("/rviz", "x", reliable=True)]


def slow_camera(graph):
    graph.cameras["left"].received_s = list(np.arange(1e9, 1e9 + 60, 20.0))
    graph.cameras["left"].stamps_s = list(np.arange(1e9, 1e9 + 60, 20.0))


def unstamped(graph):
    graph.cameras["left"].stamps_s = [0.0] * 50


def other_clock(graph):
    graph.cameras["left"].stamps_s = [t - 20 for t in graph.cameras["left"].received_s]


def shared_frame(graph):
    graph.cameras["left"].frame_ids = {"right_optical"}


def distorted(graph):
    graph.cameras["left"].distorted = True


def calibrated_at_another_size(graph):
    graph.cameras["left"].info_size = (1280, 720)


def images_too_large(graph):
    graph.cameras["left"].bytes = 2_800_000


def time_stands_still(graph):
    graph.parameters["use_sim_time"] = True


def two_parents(graph):
    graph.parents["left_optical"].add("odom")


def no_mount(graph):
    graph.static_frames.clear()


def no_metres(graph):
    graph.parameters["odometry_topic"] = ""


def misspelt_odometry(graph):
    graph.parameters["odometry_topic"] = "odometry/filtered"


def odometry_of_another_type(graph):
    graph.publishers["/odom"] = [Endpoint("/wheels", "geometry_msgs/msg/PoseStamped")]


def silent_odometry(graph):
    graph.sensor_messages.clear()


def masks_that_nobody_makes(graph):
    graph.parameters["mask_topic"] = "people"


def unknown_encoding(graph):
    graph.cameras["left"].refusals.add("image encoding 'nv24' is not one of rgb8, bgr8")


def frames_in_a_circle(graph):
    graph.parents |= {"laser": {"mast"}, "mast": {"lift"}, "lift": {"laser"}, "lamp": {"lift"}}


PLANTED = {
    no_node: "node",
    two_of_one_name: "node_name",
    inactive: "state",
    no_camera: "camera_topic",
    another_type: "camera_type",
    silent: "camera_silent",
    best_effort_for_reliable: "qos",
    slow_camera: "rate",
    unstamped: "stamp",
    other_clock: "clock",
    shared_frame: "frame_id",
    distorted: "distortion",
    calibrated_at_another_size: "calibration",
    images_too_large: "image_size",
    time_stands_still: "sim_time",
    two_parents: "tf_parents",
    no_mount: "mount",
    no_metres: "scale",
    misspelt_odometry: "sensor_topic",
    odometry_of_another_type: "sensor_type",
    silent_odometry: "sensor_silent",
    masks_that_nobody_makes: "sensor_topic",
    unknown_encoding: "image",
    frames_in_a_circle: "tf_loop",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_mistake_is_found_and_no_other(plant):
    graph = healthy()
    plant(graph)
    names = problems(graph)
    assert set(names) == {PLANTED[plant]}
    assert names[PLANTED[plant]].remedy


def test_the_remedy_for_a_missing_camera_names_the_topic_that_is_there():
    graph = healthy()
    graph.publishers["/usb_cam/image_raw"] = graph.publishers.pop("/left/image_raw")
    assert "cameras:=" in problems(graph)["camera_topic"].remedy
    assert "/usb_cam/image_raw" in problems(graph)["camera_topic"].remedy


# This machine ---------------------------------------------------------------------------------


def levels(findings) -> dict[str, Level]:
    return {each.check: each.level for each in findings}


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the golden checkpoint."""
    return shutil.copytree(GOLDEN, tmp_path / "checkpoint")


def test_a_whole_checkpoint_is_well(checkpoint):
    assert set(levels(check_checkpoint(str(checkpoint))).values()) == {Level.OK}


def test_damaged_checkpoints_are_found(checkpoint):
    assert levels(check_checkpoint("")) == {"checkpoint": Level.ERROR}
    assert levels(check_checkpoint("/nowhere")) == {"checkpoint": Level.ERROR}
    (checkpoint / "heads.onnx").write_bytes(b"half a file")
    assert levels(check_checkpoint(str(checkpoint)))["onnx_files"] is Level.ERROR
    (checkpoint / "onnx.manifest").unlink()
    assert levels(check_checkpoint(str(checkpoint)))["onnx_files"] is Level.WARNING
    (checkpoint / "text_config.json").write_text("{")
    assert levels(check_checkpoint(str(checkpoint))) == {"checkpoint": Level.ERROR}


def test_weights_that_others_may_write_are_warned_of(checkpoint):
    (checkpoint / "model.safetensors").chmod(0o666)
    assert levels(check_checkpoint(str(checkpoint)))["checkpoint_permissions"] is Level.WARNING


def test_what_is_known_of_tensorrt_versions():
    assert judged_tensorrt("8.6.1").level is Level.ERROR
    assert judged_tensorrt("10.3.0").level is Level.WARNING
    assert judged_tensorrt("10.16.1").level is Level.OK


def test_no_engines_are_no_mistake(tmp_path, checkpoint):
    assert levels(check_engines(str(checkpoint), str(tmp_path))) == {"engines": Level.OK}


def test_the_middleware_and_its_profile(tmp_path):
    profile = tmp_path / "fastdds.xml"
    assert levels(check_middleware({}))["middleware"] is Level.WARNING
    environment = {"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}
    assert levels(check_middleware(environment))["middleware"] is Level.ERROR
    profile.write_text("<dds/>")
    assert levels(check_middleware(environment))["middleware"] is Level.OK
    profile.write_text("<dds>")
    (damaged, *_) = check_middleware(environment)
    assert damaged.level is Level.ERROR and "is no XML" in damaged.what
    profile.write_text("<dds><times><heartbeatPeriod/></times></dds>")
    assert levels(check_middleware(environment))["middleware"] is Level.OK
    (refused, *_) = check_middleware({**environment, "ROS_DISTRO": "kilted"})
    assert refused.level is Level.ERROR and "take config/fastdds3.xml" in refused.what
    profile.write_text("<CycloneDDS/>")
    for uri in ("<CycloneDDS/>", f"file://{profile},{profile}"):
        cyclone = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp", "CYCLONEDDS_URI": uri}
        assert levels(check_middleware(cyclone))["middleware"] is Level.OK


GPU_TOOLS = {
    "echo 'NVIDIA L4, 590.10, 23034 MiB'": Level.OK,
    "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18": Level.ERROR,
}


@pytest.mark.skipif(Path("/etc/nv_tegra_release").exists(), reason="a Jetson has no nvidia-smi")
@pytest.mark.parametrize("script", GPU_TOOLS)
def test_a_driver_that_does_not_fit_is_found(tmp_path, monkeypatch, script):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (finding,) = check_gpu()
    assert finding.level is GPU_TOOLS[script]
    assert ("mismatch" if finding.remedy else "L4") in finding.what


@pytest.mark.parametrize(("free", "level"), [(1 << 20, Level.WARNING), (1 << 30, Level.OK)])
def test_shared_memory_that_is_full_is_found(monkeypatch, free, level):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert levels(check_shared_memory()) == {"shared_memory": level}


def test_a_library_that_crashes_takes_only_the_child_along():
    assert tried_in_a_child("pass") == ""
    assert tried_in_a_child("import os; os.kill(os.getpid(), 11)") == "signal 11"
    assert "ImportError" in tried_in_a_child("raise ImportError('built for numpy 1')")


def test_reports():
    findings = [
        Finding("a", Level.OK, "is well"),
        Finding("b", Level.ERROR, "is not", "do this"),
    ]
    assert as_text(findings).splitlines() == [
        "error   b: is not",
        "        -> do this",
        "ok      a: is well",
    ]
    assert json.loads(as_json(findings))["errors"] == 1
    with pytest.raises(ValueError, match="no remedy"):
        Finding("c", Level.ERROR, "is not")


def test_offline_from_a_shell(checkpoint, capsys):
    assert main(["--offline", "--json", "--checkpoint", str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["errors"] == 0 and report["findings"]
    assert main(["--offline", "--checkpoint", "/nowhere"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--seconds", "nan"],
        ["--seconds", "-3"],
        ["--seconds", "inf"],
        ["--node", "bad name"],
        ["--node", ""],
        ["--checkpoint", "caf\udce9"],
    ],
)
def test_what_cannot_be_listened_to_is_refused(arguments):
    """An endless time was listened for, and a name that is none was not in the graph."""
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2


# Over DDS -------------------------------------------------------------------------------------


@contextmanager
def broken_robot():
    """A perception node among mistakes, over real DDS."""
    settings = {
        "cameras": ["left", "right", "rear", "top"],
        "window.views": 8,
        "window.max_age_s": 1.0,
        "imu_topic": "imu",
        "mask_topic": "people",
        "query.detections_topic": "boxes",
    }
    testbed = Bench(**settings)
    testbed.start()
    # In a context of its own: one participant cannot have two types on a topic.
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    driver = Node("driver", context=context)
    twin = Node("perception", context=context, start_parameter_services=False)
    old = driver.create_publisher(Image, "left/image_raw", 10)
    slow = driver.create_publisher(Image, "right/image_raw", 10)
    driver.create_publisher(CompressedImage, "rear/image_raw", 10)
    driver.create_publisher(Imu, "imu", 10)
    driver.create_publisher(Image, "boxes", 10)
    info = driver.create_publisher(CameraInfo, "left/camera_info", 10)
    tf = driver.create_publisher(TFMessage, "/tf", 10)
    late = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    driver.create_subscription(PointCloud2, "/perception/points", lambda _: None, late)

    over = threading.Event()

    def drive():
        count = 0
        while not over.wait(0.1):
            old.publish(image(time.time() - 100.0, frame_id="camera"))
            if count % 15 == 0:
                odd = image(time.time(), frame_id="camera")
                odd.encoding = "nv24"
                slow.publish(odd)
            info.publish(CameraInfo(width=1280, height=720, d=[0.1, 0.0, 0.0, 0.0, 0.0]))
            pairs = (("base_link", "laser"), ("odom", "laser"), ("mast", "lift"), ("lift", "mast"))
            for parent, child in pairs:
                transform = TransformStamped(child_frame_id=child)
                transform.header.frame_id = parent
                tf.publish(TFMessage(transforms=[transform]))
            count += 1

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        yield testbed
    finally:
        over.set()
        thread.join()
        for node in (twin, driver):
            node.destroy_node()
        rclpy.try_shutdown(context=context)
        testbed.close()


def test_the_mistakes_of_one_robot_are_found_over_dds():
    with broken_robot():
        options = parse(["--seconds", "4", "--node", "/perception"])
        findings = examine(options, [])
    names = {each.check for each in findings if each.level is not Level.OK}
    planted = {
        "node_name",  # a second node called perception
        "camera_topic",  # nobody publishes top/image_raw
        "camera_type",  # rear/image_raw is compressed
        "clock",  # left is stamped by a clock that is 100 s behind
        "rate",  # right is too slow for the window
        "frame_id",  # left and right are both called camera
        "calibration",  # camera_info of left is for another size
        "distortion",
        "qos",  # somebody wants old points, which are not kept
        "tf_parents",  # laser has two
        "mount",  # an IMU and no mount of the camera
        "sensor_topic",  # nobody publishes masks
        "sensor_type",  # boxes are images
        "sensor_silent",  # the IMU has a driver that says nothing
        "image",  # right has an encoding that the node does not read
        "tf_loop",  # mast and lift hang on each other
        "scale",  # nothing gives metres
    }
    assert planted <= names, sorted(planted - names)


def test_a_node_in_a_namespace_needs_no_optional_sensors(monkeypatch):
    """An empty topic in a namespace is no name of ROS: the doctor ended in rclpy's traceback."""
    monkeypatch.setattr(observer, "ANSWER_S", 0.1)
    node = "/robot/perception"
    findings = examine(parse(["--seconds", "0.1", "--node", node]), [])
    assert any(each.level is Level.ERROR and node in each.what for each in findings)
