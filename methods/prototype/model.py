"""Prototype matching: masked average pooling of support tokens, cosine with the query tokens, one threshold.

The pooling is that of SG-One and PANet (Zhang et al. 2018, Wang et al. 2019), here without any training.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, autocast, nn

BINS = 256
"""Histogram bins of Otsu's method, as for 8-bit images."""


class PrototypeNet(nn.Module):
    """Tokens of query and supports to a mask, without parameters.

    Args:
        background: subtract the cosine with the background prototype.
        threshold: `otsu` (per image), or the score above which a patch belongs to the class.
    """

    def __init__(self, background: bool = True, threshold: float | Literal["otsu"] = "otsu") -> None:
        super().__init__()
        self.background = background
        self.threshold = threshold

    def forward(self, query: Tensor, support: Tensor, support_masks: Tensor) -> Tensor:
        """Tokens (B, D, h, w) and (B, K, D, h, w), masks (B, K, H, W) {0, 1, 255} to score - threshold (B, h, w)."""
        with autocast(query.device.type, enabled=False):
            classes = prototypes(support, support_masks)
            cosines = torch.einsum("bdhw,btd->bthw", F.normalize(query.float(), dim=1), classes)
            score = cosines[:, 0] - cosines[:, 1] if self.background else cosines[:, 0]
            threshold = otsu(score) if self.threshold == "otsu" else score.new_full((len(score),), self.threshold)
            return score - threshold[:, None, None]


def prototypes(tokens: Tensor, masks: Tensor) -> Tensor:
    """Unit prototypes (B, 2, D) of class and background, from tokens (B, K, D, h, w) and masks (B, K, H, W).

    A token weighs as much as its patch is covered; pixels other than 1 and 0 are in neither. Every shot's mean is
    scaled to unit length before the shots are averaged. A prototype without any pixel is zero, and so is its cosine.
    """
    areas = torch.stack([masks == 1, masks == 0], 2).float()
    height, width = tokens.shape[-2:]
    weights = F.adaptive_avg_pool2d(areas.flatten(0, 2), (height, width)).view(*areas.shape[:3], height, width)
    per_shot = F.normalize(torch.einsum("bkdhw,bkthw->bktd", tokens.float(), weights), dim=-1)
    return F.normalize(per_shot.mean(1), dim=-1)


def otsu(scores: Tensor) -> Tensor:
    """Otsu's threshold per image: scores (B, h, w) to (B,), by a histogram of 256 bins between least and largest score.

    It is the upper edge of the bin after which the variance between the two classes is largest (Otsu 1979). Where all
    scores of an image are equal it is that score, so that nothing lies above it.
    """
    flat = scores.flatten(1).float()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = high - low
    bins = ((flat - low) / span.clamp(min=torch.finfo(torch.float32).tiny) * BINS).long().clamp(max=BINS - 1)
    first = torch.arange(len(flat), device=flat.device)[:, None] * BINS
    # torch.bincount would wait for the device to learn its size; whole numbers are exact in float64
    counts = torch.zeros(len(flat) * BINS, dtype=widest_float(flat.device), device=flat.device)
    counts = counts.index_add(0, (bins + first).flatten(), counts.new_ones(bins.numel())).view(-1, BINS)

    below = counts.cumsum(1)
    total = below[:, -1:]
    sums = (counts * torch.arange(BINS, device=flat.device)).cumsum(1)
    # variance between classes = (mean * below - sums)^2 / (below * above), up to a constant factor
    spread = (sums[:, -1:] * below - sums * total) ** 2 / (below * (total - below)).clamp(min=1)
    split = spread.argmax(1, keepdim=True)
    edge = low + span * (split + 1) / BINS
    return torch.where(span > 0, edge, high).squeeze(1)


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but float32 on Apple's GPUs, which have no wider one."""
    return torch.float32 if device.type == "mps" else torch.float64
