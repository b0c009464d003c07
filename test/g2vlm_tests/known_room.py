# SPDX-License-Identifier: Apache-2.0
"""A room whose things are known, and questions about it without a network."""

from g2vlm_tests.room import HEIGHT, WIDTH, box, room

from g2vlm_ros.query.answerer import Answerer
from g2vlm_ros.query.grounding import OutOfTimeError
from g2vlm_ros.query.point_map import Region
from g2vlm_ros.query.types import Detection, Query

NAMES = ["red chair", "table", "lamp"]


BOXES = [box(3.0, 0.7), box(4.0, -0.9, size=(0.8, 1.2, 0.7)), box(2.5, -0.1, size=(0.2, 0.2, 1.5))]


class Model:
    """A model with prepared words: {part of the prompt: answer}; remembers what it was asked."""

    def __init__(self, says=None, default="Hm."):
        self.says, self.default, self.asked = says or {}, default, []

    def __call__(self, prompt, marks):
        self.asked.append((prompt, tuple(marks)))
        words = next((w for part, w in self.says.items() if part in prompt), self.default)
        if words is None:
            raise OutOfTimeError
        return words


def to_model(place):
    corners = place.pixels(WIDTH, HEIGHT)
    return corners and Region(place.view or 0, corners[:2], corners[2:])


def ask(question, model=None, names=NAMES, boxes=BOXES, poses=None, use=(), **options):
    """The Outcome; detections name what is in the room. `options` go to Query and to room."""
    fields = {k: options.pop(k) for k in list(options) if k in Query.__dataclass_fields__}
    points, regions = room(boxes, poses, **options)
    found = [
        Detection(region, name, 0.9)
        for name, each in zip(names, regions, strict=False)
        for region in each
    ]
    regions_given = tuple(regions[k][0] for k in use)
    query = Query(question, detections=tuple(found), regions=regions_given, **fields)
    answerer = Answerer(points, query, model or Model(), to_model)
    result = answerer.answer()
    return result
