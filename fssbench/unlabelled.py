"""Images without masks, and batches of them with the features that a teacher network has of them.

Shape legend: `B` images, `S` side in pixels, `C` channels, `g` side of the teacher's feature map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ImageCollection(ABC):
    """Encoded images by row.

    keys  one stable name per image, ascending
    """

    keys: list[str]

    @abstractmethod
    def stamp(self, row: int) -> str:
        """What changes whenever the image may have changed, and is known without reading it: folder, key, size, time."""

    @abstractmethod
    def content(self, row: int) -> bytes:
        """The encoded image (JPEG, PNG, ...). Raises `UserError` where it cannot be read."""


class Targets(Protocol):
    """What is to be learned for each image: features on disk, read by the loader's processes."""

    @property
    def rows(self) -> set[int]:
        """Rows of the collection that have features; the others could not be read as images."""

    def read(self, row: int) -> Tensor:
        """Features (C, g, g) of one image, half precision."""


@dataclass(frozen=True)
class ImageBatch:
    """A batch of B images and their targets.

    image   (B, 3, S, S) float32 in [0, 1], RGB, not normalised: each encoder normalises for itself
    target  (B, C, g, g) the teacher's features, flipped where the image is
    counts  (B,) bool; False where an image only fills up the last batch of a process, and must not be scored
    """

    image: Tensor
    target: Tensor
    counts: Tensor

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> ImageBatch:
        """The same batch with every tensor on `device`, waited for as `EpisodeBatch.to` says."""
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"
        moved = (t.to(device, non_blocking=non_blocking) for t in (self.image, self.target, self.counts))
        return ImageBatch(*moved)

    def pin_memory(self) -> ImageBatch:
        """The same batch in page-locked memory (called by the DataLoader)."""
        return ImageBatch(self.image.pin_memory(), self.target.pin_memory(), self.counts.pin_memory())


def join(images: list[ImageBatch]) -> ImageBatch:
    """Join batches (usually of one image each) into one."""
    return ImageBatch(
        torch.cat([i.image for i in images]),
        torch.cat([i.target for i in images]),
        torch.cat([i.counts for i in images]),
    )
