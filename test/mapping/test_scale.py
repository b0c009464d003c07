# SPDX-License-Identifier: Apache-2.0
"""What can be said about metres, and by whom it is believed."""

from dataclasses import replace

import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import (
    HEIGHT_M,
    DrivePerception,
    frame_of,
    lap_poses,
    look,
    rotation,
    up_in,
)
from g2vlm_ros.mapping.gravity_alignment import find_floor, surfaces_of
from g2vlm_ros.mapping.scale_filter import ScaleFilter
from g2vlm_ros.mapping.scale_measurements import (
    VIEW_NOISE,
    ScaleMeasurement,
    evidence,
    from_camera_height,
    from_depth,
    from_odometry,
    from_rig,
    rig_baselines_m,
)
from g2vlm_ros.parameter_schema import SettingError
from g2vlm_ros.records import Window


@pytest.fixture
def rng():
    return np.random.default_rng(2)


def seen(views=4, step_m=0.4, noise=None, **more):
    """(frames, result, true metres per unit) of a window with odometry."""
    perception = DrivePerception(lap_poses(views, step_m), noise)
    result = perception.reconstruct(list(range(views)))
    frames = [
        frame_of(perception, k, position_m=perception.poses[k, :3, 3].copy(), **more)
        for k in range(views)
    ]
    return frames, result, 1 / perception.window_from_world.scale


def test_odometry_gives_the_scale_with_an_error_bar():
    frames, result, truth = seen()
    found = from_odometry(frames, result)
    assert found.source == "odometry" and found.metres_per_unit == pytest.approx(truth, rel=1e-4)
    assert 0.01 < found.relative_std < 0.1
    longer = from_odometry(*seen(step_m=0.8)[:2])
    assert longer.relative_std < found.relative_std, "a longer way tells more"


def test_odometry_of_a_robot_that_stands_says_nothing():
    frames, result, _ = seen(step_m=0.01)
    assert from_odometry(frames, result) is None
    frames, result, _ = seen()
    assert from_odometry([replace(f, position_m=None) for f in frames], result) is None


def test_one_jump_of_the_odometry_does_not_move_the_scale():
    frames, result, truth = seen()
    frames[3] = replace(frames[3], position_m=frames[3].position_m + [50.0, 0, 0])
    assert from_odometry(frames, result).metres_per_unit == pytest.approx(truth, rel=1e-3)


def test_odometry_that_contradicts_itself_is_refused(rng):
    frames, result, _ = seen()
    wild = [replace(f, position_m=2.0 * rng.normal(size=3)) for f in frames]
    assert from_odometry(wild, result) is None


def test_rig_uses_cameras_of_one_instant():
    frames, result, truth = seen(views=4, step_m=0.5)
    stamps, names = (0, 0, 10**9, 10**9), ("left", "right") * 2
    frames = [
        replace(f, stamp_ns=s + 1, camera=c) for f, s, c in zip(frames, stamps, names, strict=True)
    ]
    found = from_rig(frames, result, rig_baselines_m("right left 0.5"))
    assert found.metres_per_unit == pytest.approx(truth, rel=0.01) and found.source == "rig"
    assert from_rig(frames, result, {}) is None
    short = from_rig(frames, result, {("left", "right"): 0.05})
    assert short.relative_std == pytest.approx(found.relative_std)


@pytest.mark.parametrize("entry", ["left right", "left right far", "left right -1", "a b c 1"])
def test_malformed_rig_is_refused(entry):
    with pytest.raises(SettingError, match=r"left right 0\.12"):
        rig_baselines_m(f"front rear 2, {entry}")


def test_depth_images_of_any_size_and_with_holes():
    frames, result, truth = seen()
    depth = look(lap_poses(1, 0.4)[0])[0].astype(np.float32)
    big = depth.repeat(2, axis=0).repeat(2, axis=1)
    big[:30] = np.nan
    big[:, :40] = 0
    found = from_depth([replace(frames[0], depth=lambda: big), *frames[1:]], result)
    assert found.metres_per_unit == pytest.approx(truth, rel=0.01) and found.source == "depth"
    assert from_depth(frames, result) is None
    blind = np.full((48, 64), np.nan, np.float32)
    assert from_depth([replace(frames[0], depth=lambda: blind)], result) is None


def test_the_height_over_the_floor_gives_the_scale():
    _, result, truth = seen()
    floor = find_floor(surfaces_of(result), up_in(result))
    found = from_camera_height(floor, HEIGHT_M)
    assert found.metres_per_unit == pytest.approx(truth, rel=1e-3)
    assert found.relative_std >= 0.05 and found.source == "camera_height"
    assert from_camera_height(floor, 0.0) is None and from_camera_height(None, 1.0) is None


def test_every_source_speaks_the_most_trusted_first():
    frames, result, _ = seen()
    depth = look(lap_poses(1, 0.4)[0])[0]
    frames[0] = replace(frames[0], depth=lambda: 3 * depth)
    known = dict(rig_m={}, camera_height_m=HEIGHT_M, metres_per_unit=2.0)
    floor = find_floor(surfaces_of(result), up_in(result))

    def sources(frames, floor=floor):
        found = evidence(Window(1, tuple(frames)), result, floor, **known)
        return [each.source for each in found]

    assert sources(frames) == ["odometry", "depth", "camera_height", "fixed"]
    frames = [replace(f, position_m=None) for f in frames]
    assert sources(frames) == ["depth", "camera_height", "fixed"]
    frames = [replace(f, depth=None) for f in frames]
    assert sources(frames) == ["camera_height", "fixed"]
    known["metres_per_unit"] = 0.0
    assert sources(frames, None) == []


def update(scale, values, source="odometry", std=0.05):
    return [scale.update([ScaleMeasurement(v, std, source)], 1.0) for v in values]


