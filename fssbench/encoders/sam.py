"""SamEncoder: SAM's frozen image encoder, or a smaller one of the same shape (fsdino.md 3.1 and 7)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT
from torch import Tensor, nn

from fssbench.encoders.weights import find_weights, load_strict, read_tensors, tensors_sha256
from fssbench.errors import UserError, nearest
from fssbench.files import weights_folder

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = {
    "vit_h": "sam_vit_h_4b8939.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_b": "sam_vit_b_01ec64.pth",
}
"""Variant -> name of the official checkpoint (its six digits begin the file's MD5)."""
FROM_WEIGHTS = "from_weights"
"""Encoder name that reads width, depth and so on off the weights file."""
PREFIX = "image_encoder."
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, per RGB channel of images in [0, 1]; times 255 they are exactly the constants of SAM's own code."""


@dataclass(frozen=True)
class SamShape:
    """Shape of a SAM image encoder: a ViT with windowed and a few global attention blocks, and a convolutional neck.

    Args:
        width: channels of the tokens.
        depth: number of blocks.
        heads: attention heads; must divide `width`.
        global_attn: blocks (0-based, as in SAM's code) that attend over the whole image instead of windows.
        image_size: side in pixels of the square input; a multiple of `patch_size`.
        window: side in tokens of the attention windows.
        patch_size: side in pixels of a patch.
        channels: channels of the image embedding.
        mlp_ratio: inner width of the feed-forward layers, in widths.
    """

    width: int
    depth: int
    heads: int
    global_attn: tuple[int, ...]
    image_size: int = 1024
    window: int = 14
    patch_size: int = 16
    channels: int = 256
    mlp_ratio: float = 4.0

    @property
    def grid(self) -> int:
        """Side of the image embedding in tokens."""
        return self.image_size // self.patch_size

    def build(self) -> ImageEncoderViT:
        """The encoder with segment-anything's untrained weights."""
        return ImageEncoderViT(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            out_chans=self.channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=self.window,
            global_attn_indexes=self.global_attn,
        )

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> SamShape:
        """The shape of the encoder that these weights (names without `image_encoder.`) belong to.

        Everything can be read off the tensors, as relative positions have the size of their block's window. Raises
        `KeyError` where names of a SAM image encoder are missing.
        """
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        grid = state["pos_embed"].shape[1]
        depth = 1 + max(int(name.split(".")[1]) for name in state if re.match(r"blocks\.\d+\.", name))
        tables = [state[f"blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        sides = [(len(table) + 1) // 2 for table in tables]
        return cls(
            width=width,
            depth=depth,
            heads=width // tables[0].shape[1],
            global_attn=tuple(i for i, side in enumerate(sides) if side == grid),
            image_size=grid * patch,
            window=min(sides),
            patch_size=patch,
            channels=state["neck.0.weight"].shape[0],
            mlp_ratio=state["blocks.0.mlp.lin1.weight"].shape[0] / width,
        )


class SamEncoder(nn.Module):
    """A frozen SAM image encoder: always in eval mode, no gradients; the caller's random state is left as it was.

    variant  `vit_h`, `vit_l`, `vit_b`, or `from_weights` for whatever shape the weights file has
    weights  SAM's original checkpoint: a path, or a file name in `FSSBENCH_WEIGHTS`; `random` gives untrained weights,
             the same every time (not with `from_weights`)

    Attributes: `image_size` pixels, `grid` tokens, `channels` of the embedding, `source` (where the weights are from).
    Raises `UserError` for an unknown variant, and for a file that is missing, damaged or of another encoder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, variant: str = "vit_h", weights: str = SAM_FILES["vit_h"]) -> None:
        super().__init__()
        check_variant(variant, weights)
        self.source = weights
        self.net = (_untrained(variant) if weights == "random" else _read(variant, weights)).requires_grad_(False)
        embed = self.net.patch_embed.proj
        self.image_size: int = self.net.img_size
        self.grid: int = self.image_size // embed.kernel_size[0]
        self.channels: int = self.net.neck[0].out_channels
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> SamEncoder:
        """Stays in eval mode, whatever Lightning asks for: a frozen encoder has one behaviour."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (M, 3, S, S) in [0, 1], squashed to `image_size` S, not normalised -> embedding (M, C, g, g).

        Raises `UserError` for any other size: SAM's positions exist for one size only.
        """
        if tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise UserError(
                f"SAM's image encoder takes (M, 3, {self.image_size}, {self.image_size}), not {tuple(images.shape)}. "
                "Squash the images to that square."
            )
        return self.net((images - self.mean) / self.std)

    def sha256(self) -> str:
        """SHA-256 of the weights, whatever file they came from."""
        return tensors_sha256(self.net.state_dict())


def check_variant(variant: str, weights: str) -> None:
    """Raise `UserError` where no encoder can be meant, before anything is read."""
    if variant not in (*SAM_FILES, FROM_WEIGHTS):
        raise UserError(f"SAM variant '{variant}' is unknown.{nearest(variant, (*SAM_FILES, FROM_WEIGHTS))}")
    if variant == FROM_WEIGHTS and weights == "random":
        raise UserError(f"SAM variant {FROM_WEIGHTS} needs a file: give its path as weights, or a variant of SAM.")


def _untrained(variant: str) -> ImageEncoderViT:
    """The registry's own image encoder."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the GPUs too
        return sam_model_registry[variant]().image_encoder


def _read(variant: str, weights: str) -> ImageEncoderViT:
    path = find_weights(weights)
    url = SAM_URL + SAM_FILES.get(variant, SAM_FILES["vit_h"])
    if path is None:
        raise UserError(
            f"SAM weights {weights} exist neither at that path nor in {weights_folder()} (environment variable "
            f"FSSBENCH_WEIGHTS). Download {url} into that folder."
        )
    hint = f"Expected an original SAM checkpoint: {url if variant in SAM_FILES else 'names image_encoder.*'}."
    state = {n.removeprefix(PREFIX): t for n, t in read_tensors(path, hint).items() if n.startswith(PREFIX)}
    with torch.device("meta"):  # no memory, no initialisation: every weight comes from the file
        if variant == FROM_WEIGHTS:
            try:
                net = SamShape.of(state).build()
            except (KeyError, ValueError) as error:
                raise UserError(f"{path} holds no SAM image encoder (no {error}). {hint}") from error
        else:
            net = _untrained(variant)
    load_strict(net, state, path, f"SAM's image encoder {variant}", hint)
    return net
