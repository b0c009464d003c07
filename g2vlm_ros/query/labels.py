# SPDX-License-Identifier: Apache-2.0
"""Names of objects: whether a detector's label is what a phrase asks for."""

from __future__ import annotations

from functools import lru_cache

COLOURS = frozenset(
    "red green blue yellow white black brown grey gray orange purple pink beige".split()
)
BRIGHTNESSES = frozenset(("dark", "light"))
SIZES = frozenset(("big", "small", "large", "tall"))
MATERIALS = frozenset(("wooden",))
ATTRIBUTES = {
    "colour": COLOURS,
    "brightness": BRIGHTNESSES,
    "size": SIZES,
    "material": MATERIALS,
}
"""Words that tell objects of one kind apart, by what they tell of them; the rest of a name is its
kind. Two words of one group contradict each other."""
KIND_ONLY = 0.7
"""Fit of a label that only names the kind: "chair" for "red chair"."""
_PLURALS = (
    ("shelves", "shelf"),
    ("xes", "x"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("ies", "y"),
)


def singular(word: str) -> str:
    """The singular of a name, as far as rules go: chairs, boxes, shelves."""
    for ending, instead in _PLURALS:
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name or label in lower case and singular."""
    return tuple(singular(word) for word in name.lower().replace("_", " ").split())


@lru_cache(maxsize=4096)
def label_fit(phrase: str, label: str) -> float:
    """1 where a label is the phrase, KIND_ONLY where it only names its kind, else 0."""
    phrase_words, label_words = words_of(phrase), words_of(label)
    if phrase == "thing" or phrase_words == label_words:
        return 1.0
    if not phrase_words or not label_words:
        return 0.0
    if phrase_words[-1] == label_words[-1] and set(phrase_words) <= set(label_words):
        return 1.0
    if _kind(phrase_words) != _kind(label_words):
        return 0.0
    phrase_attributes, label_attributes = _attributes(phrase_words), _attributes(label_words)
    contradicts = any(
        label_attributes[group] - phrase_attributes[group]
        for group in phrase_attributes
        if phrase_attributes[group]
    )
    return 0.0 if contradicts else KIND_ONLY


def unknown_attributes(phrase: str, label: str) -> dict[str, str]:
    """What a phrase asks of an object that a label of its kind does not tell: the words by their
    group, {"colour": "red"} of "red chair" where the label is "chair"."""
    phrase_attributes, label_attributes = (
        _attributes(words_of(phrase)),
        _attributes(words_of(label)),
    )
    return {
        group: " ".join(sorted(phrase_attributes[group] - label_attributes[group]))
        for group in phrase_attributes
        if phrase_attributes[group] - label_attributes[group]
    }


def _attributes(words: tuple[str, ...]) -> dict[str, set[str]]:
    return {group: set(words) & members for group, members in ATTRIBUTES.items()}


def _kind(words: tuple[str, ...]) -> list[str]:
    return [word for word in words if not any(word in group for group in ATTRIBUTES.values())]
