"""Frozen features on disk, shared by runs, folds, shots, seeds and processes.

One safetensors file per image and kind of features, in a folder per kind:

    FOLDER/<kind>/kind.txt              what the features depend on: encoder, weights, size, block, device, versions
    FOLDER/<kind>/ab/<image>.safetensors

`<image>` is the SHA-256 of the pixels given to the encoder, so files never go stale: another image, size or resize is
another name. Files are written whole or not at all, by any number of processes at once. Needs no torch to be looked
after (`fssbench cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout
from safetensors import SafetensorError, deserialize, safe_open

from fssbench.errors import UserError
from fssbench.files import sha256_text, write_text_whole, written_whole

if TYPE_CHECKING:  # keeps `fssbench cache` light
    from torch import Tensor, dtype

StoredType = Literal["float32", "float16", "bfloat16"]
SUFFIX = ".safetensors"
_TYPES = "types"  # key of the metadata: the features' own types, in which they are given back
KEEP = 0.9
"""Part of the limit that is left after making room, so that not every new file has to make room again."""
LOOK = 0.02
"""Part of the limit that is written before the folder is looked through again: other processes write into it, too."""
_ABANDONED = 3600.0  # seconds after which a half-written file has no writer any more
_RECENT = 600.0  # a file read again within so many seconds is not marked as used again


@dataclass(frozen=True)
class Entry:
    """A file of the store: its path, size in bytes, and when it was last used (seconds since 1970)."""

    path: Path
    size: int
    used: float


class FeatureStore:
    """Features by (kind, image), bounded in size; the least recently used files make room for new ones.

    Args:
        folder: where the files lie; made where it does not exist.
        gigabytes: GiB that the files may take.
        dtype: how floating-point features are stored; `float32` gives back exactly what was put in.
    """

    def __init__(self, folder: str | Path, gigabytes: float, dtype: StoredType = "float32") -> None:
        self.folder = Path(folder)
        self.limit = int(gigabytes * 2**30)
        self.dtype = dtype
        self.read, self.written = 0, 0
        """Files read and written by this object so far."""
        self._size, self._unseen = 0, self.limit  # bytes of all files when last looked at; written since
        self._stopped = False

    # -- features -------------------------------------------------------------------------------------------------

    def get(self, kind: str, image: str) -> dict[str, Tensor] | None:
        """The features of an image on the CPU, in the types that they had when they were put in; None where they are not
        stored.

        A damaged file counts as not stored, and is removed where that is allowed.
        """
        path = self._path(kind, image)
        try:
            with safe_open(path, framework="pt") as file:
                types = _types(file.metadata(), set(file.keys()))
                # copied: views of the mapped file would change with it, and end the process where a network drive loses it
                found = {name: file.get_tensor(name).to(kind, copy=True) for name, kind in types.items()}
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError):
            with suppress(OSError):  # a folder that may only be read
                path.unlink(missing_ok=True)
            return None
        self.read += 1
        _mark_used(path)
        return found

    def put(self, kind: str, image: str, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Store the features of an image and return them as `get` will give them (rounded to `dtype`).

        Raises `UserError` for features that `dtype` cannot hold. A full disk, or a folder in which files may not be made or
        removed, does not end the run: a warning is given once and nothing more is written.
        """
        import torch
        from safetensors.torch import save

        stored_type = getattr(torch, self.dtype)
        stored = {
            n: t.detach().to("cpu", stored_type if t.is_floating_point() else t.dtype).contiguous()
            for n, t in features.items()
        }
        for name, value in stored.items():
            if value.dtype == torch.float16 and value.isinf().any() and features[name].isfinite().all():
                raise UserError(
                    f"Features {name} are beyond what float16 holds (65504): use --feature_dtype bfloat16 or float32."
                )
        path = self._path(kind, image)
        if not self._stopped and not path.exists():
            raw = ((name, t.shape, t.flatten().view(torch.uint8).numpy().data) for name, t in stored.items())
            types = {n: str(t.dtype).removeprefix("torch.") for n, t in features.items()}
            self._write(path, kind, save(stored, {"sha256": _digest(raw), _TYPES: json.dumps(types)}))
        return {n: t.to(features[n].device, features[n].dtype) for n, t in stored.items()}

    def _write(self, path: Path, kind: str, content: bytes) -> None:
        if len(content) > self.limit:
            return
        try:
            note = path.parents[1] / "kind.txt"
            if not note.exists():
                write_text_whole(note, f"{kind}\nstored as {self.dtype}\n")
            with written_whole(path) as temporary:
                temporary.write_bytes(content)
            self.written += 1
            self._size, self._unseen = self._size + len(content), self._unseen + len(content)
            if self._unseen > LOOK * self.limit:
                self._size, self._unseen = self.size(), 0
            if self._size > self.limit:
                self._make_room()
        except (UserError, OSError) as error:
            import warnings

            self._stopped = True
            warnings.warn(f"{error} Features are not stored any more in this run.", stacklevel=2)

    def _path(self, kind: str, image: str) -> Path:
        return self.folder / sha256_text(f"{kind}\n{self.dtype}")[:16] / image[:2] / f"{image}{SUFFIX}"

    # -- looking after the files ----------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """All files of the store, of every kind, in no order; files that vanish meanwhile are left out."""
        for path in self.folder.glob(f"*/??/*{SUFFIX}"):
            try:
                facts = path.stat()
            except FileNotFoundError:
                continue
            yield Entry(path, facts.st_size, facts.st_mtime)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries())

    def kinds(self) -> dict[str, list[Entry]]:
        """What the features depend on -> their files."""
        found: dict[str, list[Entry]] = {}
        for entry in self.entries():
            note = entry.path.parents[1] / "kind.txt"
            text = note.read_text(encoding="utf-8").strip().replace("\n", ", ") if note.is_file() else "unknown"
            found.setdefault(text, []).append(entry)
        return found

    def clear(self) -> int:
        """Remove every file of the store, and nothing else in its folder; returns how many."""
        removed = 0
        for entry in list(self.entries()):
            entry.path.unlink(missing_ok=True)
            removed += 1
        for note in self.folder.glob("*/kind.txt"):
            note.unlink(missing_ok=True)
        for path in self._abandoned(0):
            path.unlink(missing_ok=True)
        for folder in (*self.folder.glob("*/??"), *self.folder.glob("*")):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._size = 0
        return removed

    def damaged(self) -> list[Path]:
        """Files whose content is not what was written, by their own SHA-256; reads everything."""
        return [entry.path for entry in self.entries() if not is_whole(entry.path)]

    def _make_room(self) -> None:
        """Remove the least recently used files. One process at a time; the others go on writing meanwhile.

        Raises `UserError` or `OSError` where they may not be removed.
        """
        try:
            with FileLock(self.folder / ".making_room.lock", timeout=0):
                entries = sorted(self.entries(), key=lambda entry: entry.used)
                size = sum(entry.size for entry in entries)
                for entry in entries:
                    if size <= KEEP * self.limit:
                        break
                    with suppress(OSError):  # of another user; on Windows also one that is read just now
                        entry.path.unlink(missing_ok=True)
                        size -= entry.size
                for path in self._abandoned(_ABANDONED):
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                self._size = size
                if size > self.limit:
                    raise UserError(
                        f"{self.folder} is full and its files may not be removed. Give another FSSBENCH_FEATURES."
                    )
        except Timeout:
            self._size = int(KEEP * self.limit)  # as the other process will leave it

    def _abandoned(self, age: float) -> list[Path]:
        """Half-written files of killed processes."""
        old, found = time.time() - age, []
        for path in self.folder.glob(f"*/??/.*{SUFFIX}.*.part"):
            with suppress(FileNotFoundError):  # its writer has just given it its name
                if path.stat().st_mtime <= old:
                    found.append(path)
        return found


