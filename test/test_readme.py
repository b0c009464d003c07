# SPDX-License-Identifier: Apache-2.0
"""The README's tables say what the code does."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def rows(heading):
    """First cells of the table under a heading, without backticks."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [cell.strip("`") for cell in re.findall(r"^\| (`[^|]+`) \|", section, re.M)]


@pytest.mark.ros
def test_every_topic_and_service():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    from g2vlm_ros.ros.publishers import Publishers

    topics = {topic for _, topic, _ in Publishers.TOPICS.values()}
    inputs = {"<camera>/image_raw", "<camera>/camera_info"}
    others = {"~/status", "/diagnostics", "~/query/last_target"}
    others |= {"~/query/last_answer", "~/query/picture"}
    assert set(rows("Topics")) == topics | inputs | others
    node = (ROOT / "g2vlm_ros/ros/perception_node.py").read_text() + (
        ROOT / "g2vlm_ros/ros/query_server.py"
    ).read_text()
    named = {f"~/{name}" for name in re.findall(r'"~/([a-z_]+)"', node)}
    assert set(rows("Services")) == named - {"~/status"}


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for module in re.findall(r"python -m (g2vlm_ros[\w.]+|benchmarks\.\w+)", README):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
