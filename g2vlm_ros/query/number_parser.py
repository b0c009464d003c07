# SPDX-License-Identifier: Apache-2.0
"""Numbers in prose: "2.5", "1,5", "two and a half", "½", "three quarters", "1 1/2".

A number that can be read in two ways ("1,500": a thousand and a half, or one and a half?) is no
number here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import NamedTuple

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
CARDINALS = {
    **{word: float(n) for n, word in enumerate(_ONES)},
    **{word: 10.0 * n for n, word in enumerate(_TENS, start=2)},
}
FRACTIONS = {
    "half": 1 / 2,
    "halves": 1 / 2,
    "third": 1 / 3,
    "thirds": 1 / 3,
    "quarter": 1 / 4,
    "quarters": 1 / 4,
    "fifth": 1 / 5,
    "fifths": 1 / 5,
    "tenth": 1 / 10,
    "tenths": 1 / 10,
}
_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?(?![\d.,]*\d)|[^\W\d_]+(?:'[^\W\d_]+)?|[\"'°²]|[^\s\w]"
)


class Token(NamedTuple):
    """A word, a numeral or a mark, in lower case, and where it stands in the text."""

    text: str
    start: int
    end: int


class Numeral(NamedTuple):
    """A number read from tokens [first, after)."""

    value: float
    after: int


def tokens(text: str) -> list[Token]:
    """The words, numerals and marks of a text; positions are those of `plain(text)`."""
    return [Token(m.group(), m.start(), m.end()) for m in _TOKEN.finditer(plain(text))]


def plain(text: str) -> str:
    """Lower case; typographic quotes, dashes and fractions as their simple forms."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = text.replace("²", "^2")
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    for fancy, simple in (("’", "'"), ("′", "'"), ("″", '"'), ("”", '"'), ("“", '"')):
        text = text.replace(fancy, simple)
    return re.sub("[‐‑‒–—−]", "-", text).lower()


def numeral(words: list[Token], at: int) -> Numeral | None:
    """The number that begins at token `at`, as long as it goes, or None."""
    read = _fraction_of_one(words, at) or _digits(words, at) or _words(words, at)
    return None if read is None else _with_fraction(words, read)


def _word(words: list[Token], at: int) -> str:
    return words[at].text if 0 <= at < len(words) else ""


def _digits(words: list[Token], at: int) -> Numeral | None:
    value = decimal(_word(words, at))
    if value is None:
        return None
    if _word(words, at + 1) == "/":
        below = decimal(_word(words, at + 2))
        return Numeral(value / below, at + 3) if below else None
    # "1 1/2"
    over, below = decimal(_word(words, at + 1)), decimal(_word(words, at + 3))
    if over is not None and _word(words, at + 2) == "/" and below and over < below:
        return Numeral(value + over / below, at + 4)
    if _word(words, at + 1) in ("hundred", "thousand"):
        return Numeral(value * (100 if _word(words, at + 1) == "hundred" else 1000), at + 2)
    return Numeral(value, at + 1)


def decimal(text: str) -> float | None:
    """The value of digits with a point or a comma; None where ambiguous or beyond a float."""
    if not re.fullmatch(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?", text):
        return None
    mantissa, _, exponent = text.partition("e")
    marks = [c for c in mantissa if c in ".,"]
    if len(marks) == 1 and marks[0] == ",":
        integer_part, _, part = mantissa.partition(",")
        if len(part) == 3 and integer_part != "0":
            return None
        mantissa = f"{integer_part}.{part}"
    elif len(marks) > 1:
        *groups, last = re.split("[.,]", mantissa)
        thousands = marks[0]
        grouped = len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
        if not grouped or any(mark != thousands for mark in marks[:-1]):
            return None
        if marks[-1] == thousands:
            if len(last) != 3:
                return None
            mantissa = "".join([*groups, last])
        else:
            mantissa = "".join(groups) + "." + last
    value = float(f"{mantissa}e{exponent or 0}")
    return value if math.isfinite(value) else None


def _words(words: list[Token], at: int) -> Numeral | None:
    """ "twenty-five", "one hundred and six", "one point five"."""
    value, i = _below_hundred(words, at)
    if value is None and _word(words, at) in ("a", "one") and _word(words, at + 1) == "hundred":
        value, i = 1.0, at + 1
    if value is None:
        return None
    for name, factor in (("hundred", 100.0), ("thousand", 1000.0)):
        if _word(words, i) == name:
            value, i = value * factor, i + 1
            skip = _word(words, i) == "and"
            rest, after = _below_hundred(words, i + skip)
            if rest is not None:
                value, i = value + rest, after
    if _word(words, i) == "point":
        digits = ""
        while _word(words, i + 1) in _ONES[:10]:
            digits, i = digits + str(_ONES.index(_word(words, i + 1))), i + 1
        if not digits:
            return None
        return Numeral(value + float("0." + digits), i + 1)
    return Numeral(value, i)


def _below_hundred(words: list[Token], at: int) -> tuple[float | None, int]:
    word = _word(words, at)
    if word not in CARDINALS:
        return None, at
    value, i = CARDINALS[word], at + 1
    if word in _TENS:
        dash = _word(words, i) == "-"
        ones = CARDINALS.get(_word(words, i + dash), 0.0)
        if 1 <= ones <= 9:
            return value + ones, i + dash + 1
    return value, i


def _fraction_of_one(words: list[Token], at: int) -> Numeral | None:
    """ "half", "a quarter of", "three quarters"; without the "a" that may follow."""
    i = at + (_word(words, at) in ("a", "one"))
    if _word(words, i) in ("half", "quarter", "third", "fifth", "tenth"):
        return Numeral(FRACTIONS[_word(words, i)], i + 1)
    count = CARDINALS.get(_word(words, at), decimal(_word(words, at)))
    if count and _word(words, at + 1) in ("halves", "thirds", "quarters", "fifths", "tenths"):
        return Numeral(count * FRACTIONS[_word(words, at + 1)], at + 2)
    return None


def _with_fraction(words: list[Token], read: Numeral) -> Numeral:
    """ "... and a half", "... and three quarters"."""
    if _word(words, read.after) != "and":
        return read
    part = _fraction_of_one(words, read.after + 1)
    return read if part is None else Numeral(read.value + part.value, part.after)
