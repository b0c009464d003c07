# SPDX-License-Identifier: Apache-2.0
"""What the recorder of the demo keeps when the map starts over."""

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from sensor_msgs.msg import PointCloud2

from g2vlm_ros.demo.nodes.demo_recorder import DemoRecorder


@pytest.fixture
def recorder(ros):
    node = DemoRecorder()
    yield node
    node.destroy_node()


def path(poses):
    return Path(poses=[PoseStamped() for _ in range(poses)])


def cloud(points):
    return PointCloud2(data=np.zeros((points, 5), np.float32).tobytes())


def test_path_and_map_of_the_longest_map_are_kept(recorder):
    kept = []
    for poses in (3, 9, 2, 5, 10):
        recorder.keep_path(path(poses))
        recorder.keep_map(cloud(100 + poses))
        kept.append((len(recorder.path.poses), len(recorder.map)))
    assert kept == [(3, 103), (9, 109), (9, 109), (9, 109), (10, 110)]


def test_tries_to_close_loops_come_from_the_diagnostics(recorder):
    values = [KeyValue(key="closed", value="2"), KeyValue(key="no_overlap", value="1")]
    other = DiagnosticStatus(name="perception: drops", values=[KeyValue(key="blurred", value="5")])
    loops = DiagnosticStatus(name="perception: loops", values=values)
    recorder.keep_loops(DiagnosticArray(status=[other, loops]))
    assert recorder.summary()["loops"] == {"closed": 2, "no_overlap": 1}
