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

    So a run compiles a few fixed shapes (two or three in a test: the first image alone, full groups, the rest; up to six in
    training), and where the mode asks for it each becomes a CUDA graph.

    Args:
        encode: the frozen encoder: (m, 3, H, W) -> tensors (m, ...).
        mode: torch.compile's; `reduce-overhead` and `max-autotune` make CUDA graphs on a GPU.
    """

    def __init__(self, encode: Callable[[Tensor], Features], mode: CompileMode) -> None:
        self.mode = mode
        self._encode = encode
        self._compiled = torch.compile(encode, mode=mode, dynamic=False)
        self._seen: set[torch.Size] = set()

    def __call__(self, images: Tensor) -> Features:
        """Images (M, 3, H, W) to tensors (M, ...); a CUDA graph writes over them in the next call."""
        count = len(images)
        filled = 1 << (count - 1).bit_length()
        # in one mode and with ordinary tensors, whoever calls: inference mode would double what is compiled
        with torch.inference_mode(False), torch.no_grad():
            images = torch.cat([images, images[-1:].expand(filled - count, -1, -1, -1)])
            if images.shape[1:] not in self._seen:
                # position tables and the like that a network makes in its first pass and keeps: made inside, they would be
                # results of the CUDA graph, which writes over them
                self._encode(images[:1])
                self._seen.add(images.shape[1:])
            if images.is_cuda:
                torch.compiler.cudagraph_mark_step_begin()  # what the last call returned is not needed any more
            return {name: value[:count] for name, value in self._compiled(images).items()}
