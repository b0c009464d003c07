# SPDX-License-Identifier: Apache-2.0
"""Asking over DDS, for tests of questions."""

from __future__ import annotations

import threading
import time

from g2vlm_tests.harness import image

START_S = 1000.0
SMALL_QUERY = {"query.semantic_width_px": 56, "query.max_tokens": 4}


def feed(testbed, count=2, start_s=START_S):
    """Frames 0.1 s apart, and the window of each reconstructed before the next one comes."""
    for k in range(count):
        testbed.send("/camera/image_raw", image(start_s + 0.1 * k))
        testbed.settle()


def request(**fields):
    from g2vlm_ros.srv import SpatialQuery

    return SpatialQuery.Request(**{"max_age_s": 1e12, "max_wait_s": 20.0, **fields})


def ask(testbed, **fields):
    from g2vlm_ros.srv import SpatialQuery

    return testbed.call(SpatialQuery, "/perception/query", request(**fields))


def region(u=20.0, v=20.0, width=0.0, height=0.0, camera="camera", **fields):
    from g2vlm_ros.msg import ImageRegion

    return ImageRegion(
        kind=int(width > 0),
        camera=camera,
        u_px=u,
        v_px=v,
        width_px=width,
        height_px=height,
        **fields,
    )


def block(testbed, entered):
    """Occupy the device's thread until the returned function is called."""
    gate = threading.Event()
    testbed.node.scheduler.submit(lambda: (entered.append(1), gate.wait(20)))
    testbed.until(lambda: entered, "the device to be busy")
    return gate.set


def goal(testbed, feedback=None, **fields):
    """(goal handle, result future) of an accepted goal, and the seconds until it was accepted."""
    from g2vlm_ros.action import AnswerSpatialQuery

    from g2vlm_ros.ros.rclpy_workarounds import SafeActionClient

    if not hasattr(testbed, "action"):
        testbed.action = SafeActionClient(testbed.peer, AnswerSpatialQuery, "/perception/answer")
        assert testbed.action.wait_for_server(20)
    asked = AnswerSpatialQuery.Goal(**{"max_age_s": 1e12, "max_wait_s": 20.0, **fields})
    start = time.monotonic()
    sent = testbed.action.send_goal_async(
        asked,
        feedback_callback=lambda m: feedback.append(m.feedback) if feedback is not None else 0,
    )
    testbed.until(sent.done, "the goal to be accepted")
    spent = time.monotonic() - start
    handle = sent.result()
    assert handle.accepted
    return handle, handle.get_result_async(), spent


def finish(testbed, future):
    testbed.until(future.done, "a result")
    return future.result()
