"""Prompts for an object of a generated picture, as SAM was trained with them: a point or a box, then a correction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Prompts(NamedTuple):
    """One prompt per picture: points (B, P, 2) as (x, y) pixels with labels (B, P) 1, 0 or -1 (none), boxes as two points
    with labels 2 and 3, and a mask (B, 1, 4g, 4g) of logits or None. SAM encodes boxes as such points, too."""

    points: Tensor
    labels: Tensor
    mask: Tensor | None = None


def some_object(layers: Tensor, generator: torch.Generator) -> Tensor:
    """The mask (B, H, W) bool of one object per layer, each object as likely as another."""
    numbers = torch.arange(1, 16)
    there = (layers[:, None] == numbers[None, :, None, None]).flatten(2).any(2)
    chosen = numbers[torch.multinomial(there.float(), 1, generator=generator)[:, 0]]
    return layers == chosen[:, None, None]


def some_pixel(where: Tensor, generator: torch.Generator) -> Tensor:
    """(x, y) in pixels (B, 2) of one pixel of each mask (B, H, W), uniformly; anywhere where it is empty."""
    weight = where.flatten(1).float().cpu() + 1e-9
    index = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return torch.stack([index % where.shape[2], index // where.shape[2]], 1).float()


def first_prompts(masks: Tensor, generator: torch.Generator, boxes: bool | None = None) -> Prompts:
    """A point inside, or the bounding box with each side moved by up to 5 pixels; half of each where not said."""
    count = len(masks)
    point = some_pixel(masks, generator)
    rows, columns = masks.any(2).float(), masks.any(1).float()

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        return line.argmax(1).float(), line.shape[1] - line.flip(1).argmax(1).float()

    (top, bottom), (left, right) = ends(rows), ends(columns)
    corners = torch.stack([left, top, right, bottom], 1)
    if boxes is None:
        corners = corners + 10 * torch.rand(count, 4, generator=generator) - 5
    as_box = torch.rand(count, generator=generator) < 0.5 if boxes is None else torch.full((count,), boxes)
    as_point = torch.stack([point, torch.zeros_like(point)], 1)  # the second is no point
    points = torch.where(as_box[:, None, None], corners.clamp(0, masks.shape[-1]).unflatten(1, (2, 2)), as_point)
    labels = torch.where(as_box[:, None], torch.tensor([2, 3]), torch.tensor([1, -1]))
    return Prompts(points, labels)


def corrected(prompts: Prompts, logits: Tensor, masks: Tensor, side: int, generator: torch.Generator) -> Prompts:
    """The same prompts with the predicted mask (B, 4g, 4g) and a point where it is wrong (`masks` of its size), in pixels of
    a picture of that `side`."""
    wrong = (logits > 0).cpu() != masks
    point = some_pixel(wrong, generator)
    label = masks[torch.arange(len(masks)), point[:, 1].long(), point[:, 0].long()].long()
    scale = side / masks.shape[-1]
    points = torch.cat([prompts.points, (point * scale)[:, None]], 1)
    return Prompts(points, torch.cat([prompts.labels, label[:, None]], 1), logits.detach()[:, None])
