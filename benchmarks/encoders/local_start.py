"""The start of the small ViT's training: a network that looks at neighbouring patches."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SHARPNESS = 0.6
"""Square root of the factor on queries times keys at the start."""


def start_local(model: VisionTransformer, images: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
    """Begin as a network that looks at neighbouring patches, instead of spending a short training on finding them.

    The last `head` channels hold sine-cosine positions, the others the whitened principal components of a patch. Queries
    and keys read the positions alone, and every head looks at one place beside its own: one patch away in blocks 1 and
    2, two in 3 and 4, then three and the whole neighbourhood. A convolution-like start in the spirit of Zheng et al.,
    "Structured Initialization for Attention in Vision Transformers" (2024).

    model  six blocks of heads whose width is a multiple of four, without register tokens
    images (n, 3, H, W) uint8, from which the components of a patch are taken; normalised by `mean` and `std`
    """
    width, heads, grid = model.embed_dim, model.blocks[0].attn.num_heads, model.patch_embed.grid_size[0]
    head = width // heads
    omega = 0.85 * math.pi * torch.arange(1, head // 4 + 1) / (head // 4)  # head // 4 frequencies per axis
    angle = torch.arange(grid)[:, None] * omega
    waves = torch.stack([angle.cos(), angle.sin()], 2).flatten(1) * 3 * math.sqrt(2)  # (grid, head / 2)
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1)), ((1, 1), (1, -1), (-1, 1), (-1, -1))
    with torch.no_grad():
        model.cls_token.zero_()
        model.norm.weight[-head:] = 0.0  # positions say nothing about classes
        model.pos_embed.zero_()
        model.pos_embed[0, 1:, -head:] = torch.cat(
            [waves[:, None].expand(-1, grid, -1), waves[None].expand(grid, -1, -1)], 2
        ).flatten(0, 1)
        for number, block in enumerate(model.blocks):
            weight, far = block.attn.qkv.weight, (1, 1, 2, 2, 3, 2)[number]
            nn.init.normal_(weight, std=0.004)
            nn.init.normal_(weight[2 * width :], std=width**-0.5)
            nn.init.normal_(block.attn.proj.weight, std=0.3 * width**-0.5)
            for h, (down, right) in enumerate(steps[number % 2][:heads]):
                turn = torch.block_diag(*(_turn(float(w) * far * d) for d in (down, right) for w in omega))
                weight[h * head : (h + 1) * head, -head:] += torch.eye(head) * SHARPNESS
                weight[width + h * head : width + (h + 1) * head, -head:] += turn * SHARPNESS
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.zero_()
        white, bias = whitening(images, width - head, model.patch_embed.patch_size[0], mean, std)
        model.patch_embed.proj.weight[:-head], model.patch_embed.proj.bias[:-head] = white, bias


def _turn(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, s], [-s, c]])


def whitening(
    images: Tensor, count: int, size: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Weight (count, 3, size, size) and bias that give the leading principal components of patches unit variance."""
    x = (images.float() / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    patches = F.unfold(x, size, stride=size).transpose(1, 2).flatten(0, 1)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    white = vectors.flip(1).T[:count] / (values.flip(0)[:count, None] + 0.01).sqrt()
    return white.unflatten(1, (3, size, size)), -white @ patches.mean(0)
