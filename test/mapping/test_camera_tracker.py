# SPDX-License-Identifier: Apache-2.0
"""Frames between windows: where the camera is, how sure that is, and why there is no pose."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from g2vlm_tests.walk_views import walk_views

from g2vlm_ros.geometry.camera import unproject
from g2vlm_ros.mapping.camera_tracker import (
    CameraTracker,
    TrackedPose,
    TrackingFailure,
)
from g2vlm_ros.mapping.continuous_odometry import ContinuousOdometry
from g2vlm_ros.mapping.tracking_template import TrackingReference

COVARIANCE = np.diag([1e-4] * 3 + [1e-5] * 3)


def grey(frame, width=224):
    image = cv2.cvtColor(frame.image(), cv2.COLOR_RGB2GRAY)
    return cv2.resize(image, (width, width * 3 // 4), interpolation=cv2.INTER_AREA)


def reference(frame, pose=None, **fields):
    depth_m = frame.depth_m()
    rows, columns = np.mgrid[: depth_m.shape[0], : depth_m.shape[1]]
    pixels = np.stack([columns, rows], -1)
    points = unproject(pixels, depth_m, frame.intrinsics).astype(np.float32)
    pose = frame.world_from_camera if pose is None else pose
    values = {"covariance": COVARIANCE} | fields
    return TrackingReference(frame.stamp_ns, grey(frame), points, frame.intrinsics, pose, **values)


def errors(tracked, frame):
    off = np.linalg.inv(frame.world_from_camera) @ tracked.map_from_camera
    turn, _ = cv2.Rodrigues(off[:3, :3])
    return np.linalg.norm(off[:3, 3]), np.rad2deg(np.linalg.norm(turn))


def follow(tracker, frames):
    return [tracker.track(grey(frame), frame.stamp_ns) for frame in frames]


def test_a_walk_is_followed_and_grows_less_sure() -> None:
    frames = walk_views()
    tracker = CameraTracker()
    tracker.set_reference(reference(frames[0]))
    poses = follow(tracker, frames)
    moved_m = np.linalg.norm(
        frames[-1].world_from_camera[:3, 3] - frames[0].world_from_camera[:3, 3]
    )
    assert moved_m > 0.3, "otherwise nothing is shown"
    for pose, frame in zip(poses, frames, strict=True):
        assert isinstance(pose, TrackedPose), pose
        shift_m, turn_deg = errors(pose, frame)
        assert shift_m < 0.01 and turn_deg < 0.3
        np.linalg.cholesky(pose.covariance)
    traces = [np.trace(pose.covariance) for pose in poses]
    assert traces[-1] > traces[len(traces) // 2] > traces[0] > np.trace(COVARIANCE)


def test_exposure_that_hunts_vignetting_and_noise_do_not_lose_the_camera() -> None:
    frames, rng = walk_views(), np.random.default_rng(0)
    tracker = CameraTracker()
    tracker.set_reference(reference(frames[0]))
    gains = 0.65 + 0.6 * (np.arange(len(frames)) % 2)
    for frame, gain in zip(frames[1:], gains[1:], strict=True):
        image = grey(frame).astype(float)
        rows, columns = (np.linspace(-1, 1, length) for length in image.shape)
        image *= gain * (1 - 0.3 * (rows[:, None] ** 2 + columns**2) / 2)
        image = np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)
        tracked = tracker.track(image, frame.stamp_ns)
        assert isinstance(tracked, TrackedPose), tracked
        shift_m, turn_deg = errors(tracked, frame)
        assert shift_m < 0.05 and turn_deg < 1.0


def test_a_new_reference_moves_the_map_but_not_the_odometry() -> None:
    frames = walk_views()
    shift = np.eye(4)
    shift[:3, 3] = 0.5, -0.2, 0.1
    tracker, odometry, way = CameraTracker(), ContinuousOdometry(), []
    tracker.set_reference(reference(frames[0]))
    for i, frame in enumerate(frames):
        if i == 10:  # the window of frame 6 comes late, and the map has moved
            tracker.set_reference(reference(frames[6], shift @ frames[6].world_from_camera))
        tracked = tracker.track(grey(frame), frame.stamp_ns)
        assert isinstance(tracked, TrackedPose)
        way.append((tracked, odometry.add(tracked)))
    before, after = way[9], way[10]
    jump = np.linalg.norm(after[0].map_from_camera[:3, 3] - before[0].map_from_camera[:3, 3])
    assert jump > 0.4
    for (_, one), (_, two), a, b in zip(way, way[1:], frames, frames[1:], strict=False):
        step = np.linalg.inv(one.odom_from_camera) @ two.odom_from_camera
        true = np.linalg.inv(a.world_from_camera) @ b.world_from_camera
        assert np.linalg.norm((step - true)[:3, 3]) < 0.01, "no jump"
        seconds = (b.stamp_ns - a.stamp_ns) * 1e-9
        np.testing.assert_allclose(two.twist[:3] * seconds, step[:3, 3], atol=1e-9)
    np.testing.assert_allclose(
        after[1].map_from_odom @ after[1].odom_from_camera, after[0].map_from_camera, atol=1e-9
    )
    assert np.trace(way[-1][1].covariance) > np.trace(way[5][1].covariance) > 0


def test_lengths_grow_with_the_map() -> None:
    frames = walk_views()
    tracker = CameraTracker()
    half = reference(frames[0])
    pose = frames[0].world_from_camera.copy()
    pose[:3, 3] *= 0.5
    tracker.set_reference(
        replace(half, points=half.points * np.float32(0.5), map_from_camera=pose)
    )
    follow(tracker, frames[:8])
    tracker.set_reference(reference(frames[4]), rescaled=2.0)
    tracked = tracker.track(grey(frames[8]), frames[8].stamp_ns)
    true = np.linalg.inv(frames[7].world_from_camera) @ frames[8].world_from_camera
    assert errors(tracked, frames[8])[0] < 0.01
    np.testing.assert_allclose(tracked.last_from_camera, true, atol=0.01)


def test_frames_of_another_size_are_the_same_frames() -> None:
    frames = walk_views()
    tracker = CameraTracker()
    tracker.set_reference(reference(frames[0]))
    tracked = tracker.track(grey(frames[3], 640), frames[3].stamp_ns)
    assert errors(tracked, frames[3])[0] < 0.01


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (lambda frames: np.full((168, 224), 90, np.uint8), TrackingFailure.FEW_INLIERS),
        (lambda frames: np.random.default_rng(0).integers(0, 255, (168, 224), np.uint8),
         TrackingFailure.FEW_INLIERS),
        (lambda frames: grey(frames[1])[:80], TrackingFailure.WRONG_SIZE),
    ],
)  # fmt: skip
def test_what_shows_something_else_has_no_pose(image, reason) -> None:
    frames = walk_views()
    tracker = CameraTracker()
    assert tracker.track(grey(frames[0]), 1) is TrackingFailure.NO_REFERENCE
    tracker.set_reference(reference(frames[0]))
    assert tracker.track(image(frames), frames[1].stamp_ns) is reason
    tracked = tracker.track(grey(frames[2]), frames[2].stamp_ns)
    assert isinstance(tracked, TrackedPose), "it is found again"
    assert tracker.track(grey(frames[1]), frames[1].stamp_ns) is TrackingFailure.OUT_OF_ORDER


def test_a_bare_wall_cannot_be_followed() -> None:
    frames = walk_views()
    tracker = CameraTracker()
    bare = reference(frames[0])
    tracker.set_reference(replace(bare, grey=np.full_like(bare.grey, 128)))
    assert tracker.track(grey(frames[1]), frames[1].stamp_ns) is TrackingFailure.FEW_CORNERS
