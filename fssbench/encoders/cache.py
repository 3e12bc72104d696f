"""Encode each image once: a bounded memory of per-image features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Features = dict[str, Tensor]
"""Per-image features: tensors whose first dimension counts images."""


class FeatureCache:
    """Features by image key, the least recently used dropped when `megabytes` are full (0 keeps nothing).

    Features live on the device that made them. Frozen encoders give the same features whenever an image is encoded, so
    a cache changes no number; that also needs images to be encoded in groups whose size does not change the result: one
    by one on the CPU (where that is no slower), in groups of up to `group` elsewhere.
    """

    def __init__(self, megabytes: float = 1024, group: int = 32) -> None:
        self.limit = int(megabytes * 2**20)
        self.group = group
        self.encoded = 0
        """Images that went through the encoder so far."""
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def clear(self) -> None:
        """Forget everything (after the encoder or its device changed)."""
        self._kept.clear()
        self._bytes = 0

    def features(self, keys: Sequence[str], images: Tensor, encode: Callable[[Tensor], Features]) -> Features:
        """Features of M images, encoding only those whose key is not known.

        keys    M keys; equal keys mean equal images
        images  (M, 3, H, W)
        encode  the frozen encoder: (m, 3, H, W) -> tensors (m, ...)
        """
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        wanted = {key: self._kept[key] for key in first if key in self._kept}
        missing = sorted((row, key) for key, row in first.items() if key not in wanted)
        group = 1 if images.device.type == "cpu" else self.group
        for start in range(0, len(missing), group):
            part = missing[start : start + group]
            made = encode(images[[row for row, _ in part]])
            self.encoded += len(part)
            for position, (_, key) in enumerate(part):
                # cloned where several share one tensor: a view would keep the whole group alive
                wanted[key] = {n: v[position].clone() if group > 1 else v[position] for n, v in made.items()}
        for key, value in wanted.items():
            self._keep(key, value)
        return {name: torch.stack([wanted[key][name] for key in keys]) for name in wanted[keys[0]]}

    def _keep(self, key: str, value: Features) -> None:
        size = sum(v.numel() * v.element_size() for v in value.values())
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if size > self.limit:
            return
        self._kept[key] = value
        self._bytes += size
        while self._bytes > self.limit:
            _, old = self._kept.popitem(last=False)
            self._bytes -= sum(v.numel() * v.element_size() for v in old.values())
