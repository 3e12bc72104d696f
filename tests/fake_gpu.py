"""A GPU that is not there: torch's fake tensors have shapes, types and a device, but no values.

Whatever mixes devices or asks for a value is an error there, as it would be an error or a wait on a real one; and types are
those of a GPU's autocast, whose lists of operations are not those of the CPU's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)


class Copies(TorchDispatchMode):
    """Notes every copy from the CPU to the GPU, and every index that would have to be copied: both are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        # a number is an argument of the kernel, not a copy
        from_cpu = any(value.device.type == "cpu" and value.ndim for value in given)
        if from_cpu and any(value.device.type == "cuda" for value in made):
            self.found.append(str(function))
        return result


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Within it, tensors on `cuda` can be made and computed with, and autocast works for them."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    # what a network keeps beside parameters and buffers is real, and on the CPU
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield mode


def on_gpu(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The module with its parameters and buffers on the GPU, as `module.to("cuda")` would leave it."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach()).to(CUDA)
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).to(CUDA)
    return module
