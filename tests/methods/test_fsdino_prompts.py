"""Prompts: what the pooled mask, the prototype and the similarity map are, by definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.errors import UserError
from methods.fsdino.decoder import new_prompt_encoder
from methods.fsdino.prompts import (
    PCSConfig,
    SimilarityPrompt,
    SparsePrompt,
    SVPConfig,
    cosine_map,
    pooled_prototypes,
    pooling_weights,
    with_fallback,
)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 3, 8, 4, 5, generator=torch.Generator().manual_seed(0))


def prototype(tokens: Tensor, weights: Tensor) -> Tensor:
    return pooled_prototypes(tokens, weights[:, :, None])[:, :, 0]


def test_mask_is_pooled_patch_by_patch() -> None:
    mask = torch.zeros(1, 1, 28, 42, dtype=torch.uint8)
    mask[..., :14, :14] = 1
    mask[..., 14:21, 14:28] = 1
    mask[..., 21:28, 14:28] = 255
    foreground, background = pooling_weights(mask, (2, 3)).unbind(2)
    assert torch.equal(foreground[0, 0], torch.tensor([[1, 0, 0], [0, 0.5, 0]]))
    assert torch.equal(background, 1 - foreground)
    foreground, background = pooling_weights(mask, (2, 3), "exclude").unbind(2)
    assert torch.equal(foreground[0, 0], torch.tensor([[1, 0, 0], [0, 0.5, 0]]))
    assert torch.equal(background[0, 0], torch.tensor([[0.0, 1, 1], [1, 0, 1]]))
    with pytest.raises(UserError, match="28x42 pixels do not tile into 3x3"):
        pooling_weights(mask, (3, 3))


def test_prototype_of_all_and_of_one(tokens: Tensor) -> None:
    ones = torch.ones(2, 3, 4, 5)
    torch.testing.assert_close(prototype(tokens, ones), tokens.mean((-2, -1)), atol=1e-6, rtol=1e-5)
    one = torch.zeros(2, 3, 4, 5)
    one[..., 1, 2] = 1
    torch.testing.assert_close(prototype(tokens, one), tokens[..., 1, 2], atol=1e-5, rtol=1e-5)


def test_prototype_ignores_order_and_scale(tokens: Tensor) -> None:
    weights = torch.rand(2, 3, 4, 5)
    expected = prototype(tokens, weights)
    order = torch.randperm(20)
    shuffled, moved = (x.flatten(-2)[..., order].unflatten(-1, (4, 5)) for x in (tokens, weights))
    torch.testing.assert_close(prototype(shuffled, moved), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prototype(tokens, weights * 0.1), expected, atol=1e-5, rtol=1e-5)


def test_small_object_is_max_pooled(tokens: Tensor) -> None:
    mask = torch.zeros(2, 3, 56, 70, dtype=torch.uint8)
    mask[:, 0, 0, 0] = 1  # one pixel of patch (0, 0) ...
    mask[:, 0, 20:26, 28:42] = 1  # ... and less than half of patch (1, 2)
    mask[:, 1, :20, :20] = 1  # large enough
    foreground = pooling_weights(mask, (4, 5))[:, :, 0]
    weights = with_fallback(foreground, 0.5)
    assert torch.equal(weights[:, 1], foreground[:, 1])
    assert weights[:, 0].sum() == 4
    p = prototype(tokens, weights)
    torch.testing.assert_close(p[:, 0], (tokens[:, 0, :, 0, 0] + tokens[:, 0, :, 1, 2]) / 2, atol=1e-5, rtol=1e-5)
    assert torch.equal(p[:, 2], torch.zeros(2, 8)), "a mask without foreground has a finite prototype"


def test_cosine_map() -> None:
    query, p = torch.randn(2, 8, 4, 5), torch.randn(2, 8)
    query[0, :, 1, 1] = 3 * p[0]
    cosine = cosine_map(query, p)
    assert cosine.abs().max() <= 1
    torch.testing.assert_close(cosine[0, 1, 1], torch.tensor(1.0))
    torch.testing.assert_close(cosine_map(query * (0.1 + torch.rand(2, 1, 4, 5)), 7 * p), cosine)
    torch.testing.assert_close(cosine, F.cosine_similarity(query, p[:, :, None, None]))
    assert cosine_map(query, torch.zeros(2, 8)).eq(0).all()


def test_cosines_stay_in_full_precision_under_autocast(tokens: Tensor) -> None:
    weights = torch.rand(2, 3, 4, 5)
    p = prototype(tokens, weights)
    expected = cosine_map(tokens[:, 0], p[:, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(prototype(tokens, weights), p)
        assert torch.equal(cosine_map(tokens[:, 0], p[:, 0]), expected)


@pytest.mark.parametrize("count", [1, 2])
def test_sparse_prompt_has_one_token_per_prototype(count: Any) -> None:
    prompt = SparsePrompt(768, 256, SVPConfig(tokens=count))
    assert sum(p.numel() for p in prompt.parameters()) == count * 65_856
    prototypes = torch.randn(3, count, 768)
    out = prompt(prototypes)
    assert out.shape == (3, count, 256)
    changed = prompt(torch.cat([prototypes[:, :-1], prototypes[:, -1:] + 1], 1))
    assert torch.equal(changed[:, :-1], out[:, :-1])
    assert not torch.equal(changed[:, -1], out[:, -1])


def test_sparse_prompt_starts_at_sams_points() -> None:
    sam = new_prompt_encoder(256)
    prompt, other = SparsePrompt(32, 256, SVPConfig(tokens=2)), SparsePrompt(32, 256, SVPConfig(init="random"))
    before = [p.clone() for p in other.parameters()]
    prompt.start_from(sam)
    other.start_from(sam)
    torch.testing.assert_close(prompt.projections[0][2].bias, sam.point_embeddings[1].weight[0])
    torch.testing.assert_close(prompt.projections[1][2].bias, sam.point_embeddings[0].weight[0])
    assert prompt.projections[0][2].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(torch.equal(p, q) for p, q in zip(other.parameters(), before, strict=True))


def test_dense_prompt_shape_count_and_start() -> None:
    prompt, sam = SimilarityPrompt(256, PCSConfig()), new_prompt_encoder(256)
    assert sum(p.numel() for p in prompt.encoder.parameters()) == 4_684
    assert prompt(torch.randn(2, 8, 37, 37), torch.randn(2, 8)).shape == (2, 256, 37, 37)
    prompt.start_from(sam)
    query, p = torch.randn(2, 8, 5, 5), torch.randn(2, 8)
    logits = F.interpolate(10 * cosine_map(query, p)[:, None] - 5, (20, 20), mode="bilinear")
    torch.testing.assert_close(prompt(query, p), sam.mask_downscaling(logits))
    random = SimilarityPrompt(256, PCSConfig(encoder_init="random"))
    before = random.encoder[0].weight.clone()
    random.start_from(sam)
    assert torch.equal(random.encoder[0].weight, before)


def test_scales_of_the_similarity() -> None:
    cosine = torch.tensor([[[-0.5, 0.0], [0.25, 0.5]]])
    assert torch.equal(SimilarityPrompt(8, PCSConfig("learned")).scaled(cosine), 10 * cosine - 5)
    assert torch.equal(SimilarityPrompt(8, PCSConfig("raw")).scaled(cosine), cosine)
    assert torch.equal(SimilarityPrompt(8, PCSConfig("minmax")).scaled(cosine), cosine + 0.5)
    assert SimilarityPrompt(8, PCSConfig("minmax")).scaled(torch.zeros(1, 2, 2)).isfinite().all()
    assert len(list(SimilarityPrompt(8, PCSConfig("raw")).parameters())) + 2 == len(
        list(SimilarityPrompt(8, PCSConfig()).parameters())
    )
