"""Views of the same kind of object: generated pictures or frames of a video, moved, recoloured, and with spoilt masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.shapes_render import Draw, World, draw_layer, draw_picture, lay_out
from fssbench.images import read_image, read_index_mask, resize_image, resize_mask


class Pictures(NamedTuple):
    """Images (M, 3, S, S) uint8, their masks (M, S, S) uint8 {0, 1}, and which of them show the same kind of object.

    kinds   (M, 2) shape and texture; -1 where there is no such name
    groups  rows of M that show the same, each two or more
    """

    images: Tensor
    masks: Tensor
    kinds: Tensor
    groups: list[Tensor]


class Views(NamedTuple):
    """G groups of V views of the same kind of object: images (G, V, 3, S, S), masks (G, V, S, S), kinds (G, V, 2)."""

    images: Tensor
    masks: Tensor
    kinds: Tensor


def pictures(world: World, kinds: Sequence[tuple[int, int]], each: int, side: int, seed: int) -> Pictures:
    """`each` generated pictures with an object of every kind."""
    count = len(kinds) * each
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    masks = torch.empty(count, side, side, dtype=torch.uint8)
    for index in range(count):
        kind, draw = kinds[index // each], Draw(seed, 3, index, 0)
        layout = lay_out(world, kind, draw)
        of_kind = np.array([0, *((piece.shape, piece.texture) == kind for piece in layout.pieces)], np.uint8)
        images[index] = torch.from_numpy(resize_image(draw_picture(world, layout, draw), side)).permute(2, 0, 1)
        masks[index] = torch.from_numpy(resize_mask(of_kind[draw_layer(world, layout)], side))
    return Pictures(
        images, masks, torch.tensor(kinds).repeat_interleave(each, 0), list(torch.arange(count).split(each))
    )


def video(root: Path, side: int) -> Pictures:
    """The frames of a folder in DAVIS' layout, the objects of a sequence as one; its sequences are the groups."""
    images, masks, groups = [], [], []
    for folder in sorted((root / "JPEGImages" / "480p").iterdir()):
        start = len(images)
        for frame in sorted(folder.glob("*.jpg")):
            label = read_index_mask(root / "Annotations" / "480p" / folder.name / f"{frame.stem}.png")
            images.append(torch.from_numpy(resize_image(read_image(frame), side)).permute(2, 0, 1))
            masks.append(torch.from_numpy((resize_mask(label, side) > 0).astype(np.uint8)))
        groups.append(torch.arange(start, len(images)))
    return Pictures(torch.stack(images), torch.stack(masks), torch.full((len(images), 2), -1), groups)


def some_views(pictures: Pictures, count: int, views: int) -> Views:
    """`views` pictures of each of `count` groups, one of them another one moved, mirrored and recoloured."""
    chosen = torch.randint(len(pictures.groups), (count,)).tolist()
    rows = torch.stack([g[torch.randint(len(g), (views,))] for g in (pictures.groups[i] for i in chosen)])
    images, masks = pictures.images[rows].clone(), pictures.masks[rows].clone()
    images[:, -1], masks[:, -1] = moved(images[:, 0], masks[:, 0])
    return Views(images, masks, pictures.kinds[rows])


def moved(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Images (M, 3, S, S) and masks (M, S, S) turned, scaled, shifted, mirrored, the colour channels in another order."""
    size = len(images)
    turn, scale = (torch.rand(size) - 0.5) * 1.2, torch.empty(size).uniform_(0.7, 1.4)
    mirror = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
    linear = torch.stack([turn.cos() * mirror, -turn.sin(), turn.sin() * mirror, turn.cos()], 1).view(size, 2, 2)
    matrix = torch.cat([linear * scale[:, None, None], (torch.rand(size, 2, 1) - 0.5) * 0.6], 2)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    other = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    cover = F.grid_sample(masks[:, None].float(), grid, mode="nearest", padding_mode="reflection", align_corners=False)
    return other[:, torch.randperm(3)].round().to(torch.uint8), cover[:, 0].to(torch.uint8)


def spoilt(masks: Tensor) -> Tensor:
    """Masks (B, 1, S, S) in [0, 1] as a pseudo prompt might be: parts missing, blobs added, edges soft."""
    size, side = len(masks), masks.shape[-1]

    def clouds() -> Tensor:
        return F.interpolate(torch.rand(size, 1, 5, 5), (side, side), mode="bicubic", align_corners=False)

    kept = masks * ((clouds() - 0.35) * 12).sigmoid()
    return torch.maximum(kept, ((clouds() - 0.85) * 12).sigmoid())
