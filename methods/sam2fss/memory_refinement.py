"""IMR, iterative memory refinement: foreground the discriminative memory of the query lacks, taken from the complete one.

sam2fss.md 2.4; FSSAM eq. 6-10. Without parameters, differentiable. `B` episodes, `K` shots, `C` memory channels (64),
`h w` memory grid, `H W` network size.
"""

from __future__ import annotations

from typing import NamedTuple

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


class RefinedMemory(NamedTuple):
    """What the refinement leaves.

    memory    (B, C, h, w) refined discriminative memory of the query
    prior     (B, 1, h, w) in [0, 1], the discriminative pseudo mask that belongs to it
    affinity  (B, 1, h, w) in [0, 1], A_QS: likeness of the query to the supports, the same in every iteration
    """

    memory: Tensor
    prior: Tensor
    affinity: Tensor


def memory_refinement(
    memory_fg: Tensor,
    memory_disc: Tensor,
    memory_support: Tensor,
    prior_fg: Tensor,
    prior_disc: Tensor,
    mask_s: Tensor,
    *,
    iterations: int = 3,
    normalise_weight: bool = False,
    prior_minmax: bool = True,
    empty_mask_fallback: EmptyMaskFallback = "area",
) -> RefinedMemory:
    """Query memories (B, C, h, w) of both pseudo masks, support memories (B, K, C, h, w), pseudo masks (B, 1, H, W) and
    support masks (B, K, H, W) to the refined memory.

    normalise_weight  min-max the blending weight too (the release's variant v2)
    prior_minmax      min-max the blended pseudo mask in every iteration, as the release does; the paper leaves it out

    Similarities and blending are in float32; the memory comes back in the type of `memory_disc`. `iterations` 0 returns
    it unchanged.
    """
    with autocast(memory_fg.device.type, enabled=False):
        grid = (memory_fg.shape[-2], memory_fg.shape[-1])
        masks = shrunk_masks(foreground(mask_s), grid, "bilinear", empty_mask_fallback)
        fg, disc, support = memory_fg.float(), memory_disc.float(), memory_support.float()
        p_fg, p_disc = resized(prior_fg.float(), grid), resized(prior_disc.float(), grid)

        def affinity(memory: Tensor, mask: Tensor) -> Tensor:
            """(B, 1, h, w): memories (B, K, C, h, w) under masks (B, K, h, w), min-max for each shot, then averaged."""
            prototype = masked_average(tokens(memory), mask.flatten(2))
            scores = cosine(tokens(fg)[:, None], prototype)
            return minmax(scores.unflatten(-1, grid)).mean(1, keepdim=True)

        to_support = affinity(support, masks)
        for _ in range(iterations):
            to_query = affinity(disc[:, None], p_disc)
            weight = (to_query + to_support - 1).clamp(min=0)
            weight = minmax(weight) if normalise_weight else weight
            disc = weight * fg + (1 - weight) * disc
            p_disc = weight * p_fg + (1 - weight) * p_disc
            p_disc = minmax(p_disc) if prior_minmax else p_disc
        return RefinedMemory(disc.to(memory_disc.dtype), p_disc, to_support)
