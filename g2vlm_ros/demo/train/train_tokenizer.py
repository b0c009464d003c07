# SPDX-License-Identifier: Apache-2.0
"""The demo's tokenizer: a small byte-level BPE in the released files, learned from questions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from g2vlm_ros.checkpoint.prompt_layout import (
    ASSISTANT,
    RECONSTRUCTION,
    SYSTEM,
    USER,
    after_images,
    question_ids,
)
from g2vlm_ros.checkpoint.tokenizer import _SPLIT as SPLIT_PATTERN
from g2vlm_ros.checkpoint.tokenizer import Tokenizer as Loaded
from g2vlm_ros.demo.sim import furniture, materials
from g2vlm_ros.demo.sim.questions import plural

CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Control tokens of the released tokenizer, in its order."""


REPEATS = 40
"""How often a word or prompt stands in the corpus, so that it becomes one token."""


def corpus(questions: Iterable[str]) -> list[str]:
    """Text to learn merges from: the questions given, every name and colour, the prompts."""
    words = [*furniture.NAMES, *materials.COLOURS, "meters"]
    words += map(plural, furniture.NAMES)
    texts = [f" {word}" for word in words]
    for prompt in (RECONSTRUCTION, SYSTEM, USER, ASSISTANT):
        texts.append(prompt.replace("<|im_start|>", "").replace("<|im_end|>", ""))
    return [*questions, *(texts * REPEATS)]


def write_tokenizer(folder: Path, texts: list[str], vocabulary: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json, vocab.json and merges.txt."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(CONTROL))
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    config = _tokenizer_config({name: backend.token_to_id(name) for name in CONTROL})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _tokenizer_config(ids: dict[str, int]) -> dict:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(id_): {"content": name, **flags, "special": True} for name, id_ in ids.items()
        },
        "additional_special_tokens": list(CONTROL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 4096,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def mention_at(tokenizer: Loaded, question: str, phrase: str) -> int:
    """The token of `question_ids` with the end of a phrase; the one after all for no phrase."""
    if not phrase:
        return len(question_ids(tokenizer, after_images(question)))
    article = question.find(f"the {phrase}")
    start = question.index(phrase) if article < 0 else article + len("the ")
    return len(tokenizer.encode_user(after_images(question[: start + len(phrase)]))) - 1


def pad(rows: list[np.ndarray], length: int, value: int) -> np.ndarray:
    """int64 (len(rows), length), filled up with `value`."""
    out = np.full((len(rows), length), value, np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return out
