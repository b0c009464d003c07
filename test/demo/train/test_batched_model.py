# SPDX-License-Identifier: Apache-2.0
"""The batched forward of the training against the stages that users run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from g2vlm_tests.tiny_training import TINY

from g2vlm_ros.checkpoint.config import ModelConfig
from g2vlm_ros.checkpoint.prompt_layout import Turn, dialogue_segments, reconstruction_segments
from g2vlm_ros.checkpoint.tokenizer import Tokenizer
from g2vlm_ros.demo.train.attention import (
    PlainAttention,
    attend_apart,
    plain_attention,
    rolled_rotation,
)
from g2vlm_ros.demo.train.batched_model import (
    IGNORED,
    BatchedModel,
    build,
    encode_questions,
    encode_squares,
    image_mask,
)
from g2vlm_ros.inference.torch_backend import TorchBackend
from g2vlm_ros.model.layers import attend
from g2vlm_ros.model.rope import decoder_angles, rotate_decoder


@pytest.fixture(scope="module")
def trainee(tokenizer_folder):
    network = build(TINY.sizes.model(), 0)
    return BatchedModel(network, Tokenizer.open(tokenizer_folder)).eval()


def images(windows, views):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (windows, views, 42, 56, 3), dtype=np.uint8))


@torch.no_grad()
def test_geometry_equals_the_stages(trainee):
    batch = images(2, 3)
    raw = trainee.geometry(batch)
    stages = TorchBackend(trainee.network)
    for index, window in enumerate(batch.numpy()):
        text, views = reconstruction_segments(trainee.tokenizer, 3, (3, 4))
        cache = stages.new_cache()
        stages.language(text, cache)
        hidden = stages.geometry(stages.encode_geometry(window), views, cache)
        result = stages.heads(hidden, (3, 4))
        depth = raw.points[index, ..., 2].exp().numpy()
        np.testing.assert_allclose(result.local_points_u[..., 2], depth, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            result.rotation9, raw.rotation9[index].numpy(), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            result.window_from_camera[:, :3, 3], raw.translation[index], rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_answer_loss_equals_the_stages(trainee):
    """Cross-entropy of an answer, token by token through a growing cache."""
    batch = images(1, 2)
    squares = torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (1, 2, 56, 56, 3), dtype=np.uint8)
    )
    asked = [("Is there a bed?", "No."), ("What colour is the lamp?", "It is red.")]
    encoded = encode_questions(trainee.tokenizer, [asked], 40)
    actual = float(trainee.answers(batch, squares, encoded).loss)
    stages, losses = TorchBackend(trainee.network), []
    features = stages.encode_geometry(batch[0].numpy())
    for question, answer in asked:
        turn = Turn(question, None, 2, (3, 4), (2, 2))
        prefix, views, *rest = dialogue_segments(trainee.tokenizer, [turn])
        cache = stages.new_cache()
        stages.language(prefix, cache)
        stages.geometry(features, views, cache)
        for segment, square in zip(rest[:-1], squares[0].numpy(), strict=True):
            stages.language(segment, cache, stages.encode_semantics(square))
        stages.language(rest[-1], cache)
        special = trainee.tokenizer.special
        told = [special.newline, *trainee.tokenizer.encode_user(answer), special.im_end]
        position = rest[-1].next_position
        for token, following in zip(told, told[1:], strict=False):
            from g2vlm_ros.checkpoint.prompt_layout import text_segment

            hidden = stages.language(text_segment([token], position), cache)
            logits = torch.from_numpy(stages.logits(hidden))
            losses.append(float(-logits.log_softmax(-1)[following]))
            position += 1
    assert actual == pytest.approx(np.mean(losses), rel=1e-3)


@torch.no_grad()
def test_squares_are_encoded_as_by_the_vision_tower(trainee):
    squares = images(1, 2)[0].repeat_interleave(2, 1)[:, :56].contiguous()
    made = encode_squares(trainee.network, squares)
    for square, tokens in zip(squares, made, strict=True):
        torch.testing.assert_close(trainee.network.vit_model(square), tokens, atol=1e-5, rtol=1e-4)


def test_images_see_the_past_and_earlier_images():
    mask = image_mask(cached=3, images=[2, 1])
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]


def test_texts_apart_are_a_masked_row():
    """Two texts of three tokens after a past of four: the textbook's attention under a mask."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 6, 5), torch.randn(2, 2, 6, 5), torch.randn(2, 2, 6, 5)
    past = torch.randn(2, 2, 4, 5), torch.randn(2, 2, 4, 5)
    own = torch.block_diag(torch.ones(3, 3).tril(), torch.ones(3, 3).tril()).bool()
    mask = torch.cat((torch.ones(6, 4, dtype=torch.bool), own), 1)
    want = attend(q, *(torch.cat(pair, 2) for pair in zip(past, (k, v), strict=True)), mask)
    torch.testing.assert_close(attend_apart(q, k, v, past, 2), want, atol=1e-6, rtol=1e-5)


def test_labels_are_the_answer_and_its_end(trainee):
    tokenizer = trainee.tokenizer
    encoded = encode_questions(tokenizer, [[("Is there a bed?", "No.")]], 40)
    labels = encoded.labels[0, 0]
    expected = [int(x) for x in labels if x != IGNORED]
    assert tokenizer.decode(expected) == "No.<|im_end|>"
    starts = encoded.ids[0, 0][labels != IGNORED]
    assert int(starts[0]) == tokenizer.special.newline


def test_plain_attention_is_the_fused_one():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 7, 6), torch.randn(2, 2, 7, 6)
    mask = torch.rand(5, 7) > 0.3
    mask[:, 0] = True
    fused = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(
        plain_attention(q, k, v, mask, True), fused(q, k, v, attn_mask=mask, enable_gqa=True)
    )
    with PlainAttention():
        torch.testing.assert_close(fused(q, q, q), plain_attention(q, q, q))


def test_rolled_rotation_is_the_decoders():
    x, angles = torch.randn(2, 4, 12, 12), decoder_angles((3, 4), 12, torch.device("cpu"))
    torch.testing.assert_close(rolled_rotation(x, angles), rotate_decoder(x, angles))


def test_the_sizes_of_the_demo_fit_their_budget():
    from g2vlm_ros.demo.train.config import Sizes

    sizes = Sizes()
    assert isinstance(sizes.model(), ModelConfig)
    parameters = sum(p.numel() for p in build(sizes.model(), 0).parameters())
    assert 2 * parameters < 26e6
