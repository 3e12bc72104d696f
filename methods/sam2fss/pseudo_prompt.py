"""PPG, the pseudo prompt generator: two soft masks of the query from DINOv2 features, without training.

sam2fss.md 2.2; FSSAM eq. 1-4. `B` episodes, `K` shots, `D` channels, `h w` patch grid, `H W` network size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, autocast

from methods.sam2fss.maps import (
    EmptyMaskFallback,
    cosine,
    foreground,
    masked_average,
    minmax,
    resized,
    shrunk_masks,
    tokens,
)


class PseudoPrompt(NamedTuple):
    """Soft masks (B, 1, H, W) in [0, 1]: `fg` is complete but noisy, `disc` (discriminative) clean but incomplete."""

    fg: Tensor
    disc: Tensor


@torch.no_grad()
def pseudo_prompt(
    feat_q: Tensor,
    feat_s: Tensor,
    mask_s: Tensor,
    *,
    renormalise: bool = False,
    empty_mask_fallback: EmptyMaskFallback = "area",
) -> PseudoPrompt:
    """Query features (B, D, h, w), support features (B, K, D, h, w) and masks (B, K, H, W) to pseudo masks of the query.

    Every support gives a pair; the pairs are averaged, and with `renormalise` stretched to [0, 1] again. Features are
    pooled without normalising them first. Masks are {0, 1, 255}, or float in [0, 1]. Similarities are computed in the
    type of the features, everything else in float32; there is no gradient.
    """
    with autocast(feat_q.device.type, enabled=False):
        height, width = mask_s.shape[-2:]
        grid = (feat_q.shape[-2], feat_q.shape[-1])
        mask = shrunk_masks(foreground(mask_s), grid, "bilinear", empty_mask_fallback).flatten(2).to(feat_s.dtype)
        query, support = tokens(feat_q)[:, None], tokens(feat_s)

        def similarity(weights: Tensor) -> Tensor:
            """(B, K, H, W): cosine with each support's prototype, min-max on the patch grid, then enlarged."""
            scores = cosine(query, masked_average(support, weights)).float()
            return resized(minmax(scores.unflatten(-1, grid)), (height, width))

        fg = similarity(mask)
        disc = minmax((fg - similarity(1 - mask)).clamp(min=0))
        fg, disc = fg.mean(1, keepdim=True), disc.mean(1, keepdim=True)
        return PseudoPrompt(minmax(fg), minmax(disc)) if renormalise else PseudoPrompt(fg, disc)
