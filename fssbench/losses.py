"""Losses on mask logits, with an ignore label."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fssbench.episode import IGNORE


def bce_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy with logits, mean over the pixels of all images that are not 255.

    logits (B, H, W), mask (B, H, W) uint8 {0, 1, 255} -> scalar; 0 where every pixel is ignored.
    """
    logits, valid = logits.float(), mask != IGNORE
    loss = F.binary_cross_entropy_with_logits(logits, (mask == 1).float(), reduction="none")
    return (loss * valid).sum() / valid.sum().clamp(min=1)


def dice_loss(logits: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss `1 - (2 sum(p t) + smooth) / (sum p + sum t + smooth)` per image, mean over the batch.

    logits (B, H, W), mask (B, H, W) uint8 {0, 1, 255}; ignored pixels take no part. `smooth` keeps empty masks finite.
    """
    valid = mask != IGNORE
    probability = logits.float().sigmoid() * valid
    target = (mask == 1).float()
    overlap = (probability * target).sum((-2, -1))
    total = probability.sum((-2, -1)) + target.sum((-2, -1))
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def squared_dice_loss(logits: Tensor, mask: Tensor, ignore: bool = True) -> Tensor:
    """Dice loss `1 - 2 sum(p t) / max(sum(p^2) + sum(t^2), 1e-8)` per image, mean over the batch (sam2fss.md 3.4).

    logits (B, H, W), mask (B, H, W) uint8 {0, 1, 255}; pixels with 255 take no part, or with `ignore` false count as
    background.
    """
    probability = logits.float().sigmoid()
    if ignore:
        probability = probability * (mask != IGNORE)
    target = (mask == 1).float()
    overlap = (probability * target).sum((-2, -1))
    total = probability.square().sum((-2, -1)) + target.sum((-2, -1))
    return (1 - 2 * overlap / total.clamp(min=1e-8)).mean()


def bce_dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """BCE + Dice, 1:1, the default loss of every trained method (fsdino.md 3.2)."""
    return bce_loss(logits, mask) + dice_loss(logits, mask)
