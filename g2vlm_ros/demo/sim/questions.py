# SPDX-License-Identifier: Apache-2.0
"""Questions and answers about a window of views, from ground truth.

Directions are in the viewer's frame of the newest (last) view; distances are from its camera to
the middle of a thing; everything else is about all views of the window. A thing counts as seen
when it fills MIN_SHARE of some view; what is only glimpsed is never asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from g2vlm_ros.demo.sim import furniture
from g2vlm_ros.demo.sim.home import STRUCTURE, Home, Item, overlaps
from g2vlm_ros.demo.sim.materials import COLOURS

MIN_SHARE = 0.003
"""Share of a view's pixels from which on a thing in it counts as seen (28 of 112x84)."""
AHEAD_RAD, BEHIND_RAD, UNCLEAR_RAD = np.deg2rad((15.0, 135.0, 5.0))
CLEAR_RATIO = 1.2
"""Two lengths are compared only when they differ by this factor."""


@dataclass(frozen=True)
class Mention:
    """Things that a question speaks of."""

    phrase: str
    """As the question spells it; empty for what it asks for without a name."""
    items: tuple[int, ...]
    """Their ids; none where nothing of the kind is there."""
    viewer_m: tuple[float, float, float] | None = None
    """Where a single thing is, as `Seen.viewer_m`."""


@dataclass(frozen=True)
class QuestionAnswer:
    """One question with its true answer."""

    kind: str
    question: str
    answer: str
    mentions: tuple[Mention, ...] = ()


@dataclass(frozen=True)
class Seen:
    """A thing as the window shows it."""

    item: Item
    phrase: str
    """How to call it without mistaking it for another: "chair" or "red chair"."""
    unique: bool
    """Whether the phrase fits no other thing in the window."""
    share: np.ndarray
    """Share of each view's pixels, (N,)."""
    viewer_m: np.ndarray
    """Middle in the newest view's frame, x right, y down, z forward."""
    centre_m: np.ndarray
    """Middle in the world at the time of the newest view."""

    @property
    def distance_m(self) -> float:
        return float(np.linalg.norm(self.viewer_m))

    @property
    def bearing_rad(self) -> float:
        """0 straight ahead, positive to the right."""
        return float(np.arctan2(self.viewer_m[0], self.viewer_m[2]))

    @property
    def mention(self) -> Mention:
        x, y, z = map(float, self.viewer_m)
        return Mention(self.phrase, (self.item.id,), (x, y, z))


@dataclass(frozen=True)
class VisibleFacts:
    """What can be asked about one window."""

    things: tuple[Seen, ...]
    """Those of which enough shows."""
    glimpsed: frozenset[str]
    """Names of things of which a few pixels show: neither there nor not there."""
    obstacles: np.ndarray
    """(K, 4) rectangles on the floor that a robot must not enter, seen or not."""

    def names(self) -> set[str]:
        return {thing.item.name for thing in self.things}

    def mention(self, phrase: str, name: str) -> Mention:
        """All things that are `name`, or `colour name`, under a phrase."""
        ids = tuple(
            t.item.id
            for t in self.things
            if name in (t.item.name, f"{t.item.colour} {t.item.name}")
        )
        return Mention(phrase, ids)

    def askable(self) -> list[Seen]:
        return [thing for thing in self.things if thing.unique]

    def in_newest(self) -> list[Seen]:
        return [thing for thing in self.askable() if thing.share[-1] >= MIN_SHARE]


def shares(items: np.ndarray) -> np.ndarray:
    """float64 (N, 256): the share of each view's pixels that an item id fills; items (N, H, W)."""
    counts = [np.bincount(view.ravel(), minlength=256) for view in items]
    return np.stack(counts) / items[0].size


