"""DiskFeatures: features of images kept in files, so that a large frozen network runs once per image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fssbench.errors import UserError
from fssbench.files import sha256_text, write_text_whole, written_whole

_TENSOR, _IMAGES = "features", "images"


class DiskFeatures:
    """Features by image content, in safetensors files of many images each, read through memory maps.

    A file holds one half-precision tensor (n, C, g, g) and, in its header, which images these are: the SHA-256 of each
    image's bytes, and its stamp (`ImageCollection.stamp`), by which it is found again without being read. Further stamps
    of the same images (copies, a moved folder) stand in small JSON files. There is no separate index that could disagree.
    Files are written whole or not at all, never changed, and named by what they hold: several processes may write at
    once, and one that is killed loses its last file only.

    folder   one network with one preprocessing; made when the first file is written
    digests  image stamp -> SHA-256 of its bytes, for every image on disk
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.digests: dict[str, str] = {}
        self._place: dict[str, tuple[Path, int]] = {}  # SHA-256 of the image -> file and row
        self._open: dict[Path, Any] = {}
        self._files: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Learn of files written since, by this process or another. Raises `UserError` for a damaged one."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._files):
            for row, (digest, stamp) in enumerate(_listed(path)):
                self._place.setdefault(digest, (path, row))
                self.digests[stamp] = digest
            self._files.add(path)
        for path in sorted(set(self.folder.glob("stamps-*.json")) - self._files):
            self.digests |= {stamp: digest for digest, stamp in _noted(path) if digest in self}
            self._files.add(path)

    def __contains__(self, digest: str) -> bool:
        """Whether the features of the image with this SHA-256 are on disk."""
        return digest in self._place

    def __len__(self) -> int:
        """Number of images."""
        return len(self._place)

    def read(self, digest: str) -> Tensor:
        """Features (C, g, g) float16 of the image with this SHA-256; `KeyError` where it is not on disk."""
        path, row = self._place[digest]
        if path not in self._open:
            self._open[path] = safetensors.safe_open(path, framework="pt").__enter__()
        return self._open[path].get_slice(_TENSOR)[row]

    def write(self, images: Sequence[tuple[str, str]], features: Tensor) -> None:
        """Keep the features (n, C, g, g) of n images, given as (SHA-256, stamp)."""
        assert len(images) == len(features)
        listed = json.dumps(list(images))
        state = {_TENSOR: features.to(torch.float16).contiguous()}
        path = self.folder / f"features-{sha256_text(listed)[:16]}.safetensors"
        with written_whole(path) as temporary:
            temporary.write_bytes(safetensors.torch.save(state, {_IMAGES: listed}))
        self.refresh()

    def note(self, images: Sequence[tuple[str, str]]) -> None:
        """Remember further stamps of images that are on disk, given as (SHA-256, stamp)."""
        listed = json.dumps(list(images))
        write_text_whole(self.folder / f"stamps-{sha256_text(listed)[:16]}.json", listed)
        self.refresh()

    def __getstate__(self) -> Mapping[str, Any]:
        """Without the open files: each loader process opens its own."""
        return {**self.__dict__, "_open": {}}


def _listed(path: Path) -> list[tuple[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return _pairs((file.metadata() or {})[_IMAGES])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise _damaged(path, error) from error


def _noted(path: Path) -> list[tuple[str, str]]:
    try:
        return _pairs(path.read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(digest, stamp) for digest, stamp in json.loads(text)]


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or no file of kept features ({error}). Delete it; it is made again.")
