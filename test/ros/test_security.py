# SPDX-License-Identifier: Apache-2.0
"""SROS2: the policy against the graph of running nodes, and what is said without plugins."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "config" / "sros2" / "policy.xml"
KEYSTORE_FILES = (
    "identity_ca.cert.pem cert.pem key.pem permissions_ca.cert.pem governance.p7s permissions.p7s"
).split()
RIGHTS = (
    ("topics", "publish"),
    ("topics", "subscribe"),
    ("services", "reply"),
    ("services", "request"),
    ("actions", "execute"),
    ("actions", "call"),
)
TYPE_DESCRIPTION = "get_type_description"
"""Offered by every node from Jazzy on, not by Humble's."""


def policy():
    return ElementTree.parse(POLICY).getroot()


def allowed(node: str) -> dict[str, set[str]]:
    """What the policy lets a node do: {publish: {topics}, ...}, names in full."""
    profile = policy().find(f".//profile[@node='{node}']")
    rights = {right: set() for _, right in RIGHTS}
    for element, right in RIGHTS:
        for group in profile.findall(element):
            if group.get(right) == "ALLOW":
                names = {child.text for child in group}
                rights[right] |= {name.replace("~", f"/{node}", 1) for name in names}
    return rights


def used(observer, node: str) -> dict[str, set[str]]:
    """What a node has in the graph, actions put together."""

    # A request may come before the node that asks is discovered.
    deadline = time.monotonic() + 60
    while node not in observer.get_node_names() and time.monotonic() < deadline:
        time.sleep(0.05)

    def names(kind: str) -> set[str]:
        look = getattr(observer, f"get_{kind}_names_and_types_by_node")
        return {name for name, _ in look(node, "/")}

    rights = {"publish": names("publisher"), "subscribe": names("subscriber")}
    rights |= {"reply": names("service"), "request": names("client")}
    for side, right in (("reply", "execute"), ("request", "call")):
        parts = {name for name in rights[side] if "/_action/" in name}
        rights[right] = {name.split("/_action/")[0] for name in parts}
        rights[side] -= parts
    for side in ("publish", "subscribe"):
        rights[side] = {name for name in rights[side] if "/_action/" not in name}
    return rights


def united(*several: dict[str, set[str]]) -> dict[str, set[str]]:
    return {right: set().union(*(each[right] for each in several)) for _, right in RIGHTS}


def assert_same(node: str, graph: dict[str, set[str]], absent: frozenset = frozenset()) -> None:
    """absent: rights of the policy that this machine cannot show."""
    for _, right in RIGHTS:
        granted = {name for name in allowed(node)[right] if name not in absent}
        offered = {name for name in graph[right] if not name.endswith(TYPE_DESCRIPTION)}
        granted = {name for name in granted if not name.endswith(TYPE_DESCRIPTION)}
        assert granted == offered, f"{node}, {right}"


def test_the_policy_has_the_form_that_sros2_reads():
    root = policy()
    assert root.tag == "policy" and root.get("version") == "0.2.0"
    paths = [enclave.get("path") for enclave in root.findall("enclaves/enclave")]
    assert paths == [
        f"/g2vlm/{name}" for name in ("perception", "planner", "viewer", "replay", "operator")
    ]
    for group in root.findall(".//profile/*"):
        rights = {right for element, right in RIGHTS if element == group.tag}
        assert group.attrib and set(group.attrib) <= rights, group.attrib
        assert {child.tag for child in group} == {group.tag[:-1]}
        assert all(child.text.startswith(("/", "~/")) for child in group)


def test_the_node_may_do_what_it_does_and_no_more():
    pytest.importorskip("torch", reason="the golden checkpoint runs on the torch backend here")
    from g2vlm_tests.harness import bench

    topics = {"odometry_topic": "/odom", "imu_topic": "/imu", "depth_topic": "/camera/depth"}
    topics |= {"query.detections_topic": "/detections", "use_sim_time": True}
    graphs = []
    for transport in ("raw", "compressed"):
        with bench(**topics, image_transport=transport) as made:
            graphs.append(used(made.node, "perception"))
    absent = frozenset()
    if importlib.util.find_spec("vision_msgs") is None:
        absent = frozenset(["/detections"])
    assert_same("perception", united(*graphs), absent)


