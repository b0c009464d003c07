# SPDX-License-Identifier: Apache-2.0
"""The launch file: short and plain everywhere; described by `launch` where that is installed."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml

from g2vlm_ros.ros.middleware import fastdds_profile

FILE = Path(__file__).parents[1] / "launch" / "perception.launch.py"
END_WITH_PARENT = "G2VLM_ROS_END_WITH_PARENT"
TEXTS = {"params_file", "checkpoint", "backend", "cameras", "namespace", "replay", "viewer_port"}
SWITCHES = {
    "use_sim_time": "false",
    "autostart": "true",
    "rviz": "false",
    "viewer": "false",
    "demo": "false",
}


@pytest.fixture
def tree():
    return ast.parse(FILE.read_text())


def constant(tree, name):
    """The value of a module constant, without running the file."""
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [t.id for t in node.targets] == [name]
    ]
    return ast.literal_eval(values[0])


def test_is_short_and_plain(tree):
    assert len(FILE.read_text().splitlines()) <= 190
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    imported = {
        alias.name if isinstance(node, ast.Import) else node.module
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert not names & {"eval", "exec", "compile", "__import__"}
    assert not {module.split(".")[0] for module in imported} & {"subprocess", "os", "rclpy"}


def test_arguments(tree):
    assert set(constant(tree, "TEXTS")) == TEXTS
    switches = constant(tree, "SWITCHES")
    assert {name: default for name, default, _ in switches} == SWITCHES
    described = [*constant(tree, "TEXTS").values(), *(text for _, _, text in switches)]
    assert all(text.endswith(".") for text in described)
    assert any("bond_timeout: 0.0" in text for text in described), "Nav2 would end the bring-up"


def test_the_page_for_robots_has_a_manager_of_nav2_that_waits_for_no_bond():
    """The node makes none; with the default of 4 s the manager takes the bring-up down again."""
    page = (FILE.parents[1] / "docs" / "robot.md").read_text()
    (block,) = re.findall(r"```\n(lifecycle_manager_perception:.*?)```", page, re.S)
    ((_, manager),) = yaml.safe_load(block).items()
    parameters = manager["ros__parameters"]
    assert parameters["bond_timeout"] == 0.0 and parameters["node_names"] == ["perception"]
    node = FILE.parents[1] / "g2vlm_ros" / "ros" / "lifecycle.py"
    assert "bond" not in node.read_text(), "then the page is no longer true"


@pytest.fixture
def module():
    """The launch file as a module."""
    launch = pytest.importorskip("launch", reason="ROS package launch is missing")
    if not hasattr(launch, "LaunchContext"):
        pytest.skip("ROS package launch is missing: launch/ here is the folder of launch files")
    pytest.importorskip("launch_ros.actions", reason="ROS package launch_ros is missing")
    spec = importlib.util.spec_from_file_location("perception_launch", FILE)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def actions(module):
    """A function from arguments to the actions that the launch file starts."""
    import launch

    def start(**given):
        context = launch.LaunchContext()
        for entity in module.generate_launch_description().entities:
            if isinstance(entity, launch.actions.DeclareLaunchArgument):
                context.launch_configurations.setdefault(entity.name, given.get(entity.name))
                if context.launch_configurations[entity.name] is None:
                    del context.launch_configurations[entity.name]
                    entity.execute(context)
        return module.launch_nodes(context)

    return start


@pytest.fixture
def started(monkeypatch):
    """A function from arguments to the nodes that are started, without the package launch."""
    names = ("launch", "launch.actions", "launch.event_handlers", "launch.substitutions")
    names += ("launch.substitutions.substitution_failure", "launch_ros.substitutions")
    for name in names:
        monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    node = mock.Mock(side_effect=lambda **options: SimpleNamespace(**options))
    for name in ("launch_ros", "launch_ros.actions"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Node=node))
    file = runpy.run_path(str(FILE))

    def start(environment=None, **given):
        defaults = dict.fromkeys(TEXTS, "") | SWITCHES
        context = SimpleNamespace(
            argv=[], launch_configurations=defaults | given, environment=environment or {}
        )
        actions = file["launch_nodes"](context)
        return [action for action in actions if isinstance(action, SimpleNamespace)]

    return start


def test_every_node_gets_the_dds_profile_unless_the_user_has_one(started):
    new, old = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
    nodes = started(demo="true", viewer="true")
    assert [node.name for node in nodes] == ["perception", "sim_camera", "viewer"]
    for node in nodes + started(replay="/r"):
        assert Path(node.additional_env[new]).samefile(FILE.parents[1] / "config" / "fastdds.xml")
        assert node.additional_env[old] == node.additional_env[new]
    for distro, name in (("humble", "fastdds"), ("jazzy", "fastdds"), ("kilted", "fastdds3")):
        (node,) = started(environment={"ROS_DISTRO": distro})
        assert Path(node.additional_env[new]).samefile(FILE.parents[1] / "config" / f"{name}.xml")
        assert Path(node.additional_env[new]).name == fastdds_profile({"ROS_DISTRO": distro})
    (node,) = started(environment={new: "/mine.xml"})
    assert new not in node.additional_env and old in node.additional_env


def test_a_second_viewer_gets_another_port_by_argument(started):
    ports = [started(viewer="true", viewer_port=port)[-1].parameters for port in ("", "8081")]
    assert ports == [[{"use_sim_time": False}], [{"use_sim_time": False, "port": 8081}]]
    with pytest.raises(RuntimeError, match="viewer_port:=http is no port"):
        started(viewer="true", viewer_port="http")


def executables(entities):
    from launch_ros.actions import Node

    return [entity.node_executable for entity in entities if isinstance(entity, Node)]


def test_nodes_by_argument(actions):
    assert executables(actions()) == ["perception"]
    assert executables(actions(replay="/r")) == ["perception", "replay"]
    assert executables(actions(viewer="true")) == ["perception", "viewer"]
    assert executables(actions(demo="true")) == ["perception", "sim_camera"]


def test_the_node_is_told_whether_to_start_by_itself(module, actions, monkeypatch):
    """And every node, to end with a launch that was killed."""
    started = []
    monkeypatch.setattr(module, "Node", lambda **options: started.append(options) or Stand())
    monkeypatch.setattr(module, "RegisterEventHandler", lambda _: None)
    monkeypatch.setattr(module, "OnProcessExit", lambda **_: None)
    for value in ("true", "false"):
        actions(autostart=value, demo="true")
    perception = [each["parameters"][-1] for each in started if each["name"] == "perception"]
    assert [each["autostart"] for each in perception] == [True, False]
    assert all(e["additional_env"][END_WITH_PARENT] == "1" for e in started)


class Stand:
    """Where a node would be."""


def test_the_exit_code_of_a_lost_device_is_the_node_s(tree):
    """Which the launch file starts again; any other end of the node stays one."""
    node = FILE.parents[1] / "g2vlm_ros" / "ros" / "perception_node.py"
    assert constant(ast.parse(node.read_text()), "DEVICE_GONE_EXIT_CODE") == constant(
        tree, "DEVICE_GONE"
    )


def test_large_messages_profile_unless_the_user_has_one(actions, monkeypatch):
    def profiles(action):
        pairs = action.process_description.additional_env or ()
        return {name[0].text: Path(value[0].text) for name, value in pairs}

    new, old = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
    for name in (new, old):
        monkeypatch.delenv(name, raising=False)
    assert profiles(actions()[0])[new].is_file()
    monkeypatch.setenv(new, "/mine.xml")
    assert set(profiles(actions()[0])) - {END_WITH_PARENT} == {old}


def test_without_rviz2_a_sentence_stands_in_for_it(actions):
    import launch

    last = actions(rviz="true")[-1]
    if isinstance(last, launch.actions.LogInfo):
        assert "rviz2 is not installed" in "".join(part.text for part in last.msg)
    else:
        assert executables([last]) == ["rviz2"]


def test_a_misspelt_argument_is_refused_by_name(module):
    module.check_names(["demo:=true", "of_another_file:=1"])
    with pytest.raises(RuntimeError, match="no argument dmeo; did you mean demo"):
        module.check_names(["dmeo:=true"])


def test_rviz_is_remapped_on_every_topic_that_it_shows(tree):
    view = (FILE.parents[1] / "config" / "perception.rviz").read_text()
    shown = set(re.findall(r"Value: /perception/(\S+)", view))
    (assignment,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [t.id for t in node.targets] == ["RVIZ_TOPICS"]
    )
    constants = {n.value for n in ast.walk(assignment) if isinstance(n, ast.Constant)}
    assert constants == shown


@pytest.mark.parametrize("name", ["1robot", "my robot", "a//b", "ro-bot"])
def test_a_namespace_that_is_no_ros_name_is_refused(actions, name):
    assert executables(actions(namespace="/fleet/robot1")) == ["perception"]
    with pytest.raises(RuntimeError, match="is no ROS name"):
        actions(namespace=name)


def test_a_replay_that_fails_ends_the_launch_and_one_that_is_over_does_not(module, monkeypatch):
    handlers = []
    monkeypatch.setattr(module, "OnProcessExit", lambda **options: options["on_exit"])
    monkeypatch.setattr(module, "RegisterEventHandler", handlers.append)
    module.needed(Stand())
    running = SimpleNamespace(is_shutdown=False)
    event = SimpleNamespace(returncode=0, action=SimpleNamespace(node_executable="replay"))
    handlers[0](event, running)
    event.returncode = 2
    handlers[0](event, SimpleNamespace(is_shutdown=True))
    with pytest.raises(RuntimeError, match="replay ended with code 2"):
        handlers[0](event, running)


def test_missing_parameter_file_is_named(actions):
    assert executables(actions(params_file="cpu,desktop")) == ["perception"]
    with pytest.raises(RuntimeError, match="mine.yaml, which does not exist"):
        actions(params_file="cpu,mine.yaml")
    with pytest.raises(RuntimeError, match="toaster.yaml, which does not exist"):
        actions(params_file="toaster")