def truth(
    home: Home, share: np.ndarray, world_from_camera: np.ndarray, time_s: np.ndarray
) -> VisibleFacts:
    """The truth of a window: `shares` (N, 256), poses (N, 4, 4), times (N,), oldest first."""
    camera_from_world = np.linalg.inv(world_from_camera[-1])
    things = [item for item in home.items if item.name not in STRUCTURE]
    best = {item.id: share[:, item.id].max() for item in things}
    visible = [item for item in things if best[item.id] >= MIN_SHARE]
    glimpsed = {item.name for item in things if 0 < best[item.id] < MIN_SHARE}
    names = Counter(item.name for item in visible)
    phrases = Counter(f"{item.colour} {item.name}" for item in visible)
    things_seen = []
    for item in visible:
        centre = item.centre_m + item.offset_m(float(time_s[-1]))
        viewer = camera_from_world[:3, :3] @ centre + camera_from_world[:3, 3]
        phrase, unique = f"{item.colour} {item.name}", False
        if item.name not in glimpsed:
            unique = phrases[phrase] == 1
            if names[item.name] == 1:
                phrase, unique = item.name, True
        things_seen.append(Seen(item, phrase, unique, share[:, item.id], viewer, centre))
    return VisibleFacts(tuple(things_seen), frozenset(glimpsed), home.obstacles())


