"""A small SAM 2 for tests: the package's own classes, 1/8 of the width, and weights filled by their names."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from methods.sam2fss import SAM2FSS

TINY_SAM2: dict[str, Any] = {
    "image_encoder": {
        "trunk": {"embed_dim": 16, "stages": [1, 1, 2, 1], "global_att_blocks": [3]},
        "neck": {
            "d_model": 32,
            "backbone_channel_list": [128, 64, 32, 16],
            "position_encoding": {"num_pos_feats": 32},
        },
    },
    "memory_attention": {
        "d_model": 32,
        "num_layers": 2,
        "layer": {
            "d_model": 32,
            "dim_feedforward": 64,
            "self_attention": {"embedding_dim": 32},
            "cross_attention": {"embedding_dim": 32, "kv_in_dim": 8},
        },
    },
    "memory_encoder": {
        "out_dim": 8,
        "in_dim": 32,
        "position_encoding": {"num_pos_feats": 8},
        "mask_downsampler": {"embed_dim": 32},
        "fuser": {"layer": {"dim": 32, "layer_scale_init_value": 0.1}},
    },
}
SIDE = 64
"""Network size of the small model: its memory grid is 4 x 4."""
SMALL: dict[str, Any] = {
    "sam2_weights": "random",
    "sam2_config": TINY_SAM2,
    "image_size": SIDE,
    "dino": "from_weights",
    "backbone_weights": "shapes_vit.safetensors",
    "dino_image_size": 80,
    "precision": "fp32",
}


def small_method(**kwargs: Any) -> SAM2FSS:
    """SAM2FSS around the small model, with weights that make a difference everywhere."""
    method = SAM2FSS(**{**SMALL, **kwargs})
    fill(method.net.sam2.model)
    return method.eval()


def fill(module: nn.Module) -> None:
    """Fill a SAM 2 model by the rule of the ground-truth values: every tensor from its own name."""
    state = {name: filled(name, tuple(value.shape)) for name, value in module.state_dict().items()}
    module.load_state_dict(state)


def filled(name: str, shape: tuple[int, ...]) -> Tensor:
    """The rule: standard normal numbers seeded by the name, scaled by the number of elements of a row."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("positional_encoding_gaussian_matrix"):
        return noise
    if len(shape) < 2:
        return {"weight": 1.0, "gamma": 0.1}.get(name.rpartition(".")[2], 0.0) + 0.02 * noise
    fan = int(torch.tensor(shape[1:]).prod())
    return noise / fan**0.5 if fan > 1 else 0.02 * noise


def episode(seed: int = 0, size: int = 2, shot: int = 1, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Query images (B, 3, S, S), support images (B, K, 3, S, S), masks (B, K, S, S) uint8 of one square each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(size, shot + 1, 3, side // 8, side // 8, generator=generator)
    images = images.repeat_interleave(8, -1).repeat_interleave(8, -2)
    masks = torch.zeros(size, shot, side, side, dtype=torch.uint8)
    corners = torch.randint(side // 8, side // 2, (size, shot, 2), generator=generator)
    for b in range(size):
        for k in range(shot):
            y, x = corners[b, k].tolist()
            masks[b, k, y : y + side // 3, x : x + side // 3] = 1
    return images[:, 0], images[:, 1:], masks


def encoded(method: SAM2FSS, *parts: Any) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The arguments of `segment` for an episode."""
    query, support, masks = parts or episode()
    with torch.no_grad():
        supports = {n: v.unflatten(0, masks.shape[:2]) for n, v in method.encode(support.flatten(0, 1)).items()}
        return method.encode(query), supports, masks
