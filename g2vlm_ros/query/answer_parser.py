# SPDX-License-Identifier: Apache-2.0
"""Free text of the model -> values: lengths, angles, counts, yes or no, directions.

The released weights answer in prose ("about two and a half metres"). Each parser returns what it
read together with the words it read it from, or None: where a text says two things, denies, gives
a bound only ("less than 2 m") or says nothing, there is no value. `pointing` reads regions.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from g2vlm_ros.query.number_parser import Token, numeral, plain, tokens

AGREE = 0.03
"""Two readings are one value when they differ by less: "2 metres (6.6 feet)"."""

_LENGTHS_M = {
    1.0: "m meter meters metre metres",
    0.01: "cm centimeter centimeters centimetre centimetres",
    0.001: "mm millimeter millimeters millimetre millimetres",
    0.1: "dm decimeter decimeters decimetre decimetres",
    1000.0: "km kilometer kilometers kilometre kilometres",
    0.3048: "ft feet foot '",
    0.0254: 'inch inches in "',
    0.9144: "yard yards yd",
}
_ANGLES_RAD = {
    math.pi / 180: "degree degrees deg °",
    1.0: "radian radians rad",
    2 * math.pi: "turn turns revolution revolutions",
}
_BOUNDS = frozenset(
    "less more over under within least most below above beyond exceeding least to than".split()
)
_VAGUE = frozenset("few several couple some many dozens".split())
_SMALLER = {1.0: (0.01, 0.001), 0.3048: (0.0254,)}
"""What may follow a unit to make one length: "1 m 20", "5 ft 6 in"."""

_DENIALS = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|(?:unable|impossible|hard|difficult) to)\b[^.!?]{,40}"
    r"\b(?:see|tell|say|find|locate|determine|identify|detect|estimate|measure|answer|know|spot)\b"
    r"|\b(?:do|does|did) ?(?:not|n't) (?:know|see|find|appear|show)\b"
    r"|\bnot (?:visible|present|shown|seen|in (?:the |this |these |any |either )?"
    r"(?:view|image|picture|frame|scene|photo)s?|there|known|sure|certain|clear|enough)\b"
    r"|\b(?:is|are) no(?:ne)?\b(?! (?:more|less|further|closer|farther|longer|wider|taller)\b)"
    r"|\bno (?:such|sign of)\b|\bunknown\b|\binvisible\b|\bi don't\b"
)
_ABSENCES = re.compile(
    r"\b(?:is|are|see|'s) no(?:ne)?\b"
    r"(?! (?:more|less|further|closer|farther|longer|wider|taller)\b)"
    r"|\bnot (?:visible|present|shown|seen|in (?:the |this |these |any |either )?"
    r"(?:view|image|picture|frame|scene|photo)s?|there)\b"
    r"|\b(?:can ?not|can't|could not|couldn't|don't|do not|unable to)\b[^.!?]{0,20}"
    r"\b(?:see|find|locate|detect|spot)\b"
    r"|\b(?:does|do) ?(?:not|n't) appear\b|\bno (?:such|sign of)\b|\binvisible\b"
)
_DOUBT = re.compile(r"\b(?:maybe|perhaps|possibly|might|unsure|unclear|it depends|yes and no)\b")


@dataclass(frozen=True)
class Quantity:
    """A number with its unit, as a text gave it."""

    value: float
    unit: str
    """SI: "m", "rad"; empty for a count."""
    text: str
    """The words it was read from."""
    spread: float = 0.0
    """Half the width of a range ("2 to 3 metres"), in `unit`; 0 where one number was given."""


@dataclass(frozen=True)
class Said:
    """A yes or a no, as a text gave it."""

    value: bool
    text: str


@dataclass(frozen=True)
class Directions:
    """Which way, as a text gave it; words of DIRECTIONS, in order."""

    words: tuple[str, ...]
    text: str


DIRECTIONS = ("left", "right", "front", "behind", "above", "below")
_OPPOSITE = dict(
    left="right", right="left", front="behind", behind="front", above="below", below="above"
)


def denies(text: str) -> bool:
    """Whether a text says that it does not know or that something is not there."""
    return _DENIALS.search(plain(text)) is not None


def says_absent(text: str) -> bool:
    """Whether a text says that what was asked about is not there or cannot be seen."""
    return _ABSENCES.search(plain(text)) is not None


def length(text: str, default_unit: str = "") -> Quantity | None:
    """The one length that a text gives, in metres.

    default_unit: the unit ("m", "cm", ...) of a text that is nothing but a number, for questions
    that name a unit; empty = such a text gives no length.
    """
    quantities = _quantities(text, _LENGTHS_M, "m")
    if not quantities and default_unit:
        factor = next(
            (f for f, names in _LENGTHS_M.items() if default_unit in names.split()), None
        )
        if factor is None:
            raise ValueError(f"default_unit '{default_unit}' is no length; use m, cm, mm or ft")
        quantities = _bare(text, factor)
    return None if denies(text) else _one(quantities)


def angle(text: str) -> Quantity | None:
    """The one angle that a text gives, in radians, without a sign; "half a turn" counts."""
    return None if denies(text) else _one(_quantities(text, _ANGLES_RAD, "rad"))


def count(text: str) -> Quantity | None:
    """The one whole number that a text gives: "3.", "there are three", "no chairs", "none"."""
    words = tokens(text)
    if any(word.text in _VAGUE for word in words) or _DOUBT.search(plain(text)):
        return None
    numbers, i = [], 0
    while i < len(words):
        read = numeral(words, i)
        after = "" if read is None or read.after >= len(words) else words[read.after].text
        before = words[i - 1].text if i else ""
        if read is not None:
            pronoun = words[i].text == "one" and before in (
                "the this that which each every another no only first last second".split()
            )
            if not pronoun and not _unit(after) and before not in _BOUNDS | {"-"}:
                numbers.append(_quote(text, words, i, read.after, read.value, ""))
            i = read.after
            continue
        i += 1
    if not numbers:
        return _count_in_words(text)
    values = {quantity.value for quantity in numbers}
    is_whole = len(values) == 1 and numbers[0].value == int(numbers[0].value) >= 0
    return numbers[0] if is_whole else None


def yes_no(text: str) -> Said | None:
    """Whether a text affirms or denies: its first word where that is yes or no, else its verb."""
    simple = plain(text).strip()
    if _DOUBT.search(simple):
        return None
    first = re.match(r"[^\w]*(yes|yeah|yep|no|nope|true|false|correct|incorrect)\b", simple)
    if first:
        value = first.group(1) in ("yes", "yeah", "yep", "true", "correct")
        other = r"\bno\b(?=[.,!;]|$)" if value else r"\byes\b"
        again = re.search(other, simple[first.end() :])
        return None if again else Said(value, first.group(1))
    negative = re.search(
        r"\b(?:is|are|does|do|will|would|can|could|was|has)(?: not|n't)\b|\bwon't\b|\bcan ?not\b"
        r"|\b(?:is|are) no(?:ne)?\b|\bnot wide enough\b|\btoo (?:narrow|wide|small|large|big)\b"
        r"|\b(?:see|'s) no\b",
        simple,
    )
    positive = re.search(
        r"\b(?:it|they|there|that|this|[a-z]+) (?:is|are|does|do|would|will|can|could|has)\b"
        r"(?! not|n't| no\b)|\bi (?:can )?see (?:a|an|the|one|two|some)\b",
        simple,
    )
    if re.search(r"\b(?:know|sure|tell|determine)\b", simple) and negative:
        return None
    if bool(negative) == bool(positive):
        return None
    match = negative or positive
    return Said(negative is None, match.group())


def directions(text: str) -> Directions | None:
    """Which of DIRECTIONS a text gives; None where it names opposites or a choice of them."""
    simple = plain(text)
    simple = re.sub(
        r"\bright (?=in front|behind|ahead|above|below|next|now|there|here)", "", simple
    )
    simple = re.sub(r"\b(?:that's|that is|you're|all|is) right\b(?=[.,!]|$)", "", simple)
    patterns = {
        "left": r"\bleft(?:ward|wards|most)?\b(?! over)",
        "right": r"\bright(?:ward|wards|most)?\b",
        "front": r"\b(?:in front|ahead|straight on|before you|forwards?)\b|^\W*front\b",
        "behind": r"\bbehind\b|\bat your back\b|\bbackwards?\b|\bat the back\b",
        "above": r"\babove\b|\bon top\b|\boverhead\b",
        "below": r"\bbelow\b|\bunder(?:neath)?\b|\bbeneath\b",
    }
    matches = []
    for word, pattern in patterns.items():
        for match in re.finditer(pattern, simple):
            before = simple[max(0, match.start() - 24) : match.start()]
            if re.search(r"\b(?:not|neither|nor)\b(?!.*\bbut\b)[^.,;]*$", before):
                continue
            matches.append((match.start(), word, match.group()))
    matches.sort()
    words = tuple(dict.fromkeys(word for _, word, _ in matches))
    choice = re.search(r"\b(?:left|right|front|behind|above|below)\b,? or\b", simple)
    if not words or choice or any(_OPPOSITE[word] in words for word in words) or denies(text):
        return None
    return Directions(words, " ".join(match for *_, match in matches))


def _unit(word: str) -> tuple[str, float] | None:
    """("m" or "rad", factor) of a unit's name."""
    for unit, table in (("m", _LENGTHS_M), ("rad", _ANGLES_RAD)):
        for factor, names in table.items():
            if word in names.split():
                return unit, factor
    return None


