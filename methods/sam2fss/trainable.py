"""Which of SAM 2's parameters SAM2FSS trains, by name (sam2fss.md 3.2)."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

Trainable = Literal["affine", "paper", "none"]

AFFINE = re.compile(
    r"memory_attention\.(layers\.\d+\.norm[123]|norm)\.(weight|bias)"
    r"|memory_encoder\.mask_downsampler\.encoder\.(1|4|7|10)\.(weight|bias)"
    r"|memory_encoder\.fuser\.layers\.\d+\.(norm\.weight|norm\.bias|gamma)"
    r"|sam_mask_decoder\.transformer\.(layers\.\d+\.norm[1-4]|norm_final_attn)\.(weight|bias)"
    r"|sam_mask_decoder\.(iou_token|mask_tokens|obj_score_token)\.weight"
    r"|sam_mask_decoder\.output_upscaling\.1\.(weight|bias)"
)
"""Norms, layer scales and decoder tokens: 63 tensors, 15,144 parameters in every official size."""

PAPER = re.compile(
    r"(memory_attention|memory_encoder)\..+"
    r"|sam_mask_decoder\.(?!conv_s0\.|conv_s1\.|iou_prediction_head\.|pred_obj_score_head\.).+"
)
"""Memory attention, memory encoder and mask decoder without the decoder's parts that never get a gradient:
11,232,896 parameters in every official size."""


def trainable_names(model: nn.Module, trainable: Trainable) -> set[str]:
    """Names of the parameters of a SAM 2 model that `trainable` selects."""
    if trainable == "none":
        return set()
    pattern = AFFINE if trainable == "affine" else PAPER
    return {name for name, _ in model.named_parameters() if pattern.fullmatch(name)}


def freeze_others(model: nn.Module, trainable: Trainable) -> list[nn.Parameter]:
    """Let gradients reach the selected parameters only, and return them."""
    chosen = trainable_names(model, trainable)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [parameter for name, parameter in model.named_parameters() if name in chosen]
