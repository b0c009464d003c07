# SPDX-License-Identifier: Apache-2.0
"""What becomes of frames: windows of the newest, everything else counted with a reason."""

import numpy as np
import pytest

from g2vlm_ros.mapping.window_buffer import WindowBuffer
from g2vlm_ros.records import Frame
from g2vlm_ros.settings import WindowSettings

SETTINGS = WindowSettings(views=3, overlap=1, min_gap_s=0.1, max_age_s=2.0, sync_slop_s=0.02)


def frame(seconds, camera="front", position=None):
    position = None if position is None else np.array(position, dtype=float)
    return Frame(
        round(seconds * 1e9),
        camera,
        f"{camera}_optical",
        lambda: np.zeros((2, 2, 3), np.uint8),
        position_m=position,
    )


def feed(buffer, times, camera="front"):
    for seconds in times:
        buffer.offer(frame(seconds, camera))


def stamps(window):
    return [round(f.stamp_ns * 1e-9, 3) for f in window.frames]


def is_complete(buffer):
    return buffer.received == buffer.used + sum(buffer.dropped.values()) + buffer.waiting


def test_no_window_until_enough_views_then_overlap_joins_windows():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1])
    assert buffer.take() is None
    feed(buffer, [0.2])
    first = buffer.take()
    assert stamps(first) == [0.0, 0.1, 0.2] and first.stamp_ns == 200_000_000
    assert buffer.take() is None
    feed(buffer, [0.3, 0.4])
    second = buffer.take()
    assert stamps(second) == [0.2, 0.3, 0.4] and second.id == first.id + 1
    assert buffer.used == 5 and is_complete(buffer)


def test_busy_device_gets_the_newest_and_an_even_spread():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1, 0.2])
    buffer.take()
    feed(buffer, [0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert stamps(buffer.take()) == [0.2, 0.5, 0.8]
    assert buffer.dropped["superseded"] == 4 and is_complete(buffer)


def test_memory_is_bounded_while_nobody_takes():
    buffer = WindowBuffer(["front"], WindowSettings(views=3, min_gap_s=0.01, max_age_s=1000.0))
    feed(buffer, np.arange(0, 100, 0.1))
    assert buffer.waiting <= 12 and is_complete(buffer)
    assert stamps(buffer.take())[-1] == 99.9


def test_frames_in_between_are_too_close():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, np.arange(0, 0.21, 1 / 30))
    assert stamps(buffer.take()) == [0.0, 0.1, 0.2]
    assert buffer.dropped["too_close"] == 4


def test_odometry_below_the_baseline_is_too_close():
    settings = WindowSettings(views=2, min_gap_s=0.1, min_baseline_m=0.5, max_age_s=5.0)
    buffer = WindowBuffer(["front"], settings)
    for k in range(9):
        buffer.offer(frame(0.2 * k, position=[0.2 * k, 0, 0]))
    window = buffer.take()
    moved = window.frames[1].position_m - window.frames[0].position_m
    assert np.linalg.norm(moved) >= 0.5


def test_window_never_spans_more_than_the_maximum_age():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1, 5.0, 5.1])
    assert buffer.take() is None and buffer.dropped["too_old"] == 2
    feed(buffer, [5.2])
    assert stamps(buffer.take()) == [5.0, 5.1, 5.2]
    feed(buffer, [9.0, 9.1])
    assert buffer.take() is None, "the overlap is too old to be a view"


def test_duplicates_and_late_frames_are_counted_not_used():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1, 0.1, 0.05, 0.2])
    assert stamps(buffer.take()) == [0.0, 0.1, 0.2]
    assert buffer.dropped == {"duplicate": 1, "out_of_order": 1} and is_complete(buffer)


