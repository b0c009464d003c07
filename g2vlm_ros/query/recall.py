# SPDX-License-Identifier: Apache-2.0
"""Remembered objects against what the newest views show: the surer one is what was asked about.

What lies in the newest views comes first. Where the model points at one place of a view and a
remembered object stands at another one of it, at most one of both is meant, and their beliefs say
which. What is remembered elsewhere contradicts no pointing: there may be two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from g2vlm_ros.query import likelihoods, map_object
from g2vlm_ros.query.labels import unknown_attributes
from g2vlm_ros.query.map_object import MapObject
from g2vlm_ros.query.object_measurement import Object3D, map_covariance
from g2vlm_ros.query.point_map import PointMap
from g2vlm_ros.query.types import Abstention, Reason

GATE = 11.34
"""Squared Mahalanobis distance of 99 % of places of one object (chi-square, 3 dimensions)."""
PLACE_STD_M = 0.1
"""Error of a place that no covariance tells: the model points at another part each time."""
REACH_M = 0.15
"""Half of what counts as the place of an object without a size."""
PIXEL_STEP = 4
"""Every so many pixels of a view are looked at."""
MIN_SURFACE = 4
"""Of these, those that must lie in the upper half of an object's box for it to be in view."""
ALIKE_EVIDENCE = 1.0
"""Log odds by which the surest of several remembered objects may be surer than one that is as
likely meant: less than a sighting by a detector."""


def in_view(points: PointMap, each: MapObject) -> bool:
    """Whether the views show a surface at the place of a remembered object.

    Only its upper half tells: at its feet lies the floor that it stands on.
    """
    half = np.maximum(each.size / 2, REACH_M)
    surface = points.points[:, ::PIXEL_STEP, ::PIXEL_STEP].reshape(-1, 3)
    local = (surface - each.centre) @ each.axes
    inside = (np.abs(local) <= half).all(1) & (local[:, 2] >= 0)
    return int(np.count_nonzero(inside)) >= MIN_SURFACE


def same_place(points: PointMap, thing: Object3D, each: MapObject) -> bool:
    """Whether a thing that was measured in the views lies where a remembered object does.

    A pixel is somewhere on the surface, so what counts is how far it is from the box.
    """
    off = each.axes.T @ (thing.centre - each.centre)
    beyond = each.axes @ (np.sign(off) * np.maximum(np.abs(off) - each.size / 2, 0.0))
    covariance = map_covariance(points, thing) + each.covariance + np.eye(3) * PLACE_STD_M**2
    return bool(beyond @ np.linalg.solve(covariance, beyond) < GATE)


def weigh(
    points: PointMap, pointed: Sequence[Object3D], memory: Sequence[MapObject]
) -> list[Object3D]:
    """What the model points at, without what remembered objects in the same views speak against.

    memory: those that the phrase means and that are there. An object that both tell of is as sure
    as both together. Empty where a remembered one is surer than every place pointed at.
    """
    partners = [[each for each in memory if same_place(points, thing, each)] for thing in pointed]
    confirmed = {each.id for alike in partners for each in alike}
    rivals = [each for each in memory if each.id not in confirmed and in_view(points, each)]
    strongest = max((each.evidence for each in rivals), default=0.0)
    weighed = []
    for thing, alike in zip(pointed, partners, strict=True):
        evidence = log_odds(thing.trust)
        if alike:
            evidence += max(0.0, max(each.evidence for each in alike))
        elif evidence < strongest:
            continue
        weighed.append(replace(thing, trust=max(thing.trust, probability(evidence))))
    return weighed


def surest(points: PointMap, memory: Sequence[MapObject]) -> list[MapObject]:
    """Of remembered objects that a phrase may mean: those in view, else those believed most.

    Several where they are believed alike.
    """
    here = [each for each in memory if in_view(points, each)] or list(memory)
    most = max((each.evidence for each in here), default=0.0)
    return [each for each in here if each.evidence >= most - ALIKE_EVIDENCE]


def whereabouts(objects: Sequence[MapObject], now_ns: int) -> str:
    """Each object with its name, place, room and age, for who must say which one is meant."""
    sentences = []
    for each in objects:
        room = f" in {each.room_title}" if each.room else ""
        age = map_object.age_in_words(each, now_ns)
        title = each.name or each.label
        sentences.append(f"the {title} at {each.place_in_words()}{room}, seen {age} ago")
    return "; ".join(sentences)


def unknown_in_words(phrase: str, objects: Sequence[MapObject], now_ns: int) -> str:
    """That objects of the kind of a phrase are remembered, and what is not known of them."""
    unknown: dict[str, str] = {}
    for each in objects:
        unknown |= unknown_attributes(phrase, each.label)
    groups = " and ".join(unknown)
    places = whereabouts(objects, now_ns)
    return f"the {groups} of what is remembered is not known: {places}"


def check_known(phrase: str, memory: Sequence[MapObject], now_ns: int) -> None:
    """Abstention where nothing that is remembered is what a phrase asks for, but something may be:
    of its kind, with an attribute that is not known."""
    doubtful = [each for each in map_object.undetermined(memory, phrase) if each.there]
    if doubtful and not map_object.matching(memory, phrase):
        unknown = unknown_in_words(phrase, doubtful, now_ns)
        raise Abstention(
            Reason.AMBIGUOUS,
            f"no {phrase} is known, but {unknown}; ask for it without that, or look at it again",
        )


def log_odds(trust: float) -> float:
    """Of a probability, bounded as beliefs are."""
    bounded = min(max(trust, 1e-6), 1 - 1e-6)
    return likelihoods.bounded(math.log(bounded / (1 - bounded)))


def probability(evidence: float) -> float:
    """Of log odds."""
    return 1.0 / (1.0 + math.exp(-likelihoods.bounded(evidence)))
