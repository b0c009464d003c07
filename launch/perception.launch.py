# SPDX-License-Identifier: Apache-2.0
"""Brings the perception node up to active; with replay:=PATH on a recording as its camera."""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.events import matches_action
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

from launch import LaunchDescription

SHARE = Path(__file__).parents[1]
DEVICE_GONE = 75
"""Exit code of the perception node when nothing runs on its GPU any more (perception_node.py)."""
PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
TEXTS = {
    "params_file": "Laid over config/perception.yaml: files or names in config/ (cpu), by commas.",
    "checkpoint": "Folder of the checkpoint; empty: model.checkpoint of the parameter files.",
    "backend": "auto, torch, onnx or tensorrt; empty: model.backend of the parameter files.",
    "cameras": "Camera namespaces, separated by commas; empty: cameras of the parameter files.",
    "namespace": "Namespace of the nodes and of the cameras.",
    "replay": "Folder of images, video or recording to play as the first camera.",
}
SWITCHES = (
    ("use_sim_time", "false", "Take time from /clock; a replay then publishes it."),
    ("autostart", "true", "Configure and activate; false leaves that to a lifecycle manager."),
    ("rviz", "false", "Show cloud, path, poses, frames and depth in RViz."),
    ("viewer", "false", "Show the map in a browser: http://127.0.0.1:8080 (needs viser)."),
    ("demo", "false", "Drive a simulated home; the demo checkpoint on the CPU looks at it."),
)


def generate_launch_description():
    declare, switch = DeclareLaunchArgument, {"choices": ["true", "false"]}
    texts = [declare(n, default_value="", description=d) for n, d in TEXTS.items()]
    switches = [declare(n, default_value=v, description=d, **switch) for n, v, d in SWITCHES]
    return LaunchDescription([*texts, *switches, OpaqueFunction(function=launch_nodes)])


def launch_nodes(context):
    given = dict(context.launch_configurations)
    on = {name: given[name] == "true" for name, _, _ in SWITCHES}
    files, cameras = (given[name].replace(",", " ").split() for name in ("params_file", "cameras"))
    if on["demo"]:
        files.insert(0, "demo")
        given["checkpoint"] = given["checkpoint"] or f"{SHARE}/engines/demo"
    env = {n: f"{SHARE}/config/fastdds.xml" for n in PROFILES if n not in context.environment}
    common = {"package": "g2vlm_ros", "namespace": given["namespace"], "additional_env": env}
    chosen = {"model.checkpoint": given["checkpoint"], "model.backend": given["backend"]}
    chosen = {name: value for name, value in {**chosen, "cameras": cameras}.items() if value}
    chosen["use_sim_time"] = on["use_sim_time"]
    common["parameters"] = [*map(existing, ["perception", *files]), chosen]
    actions = perception(common, on["autostart"])
    if given["replay"]:
        common["parameters"] = [{"path": given["replay"], "sim_time": on["use_sim_time"]}]
        common["parameters"] += [{"camera": camera} for camera in cameras[:1]]
        actions.append(Node(name="replay", executable="replay", **common))
    plain = {**common, "parameters": []}
    if on["demo"] and not given["replay"]:
        actions.append(Node(name="sim_camera", executable="sim_camera", **plain))
    if on["viewer"]:
        actions.append(Node(name="viewer", executable="viewer", **plain))
    if on["rviz"]:
        view = ["-d", f"{SHARE}/config/perception.rviz"]
        actions.append(Node(package="rviz2", executable="rviz2", arguments=view))
    return actions


def perception(common, autostart):
    """The node; after DEVICE_GONE it is started again, because a CUDA context is lost for good."""
    node = LifecycleNode(name="perception", executable="perception", **common)

    def again(event, _):
        if event.returncode != DEVICE_GONE:
            return None
        return [TimerAction(period=5.0, actions=perception(common, autostart))]

    ended = RegisterEventHandler(OnProcessExit(target_action=node, on_exit=again))
    return [node, ended, *(bring_up(node) if autostart else [])]


def bring_up(node):
    def change(transition):
        event = ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        return EmitEvent(event=event)

    then = [change(Transition.TRANSITION_ACTIVATE)]
    done = {"start_state": "configuring", "goal_state": "inactive", "entities": then}
    handler = OnStateTransition(target_lifecycle_node=node, **done)
    return [RegisterEventHandler(handler), change(Transition.TRANSITION_CONFIGURE)]


def existing(name):
    path = Path(name).expanduser() if "/" in name or "." in name else SHARE / f"config/{name}.yaml"
    if not path.is_file():
        raise RuntimeError(f"params_file names {path}, which does not exist")
    return str(path)