def test_a_clock_that_jumps_back_starts_over_and_says_so():
    jumps = []
    buffer = WindowBuffer(["front"], SETTINGS, on_clock_jump=lambda: jumps.append(1))
    feed(buffer, [100.0, 100.1, 0.0, 0.1, 0.2])
    assert stamps(buffer.take()) == [0.0, 0.1, 0.2]
    assert jumps == [1] and buffer.dropped["clock_jump"] == 2 and is_complete(buffer)


@pytest.mark.parametrize("wrong", [3600.0, -900.0, 8.0])
def test_one_wrong_stamp_is_dropped_and_nothing_else(wrong):
    """Frames go on as if the one that is far from its neighbours had not come."""
    jumps = []
    buffer = WindowBuffer(["front"], SETTINGS, on_clock_jump=lambda: jumps.append(1))
    feed(buffer, [1000.0, 1000.1, 1000.0 + wrong, 1000.2])
    assert stamps(buffer.take()) == [1000.0, 1000.1, 1000.2]
    assert not jumps and buffer.dropped == {"wrong_stamp": 1} and is_complete(buffer)


@pytest.mark.parametrize("wrong", [(3600.0, 8000.0), (8000.0, 3600.0), (-900.0, -400.0), (-9, 99)])
def test_two_wrong_stamps_that_do_not_follow_each_other_are_dropped(wrong):
    """Two in agreement would be believed: frames go on as if these had not come."""
    jumps = []
    buffer = WindowBuffer(["front"], SETTINGS, on_clock_jump=lambda: jumps.append(1))
    feed(buffer, [1000.0, 1000.1, *(1000.0 + each for each in wrong)])
    assert is_complete(buffer)
    feed(buffer, [1000.2])
    assert stamps(buffer.take()) == [1000.0, 1000.1, 1000.2]
    assert not jumps and buffer.dropped == {"wrong_stamp": 2} and is_complete(buffer)


def test_a_wrong_stamp_before_a_clock_that_jumps_is_dropped_and_the_jump_believed():
    jumps = []
    buffer = WindowBuffer(["front"], SETTINGS, on_clock_jump=lambda: jumps.append(1))
    feed(buffer, [1000.0, 1000.1, 10.0, 500.0, 500.1, 500.2])
    assert stamps(buffer.take()) == [500.0, 500.1, 500.2] and jumps == [1]
    assert buffer.dropped["wrong_stamp"] == 1 and is_complete(buffer)


def test_a_clock_that_goes_on_jumping_is_believed_at_the_third_frame():
    jumps = []
    buffer = WindowBuffer(["front"], SETTINGS, on_clock_jump=lambda: jumps.append(1))
    feed(buffer, [1000.0, 1000.1, 10.0, 100.0, 200.0])
    assert jumps == [1] and is_complete(buffer)


def test_a_camera_that_pauses_loses_no_frame():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1, 60.0])
    assert buffer.take() is None and is_complete(buffer), "60 s is not believed alone"
    feed(buffer, [60.1, 60.2])
    assert stamps(buffer.take()) == [60.0, 60.1, 60.2]
    assert buffer.dropped == {"too_old": 2} and is_complete(buffer)


def test_a_slow_camera_is_no_clock_that_jumps():
    settings = WindowSettings(views=1, overlap=0, min_gap_s=0.1, max_age_s=2.0)
    buffer = WindowBuffer(["front"], settings)
    windows = []
    for seconds in range(0, 100, 10):
        feed(buffer, [float(seconds)])
        windows.append(buffer.take())
    assert sum(window is not None for window in windows) >= 8 and is_complete(buffer)
    assert "wrong_stamp" not in buffer.dropped


def test_cameras_are_grouped_by_stamp_in_order_of_the_parameter():
    settings = WindowSettings(views=4, overlap=0, min_gap_s=0.1, sync_slop_s=0.02)
    buffer = WindowBuffer(["front", "rear"], settings)
    for t in (0.0, 0.1):
        buffer.offer(frame(t + 0.01, "rear"))
        buffer.offer(frame(t, "front"))
    window = buffer.take()
    assert [f.camera for f in window.frames] == ["front", "rear"] * 2
    assert is_complete(buffer)


