"""SAM checkpoints for tests: random decoder and prompt encoder, a small image encoder, the layouts of the official files."""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

from fssbench.encoders.sam import SAM_FILES, SamShape


class Sam:
    """What a SAM checkpoint holds apart from the image encoder, of which only one name is written."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.mask_decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048)).eval()
        self.prompt_encoder = PromptEncoder(256, (64, 64), (1024, 1024), mask_in_chans=16).eval()
        self.path = folder / "sam_vit_h_4b8939.pth"
        state = {f"mask_decoder.{n}": t for n, t in self.mask_decoder.state_dict().items()}
        state |= {f"prompt_encoder.{n}": t for n, t in self.prompt_encoder.state_dict().items()}
        torch.save({**state, "image_encoder.neck.0.weight": torch.zeros(1)}, self.path)


SMALL = SamShape(width=16, depth=2, heads=2, global_attn=(1,), image_size=64, window=3, channels=8)
"""A SAM-shaped image encoder of a few thousand weights, on a 4 x 4 grid."""


def small_sam(folder: Path, seed: int = 0) -> Path:
    """A checkpoint of an image encoder of shape SMALL, with SAM's own names."""
    torch.manual_seed(seed)
    path = folder / f"small_sam_{seed}.pth"
    torch.save({f"image_encoder.{name}": value for name, value in SMALL.build().state_dict().items()}, path)
    return path


def official_layout(variant: str, folder: Path) -> Path:
    """A file with all names and shapes of an official SAM checkpoint; every tensor is one stored number, repeated."""
    with torch.device("meta"):
        state = sam_model_registry[variant]().state_dict()
    path = folder / SAM_FILES[variant]
    torch.save({name: torch.ones(()).expand(value.shape) for name, value in state.items()}, path)
    return path
