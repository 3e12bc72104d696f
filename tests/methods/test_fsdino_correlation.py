"""The 4D branch: what the correlation is, the signs of masked tokens, and the reader against plain operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssbench.errors import UserError
from methods.fsdino import correlation as module
from methods.fsdino.centre_pivot import CentrePivotConv4d
from methods.fsdino.correlation import CorrConfig, CorrelationPrompt, Tokens, correlation, token_signs
from tests.methods.test_fsdino_centre_pivot import convolution_4d, kernel_4d

SMALL = CorrConfig(channels=(4, 8, 8), zero_init_head=False)


def maps(seed: int, blocks: int = 3, batch: int = 2, side: int = 6, channels: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, channels, side, side, generator=g) for _ in range(blocks)]


def tokens(seed: int, **kwargs: Any) -> Tokens:
    return Tokens.of(maps(seed, **kwargs), 1e-5)


def signs(seed: int = 5, batch: int = 2, side: int = 6) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (batch, side, side), generator=g).float() * 2 - 1


def make(blocks: int = 3, config: CorrConfig = SMALL, recompute: bool = False) -> CorrelationPrompt:
    torch.manual_seed(0)
    return CorrelationPrompt(blocks, 12, config, recompute)


def match(prompt: CorrelationPrompt, query: list[Tensor], support: list[Tensor], signs: Tensor) -> Tensor:
    """With one support."""
    return prompt.match(query, [maps[:, None] for maps in support], signs[:, None])[:, 0]


def told_apart(config: CorrConfig) -> float:
    """How far the untrained reader sets the query's object apart: difference of the means of object and background in
    standard deviations over all positions, mean over the channels."""
    g = torch.Generator().manual_seed(1)
    thing, rest = torch.randn(2, 1, 16, 1, 1, generator=g)

    def picture(where: Tensor) -> list[Tensor]:
        noise = [torch.randn(1, 16, 12, 12, generator=g) for _ in range(3)]
        return [torch.where(where, thing, rest) + 0.5 * n for n in noise]

    there, elsewhere = torch.zeros(2, 12, 12, dtype=torch.bool)
    there[2:7, 3:8], elsewhere[6:11, 1:5] = True, True
    sign = there.float()[None] * 2 - 1
    found = match(make(config=config), picture(elsewhere), picture(there), sign)[0].detach()
    apart = found[:, elsewhere].mean(1) - found[:, ~elsewhere].mean(1)
    return float((apart / found.flatten(1).std(1).clamp(min=1e-6)).mean())


def test_started_as_an_average_the_reader_tells_the_object_apart() -> None:
    average = told_apart(CorrConfig(channels=(4, 8, 8), ce=True))
    assert average > 1
    assert average > 2 * abs(told_apart(CorrConfig(channels=(4, 8, 8), ce=True, init="random")))


# -- the correlation --------------------------------------------------------------------------------------------------


def test_correlation_is_the_clipped_cosine() -> None:
    query, support = maps(1), maps(2)
    c = correlation(Tokens.of(query, 1e-5), Tokens.of(support, 1e-5))
    assert c.shape == (2, 36, 3, 36)
    assert c.min() == 0
    assert c.max() <= 1
    for block in range(3):
        q, s = query[block].flatten(2)[..., :, None], support[block].flatten(2)[..., None, :]
        torch.testing.assert_close(c[:, :, block], F.cosine_similarity(q, s, 1).clamp(min=0), atol=2e-5, rtol=1e-4)


def test_correlation_with_itself_and_exchanged() -> None:
    one, other = tokens(1), tokens(2)
    diagonal = correlation(one, one).diagonal(dim1=1, dim2=3)
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal), atol=1e-4, rtol=0)
    torch.testing.assert_close(correlation(one, other), correlation(other, one).transpose(1, 3))


def test_eps_is_added_to_the_length() -> None:
    small = [1e-5 * tokens for tokens in maps(1)]
    lengths = small[0].flatten(2).norm(dim=1)
    torch.testing.assert_close(Tokens.of(small, 1e-5).scale[:, 0], 1 / (lengths + 1e-5))


def test_correlations_and_first_convolution_are_float32_under_autocast() -> None:
    prompt = make()
    query, support = maps(1), maps(2)
    first: list[Tensor] = []
    prompt.squeeze[0].first.norm.register_forward_pre_hook(lambda _, args: first.append(args[0]))
    expected = prompt(match(prompt, query, support, signs()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = prompt(match(prompt, [t.bfloat16() for t in query], [t.bfloat16() for t in support], signs()))
        exact = match(prompt, query, support, signs())
    assert first[2].dtype == torch.float32
    assert torch.equal(first[2], first[0]), "autocast changes nothing up to here"
    torch.testing.assert_close(prompt(exact.float()), expected, atol=0.05, rtol=0.1)
    torch.testing.assert_close(out.float(), expected, atol=0.1, rtol=0.2)


# -- masks ------------------------------------------------------------------------------------------------------------


def test_signs_without_and_with_contrast() -> None:
    m = torch.tensor([[[0.0, 0.3], [0.5, 1.0]]])
    binary = torch.tensor([[[0.0, 0], [1, 1]]])
    assert torch.equal(token_signs(m, 1 - m, ce=False), binary)
    assert torch.equal(token_signs(m, 1 - m, ce=True), 2 * binary - 1)
    assert torch.equal(token_signs(m, 1 - m, ce=False, mask="soft"), m)
    torch.testing.assert_close(token_signs(m, 1 - m, ce=True, mask="soft"), 2 * m - 1)
    assert torch.equal(token_signs(m, 1 - m, ce=True, threshold=0.6), token_signs(m, 1 - m, ce=True) * torch.tensor([1, 1, -1, 1]).view(1, 2, 2))  # fmt: skip
    ones = torch.ones(1, 2, 2)
    assert torch.equal(token_signs(ones, 1 - ones, ce=True), token_signs(ones, 1 - ones, ce=False))


def test_balanced_background_counts_at_most_as_much_as_the_object() -> None:
    small, large, none = [0.0, 0, 0, 1], [1.0, 1, 1, 0], [1.0, 1, 1, 1]
    m = torch.tensor([small, large, none]).view(3, 2, 2)
    third = torch.tensor([[-1 / 3, -1 / 3, -1 / 3, 1], [1, 1, 1, -1], [1, 1, 1, 1]]).view(3, 2, 2)
    torch.testing.assert_close(token_signs(m, 1 - m, ce=True, balance=True), third)
    assert torch.equal(token_signs(m, 1 - m, ce=False, balance=True), m), "nothing to balance without contrast"
    soft = torch.tensor([[[0.1, 0.3], [0.0, 0.2]]])
    background = torch.tensor([[[0.5, 0.7], [1.0, 0.0]]])  # the rest of the first and the last token is ignored
    found = token_signs(soft, background, ce=True, mask="soft", exclude=True, balance=True)
    torch.testing.assert_close(found, soft - background * 0.6 / 2.2)
    both = torch.stack([m, m.flip(0)], 1)  # (B, K, h, w), as the network asks
    torch.testing.assert_close(
        token_signs(both, 1 - both, ce=True, balance=True), torch.stack([third, third.flip(0)], 1)
    )


def test_contrast_is_negated_by_the_opposite_mask_and_keeps_the_range() -> None:
    m = torch.randint(0, 2, (2, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    c = correlation(tokens(1), tokens(2))
    h, opposite = (c * token_signs(x, 1 - x, ce=True).flatten(1)[:, None, None] for x in (m, 1 - m))
    assert torch.equal(h, -opposite)
    assert -1 <= h.min() < 0 < h.max() <= 1
    masked = c * token_signs(m, 1 - m, ce=False).flatten(1)[:, None, None]
    assert masked.permute(0, 3, 1, 2)[m.flatten(1) == 0].eq(0).all()


def test_masking_features_before_equals_masking_correlations_after() -> None:
    m = (signs() > 0).float()
    before = correlation(tokens(1), Tokens.of([t * m[:, None] for t in maps(2)], 1e-5))
    after = correlation(tokens(1), tokens(2)) * m.flatten(1)[:, None, None]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


def test_excluded_pixels_count_nothing() -> None:
    foreground = torch.tensor([[0.0, 0.0, 0.6, 0.2]])[None]
    background = torch.tensor([[1.0, 0.0, 0.1, 0.3]])[None]
    found = token_signs(foreground, background, ce=True, exclude=True)
    assert torch.equal(found, torch.tensor([[[-1.0, 0, 1, 0]]]))
    soft = token_signs(foreground, background, ce=True, mask="soft", exclude=True)
    torch.testing.assert_close(soft, foreground - background)
    grown = torch.ones_like(background)  # the fallback raised the foreground to 1
    assert torch.equal(token_signs(grown, background, ce=True, exclude=True), grown)


# -- the reader -------------------------------------------------------------------------------------------------------


def plain(prompt: CorrelationPrompt, query: list[Tensor], support: list[Tensor], signs: Tensor) -> Tensor:
    """The specification step by step, with the whole 4D tensor: (B, u, v, h, w, L)."""
    cosines = [
        torch.einsum("bdhw,bduv->buvhw", q / (q.norm(dim=1, keepdim=True) + 1e-5), s / (s.norm(dim=1, keepdim=True) + 1e-5))
        for q, s in zip(query, support, strict=True)
    ]  # fmt: skip
    h = torch.stack(cosines, -1).clamp(min=0) * signs[..., None, None, None]

    def layer(part: nn.Module, x: Tensor) -> Tensor:
        conv, norm = part.conv, part.norm
        assert isinstance(conv, CentrePivotConv4d)
        assert isinstance(norm, nn.GroupNorm)
        y = convolution_4d(x, kernel_4d(conv), conv.bias, conv.stride)
        y = F.group_norm(y.permute(0, 5, 1, 2, 3, 4), norm.num_groups, norm.weight, norm.bias)
        return F.relu(y).permute(0, 2, 3, 4, 5, 1)

    parts, start = [], 0
    for size, squeeze in zip(prompt.sizes, prompt.squeeze, strict=True):
        x = h[..., start : start + size]
        for part in (squeeze.first, *squeeze.rest):
            x = layer(part, x)
        parts.append(x)
        start += size
    x = torch.stack(parts).sum(0)
    for part in prompt.mixing:
        x = layer(part, x)
    return prompt.head(x.mean((1, 2)).permute(0, 3, 1, 2))


def assert_same(prompt: CorrelationPrompt, out: Tensor, expected: Tensor) -> None:
    """The same values, and the same gradients of all weights."""
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)
    wanted = list(prompt.parameters())
    grad = torch.randn_like(out)
    for ours, theirs in zip(
        torch.autograd.grad(out, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("recompute", [False, True])
def test_reader_equals_plain_operations(groups: Any, recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 7 * 4 * 2 * 3 * 36)  # seven query positions at a time
    config = CorrConfig(channels=(4, 8, 8), groups=groups, zero_init_head=False)
    prompt = make(config=config, recompute=recompute)
    query, support, s = maps(1), maps(2), signs()
    out, expected = prompt(match(prompt, query, support, s)), plain(prompt, query, support, s)
    assert_same(prompt, out, expected)


@pytest.mark.parametrize("recompute", [False, True])
def test_tokens_without_a_sign_are_not_correlated(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 7 * 4 * 2 * 3 * 36)
    prompt, query, support = make(recompute=recompute), maps(1), maps(2)
    s = torch.zeros(2, 6, 6)
    s[0, 3:5, 4:6], s[1, 0] = (
        torch.tensor([[1.0, 0.5], [-1, 1]]),
        1,
    )  # the stride keeps one of the four, and two of the six
    asked: list[int] = []

    def counting(rows: Tokens, columns: Tokens) -> Tensor:
        asked.append(len(rows.scale) * rows.scale.shape[-1] * columns.scale.shape[-1])
        return correlation(rows, columns)

    monkeypatch.setattr(module, "correlation", counting)
    out, expected = prompt(match(prompt, query, support, s)), plain(prompt, query, support, s)
    assert sum(asked) == 36 * (4 + 6 + 1 + 2)
    assert_same(prompt, out, expected)


def test_a_support_without_any_sign_gives_numbers_and_gradients() -> None:
    prompt, s = make(), torch.zeros(2, 6, 6)
    s[1, 2, 3] = 1
    out = prompt(match(prompt, maps(1), maps(2), s))
    torch.testing.assert_close(out, plain(prompt, maps(1), maps(2), s), atol=1e-4, rtol=0)
    empty = match(prompt, maps(1), maps(2), torch.zeros(2, 6, 6))
    empty.sum().backward()
    assert all(p.grad.isfinite().all() for part in (prompt.squeeze, prompt.mixing) for p in part.parameters())


def test_a_query_is_prepared_once_for_all_supports(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, query, g = make(), maps(1), torch.Generator().manual_seed(3)
    support = [torch.randn(2, 3, 16, 6, 6, generator=g) for _ in range(3)]
    s = torch.stack([signs(seed) for seed in range(3)], 1)
    prepared: list[Any] = []
    make_tokens = Tokens.of
    monkeypatch.setattr(Tokens, "of", lambda maps, eps: prepared.append(maps) or make_tokens(maps, eps))
    found = prompt.match(query, support, s)
    assert len(prepared) == 1 + 3
    for k in range(3):
        assert torch.equal(found[:, k], match(prompt, query, [maps[:, k] for maps in support], s[:, k]))


def test_only_what_the_convolutions_gave_is_kept_for_the_gradient() -> None:
    prompt, query, support, s = make(), maps(1), maps(2), signs()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        match(prompt, query, support, s)
    for parameter in prompt.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    tokens = 2 * 36  # of the queries; the support's grid of 6 x 6 shrinks to 2 x 2 and 1 x 1
    correlations = tokens * 3 * (36 + 4)
    convolved = tokens * (4 * 4 + 5 * 8)
    assert sum(kept.values()) == 4 * (correlations + convolved)


def test_query_and_support_need_not_be_squares_of_one_size() -> None:
    prompt = make()
    query = [torch.randn(2, 16, 4, 7) for _ in range(3)]
    assert prompt(match(prompt, query, maps(2), signs())).shape == (2, 12, 4, 7)


def test_episodes_of_a_batch_do_not_see_each_other() -> None:
    prompt = make()
    query, support, s = maps(1), maps(2), signs()
    both = match(prompt, query, support, s)
    alone = [
        match(prompt, [t[b : b + 1] for t in query], [t[b : b + 1] for t in support], s[b : b + 1]) for b in (0, 1)
    ]
    torch.testing.assert_close(both, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_parameter_counts() -> None:
    def count(part: nn.Module) -> int:
        return sum(p.numel() for p in part.parameters())

    prompt = CorrelationPrompt(6, 256, CorrConfig())
    assert count(prompt.squeeze) == 171_520
    assert count(prompt.mixing) == 886_272
    assert count(prompt.head) == 180_608
    assert count(prompt) == 1_238_400
    two = CorrelationPrompt(6, 256, CorrConfig(groups=2))
    assert [count(squeeze) for squeeze in two.squeeze] == [171_520 - 2 * 16 * 3 * 25] * 2


def test_head_starts_at_zero_or_not() -> None:
    prompt = make(config=CorrConfig(channels=(4, 8, 8)))
    out = prompt(match(prompt, maps(1), maps(2), signs()))
    assert out.eq(0).all()
    out.sum().backward()
    assert prompt.head[-1].weight.grad.abs().sum() > 0, "it can leave zero"
    assert not make()(match(make(), maps(1), maps(2), signs())).eq(0).all()


def test_the_later_blocks_are_the_larger_group() -> None:
    assert make(blocks=3, config=CorrConfig(channels=(4, 8, 8), groups=2)).sizes == (1, 2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"corr\.channels are \[4, 6, 8\]"):
        CorrelationPrompt(3, 12, CorrConfig(channels=(4, 6, 8)))
    with pytest.raises(UserError, match=r"corr\.groups is 2, but only 1"):
        CorrelationPrompt(1, 12, CorrConfig(groups=2))
