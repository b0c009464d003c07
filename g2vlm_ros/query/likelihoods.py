# SPDX-License-Identifier: Apache-2.0
"""What a window says of a remembered object, as log odds of its being there.

The belief in an object is the sum of these log odds, kept within MAX_EVIDENCE. Windows share views
and the network errs alike in them, so that no window says more than MAX_WINDOW against an object.
The probabilities were measured on validation homes (`python -m benchmarks objects --split
validation`), where a sighting and a silence of a detector are those of boxes with their noise.
"""

from __future__ import annotations

import math

SIGHTING = math.log(0.9 / 0.2)
"""A detector shows it: of what stands there in 9 windows of 10; of what does not by an error, or
another thing of its kind that is taken for it."""
MIN_MISS = 0.1
"""How often a detector does not show what stands there in full view, at least: it overlooks a
thing from the same side in several views in a row."""
SEEN_THROUGH = math.log(0.3)
"""All rays end behind it: of what stands there where its place is wrong by more than its
covariance says, or it is thin."""
SUCCESSOR = math.log(0.35)
"""A thing of its kind was first seen since, elsewhere: it was moved, or there are two."""
SURFACE = 1.0
"""A surface at the place of what is to be looked at again: enough by itself to be PRESENT."""
ALIKE, UNLIKE = 0.1, 0.3
"""Distances of two mean colours, RGB 0..1, below and above which the colour at its place says
something where a detector is silent."""
COLOUR_ALIKE, COLOUR_UNLIKE = math.log(0.5 / 0.07), math.log(0.16 / 0.48)
"""Of 587 views of places where a thing stood, and of 145 where it stood no more, 0.5 and 0.07 were
as near as ALIKE, 0.16 and 0.48 farther than UNLIKE."""
MAX_WINDOW = 3.0
MAX_EVIDENCE = 4.0
"""Bounds: one window never takes what was sure until then to GONE, two may."""


def silence(sightings: int, overlooked: int) -> float:
    """Of a detector that looked and did not show it: the surer it showed it until now, the more.

    overlooked: windows in which it was silent though the object was shown again later. By
    Laplace's rule of succession, MIN_MISS at least.
    """
    miss = (overlooked + 1) / (sightings + overlooked + 2)
    return math.log(max(miss, MIN_MISS))


def colour(distance: float) -> float:
    """Of the colour at its place, by its distance from that of the object; 0 where it is NaN."""
    if distance < ALIKE:
        return COLOUR_ALIKE
    return COLOUR_UNLIKE if distance > UNLIKE else 0.0


def bounded(evidence: float) -> float:
    """Log odds within MAX_EVIDENCE."""
    return min(max(evidence, -MAX_EVIDENCE), MAX_EVIDENCE)