def test_filter_knows_nothing_until_told_and_then_sharpens(rng):
    scale = ScaleFilter()
    belief = scale.update([], 1.0)
    assert belief.source == "none" and np.isnan(belief.metres_per_unit)
    assert np.isnan(belief.relative_std)
    beliefs = update(scale, 2.0 * np.exp(0.05 * rng.normal(size=40)))
    assert beliefs[-1].metres_per_unit == pytest.approx(2.0, rel=0.03)
    assert 0.01 <= beliefs[-1].relative_std < beliefs[0].relative_std == 0.05


def test_filter_compares_windows_in_the_unit_of_the_map():
    scale = ScaleFilter()
    for window_scale in (1.0, 4.0, 0.25):
        found = ScaleMeasurement(2.0 * window_scale, 0.05, "odometry")
        belief = scale.update([found], window_scale)
    assert belief.metres_per_unit == pytest.approx(2.0) and belief.refused == 0


def test_one_wild_measurement_is_refused_and_a_lasting_change_is_reported():
    scale = ScaleFilter()
    update(scale, [2.0] * 10)
    (wild,) = update(scale, [6.0])
    assert wild.refused == 1 and wild.metres_per_unit == pytest.approx(2.0) and wild.jump == 1
    update(scale, [2.0])
    beliefs = update(scale, [6.0] * 3)
    assert [b.jump for b in beliefs[:2]] == [1, 1]
    assert beliefs[2].jump == pytest.approx(3.0, rel=0.01) and beliefs[2].refused == 0


def test_sources_that_agree_are_weighed_by_their_variances():
    scale = ScaleFilter()
    found = [ScaleMeasurement(2.2, 0.2, "odometry"), ScaleMeasurement(2.0, 0.1, "fixed")]
    belief = scale.update(found, 1.0)
    assert belief.metres_per_unit == pytest.approx(2.0 * 1.1**0.2)
    assert belief.relative_std == pytest.approx(0.2 / 5**0.5)
    assert (belief.source, belief.clash) == ("fixed", ""), "the one that weighs most"
    assert belief.newest.metres_per_unit == pytest.approx(belief.metres_per_unit)


def test_the_most_trusted_source_wins_a_clash_and_the_other_is_named():
    scale = ScaleFilter()
    update(scale, [3.0], "fixed", 0.1)
    *early, belief = update(scale, [2.0] * 3)
    assert {(b.source, b.clash) for b in early} == {("fixed", "odometry")}, "not confirmed yet"
    assert (belief.source, belief.clash) == ("odometry", "fixed")
    assert belief.metres_per_unit == pytest.approx(2.0) and belief.jump == pytest.approx(2 / 3)
    (belief,) = update(scale, [9.0], "camera_height")
    assert (belief.source, belief.clash) == ("odometry", "camera_height, fixed")
    assert belief.metres_per_unit == pytest.approx(2.0) and belief.newest is None


def test_evidence_that_scatters_more_than_it_says_costs_odometry_its_weight(rng):
    """Poses ten times as bad as assumed: the filter learns it, and asks for longer ways."""
    scale, quiet = ScaleFilter(), ScaleFilter()
    update(quiet, 2.0 * np.exp(0.05 * rng.normal(size=30)))
    update(scale, 2.0 * np.exp(0.5 * rng.normal(size=30)))
    assert quiet.view_noise < 1.5 * VIEW_NOISE < 2.5 * VIEW_NOISE < scale.view_noise
    frames, result, truth = seen()
    assert from_odometry(frames, result, truth, quiet.view_noise) is not None
    assert from_odometry(frames, result, truth, 10 * VIEW_NOISE) is None


def test_wild_evidence_in_a_row_that_also_contradicts_itself_is_never_believed():
    scale = ScaleFilter()
    update(scale, [2.0] * 10)
    beliefs = update(scale, [20.0, 0.1, 200.0, 0.01, 2000.0])
    assert [b.metres_per_unit for b in beliefs] == pytest.approx([2.0] * 5)
    assert beliefs[-1].refused == 3 and all(b.jump == 1 for b in beliefs)


def test_a_turn_says_nothing_about_scale_where_the_odometry_is_not_at_the_camera():
    turning = np.stack([lap_poses(4, 0.25)[k] for k in range(4)])
    for k, pose in enumerate(turning):
        pose[:3, :3] = rotation(np.array([0.0, 0.0, 0.6 * k])) @ pose[:3, :3]
    perception = DrivePerception(turning)
    frames = [frame_of(perception, k, position_m=turning[k, :3, 3].copy()) for k in range(4)]
    assert from_odometry(frames, perception.reconstruct(list(range(4)))) is None


def test_uncertainty_grows_while_nobody_speaks():
    scale = ScaleFilter()
    update(scale, [2.0] * 5)
    stds = [scale.update([], 1.0).relative_std for _ in range(50)]
    assert (np.diff(stds) > 0).all() and stds[-1] > 0.03


def test_rescaling_changes_the_unit_and_nothing_else():
    scale = ScaleFilter()
    (belief,) = update(scale, [2.0])
    scale.rescaled(2.0)
    assert scale.belief().metres_per_unit == pytest.approx(1.0)
    assert scale.belief().relative_std == belief.relative_std


def test_millimetres_as_floats_are_no_evidence_of_metres():
    frames, result, truth = seen()
    depth = look(lap_poses(1, 0.4)[0])[0].astype(np.float32)
    good = from_depth([replace(frames[0], depth=lambda: depth), *frames[1:]], result)
    assert good.metres_per_unit == pytest.approx(truth, rel=0.01)
    assert from_depth([replace(frames[0], depth=lambda: 1000 * depth)], result) is None