def ask(
    truth: VisibleFacts, rng: np.random.Generator, count: int, kinds: Sequence[str] = ()
) -> list[QuestionAnswer]:
    """Up to `count` questions, their kinds spread evenly; fewer where the window shows little.

    kinds: those to ask of, all where there are none.
    """
    pairs: list[QuestionAnswer] = []
    order = list(kinds or KINDS)
    for _ in range(3 * len(KINDS) // len(order)):
        rng.shuffle(order)
        for kind in order:
            if len(pairs) == count:
                return pairs
            answer = _MAKERS[kind](truth, rng)
            if answer is not None and answer.question not in {qa.question for qa in pairs}:
                pairs.append(answer)
    return pairs


def _pick(rng: np.random.Generator, options: Sequence) -> Any:
    return options[int(rng.integers(len(options)))]


def _say(
    rng: np.random.Generator,
    kind: str,
    wordings: Sequence[str],
    answer: str,
    *mentions: Mention,
    **slots: str,
) -> QuestionAnswer:
    return QuestionAnswer(kind, str(_pick(rng, wordings)).format(**slots), answer, mentions)


def plural(name: str) -> str:
    """Plural of a name of the catalogue."""
    if name == "shelf":
        return "shelves"
    return name + ("es" if name.endswith("x") else "s")


def metres(value: float) -> str:
    """A length as the answers give it: tenths."""
    return f"{value:.1f} metres"


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _listing(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    if not truth.things:
        return None
    largest = sorted(truth.things, key=lambda thing: -thing.share.sum())
    names = list(dict.fromkeys(thing.item.name for thing in largest))[:3]
    listed = " and ".join(
        [", ".join(article(n) for n in names[:-1])] * (len(names) > 1) + [article(names[-1])]
    )
    wordings = ("What is there?", "What do you see?", "Name the largest things you see.")
    return _say(rng, "list", wordings, f"I see {listed}.")


def _exists(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    """About a kind of thing, or about one of a colour; as often there as not."""
    there, coloured = rng.random() < 0.5, rng.random() < 0.3
    if coloured:
        things = [thing for thing in truth.things if thing.item.name not in truth.glimpsed]
        if not things:
            return None
        name = _pick(rng, things).item.name
        colours = sorted({t.item.colour for t in things if t.item.name == name})
        options = colours if there else [c for c in COLOURS if c not in colours]
        options = [f"{colour} {name}" for colour in options]
    elif there:
        options = sorted(truth.names())
    else:
        options = [n for n in furniture.NAMES if n not in truth.names() | truth.glimpsed]
    if not options:
        return None
    wordings = ("Is there {a}?", "Do you see {a}?", "Is {a} in these views?")
    answer = "Yes." if there else "No."
    what = str(_pick(rng, options))
    return _say(rng, "exists", wordings, answer, truth.mention(what, what), a=article(what))


def _colour(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    options = [t for t in truth.askable() if t.phrase == t.item.name]
    if not options:
        return None
    thing = _pick(rng, options)
    wordings = (
        "What colour is the {x}?",
        "Which colour does the {x} have?",
        "The {x} is of which colour?",
    )
    return _say(
        rng, "colour", wordings, f"It is {thing.item.colour}.", thing.mention, x=thing.phrase
    )


def _count(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    names = Counter(thing.item.name for thing in truth.things)
    several = [name for name, number in names.items() if number > 1]
    chance = rng.random()
    options = list(furniture.NAMES) if chance < 0.3 else list(names)
    if several and chance > 0.6:
        options = several
    options = [name for name in options if name not in truth.glimpsed]
    if not options:
        return None
    name = str(_pick(rng, options))
    wordings = ("How many {x} are there?", "How many {x} do you see?", "Count the {x}.")
    mention = truth.mention(plural(name), name)
    return _say(rng, "count", wordings, f"{names[name]}.", mention, x=plural(name))


def _nearest(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    by_distance = sorted(
        (t for t in truth.things if t.share[-1] >= MIN_SHARE), key=lambda thing: thing.distance_m
    )
    if not by_distance or not by_distance[0].unique:
        return None
    if (
        len(by_distance) > 1
        and by_distance[1].distance_m < CLEAR_RATIO * by_distance[0].distance_m
    ):
        return None
    wordings = (
        "What is nearest to you now?",
        "Which thing is the nearest in the newest view?",
        "What stands closest to the camera in the newest view?",
    )
    asked_for = replace(by_distance[0].mention, phrase="")
    return _say(rng, "nearest", wordings, f"The {by_distance[0].phrase}.", asked_for)


def direction_word(bearing_rad: float) -> str | None:
    """ "in front", "left", "right" or "behind"; None near a border between two."""
    size = abs(bearing_rad)
    if min(abs(size - AHEAD_RAD), abs(size - BEHIND_RAD)) < UNCLEAR_RAD:
        return None
    if size < AHEAD_RAD:
        return "in front"
    if size > BEHIND_RAD:
        return "behind"
    return "right" if bearing_rad > 0 else "left"


def _direction(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    options = [(t, direction_word(t.bearing_rad)) for t in truth.askable()]
    options = [(thing, word) for thing, word in options if word is not None]
    if not options:
        return None
    words = sorted({word for _, word in options})
    choice = _pick(rng, words)
    thing, word = _pick(rng, [option for option in options if option[1] == choice])
    sentence = {"in front": "It is in front of you.", "behind": "It is behind you."}
    wordings = (
        "Where is the {x} now: left, right, in front or behind?",
        "Is the {x} left, right, in front or behind in the newest view's frame?",
        "In which direction is the {x} from the newest view?",
    )
    answer = sentence.get(word, f"It is to your {word}.")
    return _say(rng, "direction", wordings, answer, thing.mention, x=thing.phrase)


def _beside(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    visible = truth.in_newest()
    if len(visible) < 2:
        return None
    first, second = (visible[i] for i in rng.permutation(len(visible))[:2])
    apart = first.bearing_rad - second.bearing_rad
    if abs(apart) < 2 * UNCLEAR_RAD:
        return None
    wordings = (
        "In the newest view, is the {x} left or right of the {y}?",
        "Is the {x} to the left or to the right of the {y} now?",
    )
    answer = "Right." if apart > 0 else "Left."
    both = first.mention, second.mention
    return _say(rng, "beside", wordings, answer, *both, x=first.phrase, y=second.phrase)


def _distance(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    visible = truth.in_newest()
    if not visible:
        return None
    thing = _pick(rng, visible)
    wordings = (
        "How far is the {x}?",
        "How far away is the {x} in metres?",
        "How far is the {x} from the camera? Answer in metres.",
        "What is the distance to the {x}?",
    )
    answer = f"{metres(thing.distance_m)}."
    return _say(rng, "distance", wordings, answer, thing.mention, x=thing.phrase)


def _size(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    options = truth.askable()
    if not options:
        return None
    thing = _pick(rng, options)
    wordings, axis = ("How wide is the {x}?", "What is the width of the {x}?"), 0
    if rng.random() < 0.5 and thing.item.name != "rug":
        wordings = ("How tall is the {x}?", "How high is the {x}?", "What height has the {x}?")
        axis = 2
    answer = f"{metres(thing.item.size_m[axis])}."
    return _say(rng, "size", wordings, answer, thing.mention, x=thing.phrase)


def gap_m(first: Seen, second: Seen) -> float:
    """Free width between two things: the distance of the rectangles on the floor around them."""
    boxes = []
    for thing in (first, second):
        x0, y0, x1, y1 = thing.item.footprint()
        boxes.append(((x0, y0), (x1, y1)))
    (low_a, high_a), (low_b, high_b) = boxes
    apart = np.maximum(np.subtract(low_a, high_b), np.subtract(low_b, high_a))
    return float(np.linalg.norm(np.maximum(apart, 0.0)))


def _free_between(truth: VisibleFacts, first: Seen, second: Seen) -> bool:
    """Whether nothing stands between two things on the floor."""
    a, b = first.item.footprint(), second.item.footprint()
    x, y = (sorted((max(a[i], b[i]), min(a[i + 2], b[i + 2]))) for i in (0, 1))
    return not any(overlaps((x[0], y[0], x[1], y[1]), other) for other in truth.obstacles)


def _fits(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    standing = [
        thing
        for thing in truth.askable()
        if thing.item.name not in (*furniture.ON_WALL, "rug")
        and not thing.item.travel_m.any()
        and thing.centre_m[2] - thing.item.size_m[2] / 2 < 0.1
    ]
    if len(standing) < 2:
        return None
    first, second = (standing[i] for i in rng.permutation(len(standing))[:2])
    gap = gap_m(first, second)
    if not 0.4 < gap < 2.5 or first.item.room != second.item.room:
        return None
    if not _free_between(truth, first, second):
        return None
    fits = rng.random() < 0.5
    width = gap * (rng.uniform(0.4, 0.75) if fits else rng.uniform(1.3, 2.2))
    wordings = (
        "Would a box {w} wide fit between the {x} and the {y}?",
        "Can something {w} wide pass between the {x} and the {y}?",
        "Is the gap between the {x} and the {y} wider than {w}?",
    )
    slots = {"w": metres(width), "x": first.phrase, "y": second.phrase}
    both = first.mention, second.mention
    return _say(rng, "fits", wordings, "Yes." if fits else "No.", *both, **slots)


def _closer(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    visible = truth.in_newest()
    if len(visible) < 2:
        return None
    first, second = (visible[i] for i in rng.permutation(len(visible))[:2])
    near, far = sorted((first, second), key=lambda thing: thing.distance_m)
    if far.distance_m < CLEAR_RATIO * near.distance_m:
        return None
    wordings = (
        "Which is closer, the {x} or the {y}?",
        "What is nearer to you: the {x} or the {y}?",
        "Is the {x} or the {y} closer to the camera?",
    )
    slots = {"x": first.phrase, "y": second.phrase}
    both = first.mention, second.mention
    return _say(rng, "closer", wordings, f"The {near.phrase}.", *both, **slots)


def _absent(truth: VisibleFacts, rng: np.random.Generator) -> QuestionAnswer | None:
    """A question that takes for granted a thing that is not there."""
    options = [n for n in furniture.NAMES if n not in truth.names() | truth.glimpsed]
    if not options:
        return None
    name = str(_pick(rng, options))
    wordings = (
        "What colour is the {x}?",
        "How far is the {x}?",
        "How tall is the {x}?",
        "How far away is the {x} in metres?",
        "How wide is the {x}?",
        "Where is the {x} now: left, right, in front or behind?",
    )
    return _say(rng, "absent", wordings, f"There is no {name}.", Mention(name, ()), x=name)


_MAKERS: dict[str, Callable[[VisibleFacts, np.random.Generator], QuestionAnswer | None]] = {
    "list": _listing,
    "exists": _exists,
    "colour": _colour,
    "count": _count,
    "nearest": _nearest,
    "direction": _direction,
    "beside": _beside,
    "distance": _distance,
    "size": _size,
    "fits": _fits,
    "closer": _closer,
    "absent": _absent,
}
KINDS = tuple(_MAKERS)
