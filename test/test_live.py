"""Frames in, map updates out, without ROS and with perfect geometry in place of the network."""

import threading

import numpy as np
import pytest

from g2vlm_ros.core.datatypes import Frame, Intrinsics, RawGeometry, Reconstruction
from g2vlm_ros.core.geometry import ZUP_FROM_OPTICAL, Similarity, unproject
from g2vlm_ros.core.settings import Settings
from g2vlm_ros.live import LiveMapping
from test.core.test_geometry import random_similarity

CAMERA = Intrinsics(28.0, 28.0, 15.5, 11.5, 32, 24)
VALUES = {"window.views": 3, "window.min_gap_s": 0.1, "window.max_age_s": 2.0}


class PerfectPerception:
    """Knows the truth of a wavy wall seen by a camera that slides along it, each window in a unit
    and frame of its own. Images carry the number of the view."""

    def __init__(self):
        self.rng = np.random.default_rng(1)
        self.windows = 0

    def scene(self, images):
        return [int(image[0, 0, 0]) for image in images]

    def reconstruct(self, numbers):
        self.windows += 1
        unit = random_similarity(self.rng)
        local = np.stack([unit.scale * view_points(n) for n in numbers]).astype(np.float32)
        poses = np.stack([unit.apply_pose(world_from_camera(n)) for n in numbers])
        raw = RawGeometry(local, poses.astype(np.float32), np.zeros((len(numbers), 9), np.float32))
        shape = local.shape[:3]
        return Reconstruction(
            raw, np.zeros((*shape, 3), np.uint8), np.ones(shape, np.float32),
            (CAMERA,) * len(numbers), {"heads": 0.0},
        )  # fmt: skip


def world_from_camera(number):
    pose = np.eye(4)
    pose[:3, :3] = ZUP_FROM_OPTICAL
    pose[:3, 3] = [0.0, -0.1 * number, 0.0]
    return pose


def view_points(number):
    rows, columns = np.mgrid[0:24, 0:32]
    depth = 3 + 0.5 * np.sin(0.7 * columns + number) * np.cos(0.5 * rows)
    return unproject(np.stack([columns, rows], -1), depth, CAMERA)


def frame(number, spoil=False):
    def decode():
        if spoil:
            raise ValueError("spoilt")
        return np.full((24, 32, 3), number, np.uint8)

    return Frame(10**9 + number * 10**8, "camera", "optical", decode)


@pytest.fixture
def live():
    return LiveMapping(PerfectPerception(), Settings.from_flat(VALUES))


def steps(live):
    updates = []
    while (update := live.step()) is not None:
        updates.append(update)
    return updates


def test_a_drive_comes_out_in_one_frame_and_unit(live):
    poses, units = {}, []
    for number in range(41):
        live.offer(frame(number))
        for update in steps(live):
            for i in update.new_views:
                poses[update.window.frames[i].stamp_ns] = update.map_from_camera[i]
            units.append(update.placement.map_from_window)
    assert len(poses) == 41 and len({u.scale for u in units}) == len(units) == 20
    track = np.stack([poses[stamp][:3, 3] for stamp in sorted(poses)])
    truth = np.stack([world_from_camera(n)[:3, 3] for n in range(41)])
    unit = np.linalg.norm(track[1] - track[0]) / 0.1
    np.testing.assert_allclose(track, truth * unit, atol=2e-3 * unit)
    np.testing.assert_allclose(poses[max(poses)][:3, :3], ZUP_FROM_OPTICAL, atol=1e-3)


def test_map_points_of_a_shared_view_are_the_same_in_both_windows(live):
    for number in range(5):
        live.offer(frame(number))
    first = live.step()
    assert live.step() is None and isinstance(first.placement.map_from_window, Similarity)
    for number in range(5, 7):
        live.offer(frame(number))
    second = live.step()
    shared = second.window.frames[0].stamp_ns
    assert shared == first.window.frames[-1].stamp_ns
    np.testing.assert_allclose(
        second.map_points()[0], first.map_points()[-1], rtol=1e-3, atol=1e-3
    )


def test_spoilt_frames_are_left_out_and_counted(live):
    for number in range(3):
        live.offer(frame(number, spoil=number == 1))
    update = live.step()
    counts = live.counts()
    assert len(update.window.frames) == 2 and counts.dropped == {"undecodable": 1}
    assert (counts.received, counts.used, counts.windows) == (3, 2, 1)


def test_a_window_of_nothing_but_spoilt_frames_is_no_window(live):
    for number in range(3):
        live.offer(frame(number, spoil=True))
    assert live.step() is None and live.counts().dropped["undecodable"] == 3
    for number in range(3, 6):
        live.offer(frame(number))
    assert live.step() is not None


def test_reset_and_a_clock_that_jumps_back_start_a_new_sub_map(live):
    for number in range(3):
        live.offer(frame(number))
    first = live.step()
    live.reset()
    for number in range(103, 106):
        live.offer(frame(number))
    second = live.step()
    live.offer(Frame(1, "camera", "optical", frame(0).decode))
    for number in range(1, 3):
        live.offer(Frame(number * 2 * 10**8, "camera", "optical", frame(number).decode))
    third = live.step()
    assert [u.placement.sub_map for u in (first, second, third)] == [0, 1, 2]
    np.testing.assert_allclose(third.map_from_camera[0][:3, 3], 0, atol=1e-6)


def test_frames_may_come_from_any_thread_while_windows_are_made(live):
    threads = [
        threading.Thread(target=lambda: [live.reject("encoding") for _ in range(500)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for number in range(60):
        live.offer(frame(number))
        live.step()
    for thread in threads:
        thread.join()
    assert live.counts().received == 2060 and live.counts().dropped["encoding"] == 2000
