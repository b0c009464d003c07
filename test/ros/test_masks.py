# SPDX-License-Identifier: Apache-2.0
"""Masks by stamp and frame; silence and bad masks have one sentence."""

from types import SimpleNamespace as N

import numpy as np
import pytest

pytestmark = pytest.mark.ros
pytest.importorskip("rclpy", reason="needs ROS 2")

from sensor_msgs.msg import Image  # noqa: E402

from g2vlm_ros.ros.conversions import geometry  # noqa: E402
from g2vlm_ros.ros.inputs.detections import Detections  # noqa: E402
from g2vlm_ros.ros.inputs.label_masks import LabelMasks  # noqa: E402
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
    masks = MaskImages(0.02, warnings.append, 10**6)
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
    masks = MaskImages(0.02, warnings.append, 10**6)
    for k in range(10):
        masks.of(NS + k * NS // 10, "optical")
        if masks_of:
            masks.update(message(1 + 0.1 * k, masks_of))
    assert warnings and words in warnings[0]


def test_what_is_no_mask_is_named():
    warnings = []
    masks = MaskImages(0.02, warnings.append, 10**6)
    masks.update(message(1.0, encoding="rgb8"))
    short = message(1.0)
    short.data = short.data[:5]
    masks.update(short)
    # A mask without columns ended every window that it was for, in cv2.resize.
    masks.update(Image(encoding="mono8", width=0, height=4, step=6, data=bytes(24)))
    MaskImages(0.02, warnings.append, 23).update(message(1.0))
    assert len(warnings) == 4 and all("mono8" in sentence for sentence in warnings)
    assert "at most 23 pixels" in warnings[-1] and masks.of(0, "")() is None


def detections(stamp_s, boxes):
    """A Detection2DArray with (label, centre, size) each, as vision_msgs lays it out."""
    arrays = [
        N(
            results=[N(hypothesis=N(class_id=label, score=0.9))],
            bbox=N(center=N(position=N(x=centre[0], y=centre[1])), size_x=size[0], size_y=size[1]),
        )
        for label, centre, size in boxes
    ]
    return N(header=geometry.header(round(stamp_s * NS), "optical"), detections=arrays)


def test_boxes_of_some_labels_are_masks():
    seen = Detections(None, "")
    masks = LabelMasks(seen, "Person, dog")
    ignored = masks.of(NS, "optical", (40, 30))
    assert ignored() is None
    seen.receive(
        detections(1.02, [("person", (10.0, 15.0), (4.0, 8.0)), ("chair", (30.0, 20.0), (6, 6)),
                          ("DOG", (39.0, 29.0), (6.0, 6.0))])
    )  # fmt: skip
    mask = ignored()
    assert mask.shape == (30, 40) and mask[15, 10] and mask[29, 39] and not mask[20, 30]
    assert mask[:, :20].sum() == 5 * 9
    assert masks.of(NS, "other", (40, 30))() is None
    assert masks.of(2 * NS, "optical", (40, 30))() is None, "too long ago"
    assert LabelMasks(seen, "").of(NS, "optical", (40, 30))() is None
