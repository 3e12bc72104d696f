"""EpisodeBatch: the one contract between data and methods.

Shape legend, used in all signatures and docstrings: `B` episodes, `K` shots, `C` channels, `H W` pixels at network size,
`H0 W0` pixels at original size, `h w` patch grid, `N = h*w` tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

IGNORE = 255
"""Mask value of pixels that are neither trained on nor scored."""
AUGMENTED = "#"
"""In the key of an image that was changed at random and will hardly be seen again: `KEY#SEED`."""


@dataclass(frozen=True)
class EpisodeBatch:
    """A batch of B episodes with K supports each.

    query_image      (B, 3, H, W) float32 in [0, 1], RGB, not normalised: each encoder normalises for itself; (B, 3, 0, 0)
                     where the images come by themselves, each once (FewShotMethod.encodes_ahead)
    query_mask       (B, H, W) uint8 {0, 1, 255} at network size, for the loss
    support_images   (B, K, 3, H, W) float32 in [0, 1], or (B, K, 3, 0, 0)
    support_masks    (B, K, H, W) uint8 {0, 1, 255}; 255 = ignore
    query_mask_full  B tensors (H0, W0) uint8 {0, 1, 255} at original size, for scoring
    class_id         (B,) int64, class index inside the data set
    episode_id       (B,) int64, index in the manifest (or in the training epoch)
    query_key        B strings, stable identity of the images' content, used by caches and in reports
    support_keys     B tuples of K strings
    """

    query_image: Tensor
    query_mask: Tensor
    support_images: Tensor
    support_masks: Tensor
    query_mask_full: list[Tensor]
    class_id: Tensor
    episode_id: Tensor
    query_key: list[str]
    support_keys: list[tuple[str, ...]]

    @property
    def size(self) -> int:
        """Number of episodes B."""
        return self.query_image.shape[0]

    @property
    def shot(self) -> int:
        """Number of supports K."""
        return self.support_images.shape[1]

    def to(self, device: torch.device | str, non_blocking: bool | None = None) -> EpisodeBatch:
        """The same batch with every tensor on `device`. By default a copy to CUDA is not waited for: the loader leaves
        batches in page-locked memory."""
        if non_blocking is None:
            non_blocking = torch.device(device).type == "cuda"  # on Apple's GPUs the values could be wrong
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EpisodeBatch:
        """The same batch in page-locked memory (called by the DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, function: Any) -> EpisodeBatch:
        changed: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = function(value)
            elif value and isinstance(value[0], Tensor):
                changed[field.name] = [function(t) for t in value]
        return replace(self, **changed)


def collate(episodes: list[EpisodeBatch]) -> EpisodeBatch:
    """Join batches (usually of one episode each) into one; all must have the same K and network size."""
    joined: dict[str, Any] = {}
    for field in fields(EpisodeBatch):
        values = [getattr(e, field.name) for e in episodes]
        joined[field.name] = (
            torch.cat(values) if isinstance(values[0], Tensor) else [v for part in values for v in part]
        )
    return EpisodeBatch(**joined)