@pytest.fixture
def context():
    import rclpy

    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    yield context
    rclpy.try_shutdown(context=context)


def test_who_asks_may_ask_and_not_touch_the_map(context):
    import rclpy

    from g2vlm_ros.ros.client.client import SpatialClient

    peer = rclpy.create_node("peer", context=context)
    with SpatialClient(context=context) as client:
        picture = "/perception/query/picture"
        peer.create_publisher(importlib.import_module("sensor_msgs.msg").Image, picture, 1)
        pictures = client.pictures()
        assert_same("spatial_client", used(client.node, "spatial_client"))
        pictures.close()
    peer.destroy_node()
    for right in ("save_map", "load_map", "edit_map", "change_state"):
        assert f"/perception/{right}" not in allowed("spatial_client")["request"]


def test_replay_and_viewer(context, tmp_path):
    import cv2
    import numpy as np
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.replay.replay_node import ReplayNode

    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((24, 32, 3), np.uint8))
    graphs = []
    for transport in ("raw", "compressed"):
        values = {"path": str(tmp_path), "transport": transport, "sim_time": True}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = ReplayNode(context=context, parameter_overrides=overrides)
        graphs.append(used(node, "replay"))
        node.destroy_node()
    assert_same("replay", united(*graphs))


@pytest.mark.skipif(importlib.util.find_spec("viser") is None, reason="viser is not installed")
def test_the_viewer_listens_only(context):
    from rclpy.parameter import Parameter

    from g2vlm_ros.ros.viewer.viewer_node import ViewerNode

    graphs = []
    for transport in ("raw", "compressed"):
        values = {"port": 0, "image_transport": transport}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        node = ViewerNode(context=context, parameter_overrides=overrides)
        node.listen_to_perception()
        node.listen_to_camera("camera")
        graphs.append(used(node, "viewer"))
        node.destroy_node()
    assert_same("viewer", united(*graphs))


