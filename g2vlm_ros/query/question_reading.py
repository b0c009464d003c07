# SPDX-License-Identifier: Apache-2.0
"""A question's words -> the signs of its meaning and the names in it, by the lexicon."""

from __future__ import annotations

import re
from dataclasses import dataclass

from g2vlm_ros.query import lexicon
from g2vlm_ros.query.number_parser import plain
from g2vlm_ros.query.question_plan import VIEWER

_WORDS = (("name", lexicon.COMPOUNDS), *lexicon.SIGNS)
_SIGN = re.compile(
    "|".join(
        [
            rf"(?P<{sign}_{i}>(?<![\w'])(?:{words})(?![\w']))"
            for i, (sign, words) in enumerate(_WORDS)
        ]
        + [rf"(?P<{sign}_{i}_>{mark})" for i, (sign, mark) in enumerate(lexicon.MARKS)]
    )
)
_DETERMINER = re.compile(rf"^(?:{lexicon.DETERMINERS}(?:\s+|$))+")
_ARTICLE = re.compile(rf"(?<![\w'-]){lexicon.DETERMINERS}(?![\w'-])")
_ANSWER_FORM = re.compile(
    r"[.,!?]+ ?(?:please )?(?:answer|give|reply)(?! (?:me|us))\b[^.!?]*[.!?]*$"
)
"""How to answer, said behind the question."""


@dataclass(frozen=True)
class Name:
    """A thing that a question names."""

    text: str
    """Without article; VIEWER for the camera itself."""
    role: str
    """The sign before it: "from", "than", "left"; empty = none."""
    definite: bool
    """With an article or its like."""
    joined: bool = False
    """By "and" or "or" to the name before it."""


@dataclass(frozen=True)
class Reading:
    """The signs of a question in order, and its names."""

    signs: tuple[str, ...]
    names: tuple[Name, ...]
    asks: bool
    """Whether it is a question or an order: it ends or begins like one."""
    text: str
    """The question in lower case, without contractions."""

    def has(self, *signs: str) -> bool:
        """Whether one of these signs is there."""
        return any(sign in self.signs for sign in signs)

    def with_role(self, *roles: str) -> list[Name]:
        """The names that play one of these parts."""
        return [name for name in self.names if name.role in roles]

    @property
    def things(self) -> list[Name]:
        """The names that are not the viewer."""
        return [name for name in self.names if name.text != VIEWER]


def read(question: str, viewer_names: str = lexicon.VIEWER_NAMES) -> Reading:
    """Signs and names of a question; viewer_names: pattern of what means the camera itself."""
    text = re.sub(r"\s+", " ", plain(question)).strip()
    text = _ANSWER_FORM.sub("", text)
    for pattern, instead in lexicon.CONTRACTIONS:
        text = re.sub(pattern, instead, text)
    signs: list[str] = []
    names: list[Name] = []
    role, joined, at = "", False, 0
    for match in [*_SIGN.finditer(text), None]:
        sign = "" if match is None else re.sub(r"_\d+_?$", "", str(match.lastgroup))
        if sign == "name":
            continue
        name, definite = _name_in(text[at : match.start() if match else None], signs, viewer_names)
        if sign == "viewer" and not name:
            name = VIEWER
        if name:
            role = role or (names[-1].role if joined else "")
            names.append(Name(name, role, definite, joined))
            role, joined = "", False
        if match is None:
            break
        at = match.end()
        if sign == "skip":
            continue
        signs.append(sign)
        if sign in lexicon.ROLES:
            role = sign
        elif sign in ("and", "or"):
            joined = bool(names)
        elif sign not in ("be", "possessive"):
            role = ""
    begins = _SIGN.match(text) is not None and not re.match(lexicon.STATEMENT, text)
    asks = text.endswith("?") or begins
    return Reading(tuple(signs), tuple(_named(names)), asks, text)


def _name_in(words: str, signs: list[str], viewer_names: str) -> tuple[str, bool]:
    """The name among words between two signs, and whether it has an article.

    What stands before an article is no name; behind "you" and without one it is a verb.
    """
    article = _ARTICLE.search(words)
    if article is not None:
        return bare_name(words[article.start() :], viewer_names), True
    verb = signs[-1:] == ["viewer"]
    return ("" if verb else bare_name(words, viewer_names)), False


def bare_name(words: str, viewer_names: str = lexicon.VIEWER_NAMES) -> str:
    """A name without article and marks; VIEWER for "you" and "me"; empty for nothing."""
    text = re.sub(r"^\W+|\W+$", "", words)
    bare = _DETERMINER.sub("", text).strip()
    bare = re.sub(r"\s+(?:now|here|there)$", "", bare)
    if not bare:
        return text if re.fullmatch(r"(?:this|that|these|those)", text) else ""
    return VIEWER if re.fullmatch(viewer_names, bare) else bare


def _named(names: list[Name]) -> list[Name]:
    """Names without scenes, and without pronouns where the thing is named."""
    objects = [name for name in names if not _is_scene(name)]
    things = [
        name
        for name in objects
        if name.text != VIEWER and not re.fullmatch(lexicon.PRONOUNS, name.text)
    ]
    if not things:
        return objects
    return [name for name in objects if name.text == VIEWER or name in things]


def _is_scene(name: Name) -> bool:
    pictures = name.role == "in" and re.fullmatch(lexicon.PICTURES, name.text)
    return bool(pictures or re.fullmatch(lexicon.SCENES, name.text))
