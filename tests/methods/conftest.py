"""Files that several test modules of FS-DINO start from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from methods.fsdino.adapter import Adapter
from tests.data.images import make_images
from tests.methods.sam import small_sam


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twelve images in `images` and a teacher, `small_sam_0.pth`."""
    folder = tmp_path_factory.mktemp("world")
    make_images(folder / "images", 12)
    small_sam(folder)
    return folder


@pytest.fixture(scope="module")
def adapter_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights of the adapter of ViT-Ti (192) for a decoder of width 32."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    save_file(Adapter(192, 32).state_dict(), path)
    return str(path)
