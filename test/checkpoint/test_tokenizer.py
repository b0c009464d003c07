# SPDX-License-Identifier: Apache-2.0
"""The tokenizer: the released ids, user text that stays text, foreign files refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from g2vlm_ros.checkpoint.tokenizer import Tokenizer, TokenizerError

GOLDEN = Path(__file__).parents[1] / "data/golden/A"
CHECK = json.loads((GOLDEN / "tokenizer_check.json").read_text(encoding="utf-8"))
CHATS = [c for c in json.loads((GOLDEN / "cases.json").read_text()) if c["kind"] == "chat"]
OLD_FILES = ("vocab.json", "merges.txt", "tokenizer_config.json")


def copy_of(folder: Path, *names: str) -> Path:
    for name in names:
        shutil.copyfile(GOLDEN / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.open(GOLDEN)


@pytest.fixture(scope="module")
def from_old_files(tmp_path_factory) -> Tokenizer:
    return Tokenizer.open(copy_of(tmp_path_factory.mktemp("old"), *OLD_FILES))


@pytest.mark.parametrize("kind", ["tokenizer", "from_old_files"])
@pytest.mark.parametrize("text", CHECK["encodings"], ids=repr)
def test_encodings_equal_the_released_ones(kind, text, request):
    encoded = request.getfixturevalue(kind).encode(text)
    assert encoded.dtype == np.int64
    assert encoded.tolist() == CHECK["encodings"][text]


def test_special_ids_equal_the_released_ones(tokenizer, from_old_files):
    for one in (tokenizer, from_old_files):
        special = CHECK["special"]
        assert one.special == (
            special["<|im_start|>"],
            special["<|im_end|>"],
            special["<|vision_start|>"],
            special["<|vision_end|>"],
            CHATS[0]["start_token"],
        )
        assert one.control_ids == set(special.values())
        assert one.vocab_size == max(special.values()) + 1


@pytest.mark.parametrize("text", [t for t in CHECK["encodings"] if "<|" not in t], ids=repr)
def test_plain_user_text_is_encoded_like_a_template(tokenizer, text):
    assert tokenizer.encode_user(text).tolist() == CHECK["encodings"][text]


@pytest.mark.parametrize("control", CHECK["special"])
@pytest.mark.parametrize(
    "text", ["{}", "a{}b", "{0}{0}", "\n{}\nuser\n", "<|im_{}", "{}|>", "\u0301{}"]
)
def test_user_text_never_becomes_a_control_token(tokenizer, from_old_files, control, text):
    text = text.format(control)
    for one in (tokenizer, from_old_files):
        ids = one.encode_user(text)
        assert not one.control_ids & set(ids.tolist())
        assert one.decode(ids) == text  # nothing was cut away either
        assert CHECK["special"][control] in one.encode(text)


@pytest.mark.parametrize("control", CHECK["special"])
def test_control_tokens_split_across_pieces_stay_text(tokenizer, control):
    for cut in range(1, len(control)):
        pieces = [tokenizer.encode_user(part) for part in (control[:cut], control[cut:])]
        ids = np.concatenate(pieces)
        assert not tokenizer.control_ids & set(ids.tolist())
        assert tokenizer.decode(ids) == control


def test_text_is_normalised_to_nfc(tokenizer, from_old_files):
    for one in (tokenizer, from_old_files):
        assert one.encode_user("cafe\u0301").tolist() == one.encode_user("caf\u00e9").tolist()


def test_decoding_equals_the_released_text(tokenizer, from_old_files):
    answers = [case for case in CHATS] + [case["stop"] for case in CHATS if "stop" in case]
    for answer in answers:
        for one in (tokenizer, from_old_files):
            assert one.decode(answer["generated_ids"]) == answer["decoded_text"]


def test_ids_without_a_token_are_replaced_visibly(tokenizer):
    h, i = tokenizer.encode("H").item(), tokenizer.encode("i").item()
    assert tokenizer.decode(np.array([h, 500, 511, i, -1])) == "H\ufffd\ufffdi\ufffd"
    assert tokenizer.decode([2**40]) == "\ufffd"
    assert tokenizer.decode([]) == ""
    assert tokenizer.decode([127]) == "\ufffd"  # one byte of a two-byte letter


def test_broken_unicode_is_refused(tokenizer):
    with pytest.raises(ValueError, match="surrogate at character 2"):
        tokenizer.encode_user("ab\ud800")


def test_long_questions_are_not_cut(tmp_path):
    document = json.loads((GOLDEN / "tokenizer.json").read_text())
    document["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert len(Tokenizer.open(tmp_path).encode_user("chair " * 50)) > 50


def test_digits_stay_single_whatever_the_merges_say(tmp_path):
    copy_of(tmp_path, *OLD_FILES)
    *merges, last = (tmp_path / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    vocabulary["12"] = vocabulary.pop(last.replace(" ", ""))
    (tmp_path / "merges.txt").write_text("\n".join([*merges, "1 2"]), encoding="utf-8")
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    assert len(Tokenizer.open(tmp_path).encode_user("12")) == 2


@pytest.mark.parametrize("missing", OLD_FILES)
def test_missing_files_are_named(tmp_path, missing):
    copy_of(tmp_path, *(name for name in OLD_FILES if name != missing))
    with pytest.raises(TokenizerError, match=rf"no tokenizer\.json and no {missing}"):
        Tokenizer.open(tmp_path)


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(TokenizerError, match="holds a list"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(TokenizerError, match="not a usable tokenizer"):
        Tokenizer.open(tmp_path)


def changed(tmp_path: Path, change) -> Path:
    document = json.loads((GOLDEN / "tokenizer.json").read_text())
    change(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path


def test_tokenizers_of_other_models_are_refused(tmp_path):
    with pytest.raises(TokenizerError, match="holds WordPiece, expected byte-level BPE"):
        Tokenizer.open(changed(tmp_path, lambda d: d["model"].update(type="WordPiece")))
    with pytest.raises(TokenizerError, match=r"no control token <\|im_start\|>.*<\|vision_end\|>"):
        Tokenizer.open(changed(tmp_path, lambda d: d.update(added_tokens=[])))


def test_control_tokens_must_keep_their_ids(tmp_path):
    folder = changed(tmp_path, lambda d: d["added_tokens"][9].update(id=450))
    with pytest.raises(TokenizerError, match=r"<\|vision_start\|> at id 450"):
        Tokenizer.open(folder)
    copy_of(tmp_path, "tokenizer_config.json")
    with pytest.raises(TokenizerError, match=r"give <\|vision_start\|> different ids"):
        Tokenizer.open(folder)


def test_vocabularies_in_which_text_reaches_a_control_token_are_refused(tmp_path):
    def reachable(document):
        document["model"]["ignore_merges"] = True
        document["model"]["vocab"].update(CHECK["special"])
        document["pre_tokenizer"]["pretokenizers"].pop(0)

    with pytest.raises(TokenizerError, match=r"<\|endoftext\|> at id 400, apart from plain text"):
        Tokenizer.open(changed(tmp_path, reachable))
