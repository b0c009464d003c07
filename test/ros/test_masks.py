# SPDX-License-Identifier: Apache-2.0
"""Masks by stamp and frame; silence and bad masks have one sentence."""

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from sensor_msgs.msg import Image  # noqa: E402

from g2vlm_ros.ros.conversions import geometry  # noqa: E402
from g2vlm_ros.ros.inputs.masks import MaskImages  # noqa: E402

NS = 10**9


def message(seconds, frame_id="optical", encoding="mono8", size=(4, 6)):
    pixels = np.zeros(size, np.uint8)
    pixels[1, 2] = 255
    header = geometry.header(round(seconds * NS), frame_id)
    return Image(header=header, height=size[0], width=size[1], step=size[1],
                 encoding=encoding, data=pixels.tobytes())  # fmt: skip


def test_a_mask_may_come_after_its_frame():
    warnings = []
    masks = MaskImages(0.02, warnings.append)
    ignored = masks.of(NS, "optical")
    assert ignored() is None
    masks.update(message(1.01))
    masks.update(message(1.3))
    assert ignored().shape == (4, 6) and ignored().sum() == 1 and ignored()[1, 2]
    assert masks.of(NS, "other")() is None and masks.of(2 * NS, "optical")() is None
    assert not warnings


@pytest.mark.parametrize(("masks_of", "words"), [(None, "no mask comes"), ("side", "'side'")])
def test_silence_is_explained_within_ten_frames(masks_of, words):
    warnings = []
    masks = MaskImages(0.02, warnings.append)
    for k in range(10):
        masks.of(NS + k * NS // 10, "optical")
        if masks_of:
            masks.update(message(1 + 0.1 * k, masks_of))
    assert warnings and words in warnings[0]


def test_what_is_no_mask_is_named():
    warnings = []
    masks = MaskImages(0.02, warnings.append)
    masks.update(message(1.0, encoding="rgb8"))
    short = message(1.0)
    short.data = short.data[:5]
    masks.update(short)
    assert len(warnings) == 2 and all("mono8" in sentence for sentence in warnings)
