"""Pseudo prompts and memory refinement: the invariants of the specification, and independent references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.sam2fss.maps import cosine, foreground, masked_average, minmax, shrunk_masks
from methods.sam2fss.memory_refinement import memory_refinement
from methods.sam2fss.pseudo_prompt import pseudo_prompt


def features(seed: int = 0, size: int = 2, shot: int = 1, side: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(size, 8, side, side, generator=generator)
    support = torch.randn(size, shot, 8, side, side, generator=generator)
    masks = (torch.rand(size, shot, side, side, generator=generator) < 0.3).to(torch.uint8)
    return query, support, masks.repeat_interleave(8, -1).repeat_interleave(8, -2)


# -- the shared formulas ----------------------------------------------------------------------------------------------


def test_formulas_have_the_published_constants() -> None:
    x = torch.tensor([[[1.0, 3.0], [2.0, 5.0]]])
    assert torch.equal(minmax(x), (x - 1) / (4 + 1e-7))
    a, m = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.5])
    assert torch.allclose(masked_average(a, m), (a[0] + a[1] / 2) / (1.5 + 5e-4))
    assert torch.allclose(cosine(a, torch.tensor([1.0, 0.0])), torch.tensor([1 / 5**0.5, 3 / 5]))
    assert torch.equal(cosine(a, torch.zeros(2)), torch.zeros(2))


def test_ignored_pixels_are_background() -> None:
    assert foreground(torch.tensor([0, 1, 255], dtype=torch.uint8)).tolist() == [0, 1, 0]
    assert foreground(torch.tensor([0.0, 0.4, 1.0, 255.0])).tolist() == pytest.approx([0, 0.4, 1, 0])


def test_only_a_lost_mask_is_shrunk_by_the_fallback() -> None:
    masks = torch.zeros(1, 2, 512, 512)
    masks[0, 0, 100:300, 50:400] = 1
    masks[0, 1, 17:30, 5:9] = 1  # between the points that both kinds of sampling look at
    for mode in ("bilinear", "nearest"):
        plain = shrunk_masks(masks, (32, 32), mode, "none")
        assert plain[0, 0].any()
        assert not plain[0, 1].any()
        for fallback, cells in (("area", 13 * 4 / 256), ("max", 1.0)):
            small = shrunk_masks(masks, (32, 32), mode, fallback)
            assert torch.equal(small[0, 0], plain[0, 0])
            assert small[0, 1].sum() == pytest.approx(cells)
        assert not shrunk_masks(torch.zeros(1, 1, 512, 512), (32, 32), mode, "max").any()
    nearest = shrunk_masks(masks, (32, 32), "nearest", "none")
    assert torch.equal(nearest, masks[..., ::16, ::16])


# -- pseudo prompts ---------------------------------------------------------------------------------------------------


def numpy_prompt(query: np.ndarray, support: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One episode, one support, on the patch grid, in plain loops."""

    def mean(weights: np.ndarray) -> np.ndarray:
        return (support * weights).sum((1, 2)) / (weights.sum() + 5e-4)

    def scaled(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / (x.max() - x.min() + 1e-7)

    maps = []
    for prototype in (mean(mask), mean(1 - mask)):
        score = np.zeros(query.shape[1:])
        for i, j in np.ndindex(score.shape):
            v = query[:, i, j]
            score[i, j] = v @ prototype / (np.linalg.norm(v) * np.linalg.norm(prototype) + 1e-7)
        maps.append(scaled(score))
    return maps[0], scaled(np.maximum(maps[0] - maps[1], 0))


def test_against_plain_loops() -> None:
    query, support, masks = features()
    small = masks[..., ::8, ::8]  # at the size of the grid neither mask nor map is resized
    found = pseudo_prompt(query, support, small)
    for b in range(2):
        fg, disc = numpy_prompt(query[b].numpy(), support[b, 0].numpy(), small[b, 0].numpy().astype(float))
        assert np.allclose(found.fg[b, 0], fg, atol=1e-5)
        assert np.allclose(found.disc[b, 0], disc, atol=1e-5)


@pytest.mark.parametrize("shot", [1, 3])
def test_values_and_shapes(shot: int) -> None:
    query, support, masks = features(shot=shot)
    fg, disc = pseudo_prompt(query, support, masks)
    assert fg.shape == disc.shape == (2, 1, 48, 48)
    for x in (fg, disc):
        assert x.min() >= 0
        assert x.max() <= 1
    if shot == 1:
        assert torch.allclose(disc.amax((2, 3)), torch.ones(2, 1), atol=1e-5)
        background, _ = pseudo_prompt(query, support, 1 - masks.float())
        assert not disc[fg <= background].any()
    patches, _ = pseudo_prompt(query, support[:, :1], masks[:, :1, ::8, ::8])
    assert torch.allclose(patches.amin((2, 3)), torch.zeros(2, 1), atol=1e-6)
    assert torch.allclose(patches.amax((2, 3)), torch.ones(2, 1), atol=1e-5)


def test_invariances() -> None:
    query, support, masks = features(shot=3)
    fg, disc = pseudo_prompt(query, support, masks)
    for scaled in (pseudo_prompt(3 * query, support, masks), pseudo_prompt(query, 0.2 * support, masks)):
        assert torch.allclose(scaled.fg, fg, atol=1e-5)
        assert torch.allclose(scaled.disc, disc, atol=1e-5)
    order = torch.tensor([2, 0, 1])
    shuffled = pseudo_prompt(query, support[:, order], masks[:, order])
    assert torch.allclose(shuffled.fg, fg, atol=1e-6)
    assert torch.allclose(shuffled.disc, disc, atol=1e-6)
    one = pseudo_prompt(query, support[:, :1], masks[:, :1])
    same = pseudo_prompt(query, support[:, :1].expand(-1, 3, -1, -1, -1), masks[:, :1].expand(-1, 3, -1, -1))
    assert torch.allclose(same.fg, one.fg, atol=1e-6)
    assert torch.allclose(same.disc, one.disc, atol=1e-6)
    pixels = torch.randperm(36)
    moved = query.flatten(2)[..., pixels].unflatten(2, (6, 6))
    small = masks[..., ::8, ::8]
    there, here = pseudo_prompt(moved, support, small), pseudo_prompt(query, support, small)
    assert torch.allclose(there.disc.flatten(1), here.disc.flatten(1)[:, pixels], atol=1e-6)


def test_several_supports_give_the_mean_of_single_ones() -> None:
    query, support, masks = features(shot=3)
    single = [pseudo_prompt(query, support[:, [k]], masks[:, [k]]) for k in range(3)]
    for found, parts in zip(pseudo_prompt(query, support, masks), zip(*single, strict=True), strict=True):
        assert torch.allclose(found, torch.stack(parts).mean(0), atol=1e-6)


def test_empty_and_full_masks_are_finite_and_there_is_no_gradient() -> None:
    query, support, masks = features()
    query.requires_grad_()
    for value in (0, 1):
        for x in pseudo_prompt(query, support, torch.full_like(masks, value)):
            assert torch.isfinite(x).all()
            assert not x.requires_grad


def test_renormalising_stretches_the_mean() -> None:
    query, support, masks = features(shot=3)
    plain, again = pseudo_prompt(query, support, masks), pseudo_prompt(query, support, masks, renormalise=True)
    for a, b in zip(plain, again, strict=True):
        assert a.amax((2, 3)).min() < 0.999
        assert torch.equal(minmax(a), b)


def test_similarities_follow_the_type_of_the_features() -> None:
    query, support, masks = features()
    exact = pseudo_prompt(query, support, masks)
    half = pseudo_prompt(query.bfloat16(), support.bfloat16(), masks)
    assert half.fg.dtype == torch.float32
    assert 1e-4 < (half.fg - exact.fg).abs().max() < 0.05


def test_similarities_stay_in_float32_under_autocast() -> None:
    query, support, masks = features(shot=2)
    exact = pseudo_prompt(query, support, masks)
    refined = memory_refinement(*memories(shot=2))
    with torch.autocast("cpu", torch.bfloat16):
        for found, expected in (
            (pseudo_prompt(query, support, masks), exact),
            (memory_refinement(*memories(shot=2)), refined),
        ):
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


# -- refinement -------------------------------------------------------------------------------------------------------


def memories(seed: int = 0, shot: int = 1, size: int = 2) -> list[Tensor]:
    """memory_fg, memory_disc, memory_support, prior_fg, prior_disc, masks on a 4 x 4 grid of 64-pixel images."""
    generator = torch.Generator().manual_seed(seed)
    fg, disc = torch.randn(2, size, 8, 4, 4, generator=generator)
    p_fg, p_disc = torch.rand(2, size, 1, 64, 64, generator=generator)
    masks = (torch.rand(size, shot, 64, 64, generator=generator) < 0.4).to(torch.uint8)
    return [fg, disc, torch.randn(size, shot, 8, 4, 4, generator=generator), p_fg, p_disc, masks]


def reference_refinement(
    parts: list[Tensor], b: int, n: int = 3, normalise_weight: bool = False, prior_minmax: bool = True
) -> tuple[Tensor, Tensor]:
    """Memory and prior of one episode, one support, written anew after the specification."""
    fg, disc, support, p_fg, p_disc, masks = (x[b].double() for x in parts)

    def shrink(x: Tensor) -> Tensor:
        return F.interpolate(x[None], (4, 4), mode="bilinear", align_corners=True)[0]

    def scaled(x: Tensor) -> Tensor:
        return (x - x.min()) / (x.max() - x.min() + 1e-7)

    def like(memory: Tensor, mask: Tensor) -> Tensor:
        p = (memory * mask).sum((1, 2)) / (mask.sum() + 5e-4)
        return scaled(torch.einsum("chw,c->hw", fg, p) / (fg.norm(dim=0) * p.norm() + 1e-7))

    m, f, d = shrink((masks == 1).double())[0], shrink(p_fg)[0], shrink(p_disc)[0]
    for _ in range(n):
        w = (like(disc, d) + like(support[0], m) - 1).clamp(min=0)  # A_QS made anew every time
        w = scaled(w) if normalise_weight else w
        disc = w * fg + (1 - w) * disc
        d = w * f + (1 - w) * d
        d = scaled(d) if prior_minmax else d
    return disc, d


@pytest.mark.parametrize("change", [{}, {"normalise_weight": True}, {"prior_minmax": False}], ids=str)
def test_refinement_against_the_specification(change: dict[str, bool]) -> None:
    parts = memories()
    refined = memory_refinement(*parts, empty_mask_fallback="none", **change)
    for b in range(2):
        memory, prior = reference_refinement(parts, b, **change)
        assert torch.allclose(refined.memory[b].double(), memory, atol=1e-5)
        assert torch.allclose(refined.prior[b, 0].double(), prior, atol=1e-5)
    assert not torch.allclose(refined.memory, parts[1], atol=1e-2)


def test_refinement_invariants() -> None:
    parts = memories(shot=3)
    fg, disc = parts[:2]
    assert torch.equal(memory_refinement(*parts, iterations=0).memory, disc)
    assert torch.allclose(memory_refinement(fg, fg, *parts[2:]).memory, fg, atol=1e-6)
    refined = memory_refinement(*parts)
    slack = 1e-6
    assert (refined.memory >= torch.minimum(fg, disc) - slack).all()
    assert (refined.memory <= torch.maximum(fg, disc) + slack).all()
    for x in (refined.prior, refined.affinity):
        assert x.min() >= 0
        assert x.max() <= 1
    order = torch.tensor([1, 2, 0])
    shuffled = memory_refinement(*parts[:2], parts[2][:, order], *parts[3:5], parts[5][:, order])
    assert torch.allclose(shuffled.memory, refined.memory, atol=1e-6)


def test_affinity_to_several_supports_is_the_mean_of_single_ones() -> None:
    parts = memories(shot=3)
    single = [memory_refinement(*parts[:2], parts[2][:, [k]], *parts[3:5], parts[5][:, [k]]).affinity for k in range(3)]
    assert torch.allclose(memory_refinement(*parts).affinity, torch.stack(single).mean(0), atol=1e-6)


def test_refinement_lets_gradients_through_and_keeps_the_type() -> None:
    parts = memories()
    for x in parts[:3]:
        x.requires_grad_()
    memory_refinement(*parts).memory.square().sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in parts[:3])
    half = memory_refinement(*(x.detach().bfloat16() for x in parts[:3]), *parts[3:])
    assert half.memory.dtype == torch.bfloat16
    assert half.prior.dtype == torch.float32


def test_variants_of_the_refinement_differ() -> None:
    parts = memories()
    base = memory_refinement(*parts).memory
    for change in ({"normalise_weight": True}, {"prior_minmax": False}, {"iterations": 2}):
        assert not torch.allclose(memory_refinement(*parts, **change).memory, base, atol=1e-4), change
    loose = memory_refinement(*parts, prior_minmax=False)
    assert loose.prior.min() > 0, "nothing stretches the prior to 0"