def test_frames_without_partner_are_unsynchronised():
    settings = WindowSettings(views=2, overlap=0, sync_slop_s=0.02, max_age_s=1.0)
    buffer = WindowBuffer(["front", "rear"], settings)
    buffer.offer(frame(0.0, "rear"))
    buffer.offer(frame(0.5, "front"))
    buffer.offer(frame(0.5, "rear"))
    assert stamps(buffer.take()) == [0.5, 0.5] and buffer.dropped["unsynchronised"] == 1
    feed(buffer, np.arange(1, 100, 0.5), "front")
    assert buffer.waiting <= 4, "a lost camera must not fill the memory"


def test_a_silent_camera_is_left_out_and_comes_back():
    settings = WindowSettings(views=4, overlap=1, min_gap_s=0.1, sync_slop_s=0.02, max_age_s=2.0)
    buffer = WindowBuffer(["front", "rear"], settings)
    seen = []

    def drive(tenths, cameras):
        for tenth in tenths:
            for camera in cameras:
                buffer.offer(frame(tenth / 10, camera))
            if (window := buffer.take()) is not None:
                assert 2 <= len(window.frames) <= settings.views
                seen.append((tenth, stamps(window), "".join(f.camera[0] for f in window.frames)))

    drive(range(3), ("front", "rear"))
    assert seen == [(1, [0.0, 0.0, 0.1, 0.1], "frfr"), (2, [0.1, 0.1, 0.2, 0.2], "frfr")]
    assert buffer.silent == ()
    drive(range(3, 13), ("front",))
    assert len(seen) == 2 and buffer.silent == (), "so short a silence may be jitter"
    drive(range(13, 15), ("front",))
    # The last instant that both saw joins what one of them sees to the map.
    assert seen[2:] == [(14, [0.2, 0.2, 1.3, 1.4], "frff")] and buffer.silent == ("rear",)
    drive(range(15, 18), ("front",))
    assert seen[3:] == [(17, [1.4, 1.5, 1.6, 1.7], "ffff")]
    drive(range(18, 21), ("front", "rear"))
    # At 1.8 it was not expected yet.
    assert seen[4:] == [(19, [1.7, 1.9, 1.9], "ffr"), (20, [1.9, 1.9, 2.0, 2.0], "frfr")]
    assert buffer.silent == () and buffer.dropped["unsynchronised"] >= 1 and is_complete(buffer)


def test_a_camera_that_never_spoke_is_waited_for_as_long():
    settings = WindowSettings(views=2, overlap=0, min_gap_s=0.1, sync_slop_s=0.02, max_age_s=2.0)
    buffer = WindowBuffer(["front", "rear"], settings)
    feed(buffer, np.arange(5.0, 6.05, 0.1), "front")
    assert buffer.take() is None and buffer.silent == ()
    feed(buffer, [6.1, 6.2], "front")
    assert stamps(buffer.take()) == [6.1, 6.2] and buffer.silent == ("rear",)


def test_reset_and_reject_and_discard_keep_the_books():
    buffer = WindowBuffer(["front"], SETTINGS)
    feed(buffer, [0.0, 0.1])
    buffer.reject("encoding")
    buffer.clear()
    assert buffer.dropped == {"reset": 2, "encoding": 1}
    feed(buffer, [0.2, 0.3, 0.4])
    window = buffer.take()
    buffer.discard(window.frames[2], "undecodable")
    assert buffer.used == 2 and buffer.dropped["undecodable"] == 1 and is_complete(buffer)
    feed(buffer, [0.5, 0.6, 0.7])
    assert stamps(buffer.take()) == [0.5, 0.6, 0.7], "a discarded frame is no overlap"


def test_unknown_camera_is_refused():
    with pytest.raises(ValueError, match="'left' is not one of front"):
        WindowBuffer(["front"], SETTINGS).offer(frame(0, "left"))
