"""BCE + Dice (fsdino.md section 8, invariant 22)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fssbench.losses import bce_dice_loss, bce_loss, dice_loss, squared_dice_loss


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


def test_the_mean_is_over_the_pixels_that_count() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(4))
    mask = masks()
    mask[:, 6:] = 255
    assert bce_loss(logits, mask).item() == pytest.approx(bce_loss(logits[:, :6], mask[:, :6]).item())
    assert dice_loss(logits, mask).item() == pytest.approx(dice_loss(logits[:, :6], mask[:, :6]).item())


def test_both_losses_have_the_same_weight() -> None:
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(5))
    assert bce_dice_loss(logits, masks()) == bce_loss(logits, masks()) + dice_loss(logits, masks())


def test_squared_dice_against_the_formula() -> None:
    """sam2fss.md 3.4, and that ignored pixels are left out, or count as background."""
    logits = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(6))
    mask = masks()
    mask[:, 6:] = 255
    p, t = logits.sigmoid(), (mask == 1).float()
    background = [1 - 2 * (a * b).sum() / (a.square().sum() + b.sum()) for a, b in zip(p, t, strict=True)]
    ignored = [1 - 2 * (a * b).sum() / (a[:6].square().sum() + b.sum()) for a, b in zip(p, t, strict=True)]
    assert squared_dice_loss(logits, mask, ignore=False).item() == pytest.approx(torch.stack(background).mean().item())
    assert squared_dice_loss(logits, mask).item() == pytest.approx(torch.stack(ignored).mean().item())
    nothing = torch.full((1, 8, 8), -200.0)
    assert squared_dice_loss(nothing, torch.zeros(1, 8, 8, dtype=torch.uint8)) == 1, "finite where both are empty"
