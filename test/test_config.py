# SPDX-License-Identifier: Apache-2.0
"""The shipped parameter files, DDS profiles and the RViz view agree with the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml
from g2vlm_tests.dds_domain import PROFILE as TESTS_PROFILE
from g2vlm_tests.dds_domain import PROFILE_VARIABLES

from g2vlm_ros.parameter_schema import default_of, parameters_of
from g2vlm_ros.settings import Settings

CONFIG = Path(__file__).parents[1] / "config"
OVERLAYS = ("cpu", "desktop", "jetson_orin")
MIB = 1 << 20


def parameters(name):
    """The file's parameters by dotted name."""
    content = yaml.safe_load((CONFIG / f"{name}.yaml").read_text())
    assert list(content) == ["/**/perception"]
    flat = {}
    for key, value in content["/**/perception"]["ros__parameters"].items():
        nested = value if isinstance(value, dict) else {"": value}
        flat.update({f"{key}.{leaf}".rstrip("."): item for leaf, item in nested.items()})
    return flat


def comments(name):
    """The comment above each parameter by dotted name, joined to one line."""
    found, group, above = {}, "", []
    for line in (CONFIG / f"{name}.yaml").read_text().splitlines():
        match = re.fullmatch(r"( *)(?:# ?(.*)|([\w/*]+):( .*)?)?", line)
        indent, comment, key, value = match.groups()
        if comment is not None:
            above.append(comment)
            continue
        if key and value is None and len(indent) == 4:
            group = f"{key}."
        elif key and value is not None:
            found[key if len(indent) == 4 else group + key] = " ".join(above)
        above = []
    return found


def test_every_parameter_with_its_default():
    assert parameters("perception") == {
        name: default_of(item) for name, item in parameters_of(Settings)
    }


@pytest.mark.parametrize(
    ("name", "item"),
    list(parameters_of(Settings)),
    ids=[name for name, _ in parameters_of(Settings)],
)
def test_every_parameter_is_explained(name, item):
    expected, meta = item.metadata["doc"], item.metadata
    if meta["choices"]:
        expected += f" One of: {', '.join(meta['choices'])}."
    if meta["low"] is not None:
        expected += f" Bounds: {meta['low']} to {meta['high']}."
    assert comments("perception").get(name) == expected


