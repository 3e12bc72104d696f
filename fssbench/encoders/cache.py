"""Encode each image once: a bounded memory of per-image features, and a store on disk behind it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fssbench.encoders.store import FeatureStore
from fssbench.encoders.weights import tensors_sha256
from fssbench.episode import AUGMENTED
from fssbench.version import __version__

Features = dict[str, Tensor]
"""Per-image features: tensors whose first dimension counts images."""
ALL = "*"
"""Name in `FeatureCache.kinds` for all features together."""
_ONE = "features"  # name of the only tensor in a file that holds one


class FeatureCache:
    """Features by image key, the least recently used dropped when `megabytes` are full (0 keeps nothing), and behind
    them, where it is given, a store on disk that outlives the run.

    Features live on the device that made them. Frozen encoders give the same features whenever an image is encoded, so
    a cache changes no number; that also needs images to be encoded in groups whose size does not change the result: one
    by one on the CPU (where that is no slower), in groups of up to `group` elsewhere.

    Where the order of use is known (`fssbench.encoders.ahead`), the caller says what is held and what is dropped.

    Args:
        megabytes: MiB of features kept in memory.
        group: images per encoder pass, other than on the CPU.
        store: features on disk; None: none.
        kinds: what the store's files are named after: name of the features -> all that they depend on but the image;
            `ALL` for a dict of features that is stored as one.
    """

    def __init__(
        self,
        megabytes: float = 1024,
        group: int = 32,
        store: FeatureStore | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self.limit = int(megabytes * 2**20)
        self.group = group
        self.store, self.kinds = store, dict(kinds or {})
        self.encoded = 0
        """Images that went through the encoder so far."""
        self.passes = 0
        """Calls of the encoder so far."""
        self.image_bytes = 0
        """Bytes of the features of an image; 0 before the first one."""
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def clear(self) -> None:
        """Forget what is in memory (after the encoder or its device changed)."""
        self._kept.clear()
        self._bytes = self.image_bytes = 0

    def __contains__(self, key: str) -> bool:
        """Whether the features of an image are in memory."""
        return key in self._kept

    def keys(self) -> list[str]:
        """Images whose features are in memory, the least recently used first."""
        return list(self._kept)

    def stacked(self, keys: Sequence[str]) -> Features:
        """Features of images that are all in memory: tensors (len(keys), ...)."""
        return _stacked([self._kept[key] for key in keys])

    def hold(self, keys: Sequence[str], images: Tensor, encode: Callable[[Tensor], Features]) -> None:
        """Keep the features of M distinct images, whatever else is kept, until they are dropped."""
        for key, value in self._found(list(enumerate(keys)), images, encode).items():
            self._kept[key] = value
            self._bytes += self.image_bytes

    def drop(self, keys: Sequence[str]) -> None:
        """Forget images that are in memory."""
        for key in keys:
            del self._kept[key]
            self._bytes -= self.image_bytes

    def group_on(self, device: torch.device) -> int:
        """Images per encoder pass on a device."""
        return 1 if device.type == "cpu" else self.group

    def features(self, keys: Sequence[str], images: Tensor, encode: Callable[[Tensor], Features]) -> Features:
        """Features of M images, encoding only those that are not known.

        keys    M keys; equal keys mean equal images; one with `AUGMENTED` is not worth a place
        images  (M, 3, H, W)
        encode  the frozen encoder: (m, 3, H, W) -> tensors (m, ...)
        """
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        wanted = {key: self._kept[key] for key in first if key in self._kept}
        missing = sorted((row, key) for key, row in first.items() if key not in wanted)
        wanted |= self._found(missing, images, encode)
        for key, value in wanted.items():
            self._keep(key, value)
        return _stacked([wanted[key] for key in keys])

    def _found(
        self, missing: Sequence[tuple[int, str]], images: Tensor, encode: Callable[[Tensor], Features]
    ) -> dict[str, Features]:
        """Features of images that are not in memory, given as (row, key): read from disk, else encoded."""
        found: dict[str, Features] = {}
        names = self._names_on_disk(missing, images)
        for _, key in missing:
            stored = self._stored(names.get(key), images.device)
            if stored is not None:
                found[key] = stored
        missing = [(row, key) for row, key in missing if key not in found]
        group = self.group_on(images.device)
        for start in range(0, len(missing), group):
            part = missing[start : start + group]
            # stacked: a list as an index would be a tensor that is copied to the device and waited for
            made = encode(torch.stack([images[row] for row, _ in part]).contiguous())
            self.encoded += len(part)
            self.passes += 1
            for position, (_, key) in enumerate(part):
                one = {name: _owned(value[position]) for name, value in made.items()}
                found[key] = self._put(names.get(key), one)
        for value in found.values():
            self.image_bytes = sum(v.numel() * v.element_size() for v in value.values())
        return found

    def _names_on_disk(self, missing: Sequence[tuple[int, str]], images: Tensor) -> dict[str, str]:
        """Key -> SHA-256 of the pixels, for the images that the store may hold."""
        if self.store is None:
            return {}
        pixels = images.cpu()  # all at once: a copy from a GPU is waited for
        return {key: tensors_sha256({"pixels": pixels[row]}) for row, key in missing if AUGMENTED not in key}

    def _stored(self, image: str | None, device: torch.device) -> Features | None:
        if self.store is None or image is None:
            return None
        found: Features = {}
        for name, kind in self.kinds.items():
            part = self.store.get(kind, image)
            if part is None:
                return None
            found.update(part if name == ALL else {name: part[_ONE]})
        if device.type == "cuda":  # from page-locked memory, so that the copy is not waited for
            return {name: value.pin_memory().to(device, non_blocking=True) for name, value in found.items()}
        return {name: value.to(device) for name, value in found.items()}

    def _put(self, image: str | None, features: Features) -> Features:
        if self.store is None or image is None:
            return features
        if ALL in self.kinds:
            return self.store.put(self.kinds[ALL], image, features)
        return {n: self.store.put(self.kinds[n], image, {_ONE: value})[_ONE] for n, value in features.items()}

    def _keep(self, key: str, value: Features) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        if AUGMENTED in key or self.image_bytes > self.limit:
            return
        self._kept[key] = value
        self._bytes += self.image_bytes
        while self._bytes > self.limit:
            self._kept.popitem(last=False)
            self._bytes -= self.image_bytes


def numerics(device: torch.device, precision: str) -> str:
    """What features depend on besides pixels, encoder and settings, as text: the type of device, the trainer's precision, how
    float32 products are rounded (TF32; on CUDA those of convolutions, too), and the versions of this code and torch."""
    try:
        products = torch.get_float32_matmul_precision()
        if device.type == "cuda":
            products += f", of convolutions {'tf32' if torch.backends.cudnn.allow_tf32 else 'ieee'}"
    except RuntimeError:  # set by backend, as torch >= 2.9 allows
        backends: tuple[Any, ...] = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
        backends += (getattr(torch.backends.cudnn, "conv", None),)
        products = f"fp32 {' '.join(str(getattr(backend, 'fp32_precision', None)) for backend in backends)}"
    return f"{device.type}, {precision}, products {products}, torch {torch.__version__}, fssbench {__version__}"


def _owned(value: Tensor) -> Tensor:
    """The same with memory of its own: a view would keep alive all that it is a part of, such as the group's other images,
    and a CUDA graph writes over its results in the next pass."""
    alone = value.untyped_storage().nbytes() == value.numel() * value.element_size()
    return value if alone and not value.is_cuda else value.clone()


def _stacked(features: Sequence[Features]) -> Features:
    return {name: torch.stack([one[name] for one in features]) for name in features[0]}