def example(name: str):
    """A program of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def spun(node, context):
    """A node that a thread spins."""
    from rclpy.executors import SingleThreadedExecutor

    executor, over = SingleThreadedExecutor(context=context), threading.Event()
    executor.add_node(node)

    def spin():
        while not over.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield node
    finally:
        over.set()
        thread.join()
        executor.shutdown()
        node.destroy_node()


def test_who_drives_may_call_nav2_and_nothing_else(context):
    import rclpy
    from rclpy.action import ActionServer

    nav2 = pytest.importorskip("nav2_msgs.action", reason="needs nav2_msgs or its stand-in")
    from geometry_msgs.msg import PoseStamped

    graphs = []
    server_node = rclpy.create_node("nav2", context=context)

    def execute(goal):
        graphs.append(used(driver, "go_to"))
        goal.succeed()
        return nav2.NavigateToPose.Result()

    server = ActionServer(server_node, nav2.NavigateToPose, "navigate_to_pose", execute)
    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    try:
        driver = rclpy.create_node("go_to")
        with spun(server_node, context):
            assert example("go_to").drive(driver, PoseStamped(), "") == 4  # SUCCEEDED
            server.destroy()
        driver.destroy_node()
    finally:
        rclpy.try_shutdown()
    (graph,) = graphs
    assert_same("go_to", graph)


def test_who_keeps_maps_may_call_what_the_examples_call(context, tmp_path):
    import rclpy
    from g2vlm_ros.srv import EditMap, LoadMap, SaveMap

    keeper = rclpy.create_node("map_services", context=context)
    graphs = {}

    def serve(kind, name, program):
        def answer(request, response):
            # A request may come before the graph shows who sent it.
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                requests = used(keeper, program)["request"]
                if f"/perception/{name}" in requests:
                    break
                time.sleep(0.02)
            graphs.setdefault(program, set()).update(requests)
            response.success = True
            return response

        keeper.create_service(kind, f"/perception/{name}", answer)

    serve(SaveMap, "save_map", "save_and_load_map")
    serve(LoadMap, "load_map", "save_and_load_map")
    serve(EditMap, "edit_map", "edit_map")
    with spun(keeper, context):
        assert example("save_and_load_map").main([str(tmp_path / "map.npz")]) == 0
        assert example("edit_map").main(["0", "0", "0", "1"]) == 0
    assert graphs["save_and_load_map"] | graphs["edit_map"] == {
        f"/perception/{name}" for name in ("save_map", "load_map", "edit_map")
    }
    assert set().union(*graphs.values()) <= allowed("operator")["request"]


def test_each_service_of_the_node_has_one_who_may_call_it():
    """But parameters, which nobody changes from afar."""
    offered = allowed("perception")["reply"]
    operator, asker = allowed("operator")["request"], allowed("spatial_client")["request"]
    nobody = {name for name in offered if "parameter" in name or name.endswith(TYPE_DESCRIPTION)}
    assert operator | asker | nobody == offered
    assert not operator & asker and not nobody & (operator | asker)


def test_the_operator_calls_only_what_the_node_offers():
    offered = allowed("perception")
    assert allowed("operator")["request"] <= offered["reply"]
    assert allowed("spatial_client")["request"] <= offered["reply"]
    assert allowed("spatial_client")["call"] <= offered["execute"]
    assert allowed("viewer")["subscribe"] - allowed("replay")["publish"] <= offered["publish"]


@pytest.mark.parametrize("command", ["perception_node", "replay.replay_node", "client.ask"])
def test_without_plugins_or_keys_one_sentence_is_said(tmp_path, command):
    """The environment of a robot with SROS2, on the wheels or without a keystore."""
    (tmp_path / "enclaves").mkdir()
    for name in KEYSTORE_FILES:
        (tmp_path / "enclaves" / name).touch()
    environment = {**os.environ, "ROS_SECURITY_ENABLE": "true"}
    environment |= {"ROS_SECURITY_STRATEGY": "Enforce", "ROS_SECURITY_KEYSTORE": str(tmp_path)}
    words = [sys.executable, "-m", f"g2vlm_ros.ros.{command}"]
    words += ["what?"] if command == "client.ask" else []
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    lines = [line for line in ended.stderr.splitlines() if "[rcl]" not in line]
    assert ended.returncode == 2 and len(lines) == 1, ended.stderr
    assert "ROS_SECURITY_ENABLE is true" in lines[0]


def test_what_else_fails_is_said_with_its_remedy(monkeypatch):
    from rclpy._rclpy_pybind11 import RCLError

    from g2vlm_ros.ros.start_errors import (
        SecurityError,
        StartError,
        security_sentence,
        start_errors,
    )

    monkeypatch.delenv("ROS_SECURITY_ENABLE", raising=False)
    with pytest.raises(StartError, match="^ROS cannot start: something else$"), start_errors():
        raise RCLError("something else, at /project/src/rcl/init.c:202")
    monkeypatch.setenv("ROS_SECURITY_ENABLE", "true")
    with pytest.raises(SecurityError, match="keystore"), start_errors():
        raise RCLError("no such enclave, at /project/src/rcl/security.c:202")
    assert "wheels" in security_sentence(
        "This Fast DDS version doesn't have the security libraries"
    )


@pytest.mark.parametrize(
    ("command", "name", "value", "remedy"),
    [
        ("client.ask", "ROS_LOG_DIR", "/proc/none", "set ROS_LOG_DIR to a folder"),
        ("doctor.doctor", "ROS_DOMAIN_ID", "robot1", "ROS_DOMAIN_ID is a number"),
        ("replay.replay_node", "ROS_LOG_DIR", "/proc/none", "set ROS_LOG_DIR to a folder"),
    ],
)
def test_a_machine_on_which_ros_cannot_start_is_no_traceback(command, name, value, remedy):
    """A home that is read-only, a number of a domain that is none: commands ended in rclpy's."""
    words = [sys.executable, "-m", f"g2vlm_ros.ros.{command}"]
    words += ["what?"] if command == "client.ask" else []
    environment = {**os.environ, name: value}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    said = ended.stderr + ended.stdout
    assert ended.returncode in (1, 2) and "Traceback" not in said, said
    assert "ROS cannot start" in said and remedy in said