def _factor(table: dict[float, str], word: str) -> float | None:
    return next(
        (factor for factor, names in table.items() if word and word in names.split()), None
    )


def _quantities(text: str, table: dict[float, str], unit: str) -> list[Quantity | None]:
    """Every quantity of a text in order; None for one that is only a bound."""
    words, quantities, i = tokens(text), [], 0
    while i < len(words):
        read = _quantity(words, i, table)
        if read is None:
            i += 1
            continue
        value, spread, after = read
        before = [word.text for word in words[max(0, i - 3) : i]]
        if _denied(before):
            pass
        elif math.isnan(value) or _bounded(before) or before[-1:] in (["-"], ["minus"]):
            quantities.append(None)  # a bound, or a length below zero: neither is an answer
        else:
            quantities.append(_quote(text, words, i, after, value, unit, spread))
        i = after
    return quantities


def _quantity(
    words: list[Token], at: int, table: dict[float, str]
) -> tuple[float, float, int] | None:
    """(value, half the range, after) of a quantity at a token; value NaN for a choice of two."""
    article = _word(words, at) in ("a", "an", "one") and _factor(table, _word(words, at + 1))
    if article and not (_word(words, at) == "a" and _word(words, at + 1) == "in"):
        value, after = _and_a_half(words, 1.0, at + 2)
        return value * article, 0.0, after
    read = numeral(words, at)
    if read is None:
        return None
    low, after = read
    high, relative_pose = low, _word(words, after)
    if relative_pose in ("to", "-", "or", "and"):
        second = numeral(words, after + 1)
        if second is not None and _factor(table, _unit_word(words, second.after)[0]):
            ranges = (
                relative_pose in ("to", "-")
                or relative_pose == "and"
                and _word(words, at - 1) == "between"
            )
            high, after = second if ranges else (math.nan, second.after)
    name, after = _unit_word(words, after)
    factor = _factor(table, name)
    if factor is None or high < low:
        return None
    if high == low:
        high, after = _and_a_half(words, low, after)
        low = high
    value = (low + high) / 2 * factor
    more = numeral(words, after + (_word(words, after) == "and"))
    if high == low and more is not None:
        smaller = _factor(table, _word(words, more.after))
        if smaller in _SMALLER.get(factor, ()):
            value, after = value + more.value * smaller, more.after + 1
    return value, (high - low) / 2 * factor, after


