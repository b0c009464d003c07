# SPDX-License-Identifier: Apache-2.0
"""Wrong settings are refused with name, value and bound."""

import pytest

from g2vlm_ros.parameter_schema import SettingError, default_of, parameters_of
from g2vlm_ros.settings import Settings

TOPICS = ("odometry_topic", "imu_topic", "depth_topic", "mask_topic", "query.detections_topic")
FRAMES = ("map.frame", "pose.odometry_frame")


def test_defaults_are_valid_and_every_parameter_is_documented():
    assert Settings.from_flat({}) == Settings()
    for name, item in parameters_of(Settings):
        assert item.metadata["doc"].endswith("."), name
        Settings.from_flat({name: default_of(item)})


def test_values_reach_their_group():
    settings = Settings.from_flat({"window.views": 8, "cameras": ["a", "b"], "map.frame": "odom"})
    assert (settings.window.views, settings.cameras) == (8, ["a", "b"])
    assert settings.map.frame == "odom" and settings.window.overlap == 2


def test_a_whole_number_serves_as_float_but_not_the_other_way():
    assert Settings.from_flat({"window.max_age_s": 9}).window.max_age_s == 9.0
    with pytest.raises(SettingError, match=r"window.views is 4.0 \(float\).*int"):
        Settings.from_flat({"window.views": 4.0})
    with pytest.raises(SettingError, match="bool"):
        Settings.from_flat({"window.min_gap_s": True})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window.views": 99}, "window.views is 99; it must lie in 1 to 32"),
        ({"window.max_age_s": float("nan")}, "must lie in"),
        ({"model.backend": "magic"}, "one of auto, torch, onnx, tensorrt"),
        ({"window.vews": 3}, "unknown setting 'window.vews'"),
        ({"cameras": []}, "at least one camera"),
        ({"cameras": ["a", "a"]}, "each once"),
        ({"cameras": [1]}, "list of strings"),
        ({"cameras": ["a", "b", "c"]}, "multiple of 3"),
        ({"window.overlap": 4}, "below the 4 instants"),
        ({"window.views": 2}, "window.overlap is 2; it must be below the 2 instants"),
        ({"window.min_gap_s": 3.0}, "raise it or lower window.min_gap_s"),
        ({"model.image_width_px": 500}, "multiple of 14"),
        ({"window.min_baseline_m": 0.1}, "needs odometry_topic"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(SettingError, match=message):
        Settings.from_flat(values)


def test_a_former_name_is_reported_with_the_new_one():
    with pytest.raises(SettingError, match="'map.min_joint_inliers' is called 'map.min_regis"):
        Settings.from_flat({"map.min_joint_inliers": 0.5})


def test_sizes_are_left_to_the_checkpoint_or_are_two_patches_and_more():
    assert Settings().model.image_width_px == Settings().query.semantic_width_px == 0
    for name in ("model.image_width_px", "query.semantic_width_px"):
        with pytest.raises(SettingError, match=f"{name} is 14; it must be 28 or more, or 0"):
            Settings.from_flat({name: 14})


def test_a_rig_baseline_of_a_camera_that_is_not_there_is_refused():
    values = {"cameras": ["left", "right"], "window.overlap": 1}
    assert Settings.from_flat({**values, "map.rig_baselines": "left right 0.12"})
    with pytest.raises(SettingError, match="names rigth; cameras has left, right"):
        Settings.from_flat({**values, "map.rig_baselines": "left rigth 0.12"})


def test_a_topic_that_two_inputs_name_is_refused():
    with pytest.raises(SettingError, match="camera/image_raw is given for two inputs"):
        Settings.from_flat({"odometry_topic": "camera/image_raw"})
    with pytest.raises(SettingError, match="/depth is given for two inputs"):
        Settings.from_flat({"depth_topic": "/depth", "mask_topic": "/depth"})


@pytest.mark.parametrize("name", ["cameras", "odometry_topic"])
def test_a_name_longer_than_dds_takes_is_refused(name):
    value = ["a" * 201] if name == "cameras" else "a" * 201
    with pytest.raises(SettingError, match="has a name of 201 characters; at most 200"):
        Settings.from_flat({name: value})


@pytest.mark.parametrize("name", ["model.checkpoint", "model.engines"])
def test_a_tilde_is_the_home_of_the_user(name, monkeypatch):
    """Launch files and YAML hand it over as it is; no shell expands it."""
    monkeypatch.setenv("HOME", "/somebody")
    group, leaf = name.split(".")
    settings = Settings.from_flat({name: "~/folder"})
    assert getattr(getattr(settings, group), leaf) == "/somebody/folder"
    assert getattr(Settings.from_flat({name: "a/~b"}).model, leaf) == "a/~b"


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *((topic, value, "a ROS name") for topic in TOPICS for value in ("/a-b", "1st", "a b")),
        *((frame, value, "a tf frame") for frame in FRAMES for value in ("a b", "/map", "map\n")),
        ("map.tf_child_suffix", " _2", "the end of a tf frame"),
        ("map.tf_child_suffix", "_2\n", "the end of a tf frame"),
    ],
)
def test_a_name_that_ros_does_not_take_is_refused_with_the_rule(name, value, rule):
    with pytest.raises(SettingError, match=rf"{name} has .*; it must be {rule}") as refusal:
        Settings.from_flat({name: value})
    assert repr(value) in str(refusal.value)


def test_every_parameter_that_names_something_of_ros_has_a_rule():
    names = {name for name, item in parameters_of(Settings) if item.metadata["name"] is not None}
    named = {name for name, _ in parameters_of(Settings) if name.endswith(("_topic", "frame"))}
    assert named <= names and {"cameras", "map.tf_child_suffix"} <= names
