# SPDX-License-Identifier: Apache-2.0
"""Folders of weights, engines and maps that anybody may write to are found and named."""

from pathlib import Path

import pytest

from g2vlm_ros.checkpoint.folder_permissions import permission_warning, writable_by_others
from g2vlm_ros.perception import open_folders
from g2vlm_ros.settings import Settings


@pytest.fixture
def folder(tmp_path):
    """below/checkpoint/weights, for its owner only."""
    tmp_path.chmod(0o755)
    inner = tmp_path / "below" / "checkpoint"
    inner.mkdir(parents=True)
    (inner / "weights").write_bytes(b"")
    for path in (inner.parent, inner, inner / "weights"):
        path.chmod(0o755)
    return inner


def test_what_only_its_owner_may_change_is_fine(folder):
    assert writable_by_others(folder) is None and permission_warning("it", folder) == ""
    assert permission_warning("it", "") == "" and writable_by_others(folder / "absent") is None


@pytest.mark.parametrize("part", [".", "weights", ".."])
def test_the_folder_a_file_in_it_and_what_is_above_count(folder, part):
    (folder / part).chmod(0o777)
    assert writable_by_others(folder).resolve() == (folder / part).resolve()
    assert "chmod -R o-w" in permission_warning("model.checkpoint", folder)


def test_the_sticky_bit_leaves_everybodys_own_alone(folder):
    folder.parent.chmod(0o1777)
    assert writable_by_others(folder) is None


def test_each_folder_of_the_settings_is_named(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    folder.chmod(0o777)
    names = ("model.checkpoint", "model.engines", "map.folder")
    for name in names:
        sentences = open_folders(Settings.from_flat({name: str(folder)}))
        assert [sentence.split(" ")[0] for sentence in sentences] == [name]
    assert open_folders(Settings.from_flat({"map.folder": str(Path("/nowhere"))})) == ()
