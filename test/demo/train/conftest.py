# SPDX-License-Identifier: Apache-2.0
"""A training that is tiny in every direction, so that tests of it take seconds."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from g2vlm_tests.tiny_training import TINY  # noqa: E402

from g2vlm_ros.demo.train.__main__ import sample_texts  # noqa: E402
from g2vlm_ros.demo.train.train_tokenizer import corpus, write_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A folder with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, corpus(sample_texts(6)), TINY.sizes.vocabulary)
    return folder


@pytest.fixture(scope="session")
def shard_cache(tmp_path_factory):
    """Where the one shard of the tests is kept."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
