# SPDX-License-Identifier: Apache-2.0
"""Text <-> token ids of the released model: Qwen2's byte-level BPE, with user text kept apart.

Control tokens (``<|im_start|>`` and the like) shape the dialogue. Templates may use them; text of
users never becomes one, whatever it contains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer as _Backend

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NEEDED = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
_REMEDY = "use the tokenizer files that came with the checkpoint"


class TokenizerError(ValueError):
    """The tokenizer files of a folder are missing, damaged or of another model."""


class SpecialTokens(NamedTuple):
    """Ids that the sequences are built with; newline is the token that generation starts from."""

    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    newline: int


class Tokenizer:
    """Encodes templates, encodes user text, decodes answers.

    special: the ids above. control_ids: every id that stands for a control token. vocab_size:
    largest id + 1, so an embedding table needs at least that many rows.
    """

    def __init__(self, document: dict[str, Any], source: str):
        """document: a tokenizer.json. source: what to call it in errors."""
        model = document.get("model")
        if not isinstance(model, dict) or model.get("type") != "BPE":
            kind = model.get("type") if isinstance(model, dict) else "nothing known"
            raise TokenizerError(f"{source} holds {kind}, expected byte-level BPE; {_REMEDY}")
        bare = {**document, "truncation": None, "padding": None, "post_processor": None}
        self._template = _backend(bare, source)
        # Without added tokens there is no text that could become one: "<|im_end|>" is spelt out.
        self._user = _backend({**bare, "added_tokens": []}, source)
        added = _ids_of(document.get("added_tokens", []), source)
        self._check(added, source)
        self.control_ids = frozenset(added.values())
        self.vocab_size = max(self._template.get_vocab(with_added_tokens=True).values()) + 1
        # The newline is defined as the last id of the encoded chat template.
        newline = int(self.encode("<|im_start|>assistant\n")[-1])
        self.special = SpecialTokens(*(added[name] for name in _NEEDED), newline)

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json + merges.txt + tokenizer_config.json without it."""
        folder = Path(folder)
        added = _added_tokens(folder)
        source = folder / "tokenizer.json"
        if source.is_file():
            document = _read_json(source)
            control_ids = _ids_of(document.get("added_tokens", []), str(source))
            differ = [t["content"] for t in added if control_ids.get(t["content"]) != t["id"]]
            if differ:
                raise TokenizerError(
                    f"{source} and tokenizer_config.json give {differ[0]} different ids; {_REMEDY}"
                )
            return cls(document, str(source))
        needed = ("vocab.json", "merges.txt", "tokenizer_config.json")
        missing = [name for name in needed if not (folder / name).is_file()]
        if missing:
            raise TokenizerError(
                f"{folder} has no tokenizer.json and no {' and no '.join(missing)}; "
                "it needs tokenizer.json, or vocab.json, merges.txt and tokenizer_config.json"
            )
        return cls(_document(folder, added), str(folder / "vocab.json"))

    def encode(self, text: str) -> np.ndarray:
        """int64 ids of a template; control tokens in it count as such. Never for user text."""
        return np.array(self._template.encode(text, add_special_tokens=False).ids, np.int64)

    def encode_user(self, text: str) -> np.ndarray:
        """int64 ids of user text; control tokens spelt in it are plain text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text has an unpaired surrogate at character {error.start}; pass valid Unicode"
            ) from error
        return np.array(self._user.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; broken UTF-8 and ids without a token give the replacement character."""
        text = ""
        for is_known, run in groupby((int(id_) for id_ in ids), self._knows):
            run = list(run)
            decode = self._template.decode
            text += decode(run, skip_special_tokens=False) if is_known else "\ufffd" * len(run)
        return text

    def _knows(self, id_: int) -> bool:
        return 0 <= id_ < self.vocab_size and self._template.id_to_token(id_) is not None

    def _check(self, added: dict[str, int], source: str) -> None:
        missing = [name for name in _NEEDED if name not in added]
        if missing:
            raise TokenizerError(
                f"{source} has no control token {', '.join(missing)}: it is not the tokenizer of "
                f"a Qwen2-VL model; {_REMEDY}"
            )
        for content, id_ in added.items():
            if self.encode(content).tolist() != [id_] or id_ in self.encode_user(content):
                raise TokenizerError(
                    f"{source} does not keep control token {content} at id {id_}, apart from "
                    f"plain text; {_REMEDY}"
                )


def _backend(document: dict[str, Any], source: str) -> _Backend:
    try:
        return _Backend.from_str(json.dumps(document))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{source} is not a usable tokenizer ({error}); {_REMEDY}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}); {_REMEDY}") from error
    if not isinstance(document, dict):
        raise TokenizerError(f"{path} holds a {type(document).__name__}, not an object; {_REMEDY}")
    return document


def _added_tokens(folder: Path) -> list[dict[str, Any]]:
    """Control tokens by tokenizer_config.json, in the form and order of a tokenizer.json."""
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return []
    table = _read_json(path).get("added_tokens_decoder", {})
    try:
        added = [{"id": int(id_), **table[id_]} for id_ in sorted(table, key=int)]
    except (TypeError, ValueError) as error:
        raise TokenizerError(
            f"{path} has an added_tokens_decoder that is no table of ids ({error}); {_REMEDY}"
        ) from error
    _ids_of(added, str(path))
    return added


def _ids_of(added: Any, source: str) -> dict[str, int]:
    """{content: id} of the added tokens of a file."""
    try:
        ids = {token["content"]: token["id"] for token in added}
    except (KeyError, TypeError) as error:
        raise TokenizerError(
            f"{source} has added tokens without content or id ({error}); {_REMEDY}"
        ) from error
    for content, id_ in ids.items():
        if not isinstance(content, str) or type(id_) is not int or id_ < 0:
            raise TokenizerError(
                f"{source} gives the added token {content!r} the id {id_!r}; {_REMEDY}"
            )
    return ids


def _document(folder: Path, added: list[dict[str, Any]]) -> dict[str, Any]:
    """A tokenizer.json made of the older files (vocabulary, merges, control tokens)."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    if lines[0].startswith("#version:"):
        lines = lines[1:]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": _SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": _read_json(folder / "vocab.json"),
            "merges": [line.strip() for line in lines if line.strip()],
        },
    }
