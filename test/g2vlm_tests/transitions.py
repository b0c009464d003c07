# SPDX-License-Identifier: Apache-2.0
"""Random transitions of a node beside a camera.

PYTHONPATH=test python3 tools/setup_env.py test -m g2vlm_tests.transitions --count 1000
"""

from __future__ import annotations

import argparse
import random
import threading
import time

from g2vlm_tests.harness import Bench, image
from rclpy.lifecycle import TransitionCallbackReturn

SUCCESS = TransitionCallbackReturn.SUCCESS
START_S = 100.0


def device_rests(bench):
    """Wait until no job runs on the device, if there is one."""
    scheduler = bench.node.scheduler
    bench.until(lambda: scheduler is None or scheduler.running_for_s() == 0, "the device to rest")


def state(bench):
    from lifecycle_msgs.srv import GetState

    return bench.call(GetState, "/perception/get_state", GetState.Request()).current_state.label


class CameraStream:
    """Publishes frames from a thread until it is left; nobody needs to listen."""

    def __init__(self, bench, rate_hz=30.0):
        from sensor_msgs.msg import Image

        self._topic = bench.peer.create_publisher(Image, "/camera/image_raw", 5)
        self._period_s, self._ending = 1 / rate_hz, threading.Event()
        self._thread = threading.Thread(target=self._publish, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ending.set()
        self._thread.join()

    def _publish(self):
        seconds = START_S
        while not self._ending.wait(self._period_s):
            seconds += 0.1
            self._topic.publish(image(seconds))


def random_transitions(bench, count, seed):
    """Transitions, possible ones and others, beside a camera at 30 Hz and a listener."""
    from sensor_msgs.msg import PointCloud2

    bench.peer.create_subscription(PointCloud2, "/perception/points", lambda _: None, 2)
    draw = random.Random(seed)
    names = ("configure", "activate", "deactivate", "cleanup")
    possible = {"unconfigured": "configure", "inactive": "activate", "active": "deactivate"}
    with CameraStream(bench):
        for _ in range(count):
            before = state(bench)
            wanted = draw.choice((possible[before], *names))
            result = getattr(bench.node, f"trigger_{wanted}")()
            assert bench.spinner.alive
            if (before, wanted) == ("inactive", "cleanup") and result != SUCCESS:
                # Refused while a job of the device runs, which on a busy machine may take long.
                assert state(bench) == "inactive"
                device_rests(bench)
                result = bench.node.trigger_cleanup()
            allowed = wanted in (possible[before], "cleanup" if before == "inactive" else None)
            assert (result == SUCCESS) == allowed, (before, wanted)
            time.sleep(draw.choice((0.0, 0.0, 0.02, 0.1)))


def main() -> int:
    """Exit code 1 where a callback raised, or a transition ended otherwise than it should."""
    from g2vlm_tests.dds_domain import isolate

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    _claim, start = isolate(), time.monotonic()
    bench = Bench()
    try:
        random_transitions(bench, options.count, options.seed)
    finally:
        bench.node.trigger_deactivate()
        device_rests(bench)  # or C++ would abort where the interpreter ends beside a job
        bench.close()
    spent_s = time.monotonic() - start
    print(f"{options.count} transitions in {spent_s:.0f} s; {len(bench.escaped)} callbacks raised")
    return int(bool(bench.escaped))


if __name__ == "__main__":
    raise SystemExit(main())
