"""Masks that another program has made: a folder of PNG files or a JSON file of run-length encodings, one per episode."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from fssbench.errors import UserError, some
from fssbench.files import sha256_file, sha256_text
from fssbench.protocols.manifest import Manifest

Array = np.ndarray[Any, np.dtype[Any]]


class Masks(ABC):
    """One mask per episode of a manifest."""

    @abstractmethod
    def numbers(self) -> dict[int, str]:
        """Episode number -> what the mask is called."""

    @abstractmethod
    def read(self, number: int) -> Array:
        """The mask of an episode: (H0, W0) uint8 {0, 1}."""

    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 (hex) of all masks as they lie there."""


class PNGMasks(Masks):
    """A folder of PNG files named by episode number."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.glob("[!.]*") if path.suffix.lower() == ".png")
        strange = [path.name for path in files if not path.stem.isdecimal()]
        if strange:
            raise UserError(
                f"{folder}: {some(strange)} not named by an episode's number. Name masks 000000.png, 000001.png, ..."
            )
        _refuse_twins((int(path.stem), path.name) for path in files)
        self.files = {int(path.stem): path for path in files}

    def numbers(self) -> dict[int, str]:
        """Number -> file name."""
        return {number: path.name for number, path in self.files.items()}

    def read(self, number: int) -> Array:
        """The mask; refuses values but 0 and 1, or 0 and 255."""
        path = self.files[number]
        try:
            with Image.open(path) as image:
                mask = np.asarray(image)
        except OSError as error:
            raise UserError(f"{path} cannot be read as a PNG ({error}). Write the mask again.") from error
        values = np.unique(mask) if mask.ndim == 2 else None
        if values is None or not (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {0, 255}):
            found = "several channels" if values is None else f"the values {', '.join(map(str, values[:6]))}"
            raise UserError(
                f"{path} holds {found}, expected one channel of 0 and 1, or of 0 and 255. Save the masks that way."
            )
        return (mask > 0).astype(np.uint8)

    def sha256(self) -> str:
        """Over names and bytes."""
        return sha256_text("\n".join(f"{number} {sha256_file(path)}" for number, path in sorted(self.files.items())))


class RLEMasks(Masks):
    """A JSON list of run-length encoded masks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self.entries = {int(e["episode"]): {"size": e["size"], "counts": e["counts"]} for e in entries}
            _refuse_twins((int(e["episode"]), f"entry {i}") for i, e in enumerate(entries))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'{path} is no list of {{"episode": N, "size": [H, W], "counts": ...}} ({error!r}). Write it again.'
            ) from error

    def numbers(self) -> dict[int, str]:
        """Number -> place in the file."""
        return {number: f"episode {number} of {self.path.name}" for number in self.entries}

    def read(self, number: int) -> Array:
        """The decoded mask."""
        entry = self.entries[number]
        try:
            height, width = map(int, entry["size"])
            runs = entry["counts"]
            encoded = coco_mask.frPyObjects(entry, height, width) if isinstance(runs, list) else entry
            decoded: Array = coco_mask.decode({**encoded, "size": [height, width]})
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{self.path}: episode {number} is no COCO run-length encoding ({error}).") from error
        if isinstance(runs, list) and sum(runs) != height * width:
            raise UserError(f"{self.path}: the runs of episode {number} cover {sum(runs)} of {height * width} pixels.")
        return decoded

    def sha256(self) -> str:
        """Of the file."""
        return sha256_file(self.path)


def open_masks(path: Path, manifest: Manifest) -> Masks:
    """The masks of a folder or JSON file.

    Raises `UserError` that names missing and extra masks.
    """
    if not path.exists():
        raise UserError(f"The predictions {path} do not exist. Give a folder of PNG files or a JSON file.")
    masks: Masks = PNGMasks(path) if path.is_dir() else RLEMasks(path)
    there, wanted = masks.numbers(), range(len(manifest.episodes))
    missing = [str(number) for number in wanted if number not in there]
    extra = [name for number, name in there.items() if number not in wanted]
    problems = [f"no mask for episode {some(missing)}"] if missing else []
    problems += [f"{some(extra)} beyond the {len(wanted)} episodes"] if extra else []
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}. Each episode of the manifest needs exactly one mask.")
    return masks


def _refuse_twins(named: Iterable[tuple[int, str]]) -> None:
    seen: dict[int, str] = {}
    for number, name in named:
        if number in seen:
            raise UserError(f"{seen[number]} and {name} are both for episode {number}: keep one.")
        seen[number] = name
