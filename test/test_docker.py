# SPDX-License-Identifier: Apache-2.0
"""The Dockerfiles against the tree and the pins; no image is built here."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
WORKSPACE = "/ws/"
PIN = re.compile(r"([A-Za-z0-9_-]+)==([0-9.]+)")
PACKAGE = re.compile(r"^[a-z0-9][a-z0-9+.-]+$")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(name, argument) of each, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def arguments(path: Path, name: str) -> list[str]:
    return [argument for each, argument in instructions(path) if each == name]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the tree out of the image."""
    patterns = (ROOT / ".dockerignore").read_text().split()
    parts = [str(each) for each in (Path(path), *Path(path).parents)]
    return any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns)


def test_there_is_one_for_desktops_and_one_for_jetsons():
    assert [path.name for path in FILES] == ["desktop.Dockerfile", "jetson.Dockerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_copied_and_started_is_there(path):
    copies = [argument.split() for argument in arguments(path, "COPY")]
    assert copies
    for *sources, target in copies:
        assert all((ROOT / source).exists() for source in sources), sources
        assert "." in sources and target == "src/g2vlm_ros"
    (entry,) = arguments(path, "ENTRYPOINT")
    inside = entry.strip('[]"').removeprefix(f"{WORKSPACE}src/g2vlm_ros/")
    assert os.access(ROOT / inside, os.X_OK) and not ignored(inside)
    for each in re.findall(r"src/g2vlm_ros/(\S+)", " ".join(arguments(path, "RUN"))):
        assert (ROOT / each).exists() and not ignored(each), each


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_pip_installs_has_the_versions_of_the_requirements(path):
    files = (ROOT / "requirements").glob("*.txt")
    pins = {pin for file in files for pin in PIN.findall(file.read_text())}
    installed = {pin for run in arguments(path, "RUN") for pin in PIN.findall(run)}
    assert len(installed) >= 4
    assert installed <= pins, installed - pins


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_apt_is_given_names_of_packages_and_of_one_distribution(path):
    distro = re.search(r"ROS_DISTRO=(\w+)", path.read_text())[1]
    for run in arguments(path, "RUN"):
        for words in re.findall(r"apt-get install -y --no-install-recommends (.+?) (?:&&|$)", run):
            names = words.split()
            assert all(PACKAGE.match(name) for name in names), names
            ros = [name for name in names if name.startswith("ros-")]
            assert all(name.startswith(f"ros-{distro}-") for name in ros), ros


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_image_has_a_fixed_base_and_a_user_of_its_own(path):
    (base,) = arguments(path, "FROM")
    name, _, tag = base.partition(":")
    assert name and tag and tag != "latest"
    assert arguments(path, "USER") == ["10001"]
