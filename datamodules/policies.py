"""What happens to novel-class pixels in training images (protocols.md 5, item 2).

The choice moves published numbers by up to nine points, so it is one recorded word:

* `keep-as-background`: HSNet's and PFENet's way; an object of a novel class is background while training.
* `drop-image`: BAM's way; an image with a single novel pixel is not used, which takes annotations of novel classes.
* `ignore-pixels`: novel pixels are 255, neither object nor background.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fssbench.dataset import FewShotDataset, Split
from fssbench.protocols.profiles import TrainingPolicy


def training_lists(dataset: FewShotDataset, fold: int, policy: TrainingPolicy) -> dict[int, list[str]]:
    """Base class -> its training images under a policy, in the data set's order."""
    lists = {c: dataset.candidates(c, "train") for c in dataset.base_classes(fold)}
    if policy != "drop-image":
        return lists
    novel = set(dataset.novel_classes(fold))
    keys = dict.fromkeys(key for listed in lists.values() for key in listed)
    kept = {key for key in keys if novel.isdisjoint(dataset.classes_in(key))}
    return {c: [key for key in listed if key in kept] for c, listed in lists.items()}


def for_training(dataset: FewShotDataset, fold: int, policy: TrainingPolicy) -> FewShotDataset:
    """The data set as training reads it: the same, or with novel-class pixels ignored."""
    return IgnoringNovel(dataset, fold) if policy == "ignore-pixels" else dataset


class IgnoringNovel(FewShotDataset):
    """A data set whose masks say 255 where an object of a novel class of `fold` is, unless the class asked for is there
    too."""

    def __init__(self, dataset: FewShotDataset, fold: int) -> None:
        self._dataset = dataset
        self._novel = frozenset(dataset.novel_classes(fold))
        self.name = dataset.name  # type: ignore[misc]

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """As in the data set."""
        return self._dataset.novel_classes(fold)

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """As in the data set."""
        return self._dataset.candidates(class_id, split)

    def read_image(self, key: str) -> np.ndarray:
        """As in the data set."""
        return self._dataset.read_image(key)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1, 255}."""
        mask: np.ndarray[Any, Any] = self._dataset.read_mask(key, class_id).copy()
        for novel in self._novel.intersection(self._dataset.classes_in(key)):
            mask[(mask == 0) & (self._dataset.read_mask(key, novel) != 0)] = 255
        return mask
