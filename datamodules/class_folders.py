"""What the cross-domain sets have in common: image files with one mask file per class, all classes tested, none trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np

from datamodules.pairs import MaskFiles, count_pixels, listing
from datamodules.parallel import cores
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, some


class ClassFoldersDataset(FewShotDataset):
    """Base of the cross-domain sets: one fold, every class novel, candidates are all images with a mask that is not empty.

    A subclass finds the pairs; `add` registers one. `hsnet-compat` is PATNet's way: class of episode t is t mod n, query and
    supports are picked as HSNet picks them (protocols.md 1.5).

    skipped  lines about images left out
    """

    n_folds = 1
    mask_renderer = "threshold-128"
    image_filter = "not-empty"
    class_partition = "cross-domain"
    protocols = ("clean-v1", "hsnet-compat")
    hsnet_queries = "class-cycle"
    hsnet_episodes: ClassVar[int | None] = 600

    def __init__(self, class_names: Mapping[int, str]) -> None:
        self.class_names = dict(class_names)
        self.skipped: list[str] = []
        self._files = MaskFiles({}, {}, index=False)
        self._keys: dict[int, list[str]] = {c: [] for c in self.class_names}

    def add(self, class_id: int, key: str, image: Path, mask: Path) -> None:
        """Register an image with its mask of one class."""
        self._files.images[key] = image
        self._files.masks.setdefault(key, {})[class_id] = mask
        self._keys[class_id].append(key)

    def close(self, where: Path) -> None:
        """Leave out pairs with an empty mask; to be called when all are added.

        Raises `UserError` where a mask has not the size of its image, or a class is left without images.
        """
        pairs = [(c, key) for c, keys in self._keys.items() for key in keys]

        def is_empty(pair: tuple[int, str]) -> bool:
            class_id, key = pair
            return not count_pixels(self._files.images[key], self._files.masks[key][class_id], index=False)[1]

        with ThreadPoolExecutor(cores()) as pool:  # decoding is C code that lets other threads run
            empty = [pair for pair, nothing in zip(pairs, pool.map(is_empty, pairs), strict=True) if nothing]
        for class_id, key in empty:
            self._keys[class_id].remove(key)
        if empty:
            self.skipped.append(f"{len(empty)} empty masks left out: {some(key for _, key in empty)}.")
        missing = [self.class_names[c] for c, keys in self._keys.items() if not keys]
        if missing:
            raise UserError(
                f"{where} has no image with an object of class {missing[0]}. Unpack the data set again, or set root."
            )

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """All classes."""
        return tuple(self.class_names)

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """None: methods are trained elsewhere."""
        return ()

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the class's images in the order of their names; none for training."""
        return list(self._keys[class_id]) if split == "test" else []

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return self._files.read_image(key)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1}; all 0 where the image has no mask of the class."""
        return self._files.read_mask(key, class_id)


def files_of(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names. Raises `UserError` where the folder is missing."""
    if not folder.is_dir():
        raise UserError(f"The folder {folder} does not exist. Unpack the data set there, or set root.")
    return listing(folder)


def paired(images: Path, masks: Path, mask_of: Callable[[str], str]) -> list[tuple[Path, Path]]:
    """Images of a folder with their masks, by name; `mask_of` turns an image's stem into its mask's.

    Raises `UserError` where a folder is missing or an image has no mask.
    """
    files = files_of(images)
    found = {path.stem: path for path in files_of(masks)}
    pairs = [(path, found.get(mask_of(path.stem))) for path in files]
    without = [image.name for image, mask in pairs if mask is None]
    if without:
        raise UserError(
            f"{len(without)} images in {images} have no mask in {masks}: {some(without)}. Unpack the set again."
        )
    return [(image, mask) for image, mask in pairs if mask is not None]
