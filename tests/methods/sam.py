"""segment-anything's own decoder and prompt encoder with random weights, and a checkpoint file of them."""

from __future__ import annotations

from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer


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
