"""A frozen encoder through torch.compile, with few different shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fssbench.encoders.cache import Features

CompileMode = Literal["no", "default", "reduce-overhead", "max-autotune"]


class CompiledEncoder:
    """`encode` compiled for each number of images on its own, which is a power of two: smaller groups are filled up.

    So a run compiles a few fixed shapes (two or three in a test: the first image alone, full groups, the rest), and where
    the mode asks for it each becomes a CUDA graph.

    Args:
        encode: the frozen encoder: (m, 3, H, W) -> tensors (m, ...).
        mode: torch.compile's; `reduce-overhead` and `max-autotune` make CUDA graphs on a GPU.
    """

    def __init__(self, encode: Callable[[Tensor], Features], mode: CompileMode) -> None:
        self.mode = mode
        self._compiled = torch.compile(encode, mode=mode, dynamic=False)

    def __call__(self, images: Tensor) -> Features:
        """Images (M, 3, H, W) to tensors (M, ...); a CUDA graph writes over them in the next call."""
        count = len(images)
        filled = 1 << (count - 1).bit_length()
        if filled > count:
            images = torch.cat([images, images[-1:].expand(filled - count, -1, -1, -1)])
        if images.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # what the last call returned is not needed any more
        return {name: value[:count] for name, value in self._compiled(images).items()}
