"""The small formulas that all parts share: min-max, cosine, masked average, masks on a coarser grid (sam2fss.md, head).

Each computes in the type of its inputs; callers hand in float32 where the specification asks for it.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.episode import IGNORE

MINMAX_EPS = COSINE_EPS = 1e-7
POOL_EPS = 5e-4
"""Added to denominators by the released code of FSSAM."""

EmptyMaskFallback = Literal["area", "max", "none"]
"""What becomes of a support mask that a coarser grid would lose: the covered part of each cell, every touched cell, or
nothing (sam2fss.md 2.8)."""


def minmax(x: Tensor, dims: tuple[int, ...] = (-2, -1)) -> Tensor:
    """(x - min) / (max - min + 1e-7) over `dims`, each other index on its own: in [0, 1]; 0 where x is constant."""
    low, high = x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)
    return (x - low) / (high - low + MINMAX_EPS)


def tokens(maps: Tensor) -> Tensor:
    """Maps (..., C, h, w) as tokens (..., h*w, C), without copying."""
    return maps.flatten(-2).transpose(-1, -2)


def masked_average(features: Tensor, weights: Tensor) -> Tensor:
    """GAP: features (..., N, C), weights (..., N) in [0, 1] -> (..., C); about zero where all weights are."""
    total = (weights[..., None, :] @ features)[..., 0, :]
    return total / (weights.sum(-1)[..., None] + POOL_EPS)


def cosine(features: Tensor, vector: Tensor) -> Tensor:
    """a.b / (|a||b| + 1e-7): features (..., N, C), vector (..., C) -> (..., N) in [-1, 1]; 0 where either is zero."""
    product = (features @ vector[..., None])[..., 0]
    return product / (features.norm(dim=-1) * vector.norm(dim=-1)[..., None] + COSINE_EPS)


def foreground(masks: Tensor) -> Tensor:
    """Masks {0, 1, 255} as float32 {0, 1}: ignored pixels become background. Soft masks keep their values in [0, 1]."""
    return masks.float() * (masks != IGNORE) if masks.is_floating_point() else (masks == 1).float()


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) to `size`, bilinear with align_corners: corners stay corners, downwards it is point sampling."""
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def shrunk_masks(
    masks: Tensor,
    size: tuple[int, int],
    mode: Literal["bilinear", "nearest"] = "bilinear",
    fallback: EmptyMaskFallback = "area",
) -> Tensor:
    """Float masks (B, K, H, W) in [0, 1] on a coarser grid (B, K, *size).

    `bilinear` is with align_corners. Only a mask that would become empty is shrunk by `fallback` instead.
    """
    small = resized(masks, size) if mode == "bilinear" else F.interpolate(masks, size, mode="nearest")
    if fallback == "none":
        return small
    pool = F.adaptive_avg_pool2d if fallback == "area" else F.adaptive_max_pool2d
    lost = ~(small > 0).flatten(2).any(2)
    return torch.where(lost[..., None, None], pool(masks, size), small)
