# SPDX-License-Identifier: Apache-2.0
"""The oldest numpy that is promised, which ROS of Ubuntu 22.04 and 24.04 needs, under other tests.

The environment of the tests has numpy 2, where names of numpy 2 alone are no mistake: the first
frame of `demo:=true` was one on a robot.
"""

import os
import subprocess
import sys

from g2vlm_tests.fake_libraries import ROOT, wheel

OLDEST = "1.26.4"
SLICE = (
    "geometry/test_calibration.py",
    "mapping/test_camera_tracker.py",
    "dense_map/test_map_files.py",
    "images/test_decoding.py",
)
"""The simulator, the kernels, windows, maps and their files, pictures: five seconds."""


def test_simulator_map_and_pictures_with_the_oldest_numpy():
    folder = wheel(f"numpy=={OLDEST}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    environment.pop("PYTEST_ADDOPTS", None)
    version = [sys.executable, "-c", "import numpy; print(numpy.__version__)"]
    assert subprocess.check_output(version, env=environment, text=True).strip() == OLDEST
    tests = [str(ROOT / "test" / name) for name in SLICE]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:]