def _unit_word(words: list[Token], at: int) -> tuple[str, int]:
    """The unit's name after a number, past "of a" and "-" ("half a metre", "2-metre")."""
    i = at
    while _word(words, i) in ("of", "a", "an", "-") and i < at + 2:
        i += 1
    if _unit(_word(words, i)) is None:
        i = at
    return _word(words, i), i + 1


def _and_a_half(words: list[Token], value: float, at: int) -> tuple[float, int]:
    """ "a metre and a half"."""
    if [_word(words, at + k) for k in range(3)] == ["and", "a", "half"]:
        return value + 0.5, at + 3
    return value, at


def _bounded(before: list[str]) -> bool:
    """Whether a number is only a bound: "less than", "at least", "up to", "within"."""
    tail = " ".join(before)
    return bool(
        re.search(
            r"(?:than|at least|at most|up to|within|over|under|below|above|beyond|exceeding)$",
            tail.replace(" about", "").replace(" around", ""),
        )
    )


def _denied(before: list[str]) -> bool:
    return bool({"not", "isn't", "aren't", "never"} & set(before[-2:]))


def _bare(text: str, factor: float) -> list[Quantity | None]:
    words = tokens(text.strip().rstrip(".!"))
    while words and words[0].text in ("about", "around", "approximately", "roughly", "~", "ca"):
        words = words[1:]
    read = numeral(words, 0) if words else None
    if read is None or read.after != len(words):
        return []
    return [_quote(text, words, 0, read.after, read.value * factor, "m")]


def _one(quantities: list[Quantity | None]) -> Quantity | None:
    """The value that all readings agree on."""
    if not quantities or any(quantity is None for quantity in quantities):
        return None
    first = quantities[0]
    agree = all(
        abs(other.value - first.value) <= AGREE * max(abs(first.value), abs(other.value))
        for other in quantities
    )
    return first if agree else None


def _count_in_words(text: str) -> Quantity | None:
    simple = plain(text)
    none = re.search(r"\bnone\b|\b(?:is|are|see) no(?:t any)?\b|^\W*no [a-z]+s\b", simple)
    if none:
        return Quantity(0.0, "", none.group())
    single = re.search(r"\b(?:a single|only one|just one|there is an?|i see an?)\b", simple)
    several = re.search(r"\b(?:and|,) (?:a|an|another)\b", simple)
    return Quantity(1.0, "", single.group()) if single and not several else None


def _quote(
    text: str, words: list[Token], first: int, after: int, value: float, unit: str, spread=0.0
) -> Quantity:
    quote = plain(text)[words[first].start : words[after - 1].end]
    return Quantity(value, unit, quote, spread)


def _word(words: list[Token], at: int) -> str:
    return words[at].text if 0 <= at < len(words) else ""
