"""Calibrated memory attention: stock results where it is off, and the specification's invariants where it is on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sam2")

from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam.transformer import RoPEAttention

from methods.sam2fss.calibration import Calibration, calibration_bias, likeness_to_supports
from methods.sam2fss.memory_attention import (
    CalibratedMemoryAttention,
    CalibratedMemoryAttentionLayer,
    CalibratedRoPEAttention,
)

N, WIDTH, MEMORY = 16, 32, 8  # a grid of 4 x 4


def attention(cls: type = CalibratedRoPEAttention, dropout: float = 0.0, heads: int = 1) -> Any:
    torch.manual_seed(0)
    return cls(
        embedding_dim=WIDTH, num_heads=heads, downsample_rate=1, dropout=dropout, kv_in_dim=MEMORY, rope_k_repeat=True,
        feat_sizes=[4, 4],
    ).eval()  # fmt: skip


def stack(ours: bool = True) -> Any:
    torch.manual_seed(0)
    layer = CalibratedMemoryAttentionLayer if ours else MemoryAttentionLayer
    own = RoPEAttention(embedding_dim=WIDTH, num_heads=1, feat_sizes=[4, 4], dropout=0.1)
    built = layer(
        activation="relu", cross_attention=attention(CalibratedRoPEAttention if ours else RoPEAttention, 0.1),
        d_model=WIDTH, dim_feedforward=64, dropout=0.1, pos_enc_at_attn=False, pos_enc_at_cross_attn_keys=True,
        pos_enc_at_cross_attn_queries=False, self_attention=own,
    )  # fmt: skip
    return (CalibratedMemoryAttention if ours else MemoryAttention)(WIDTH, True, built, 2).eval()


def bank(shot: int = 1, pointers: int | None = None, seed: int = 1, size: int = 2) -> tuple[Tensor, Tensor, int]:
    """Query tokens (B, N, C), memory bank (B, L, c) and its number of pointer tokens."""
    generator = torch.Generator().manual_seed(seed)
    count = 4 * (shot + 1) if pointers is None else pointers
    query = torch.randn(size, N, WIDTH, generator=generator)
    return query, torch.randn(size, (shot + 1) * N + count, MEMORY, generator=generator), count


def masks(shot: int = 1, size: int = 2, seed: int = 5) -> Tensor:
    return (torch.rand(size, shot, N, generator=torch.Generator().manual_seed(seed)) < 0.4).float()


def reference(
    module: Any,
    query: Tensor,
    memory: Tensor,
    pointers: int,
    mask: Tensor,
    alpha: float,
    keys: str = "rotated",
    support_tokens: str = "keep",
    drop_pointers: bool = True,
    detach: bool = True,
) -> Tensor:
    """Calibrated cross-attention of one episode, K supports, one head: written anew after the specification."""
    q, k, v = module.q_proj(query), module.k_proj(memory), module.v_proj(memory)
    table = module.freqs_cis

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * table).flatten(-2)

    shot = mask.shape[0]
    plain = list(k[: (shot + 1) * N].split(N))
    rotated = [rotate(block) for block in plain]
    blocks = rotated if keys == "rotated" else plain
    k = torch.cat([*rotated, k[(shot + 1) * N :]])
    assert len(k) == (shot + 1) * N + pointers
    q = rotate(q)
    scores = q @ k.T / WIDTH**0.5
    c = torch.zeros(N)
    for i in range(shot):
        p = (blocks[i] * mask[i][:, None]).sum(0) / (mask[i].sum() + 5e-4)
        cos = blocks[shot] @ p / (blocks[shot].norm(dim=1) * p.norm() + 1e-7)
        c += (cos - cos.min()) / (cos.max() - cos.min() + 1e-7) / shot
    for i in range(N):
        row = scores[i, shot * N : (shot + 1) * N].clone()
        a = (row - row.min()) / (row.max() - row.min() + 1e-7)
        bias = alpha * torch.minimum(a + c - 1, torch.zeros(N))
        scores[i, shot * N : (shot + 1) * N] = row + (bias.detach() if detach else bias)
    if support_tokens == "drop":
        scores, v = scores[:, shot * N :], v[shot * N :]
        scores, v = (scores[:, :N], v[:N]) if drop_pointers else (scores, v)
    return module.out_proj(scores.softmax(1) @ v)


@pytest.mark.parametrize(
    "change",
    [{}, {"keys": "projected"}, {"support_tokens": "drop"}, {"support_tokens": "drop", "drop_pointers": False}],
    ids=str,
)
@pytest.mark.parametrize("shot", [1, 3])
def test_against_the_specification(shot: int, change: dict[str, Any]) -> None:
    module, (query, memory, pointers), mask = attention(), bank(shot), masks(shot)
    with torch.no_grad():
        found = module(query, memory, memory, pointers, Calibration(mask, alpha=7.0, **change))
        for b in range(2):
            expected = reference(module, query[b], memory[b], pointers, mask[b], 7.0, **change)
            assert torch.allclose(found[b], expected, atol=1e-5)


@pytest.mark.parametrize("shot", [1, 3])
def test_off_is_stock_attention(shot: int) -> None:
    ours, stock = attention(), attention(RoPEAttention)
    query, memory, pointers = bank(shot)
    expected = stock(query, memory, memory, num_k_exclude_rope=pointers)
    assert torch.equal(ours(query, memory, memory, num_k_exclude_rope=pointers), expected)
    for off in (Calibration(masks(shot), alpha=0.0), Calibration(masks(shot), shot_mode="off")):
        assert not off.biased
        assert torch.allclose(ours(query, memory, memory, pointers, off), expected, atol=1e-6)
    assert not torch.allclose(ours(query, memory, memory, pointers, Calibration(masks(shot))), expected, atol=1e-3)


def test_the_whole_stack_without_calibration_is_stock() -> None:
    ours, stock = stack(), stack(ours=False)
    stock.load_state_dict(ours.state_dict())  # strict
    query, memory, pointers = bank()
    parts = [x.transpose(0, 1) for x in (query, memory, torch.randn_like(query), torch.randn_like(memory))]
    expected = stock(parts[0], parts[1], parts[2], parts[3], pointers)
    assert torch.equal(ours(parts[0], parts[1], parts[2], parts[3], pointers), expected)
    neutral = Calibration(masks(), alpha=0.0)
    assert torch.allclose(ours(parts[0], parts[1], parts[2], parts[3], pointers, neutral), expected, atol=1e-5)
    calibrated = ours(parts[0], parts[1], parts[2], parts[3], pointers, Calibration(masks()))
    assert not torch.allclose(calibrated, expected, atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    module, (query, memory, pointers) = attention(dropout=0.5), bank()
    calibration = Calibration(masks())
    first = module(query, memory, memory, pointers, calibration)
    assert torch.equal(module(query, memory, memory, pointers, calibration), first)
    module.train()
    assert not torch.equal(module(query, memory, memory, pointers, calibration), first)


# -- the bias -----------------------------------------------------------------------------------------------------------


def test_bias_stays_in_its_range_and_spares_the_most_alike() -> None:
    scores = 3 * torch.randn(2, 1, N, N)
    keys_support, keys = torch.randn(2, 1, 1, N, WIDTH), torch.randn(2, 1, N, WIDTH)
    likeness = likeness_to_supports(keys_support, keys, masks())
    bias = calibration_bias(scores, likeness, 10.0)
    assert bias.min() >= -10
    assert bias.max() <= 0
    assert bias.min() < -5
    for b in range(2):
        low, high = scores[b, 0].amin(1, keepdim=True), scores[b, 0].amax(1, keepdim=True)
        spared = (scores[b, 0] - low) / (high - low) + likeness[b, 0] >= 1 + 1e-5
        assert spared.any()
        assert not bias[b, 0][spared].any()
        most_alike = bias[b, 0, :, likeness[b, 0].argmax()]
        assert torch.allclose(most_alike, torch.zeros(N), atol=1e-4)


def test_only_the_querys_columns_change(monkeypatch: pytest.MonkeyPatch) -> None:
    module, (query, memory, pointers) = attention(), bank(2)
    seen: list[Tensor] = []
    calibrated = module._calibrated

    def spy(scores: Tensor, *args: Any) -> Tensor:
        result = calibrated(scores, *args)
        seen.extend([scores, result])
        return result

    monkeypatch.setattr(module, "_calibrated", spy)
    module(query, memory, memory, pointers, Calibration(masks(2)))
    changed = (seen[1] - seen[0]).abs().amax((0, 1, 2)) > 0
    assert not changed[: 2 * N].any()
    assert not changed[3 * N :].any()
    assert changed[2 * N : 3 * N].sum() >= N - 1


@pytest.mark.parametrize("support_tokens", ["keep", "drop"])
def test_rows_of_the_attention_sum_to_one(support_tokens: Any) -> None:
    module, (query, memory, pointers) = attention(), bank(2)
    same = torch.full_like(memory, 0.7)  # attending to equal values gives back that value
    found = module(query, memory, same, pointers, Calibration(masks(2), support_tokens=support_tokens))
    assert torch.allclose(found, module.out_proj(module.v_proj(same))[:, :N], atol=1e-5)


def test_the_bias_is_in_float32_whatever_the_keys_are() -> None:
    keys_support, keys = torch.randn(2, 1, 1, N, WIDTH).bfloat16(), torch.randn(2, 1, N, WIDTH).bfloat16()
    likeness = likeness_to_supports(keys_support, keys, masks())
    assert torch.equal(likeness, likeness_to_supports(keys_support.float(), keys.float(), masks()))
    scores = torch.randn(2, 1, N, N).bfloat16()
    assert torch.equal(calibration_bias(scores, likeness), calibration_bias(scores.float(), likeness))
    assert likeness.dtype == calibration_bias(scores, likeness).dtype == torch.float32
    module, scores, bank_keys = attention(), torch.randn(2, 1, N, 2 * N), torch.randn(2, 1, 2 * N, WIDTH)
    expected = module._calibrated(scores, bank_keys, bank_keys, Calibration(masks()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module._calibrated(scores, bank_keys, bank_keys, Calibration(masks())), expected)


def test_no_gradient_through_the_bias_unless_asked_for() -> None:
    module, (query, memory, pointers) = attention(), bank()

    def gradients(found: Tensor) -> list[Tensor]:
        module.zero_grad()
        found.square().sum().backward()
        return [getattr(module, name).weight.grad.clone() for name in ("q_proj", "k_proj")]

    by_hand = {}
    for detach in (True, False):
        episodes = zip(query, memory, masks(), strict=True)
        outputs = [reference(module, q, m, pointers, mask, 10.0, detach=detach) for q, m, mask in episodes]
        by_hand[detach] = gradients(torch.stack(outputs))
    for detach in (True, False):
        found = gradients(module(query, memory, memory, pointers, Calibration(masks(), detach=detach)))
        for one, same, other in zip(found, by_hand[detach], by_hand[not detach], strict=True):
            assert torch.allclose(one, same, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(one, other, rtol=1e-2, atol=1e-3)


def test_the_order_of_the_supports_does_not_matter() -> None:
    module, (query, memory, pointers), mask = attention(), bank(3, pointers=0), masks(3)
    first = module(query, memory, memory, pointers, Calibration(mask))
    order = [2, 0, 1]
    blocks = [memory[:, i * N : (i + 1) * N] for i in (*order, 3)]
    shuffled = torch.cat(blocks, 1)
    assert torch.allclose(module(query, shuffled, shuffled, 0, Calibration(mask[:, order])), first, atol=1e-5)


def test_copies_of_a_support_give_the_bias_of_one() -> None:
    keys_support, keys, mask = torch.randn(2, 1, 1, N, WIDTH), torch.randn(2, 1, N, WIDTH), masks()
    one = likeness_to_supports(keys_support, keys, mask)
    three = likeness_to_supports(keys_support.expand(-1, -1, 3, -1, -1), keys, mask.expand(-1, 3, -1))
    assert torch.allclose(one, three, atol=1e-6)


def test_more_pointers_do_not_shift_the_block() -> None:
    calibration = Calibration(masks(2))
    assert calibration.block() == slice(2 * N, 3 * N)
    module, (query, memory, _) = attention(), bank(2, pointers=0)
    far = torch.zeros(2, 5, MEMORY)
    more = torch.cat([memory, far], 1)
    bias: list[Tensor] = []
    for m, pointers in ((memory, 0), (more, 5)):
        q, k = module.q_proj(query)[:, None], module.k_proj(m)[:, None]
        q, k = module._rotated(q, k, pointers)
        scores = q @ k.transpose(-1, -2)
        bias.append((module._calibrated(scores, k, k, calibration) - scores)[..., 2 * N : 3 * N])
    assert torch.allclose(*bias, atol=1e-5)


def test_an_empty_mask_suppresses_all_but_the_row_maximum() -> None:
    likeness = likeness_to_supports(torch.randn(1, 1, 1, N, WIDTH), torch.randn(1, 1, N, WIDTH), torch.zeros(1, 1, N))
    assert not likeness.any()
    scores = torch.randn(1, 1, N, N)
    bias = calibration_bias(scores, likeness)
    assert ((bias > -1e-4).sum(-1) == 1).all()
    assert torch.equal(bias.argmax(-1), scores.argmax(-1))


# -- variants -----------------------------------------------------------------------------------------------------------


def run(shot: int = 3, **kwargs: Any) -> Tensor:
    query, memory, pointers = bank(shot)
    with torch.no_grad():
        return attention()(query, memory, memory, pointers, Calibration(masks(shot), **kwargs))


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 5.0},
        {"keys": "projected"},
        {"shot_mode": "off"},
        {"shot_mode": "released_5shot"},
        {"support_tokens": "drop"},
    ],
)
def test_each_variant_changes_the_result(change: dict[str, Any]) -> None:
    assert not torch.allclose(run(), run(**change), atol=1e-5)


def test_the_released_mistake_calibrates_the_second_support_by_the_first() -> None:
    calibration = Calibration(masks(3), shot_mode="released_5shot")
    assert calibration.block() == slice(N, 2 * N)
    query, memory, pointers = bank(3)
    with torch.no_grad():
        found = attention()(query, memory, memory, pointers, calibration)
        # seen as one shot, the bank is [support 1][support 2 as the query][rest], the rest with positions of its own
        module = attention()
        q, k = module.q_proj(query)[:, None], module.k_proj(memory)[:, None]
        q, k = module._rotated(q, k, pointers)
        scores = q @ k.transpose(-1, -2) / WIDTH**0.5
        scores = module._calibrated(scores, k, k, Calibration(masks(3)[:, :1]))
        expected = module.out_proj((scores.softmax(-1) @ module.v_proj(memory)[:, None])[:, 0])
    assert torch.allclose(found, expected, atol=1e-6)
    assert torch.equal(run(1, shot_mode="released_5shot"), run(1)), "one support: the same as the paper"


def test_dropped_supports_calibrate_only() -> None:
    query, memory, pointers = bank(2)
    module, mask = attention(), masks(2)

    def attend(values: Tensor, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            return module(query, memory, values, pointers, Calibration(mask, support_tokens="drop", **kwargs))

    others = memory.clone()
    others[:, : 2 * N] = 9.0  # values of the supports
    assert torch.equal(attend(memory), attend(others))
    pointing = memory.clone()
    pointing[:, 3 * N :] = 9.0
    assert torch.equal(attend(memory), attend(pointing))
    assert not torch.allclose(attend(memory, drop_pointers=False), attend(pointing, drop_pointers=False))
    assert not torch.allclose(attend(memory), attend(memory, alpha=0.0))


def test_several_heads_are_calibrated_each_for_itself() -> None:
    module, (query, memory, pointers) = attention(heads=2), bank()
    out = module(query, memory, memory, pointers, Calibration(masks()))
    assert out.shape == (2, N, WIDTH)
    assert not torch.allclose(out, module(query, memory, memory, pointers), atol=1e-4)