def _types(metadata: Mapping[str, str] | None, names: set[str]) -> dict[str, dtype]:
    """Tensor of a file -> its type when it was put in. Raises `ValueError` where the header is damaged."""
    import torch

    words = json.loads((metadata or {}).get(_TYPES, "{}"))
    if not isinstance(words, dict) or words.keys() != names:
        raise ValueError(f"tensors {sorted(names)}, but types {words}")
    types = {name: getattr(torch, str(word), None) for name, word in words.items()}
    found = {name: kind for name, kind in types.items() if isinstance(kind, torch.dtype)}
    if len(found) < len(types):
        raise ValueError(f"unknown types {words}")
    return found


def is_whole(path: Path) -> bool:
    """Whether a file of the store holds what was written into it."""
    try:
        content = path.read_bytes()
        with safe_open(path, framework="np") as file:
            expected = (file.metadata() or {}).get("sha256")
        tensors = deserialize(content)
    except (OSError, SafetensorError):
        return False
    return expected == _digest((name, tensor["shape"], tensor["data"]) for name, tensor in tensors)


def _digest(tensors: Iterable[tuple[str, Sequence[int], bytes | memoryview]]) -> str:
    """SHA-256 over (name, shape, bytes) of all tensors, by name."""
    digest = hashlib.sha256()
    for name, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(f"{name}|{list(shape)}|".encode())
        digest.update(data)
    return digest.hexdigest()


def _mark_used(path: Path) -> None:
    with suppress(OSError):  # removed meanwhile, or a folder that may only be read
        if time.time() - path.stat().st_mtime > _RECENT:
            os.utime(path)