def test_parameter_files_are_those_that_the_settings_make():
    command = [sys.executable, str(CONFIG.parent / "tools" / "write_parameters.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + "run: python3 tools/write_parameters.py"


def test_the_table_of_parameters_is_complete():
    text = (CONFIG.parent / "docs" / "parameters.md").read_text()
    named = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert named == [name for name, _ in parameters_of(Settings)]


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_hold_only_differences_with_reasons(name):
    changed, defaults = parameters(name), parameters("perception")
    assert changed
    for key, value in changed.items():
        assert value != defaults[key], f"{key} is the default anyway"
        assert comments(name)[key].endswith("."), f"{key} has no reason"
    Settings.from_flat({**defaults, **changed})


@pytest.mark.parametrize("first", OVERLAYS)
@pytest.mark.parametrize("second", OVERLAYS)
def test_overlays_can_be_stacked(first, second):
    Settings.from_flat({**parameters(first), **parameters(second)})


def test_fast_dds_profile_holds_a_full_cloud():
    """Shared memory above 64 MiB and UDP, chosen by the default participant; asynchronous."""
    ns = {"dds": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    root = ET.parse(CONFIG / "fastdds.xml").getroot()
    transports = {
        t.findtext("dds:transport_id", namespaces=ns): t
        for t in root.iterfind(".//dds:transport_descriptor", ns)
    }
    used = [e.text for e in root.iterfind(".//dds:userTransports/dds:transport_id", ns)]
    assert sorted(used) == sorted(transports)
    kinds = {transports[name].findtext("dds:type", namespaces=ns): name for name in used}
    assert set(kinds) == {"SHM", "UDPv4"}
    segment = transports[kinds["SHM"]].findtext("dds:segment_size", namespaces=ns)
    assert int(segment) >= 64 * MIB
    assert root.findtext(".//dds:useBuiltinTransports", namespaces=ns) == "false"
    assert root.findtext(".//dds:publishMode/dds:kind", namespaces=ns) == "ASYNCHRONOUS"


def test_fast_dds_asks_soon_again_for_what_was_lost():
    """As in the tests' own profile, where late responses were counted."""
    assert heartbeat_s(CONFIG / "fastdds.xml") == heartbeat_s(TESTS_PROFILE) == 0.2


def test_the_profile_for_fast_dds_3_differs_in_one_name():
    """That version refuses all of a file in which an element has the name of version 2."""
    second, third = ((CONFIG / f"{name}.xml").read_text() for name in ("fastdds", "fastdds3"))
    assert "<heartbeatPeriod>" in second
    assert third == second.replace("heartbeatPeriod", "heartbeat_period")


def heartbeat_s(profile):
    """Of the writers that a profile gives to every topic and service."""
    ns = {"dds": "http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"}
    (writer,) = ET.parse(profile).getroot().iterfind(".//dds:data_writer", ns)
    assert writer.get("is_default_profile") == "true"
    period = writer.find("dds:times/dds:heartbeatPeriod", ns)
    seconds, nanoseconds = (float(part.text) for part in period)
    return seconds + nanoseconds * 1e-9


MAKE_A_PARTICIPANT = """
import rclpy
from std_srvs.srv import Trigger
rclpy.init()
node = rclpy.create_node("profiled")
node.create_service(Trigger, "~/call", lambda request, response: response)
print("made", flush=True)
"""


@pytest.mark.ros
@pytest.mark.parametrize("spoilt", ["", "heartbeatPeriod", "leaseAnnouncement", "segment_size"])
def test_fast_dds_reads_the_profile_without_a_complaint(tmp_path, spoilt):
    """And would complain of each of these elements, so that none is passed over."""
    rclpy = pytest.importorskip("rclpy")
    if rclpy.get_rmw_implementation_identifier() != "rmw_fastrtps_cpp":
        pytest.skip("another middleware than Fast DDS is set")
    content = (CONFIG / "fastdds.xml").read_text()
    if spoilt:
        content = re.sub(rf"(<{spoilt}>\s*(?:<sec>)?)[^<]*", r"\1soon", content)
    profile = tmp_path / "profile.xml"
    profile.write_text(content)
    environment = {**os.environ, **dict.fromkeys(PROFILE_VARIABLES, str(profile))}
    command = [sys.executable, "-c", MAKE_A_PARTICIPANT]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ("XMLPARSER" in child.stdout + child.stderr) == bool(spoilt), child.stderr
    assert "made" in child.stdout, child.stderr


def test_cyclone_profile_asks_for_large_buffers():
    ns = {"c": "https://cdds.io/config"}
    root = ET.parse(CONFIG / "cyclonedds.xml").getroot()
    size = root.find(".//c:Internal/c:SocketReceiveBufferSize", ns)
    assert size is not None and size.get("min") == "10MB"


def test_rviz_shows_the_topics_of_the_node():
    view = yaml.safe_load((CONFIG / "perception.rviz").read_text())
    manager = view["Visualization Manager"]
    assert manager["Global Options"]["Fixed Frame"] == default_of(
        dict(parameters_of(Settings))["map.frame"]
    )
    shown = {
        (display["Class"].rpartition("/")[2], display["Topic"]["Value"].partition("ion/")[2])
        for display in manager["Displays"]
        if "Topic" in display
    }
    assert shown == {
        ("PointCloud2", "points"),
        ("PointCloud2", "map"),
        ("Map", "occupancy"),
        ("Path", "path"),
        ("PoseWithCovariance", "pose"),
        ("PoseArray", "window_poses"),
        ("MarkerArray", "object_markers"),
        ("Image", "depth/image"),
        ("Image", "query/picture"),
    }
    latched = ("map", "occupancy", "path", "object_markers", "query/picture")
    for display in manager["Displays"]:
        if "Topic" in display:
            name = display["Topic"]["Value"].partition("ion/")[2]
            durability = "Transient Local" if name in latched else "Volatile"
            assert display["Topic"]["Durability Policy"] == durability, name
    classes = {display["Class"] for display in manager["Displays"]}
    assert "rviz_default_plugins/TF" in classes
