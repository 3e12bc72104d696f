"""Counting at a square instead of the original size, as released codes do (protocols.md 3.1 and 3.2).

The prediction is the same logits scaled to the square; the ground truth is resized to it, nearest neighbour. Numbers at a
square are comparable only with numbers at the same square. Two geometries are in use:

* a side such as `400` (HSNet's family): the aspect ratio is not kept.
* `473-pad` (PFENet, BAM; `641-pad` for COCO): the long side is the side of the square, both sides are cut to multiples of
  8 pixels, and the rest of the square is padding with mask 255, which is never counted: 375 x 500 becomes 352 x 472.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from fssbench.errors import UserError

Square = int | str
"""A side in pixels, or `SIDE-pad`."""
_PADDED = re.compile(r"([1-9]\d{0,4})-pad")
_STEP = 8


def check_square(square: Square) -> Square:
    """The same square; raises `UserError` for anything else than a side of at least one pixel or `SIDE-pad`."""
    if (isinstance(square, int) and square > 0) or (isinstance(square, str) and _PADDED.fullmatch(square)):
        return square
    raise UserError(f"data.squares holds {square!r}, expected a side of at least one pixel such as 400, or 473-pad.")


def counted_size(height: int, width: int, square: Square) -> tuple[int, int]:
    """Height and width at which an image of `height` x `width` is counted: the square, or its part that is not padding."""
    if isinstance(square, int):
        return square, square
    side, long = int(square.removesuffix("-pad")), max(height, width)
    sizes = (max(_STEP, side * length // long // _STEP * _STEP) for length in (height, width))
    return next(sizes), next(sizes)


def square_target(target: Tensor, square: Square) -> Tensor:
    """(H0, W0) uint8 mask -> (h, w) of `counted_size`, by the rule of `fssbench.images.resize_mask`, on the mask's device."""
    old = target.shape[0], target.shape[1]
    rows, columns = (
        (2 * torch.arange(new, device=target.device) + 1) * size // (2 * new)
        for new, size in zip(counted_size(*old, square), old, strict=True)
    )
    return target[rows][:, columns]
