# SPDX-License-Identifier: Apache-2.0
"""Frames in, map updates out, without ROS: good drives and bad days.

The truth stands in for the network (`g2vlm_ros/demo/sim/analytic_hall.py`), in a unit and frame
of its own per window.
"""

import threading
from dataclasses import replace

import cv2
import numpy as np
import pytest

from g2vlm_ros.demo.sim.analytic_hall import (
    GAP_NS,
    LAP_M,
    DrivePerception,
    Noise,
    Track,
    drive,
    frame_of,
    lap_poses,
    make,
    pose_on_lap,
    run,
    steps,
    trajectory_error,
)
from g2vlm_ros.dense_map.dense_map import DenseMap
from g2vlm_ros.geometry.sim3 import Sim3
from g2vlm_ros.pipeline import MappingPipeline
from g2vlm_ros.records import ScaleState
from g2vlm_ros.settings import Settings


def with_image(spoil):
    """Makes `change` for `run`: the image of the frame goes through `spoil`."""

    def change(number, frame):
        return replace(frame, decode=lambda: spoil(frame.decode()))

    return change


@pytest.fixture
def short():
    return make(lap_poses(24, 0.2))


def test_a_drive_comes_out_in_one_frame_and_unit():
    perception, live = make(lap_poses(61, 0.3), map__loop_closure=False)
    poses, units = {}, set()
    for update in run(perception, live, range(61)):
        for i in update.new_views:
            poses[update.window.frames[i].stamp_ns] = update.map_from_camera[i]
        units.add(update.placement.map_from_window.scale)
    assert len(poses) == 61 and len(units) == 30
    track = np.stack([poses[stamp][:3, 3] for stamp in sorted(poses)])
    assert trajectory_error(track, perception.poses[:, :3, 3]) < 1e-4
    np.testing.assert_allclose(poses[max(poses)][2, :3], perception.poses[-1, 2, :3], atol=1e-3)


def test_a_frame_is_decoded_once_however_many_windows_show_it():
    decoded = []

    def change(number, frame):
        def decode():
            decoded.append(number)
            return frame.decode()

        return replace(frame, decode=decode)

    perception, live = make(lap_poses(24, 0.2))
    updates = list(run(perception, live, range(9), change))
    assert sum(len(update.window.frames) for update in updates) > len(decoded)
    assert sorted(decoded) == sorted(set(decoded))


def test_map_points_of_a_shared_view_are_the_same_in_both_windows():
    """Before they are averaged with those of each window's other views."""
    first, second = run(*make(lap_poses(24, 0.2), map__fuse_depth=False), range(5))
    assert isinstance(first.placement.map_from_window, Sim3)
    shared = second.window.frames[0].stamp_ns
    assert shared == first.window.frames[-1].stamp_ns and second.new_views == (1, 2)
    np.testing.assert_allclose(
        second.map_points()[0], first.map_points()[-1], rtol=1e-3, atol=1e-3
    )


def test_windows_are_joined_by_what_the_network_said():
    """Depth averaged over one window's views would part a view from itself in the next."""
    perception = DrivePerception(lap_poses(31, 0.3), Noise(0.05, 0.02, 0.005, 0.005), seed=3)
    tracks = []
    for fused in (True, False):
        perception.rng = np.random.default_rng(3)
        tracks.append(drive(perception, map__fuse_depth=fused).positions()[1])
    np.testing.assert_array_equal(*tracks)


def test_images_mend_the_poses_of_a_weak_network():
    perception = DrivePerception(lap_poses(61, 0.2), Noise(0.02, 0.002, 0.06, 0.02), seed=1)
    errors = {}
    for refine in (True, False):
        perception.rng = np.random.default_rng(1)
        track = drive(perception, map__loop_closure=False, map__refine_poses=refine)
        numbers, actual = track.positions()
        errors[refine] = trajectory_error(actual, perception.poses[numbers, :3, 3])
    assert errors[True] < 0.5 * errors[False]


def test_spoilt_frames_are_left_out_and_counted(short):
    def spoil(number, frame):
        def fail():
            raise ValueError("spoilt")

        return replace(frame, decode=fail) if number == 1 else frame

    perception, live = short
    (update,) = run(perception, live, range(3), spoil)
    counts = live.counts()
    assert len(update.window.frames) == 2 and counts.dropped == {"undecodable": 1}
    assert (counts.received, counts.used, counts.windows) == (3, 2, 1)


