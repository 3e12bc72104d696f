"""BCE + Dice (fsdino.md section 8, invariant 22)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fssbench.losses import bce_dice_loss, bce_loss, dice_loss


def masks() -> torch.Tensor:
    mask = torch.zeros(3, 8, 8, dtype=torch.uint8)
    mask[0, 2:5, 1:7] = 1
    mask[1] = 1
    return mask  # the third is empty, the second full


def test_finite_on_empty_and_full_masks_with_gradient() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = bce_dice_loss(logits, masks())
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_near_zero_for_confident_correct_logits() -> None:
    mask = masks()
    assert bce_dice_loss((mask.float() - 0.5) * 60, mask) < 1e-4
    assert bce_dice_loss((0.5 - mask.float()) * 60, mask) > 10


def test_the_order_of_the_batch_does_not_matter() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert bce_dice_loss(logits, masks()) == pytest.approx(bce_dice_loss(logits.flip(0), masks().flip(0)).item())


def test_ignored_pixels_take_no_part() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(2))
    mask = masks()
    mask[:, 6:] = 255
    other = logits.clone()
    other[:, 6:] = 50
    assert bce_dice_loss(logits, mask) == bce_dice_loss(other, mask)
    assert bce_loss(logits, torch.full_like(mask, 255)) == 0


def test_against_the_formulas() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(3))
    target = masks().float()
    assert bce_loss(logits, masks()).item() == pytest.approx(F.binary_cross_entropy_with_logits(logits, target).item())
    p = logits.sigmoid()
    expected = [1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, target, strict=True)]
    assert dice_loss(logits, masks()).item() == pytest.approx(torch.stack(expected).mean().item())
