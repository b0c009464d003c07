# SPDX-License-Identifier: Apache-2.0
"""Brings the perception node up to active; with replay:=PATH on a recording as its camera."""

from difflib import get_close_matches
from pathlib import Path
from re import ASCII, fullmatch

from launch.actions import (
    DeclareLaunchArgument,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.substitutions.substitution_failure import SubstitutionFailure
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackagePrefix

from launch import LaunchDescription

SHARE = Path(__file__).parents[1]
DEVICE_GONE = 75
"""Exit code of the perception node when nothing runs on its GPU any more (perception_node.py)."""
PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
WITH_FASTDDS_2 = ("", "humble", "jazzy")
"""As in ros/middleware.py."""
RVIZ_TOPICS = (
    *("points", "map", "occupancy", "path", "pose", "window_poses", "depth/image"),
    *("object_markers", "query/picture"),
)
"""Of the node, as config/perception.rviz names them: /perception/TOPIC."""
TEXTS = {
    "params_file": "Laid over config/perception.yaml: files or names in config/ (cpu), by commas.",
    "checkpoint": "Folder of the checkpoint; empty: model.checkpoint of the parameter files.",
    "backend": "auto, torch, onnx or tensorrt; empty: model.backend of the parameter files.",
    "cameras": "Camera namespaces, separated by commas; empty: cameras of the parameter files.",
    "namespace": "Namespace of the nodes and of the cameras.",
    "replay": "Folder of images, video or recording to play as the first camera.",
    "viewer_port": "Port of the viewer, another one for each robot; empty: 8080.",
}
SWITCHES = (
    ("use_sim_time", "false", "Take time from /clock; a replay then publishes it."),
    (
        "autostart",
        "true",
        "Configure and activate; false leaves that to a lifecycle manager. There is no bond: "
        "Nav2's manager needs bond_timeout: 0.0.",
    ),
    ("rviz", "false", "Show cloud, map, grid, path, poses, depth and answers in RViz."),
    ("viewer", "false", "Show the map in a browser, at the address in its log (needs viser)."),
    ("demo", "false", "Drive a simulated home; the demo checkpoint on the CPU looks at it."),
)


def generate_launch_description():
    declare, switch = DeclareLaunchArgument, {"choices": ["true", "false"]}
    texts = [declare(n, default_value="", description=d) for n, d in TEXTS.items()]
    switches = [declare(n, default_value=v, description=d, **switch) for n, v, d in SWITCHES]
    return LaunchDescription([*texts, *switches, OpaqueFunction(function=launch_nodes)])


def launch_nodes(context):
    check_names(context.argv)
    arguments = dict(context.launch_configurations)
    if not fullmatch(r"/?|/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?", arguments["namespace"], ASCII):
        raise RuntimeError(f"namespace:={arguments['namespace']} is no ROS name")
    on = {name: arguments[name] == "true" for name, _, _ in SWITCHES}
    files, cameras = (
        arguments[name].replace(",", " ").split() for name in ("params_file", "cameras")
    )
    if on["demo"]:
        files.insert(0, "demo")
        arguments["checkpoint"] = arguments["checkpoint"] or f"{SHARE}/engines/demo"
    second = context.environment.get("ROS_DISTRO", "") in WITH_FASTDDS_2
    profile = f"{SHARE}/config/{'fastdds' if second else 'fastdds3'}.xml"
    env = {n: profile for n in PROFILES if n not in context.environment}
    env["G2VLM_ROS_END_WITH_PARENT"] = "1"
    common = {"package": "g2vlm_ros", "namespace": arguments["namespace"], "additional_env": env}
    overrides = {
        "model.checkpoint": arguments["checkpoint"],
        "model.backend": arguments["backend"],
    }
    overrides = {name: value for name, value in {**overrides, "cameras": cameras}.items() if value}
    overrides |= {name: on[name] for name in ("use_sim_time", "autostart")}
    common["parameters"] = [*map(existing, ["perception", *files]), overrides]
    actions = perception(common)
    if arguments["replay"]:
        common["parameters"] = [{"path": arguments["replay"], "sim_time": on["use_sim_time"]}]
        common["parameters"] += [{"camera": camera} for camera in cameras[:1]]
        actions += needed(Node(name="replay", executable="replay", **common))
    clock = {"use_sim_time": on["use_sim_time"]}
    if on["demo"] and not arguments["replay"]:
        walk = {"loop": True, "sim_time": on["use_sim_time"]}
        common["parameters"] = [{**walk, **({"cameras": cameras} if cameras else {})}]
        actions += needed(Node(name="sim_camera", executable="sim_camera", **common))
    if on["viewer"]:
        port = arguments["viewer_port"]
        if not fullmatch(r"\d*", port, ASCII):
            raise RuntimeError(f"viewer_port:={port} is no port; give a number up to 65535")
        common["parameters"] = [{**clock, **({"port": int(port)} if port else {})}]
        actions.append(Node(name="viewer", executable="viewer", **common))
    if on["rviz"]:
        actions.append(rviz(context, arguments["namespace"], clock))
    return actions


def rviz(context, namespace, clock):
    """RViz on this node's topics, or one sentence where it is not installed (ros-base)."""
    try:
        FindPackagePrefix("rviz2").perform(context)
    except (LookupError, SubstitutionFailure):
        return LogInfo(
            msg="rviz:=true, but rviz2 is not installed here; on a machine that has it run: "
            f"rviz2 -d {SHARE}/config/perception.rviz"
        )
    prefix = f"/{namespace.strip('/')}" if namespace.strip("/") else ""
    topics = [(f"/perception/{n}", f"{prefix}/perception/{n}") for n in RVIZ_TOPICS]
    view = ["-d", f"{SHARE}/config/perception.rviz"]
    return Node(
        package="rviz2", executable="rviz2", arguments=view, remappings=topics, parameters=[clock]
    )


def perception(common):
    """The node; after DEVICE_GONE it is started again, because a CUDA context is lost for good.

    Where it ends with another code than 0, as one does that cannot be configured, the launch ends
    with code 1.
    """
    node = Node(name="perception", executable="perception", **common)

    def again(event, context):
        if context.is_shutdown or event.returncode == 0:
            return None
        if event.returncode != DEVICE_GONE:
            give_up(f"perception ended with code {event.returncode}")
        return [TimerAction(period=5.0, actions=perception(common))]

    ended = RegisterEventHandler(OnProcessExit(target_action=node, on_exit=again))
    return [node, ended]


def needed(node):
    """A node that gives the images: where it fails (no such recording), the launch ends."""

    def ended(event, context):
        if event.returncode != 0 and not context.is_shutdown:
            give_up(f"{event.action.node_executable} ended with code {event.returncode}")

    return [node, RegisterEventHandler(OnProcessExit(target_action=node, on_exit=ended))]


def give_up(sentence):
    """End the launch with code 1: what is left of it would only look alive."""
    raise RuntimeError(f"{sentence}; its log above says why")


def check_names(arguments):
    """Refuse NAME:=VALUE that is nearly, but not quite, the name of an argument of this file."""
    names = [*TEXTS, *(name for name, _, _ in SWITCHES)]
    for name in (argument.partition(":=")[0] for argument in arguments if ":=" in argument):
        similar = get_close_matches(name, names, 1, 0.7)
        if name not in names and similar:
            raise RuntimeError(f"there is no argument {name}; did you mean {similar[0]}:=?")


def existing(name):
    path = Path(name).expanduser() if "/" in name or "." in name else SHARE / f"config/{name}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(f.stem for f in (SHARE / "config").glob("*.yaml")))
        raise RuntimeError(
            f"params_file names {path}, which does not exist; names in config/: {shipped}"
        )
    return str(path)
