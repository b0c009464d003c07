# SPDX-License-Identifier: Apache-2.0
"""What was measured as a sentence: one function per question type, without "Yes" or "No"."""

from __future__ import annotations

import math

from g2vlm_ros.query.answer_measures import Nearest, Objects, Passage, Word
from g2vlm_ros.query.question_plan import VIEWER, Plan
from g2vlm_ros.query.relations import Claim, Measure


def distance(plan: Plan, things: Objects, value: Measure) -> str:
    if len(things) > 1:
        return f"The {things[0].label} and the {things[1].label} are {metres(value)} apart."
    return f"The {things[0].label} is {metres(value)} away."


def extent(plan: Plan, things: Objects, value: Measure) -> str:
    return f"The {plan.word} of the {things[0].label} is {metres(value)}."


def heading(plan: Plan, things: Objects, value: Measure) -> str:
    side = "left" if value.value > 0 else "right"
    degrees = abs(math.degrees(value.value))
    return f"Turn {degrees:.0f}° to the {side} to face the {things[0].label}."


def direction(plan: Plan, things: Objects, value: Word) -> str:
    place = {"front": "in front of you", "behind": "behind you"}.get(
        value.word, f"to your {value.word}"
    )
    return f"The {things[0].label} is {place}."


def relation(plan: Plan, things: Objects, value: Claim) -> str:
    place = {"left": "left of", "right": "right of", "front": "in front of"}.get(
        plan.word, plan.word
    )
    other = "you" if plan.things[1] == VIEWER else f"the {things[1].label}"
    return f"The {things[0].label} is {'' if value.value else 'not '}{place} {other}."


def side(plan: Plan, things: Objects, value: Word) -> str:
    return f"The {things[0].label} is {value.word} of the {things[1].label}."


def closer(plan: Plan, things: Objects, value: Claim | Nearest) -> str:
    first_is_nearer = value.value if isinstance(value, Claim) else value.thing is things[0]
    near, far = things if first_is_nearer else things[::-1]
    return f"The {near.label} is closer than the {far.label}."


def between(plan: Plan, things: Objects, value: Claim) -> str:
    return (
        f"The {things[0].label} is {'' if value.value else 'not '}between the "
        f"{things[1].label} and the {things[2].label}."
    )


def gap(plan: Plan, things: Objects, value: Measure) -> str:
    return f"The gap between the {things[0].label} and the {things[1].label} is {metres(value)}."


def passage(plan: Plan, things: Objects, value: Passage) -> str:
    return (
        f"The gap between the {things[0].label} and the {things[1].label} is "
        f"{metres(value.free)}, {value.width_m:.2f} m is needed."
    )


def count(plan: Plan, things: Objects, value: Measure) -> str:
    return f"{value.value:.0f} {plan.things[0]}."


def presence(plan: Plan, things: Objects, value: Claim) -> str:
    return f"There is a {things[0].label}."


def nearest(plan: Plan, things: Objects, value: Nearest) -> str:
    return f"The {value.thing.label} is the nearest."


def metres(measure: Measure) -> str:
    """A length with its standard deviation."""
    return f"{measure.value:.2f} m (±{measure.std:.2f} m)"
