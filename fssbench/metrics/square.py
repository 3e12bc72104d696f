"""Counting at a square instead of the original size, as released codes do (protocols.md 3.1).

The prediction is the same logits scaled to the square; the ground truth is resized to it, nearest neighbour, without its
aspect ratio. Numbers at a square are comparable only with numbers at the same square.
"""

from __future__ import annotations

import torch
from torch import Tensor


def square_target(target: Tensor, side: int) -> Tensor:
    """(H0, W0) uint8 mask -> (side, side), by the rule of `fssbench.images.resize_mask`, on the mask's device."""
    height, width = target.shape
    centres = 2 * torch.arange(side, device=target.device) + 1
    rows, columns = (centres * size // (2 * side) for size in (height, width))
    return target[rows][:, columns]
