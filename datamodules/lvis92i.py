"""LVIS-92i (Matcher; protocols.md 1.5): ten folds of the LVIS categories that have enough images, from the official files."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.coco_index import CocoIndex, load_index, read_listed_image
from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.places import data_root
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import TooFewImages, UserError


class LVIS92iDataset(FewShotDataset):
    """LVIS v1 from its official JSON files, on the images of COCO 2017; all objects of a class make one mask.

    Class ids are LVIS's category ids. Of the categories, in the order of their ids, those with **more than K** test images
    are kept, and dealt in turn to ten folds of n // 10 classes (92 for K = 1). So classes and folds depend on the number of
    supports: a 5-shot number is one of other classes than a 1-shot number. All other categories are trained on.

    `hsnet-compat` is Matcher's way: 2300 episodes per fold, the classes in turn, query and supports picked as HSNet picks
    them. Its own lists are a file of unstated order that is not published with a licence; here images are in the order of
    their names, so its numbers are to be compared as numbers of another draw.

    A key is `<folder>/<file>`, e.g. `val2017/000000397133.jpg`, as LVIS names images by their address at COCO. `min_pixels`:
    an image counts for a class with at least this many pixels in it; 1, since the class set is defined without a filter.
    """

    name: ClassVar[str] = "lvis-92i"
    n_folds = 10
    episodes_per_class = 25
    protocols = ("clean-v1", "hsnet-compat")
    hsnet_queries = "class-cycle"
    hsnet_episodes = 2300

    def __init__(
        self,
        root: str | Path,
        images: str = "coco",
        train_annotations: str = "lvis_v1_train.json",
        test_annotations: str = "lvis_v1_val.json",
        min_pixels: int = 1,
        shot: int = 1,
    ) -> None:
        root = Path(root).expanduser()
        self._images = root / images
        self._files: dict[Split, Path] = {"test": root / test_annotations, "train": root / train_annotations}
        self._indices: dict[Split, CocoIndex] = {}
        self._positions: dict[Split, dict[str, int]] = {}
        self.min_pixels = max(1, min_pixels)
        self.image_filter = "not-empty" if self.min_pixels == 1 else f"min-pixels-{min_pixels}"
        self.class_names = dict(sorted(self._index("test").categories.items()))
        self._set_shot(shot)

    def _set_shot(self, shot: int) -> None:
        self.shot = shot
        self.class_partition = f"interleaved, classes with more than {shot} images"

    def for_shot(self, shot: int) -> LVIS92iDataset:
        """The same files with the classes of `shot` supports."""
        other = copy.copy(self)
        other._set_shot(shot)
        return other

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The classes tested in `fold`; raises `UserError` for a fold outside 0..9 and where no class has enough images."""
        kept = [c for c, count in self._counts.items() if count > self.shot]
        per_fold = len(kept) // self.n_folds
        if not per_fold:
            raise TooFewImages(
                f"{self._files['test']} has {len(kept)} categories with more than {self.shot} images, ten folds need ten. Use "
                "fewer supports, or the official file."
            )
        return novel_classes(kept[: per_fold * self.n_folds], fold, self.n_folds, "interleaved")

    @cached_property
    def _counts(self) -> dict[int, int]:
        """Category -> number of test images, ascending categories."""
        return {c: len(self._index("test").images_of(c, self.min_pixels)) for c in self.class_names}

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the images with the class, ascending."""
        index = self._index(split)
        return [index.names[i] for i in index.images_of(class_id, self.min_pixels)]

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids of all categories with a pixel in an image."""
        split, position = self._find(key)
        return tuple(int(c) for c in self._index(split).categories_of(position))

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB; raises `UserError` where the size is not the one the JSON states."""
        split, position = self._find(key)
        height, width = self._index(split).sizes[position]
        return read_listed_image(self._images / key, (int(height), int(width)), self._files[split])

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8: 1 where an object of the class is, else 0."""
        split, position = self._find(key)
        return self._index(split).mask(position, class_id)

    def _index(self, split: Split) -> CocoIndex:
        if split not in self._indices:
            path = self._files[split]
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist. Unpack {path.name}.zip of lvisdataset.org there, or set the path of the annotations."
                )
            if not self._images.is_dir():
                raise UserError(
                    f"The image folder {self._images} does not exist. Put COCO's train2017 and val2017 there."
                )
            self._indices[split] = load_index(path)
            self._positions[split] = {name: i for i, name in enumerate(self._indices[split].names)}
        return self._indices[split]

    def _find(self, key: str) -> tuple[Split, int]:
        for split, path in self._files.items():
            if split in self._indices or path.is_file():
                self._index(split)
                if key in self._positions[split]:
                    return split, self._positions[split][key]
        raise UserError(f"LVIS-92i has no image '{key}'. Build the episodes again from these files.")


class LVIS92i(EpisodicDataModule):
    """Episodes of LVIS-92i; classes, folds and layout are described at `LVIS92iDataset`.

    Args:
        root: folder with the JSON files and the images; null: `$FSSBENCH_DATA/LVIS`, else `data/LVIS`.
        images: folder with COCO's train2017 and val2017, below root.
        train_annotations: JSON of the training images, below root.
        test_annotations: JSON of the test images, below root.
        min_pixels: an image counts for a class that has at least this many pixels in it.
        kwargs: what every data module takes.
    """

    def __init__(
        self,
        root: str | None = None,
        images: str = "coco",
        train_annotations: str = "lvis_v1_train.json",
        test_annotations: str = "lvis_v1_val.json",
        min_pixels: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.min_pixels = root, min_pixels
        self.files = (images, train_annotations, test_annotations)

    def make_dataset(self) -> LVIS92iDataset:
        """LVIS-92i at the configured place, with the classes of `shot` supports."""
        return LVIS92iDataset(data_root(self.root, "LVIS"), *self.files, self.min_pixels, self.shot)

    def number_of_folds(self) -> int:
        """Ten, known without opening a file."""
        return LVIS92iDataset.n_folds
