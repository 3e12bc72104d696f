"""From logits to masks and pixel counts at the targets' sizes, images of one size together (protocols.md 3.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.metrics.iou import counts_and_target

Size = tuple[int, ...]
Upsample = Callable[[Tensor, Size], Tensor]
"""Logits (B, H', W') and a size (H0, W0) -> logits (B, H0, W0) float32."""
PIXELS_AT_ONCE = 2**24
"""Pixels scaled together at most, so that a batch of huge photographs needs no more memory than one of them."""


def bilinear(logits: Tensor, size: Size, align_corners: bool = False) -> Tensor:
    """Logits (..., H', W') -> (..., H0, W0) float32; no image depends on those beside it."""
    maps = logits.float().reshape(1, -1, *logits.shape[-2:])
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners).reshape(*logits.shape[:-2], *size)


def predicted_masks(logits: Tensor, sizes: Sequence[Size], upsample: Upsample) -> list[Tensor]:
    """Logits (B, H', W') -> B bool masks, each of its own size (H0, W0)."""
    masks: dict[int, Tensor] = {}
    for size, rows in _of_one_size(sizes):
        masks |= zip(rows, upsample(_rows(logits, rows), size) > 0, strict=True)
    return [masks[row] for row in range(len(sizes))]


def predicted_counts(logits: Tensor, targets: Sequence[Tensor], upsample: Upsample) -> Tensor:
    """Logits (B, H', W') and B targets (H0, W0) uint8 {0, 1, 255}, on one device -> (B, 5) int64 there, as
    `counts_and_target` gives them. Never waits for the device."""
    counts: dict[int, Tensor] = {}
    for size, rows in _of_one_size([tuple(target.shape) for target in targets]):
        truth = torch.stack([targets[row] for row in rows])
        counts |= zip(rows, counts_and_target(upsample(_rows(logits, rows), size) > 0, truth), strict=True)
    return torch.stack([counts[row] for row in range(len(targets))])


def _of_one_size(sizes: Sequence[Size]) -> Iterator[tuple[Size, list[int]]]:
    """Numbers of the images of each size, as many as may be scaled together."""
    found: dict[Size, list[int]] = defaultdict(list)
    for row, size in enumerate(sizes):
        found[size].append(row)
    for size, rows in found.items():
        step = max(1, PIXELS_AT_ONCE // max(1, size[0] * size[1]))
        for start in range(0, len(rows), step):
            yield size, rows[start : start + step]


def _rows(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """Some of the logits. Stacked: a list as an index would be a tensor that is copied to the device first."""
    return logits if len(rows) == len(logits) else torch.stack([logits[row] for row in rows])