@pytest.mark.parametrize("shape", [(1, 500, 3), (500, 1, 3)])
def test_frames_too_flat_or_too_tall_for_the_network_are_left_out_and_counted(short, shape):
    """Textured ones, which are not taken for covered: every window that held one failed."""
    strip = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    perception, live = short

    def spoil(number, frame):
        return replace(frame, decode=lambda: strip) if number == 1 else frame

    (update,) = run(perception, live, range(3), spoil)
    assert len(update.window.frames) == 2 and live.counts().dropped == {"size": 1}


def test_a_window_of_nothing_but_spoilt_frames_is_no_window(short):
    perception, live = short
    black = with_image(np.zeros_like)
    assert run(perception, live, range(3), black) == []
    assert live.counts().dropped["covered"] == 3
    assert run(perception, live, range(3, 6))


def test_covered_blurred_and_frozen_cameras_are_counted_by_reason(short):
    perception, live = short
    run(perception, live, range(9))
    last = perception.image(9)
    run(perception, live, range(9, 11), with_image(lambda image: (image // 20).astype(np.uint8)))
    assert live.counts().dropped["covered"] == 2
    assert live.counts().windows == 4, "nothing new was seen"
    blur = with_image(lambda image: cv2.GaussianBlur(image, (0, 0), 9))
    run(perception, live, range(11, 14), blur)
    assert live.counts().dropped["blurred"] == 3
    # A camera that repeats one image while odometry drives on is frozen, not still.
    drives = [np.eye(4) for _ in range(8)]
    for number, pose in enumerate(drives):
        pose[0, 3] = 0.2 * number

    def frozen(number, frame):
        return replace(frame, decode=lambda: last, odom_from_camera=drives[number - 14])

    run(perception, live, range(14, 22), frozen)
    assert live.counts().dropped["frozen"] >= 4


def test_a_robot_that_stands_still_stays_where_it_is():
    """A network that is off anew in every window; the map must not drift by what it adds up."""
    noise = Noise(0.05, 0.0, 0.03, 0.03)
    perception, live = make(lap_poses(40, 0.2), noise, map__loop_closure=False)
    dense = DenseMap(Settings.from_flat({"map.loop_closure": False}))
    for update in run(perception, live, range(9)):
        dense.add(update)
    points, last = len(dense.points()), update
    still = perception.image(8)
    rng = np.random.default_rng(0)

    def parked(number, frame):
        image = np.clip(still + rng.normal(0, 2.5, still.shape), 0, 255).astype(np.uint8)
        return replace(frame, decode=lambda: image)

    repeats = []
    for round_ in range(100):
        stamped = lambda n, f, r=round_: replace(  # noqa: E731
            parked(n, f), stamp_ns=f.stamp_ns + r * GAP_NS
        )
        for update in run(perception, live, [9], stamped):
            dense.add(update)
            repeats.append(update)
    assert len(repeats) >= 33 and all(update.still for update in repeats)
    assert live.counts().windows == last.window.id, "the network was not asked again"
    np.testing.assert_array_equal(repeats[-1].map_from_camera, last.map_from_camera)
    np.testing.assert_array_equal(repeats[-1].placement.covariance, last.placement.covariance)
    assert len(dense.points()) == points
    ages = [update.window.stamp_ns for update in repeats]
    assert ages == sorted(ages) and ages[-1] >= last.window.stamp_ns + 98 * GAP_NS
    # Driving on, longer after than any window may span, the map goes on.
    later = lambda n, f: replace(f, stamp_ns=f.stamp_ns + 100 * GAP_NS)  # noqa: E731
    updates = run(perception, live, range(10, 16), later)
    assert updates and not any(update.still for update in updates)
    assert {update.placement.map_id for update in updates} == {0}, [
        u.placement.new_map for u in updates
    ]


@pytest.mark.parametrize("sigma", [0.0, 8.0])
def test_a_robot_that_never_moved_has_one_window_and_drives_on_in_its_map(sigma):
    """Noisy pictures of one place from the very start: no two views have parallax."""
    noise = Noise(0.05, 0.0, 0.03, 0.03)
    perception, live = make(lap_poses(40, 0.2), noise, map__loop_closure=False)
    rng, parked = np.random.default_rng(0), perception.image(0)
    updates = []
    for number in range(20):
        image = np.clip(parked + rng.normal(0, sigma, parked.shape), 0, 255).astype(np.uint8)
        again = lambda _, f, i=image, r=number: replace(  # noqa: E731
            f, decode=lambda: i, stamp_ns=f.stamp_ns + r * GAP_NS
        )
        updates += run(perception, live, [0], again)
    assert live.counts().windows == 1 and [u.still for u in updates[:2]] == [False, True]
    assert all(update.still for update in updates[1:]) and len(updates) > 5
    assert np.isfinite([update.map_from_camera for update in updates]).all()
    later = lambda _, f: replace(f, stamp_ns=f.stamp_ns + 20 * GAP_NS)  # noqa: E731
    onward = run(perception, live, range(1, 9), later)
    assert onward and {update.placement.map_id for update in onward} == {0}


def test_a_jump_of_exposure_changes_nothing():
    poses = lap_poses(15, 0.2)
    tracks = []
    for gain in (1.0, 0.5):
        perception, live = make(poses)
        dark = with_image(lambda i, g=gain: np.where(np.arange(48)[:, None, None] < 8, i, i * g))
        updates = run(perception, live, range(8))
        updates += run(
            perception,
            live,
            range(8, 15),
            lambda n, f, d=dark: replace(f, decode=lambda: d(n, f).decode().astype(np.uint8)),
        )
        assert not live.counts().dropped
        tracks.append([u.placement.map_id for u in updates])
    assert tracks[0] == tracks[1] == [0] * 7


def test_a_turn_without_overlap_is_stated_and_not_bridged_by_a_guess():
    poses = lap_poses(12, 0.2)
    poses[6:] = np.stack([pose_on_lap(1.2 + 0.2 * k, np.pi) for k in range(6)])
    updates = run(*make(poses), range(12))
    reasons = [u.placement.new_map for u in updates]
    assert reasons.count("no_overlap") == 1 and reasons[0] == "first"
    turned = updates[reasons.index("no_overlap")].placement
    assert turned.map_id == 1 and not all(turned.trusted) and turned.relative_pose is None
    sound = updates[reasons.index("no_overlap")].trusted_views
    assert 0 < len(sound) < 3 and 2 in sound, "the newest view holds the new map"


def test_odometry_makes_metres_and_its_jump_is_refused_and_counted():
    poses = lap_poses(41, 0.4)
    perception, live = make(poses)

    def odometry(number, frame):
        jump = 30.0 if number >= 30 else 0.0
        return replace(frame, position_m=poses[number, :3, 3] + [jump, 0, 0])

    updates = run(perception, live, range(41), odometry)
    assert updates[-1].placement.scale.state is ScaleState.METRIC
    assert updates[-1].placement.scale.source == "odometry"
    assert all(u.placement.scale.jump == 1 for u in updates[5:])
    way = np.linalg.norm(np.diff(updates[-1].map_from_camera[:, :3, 3], axis=0), axis=1)
    np.testing.assert_allclose(way, 0.4, rtol=0.05)


def test_missing_odometry_leaves_metres_that_were_known_but_less_certain():
    poses = lap_poses(61, 0.4)
    perception, live = make(poses)
    updates = run(
        perception,
        live,
        range(61),
        lambda n, f: replace(f, position_m=poses[n, :3, 3].copy()) if n < 20 else f,
    )
    placements = [u.placement for u in updates]
    assert placements[-1].scale.state is ScaleState.METRIC
    assert placements[-1].scale.relative_std > 1.1 * placements[9].scale.relative_std
    assert updates[-1].placement.new_map is None


def test_reset_and_a_clock_that_jumps_back_start_a_new_map(short):
    perception, live = short
    (first,) = run(perception, live, range(3))
    live.reset()
    (second,) = run(perception, live, range(14, 17))
    for number in range(3):
        live.offer(replace(frame_of(perception, number), stamp_ns=1 + number * 3 * 10**8))
    (third,) = steps(live)
    assert [u.placement.map_id for u in (first, second, third)] == [0, 1, 2]
    assert [u.placement.new_map for u in (first, second, third)] == ["first"] * 3
    np.testing.assert_allclose(third.map_from_camera[0][:3, 3], 0, atol=1e-6)


def test_a_window_that_runs_when_the_reset_comes_is_no_part_of_any_map(short):
    perception, live = short
    honest = perception.reconstruct

    def interrupted(numbers):
        if numbers[0] == 2:
            live.reset()
        return honest(numbers)

    perception.reconstruct = interrupted
    updates = run(perception, live, range(9))
    assert [u.placement.new_map for u in updates] == ["first", "first"]
    assert [u.session for u in updates] == [0, 1] and live.counts().windows == 2
    assert updates[0].placement.map_id < updates[1].placement.map_id


def test_a_camera_that_falls_silent_is_left_out_and_the_map_goes_on():
    """The other one looks back, so nothing but the drive itself connects what the two see."""
    ahead, back = lap_poses(30, LAP_M / 60), np.diag([-1.0, 1.0, -1.0, 1.0])
    perception = DrivePerception(np.concatenate([ahead, ahead @ back]))
    values = {"window.views": 4, "window.overlap": 1, "window.max_age_s": 4.0}
    settings = Settings.from_flat({**values, "cameras": ["front", "rear"]})
    live = MappingPipeline(perception, settings)

    def windows(numbers, cameras):
        updates = []
        for number in numbers:
            for camera in cameras:
                seen = frame_of(perception, number + 30 * (camera == "rear"))
                stamp_ns = frame_of(perception, number).stamp_ns
                live.offer(replace(seen, camera=camera, stamp_ns=stamp_ns))
            updates += steps(live)
        return updates

    def cameras(updates):
        return [{f.camera for f in u.window.frames} for u in updates]

    before = windows(range(6), ("front", "rear"))
    assert cameras(before)[-1] == {"front", "rear"} and live.counts().silent == ()
    alone = windows(range(6, 20), ("front",))
    assert alone and cameras(alone)[-1] == {"front"} and live.counts().silent == ("rear",)
    after = windows(range(20, 30), ("front", "rear"))
    assert cameras(after)[-1] == {"front", "rear"} and live.counts().silent == ()
    assert {u.placement.map_id for u in before + alone + after} == {before[0].placement.map_id}
    actual = {
        (frame.camera, frame.stamp_ns): update.map_from_camera[i, :3, 3]
        for update in before + alone + after
        for i, frame in enumerate(update.window.frames)
        if i in update.trusted_views
    }
    numbers = [(stamp - 10**9) // GAP_NS for _, stamp in actual]
    assert [camera for camera, _ in actual].count("rear") >= 12 and len(actual) >= 35
    assert trajectory_error(np.stack(list(actual.values())), ahead[numbers, :3, 3]) < 1e-3


def test_a_blurred_stretch_leaves_a_gap_and_not_a_wrong_pose():
    """What lies between sharp views is bridged by overlap, or a map starts and says why."""
    poses = lap_poses(40, 0.3)
    perception, live = make(poses, map__loop_closure=False)
    blur = with_image(lambda image: cv2.GaussianBlur(image, (0, 0), 9))
    updates = run(perception, live, range(11))
    updates += run(perception, live, range(11, 14), blur)
    updates += run(perception, live, range(14, 40))
    used = {n for u in updates for n in u.scene}
    assert not used & {11, 12, 13} and live.counts().dropped == {"blurred": 3}
    track = Track()
    for update in updates:
        track.take(update, update.scene)
    assert updates[-1].placement.map_id == 0, "recognised: part of the first map again"
    numbers, actual = track.positions()
    after = numbers >= 14
    assert trajectory_error(actual[after], poses[numbers[after], :3, 3]) < 1e-3
    # Over the gap the features of pictures of 64 pixels hold it.
    assert trajectory_error(actual, poses[numbers, :3, 3]) < 5e-3


def test_odometry_that_jumps_all_the_time_makes_no_metres():
    poses, rng = lap_poses(31, 0.4), np.random.default_rng(0)
    perception, live = make(poses)
    updates = run(
        perception, live, range(31), lambda n, f: replace(f, position_m=20 * rng.normal(size=3))
    )
    assert {u.placement.scale.state for u in updates} == {ScaleState.RELATIVE}


def test_frames_may_come_from_any_thread_while_windows_are_made(short):
    perception, live = short
    threads = [
        threading.Thread(target=lambda: [live.reject("encoding") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    run(perception, live, range(24))
    for thread in threads:
        thread.join()
    assert live.counts().received == 2024 and live.counts().dropped["encoding"] == 2000


def test_memory_of_a_long_drive_is_bounded():
    """Nothing in the mapping grows with the number of windows once its bounds are reached."""
    poses = np.concatenate([lap_poses(round(LAP_M / 0.6), 0.6, 0)] * 2)
    perception, live = make(poses, map__keyframes=10, map__graph_windows=16)
    sizes = []
    for update in run(perception, live, range(len(poses))):
        sizes.append(live.sizes())
        assert update.placement.map_id == 0
    assert max(s.graph_nodes for s in sizes) <= 18 and max(s.keyframes for s in sizes) == 10
    assert max(s.waiting_frames for s in sizes) <= 3
