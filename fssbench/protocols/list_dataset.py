"""A data set that is nothing but published lists: its episodes can be drawn and hashed without a single image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, nearest
from fssbench.protocols.known import KNOWN_LISTS
from fssbench.protocols.lists import PublishedList, read_list

if TYPE_CHECKING:
    import numpy as np

QUERIES: dict[str, Literal["class-uniform", "sequential", "every-image"]] = {
    "pascal-5i": "sequential",
    "coco-20i": "class-uniform",
    "fss-1000": "every-image",
    "isaid-5i": "sequential",
}
"""Data sets with published lists -> how hsnet-compat chooses queries."""
PER_CLASS = {"pascal-5i": 200, "coco-20i": 100, "fss-1000": 10, "isaid-5i": 200}
"""`clean-v1` episodes per class."""
_ALL = {"isaid-5i"}  # hsnet-compat tests every entry of these lists


class ListDataset(FewShotDataset):
    """One fold of a published list; `fssbench episodes build --lists` and tests use it.

    name       a key of `QUERIES`
    published  pairs of the fold; for fss-1000 the test classes, whose images are 1.jpg to 10.jpg

    Raises `UserError` for an unknown name and for a list of the wrong kind.
    """

    n_folds = 1
    mask_renderer = "none"
    class_partition = "published-list"
    protocols = ("clean-v1", "hsnet-compat")

    def __init__(self, name: str, published: PublishedList) -> None:
        if name not in QUERIES:
            raise UserError(f"No published lists of '{name}' are known.{nearest(name, QUERIES)}")
        self.name: str = name  # type: ignore[misc]
        self.hsnet_queries = QUERIES[name]  # type: ignore[misc]
        self.episodes_per_class = PER_CLASS[name]
        self.image_filter = KNOWN_LISTS.get(published.sha256, f"list-{published.sha256[:16]}")
        if name == "fss-1000":
            if not published.names:
                raise UserError(
                    f"{published.path} holds pairs, expected one class name per line for fss-1000. Give "
                    "the list of its test classes."
                )
            labels = sorted(published.names)
            self._labels = dict(enumerate(labels, 1))
            self._lists = {c: sorted(f"{n}.jpg" for n in range(1, 11)) for c in self._labels}
            self._pairs = [(c, key) for c, keys in self._lists.items() for key in keys]
        else:
            if not published.pairs:
                raise UserError(
                    f"{published.path} holds no classes, expected NAME__CC or CC NAME on every line. Give the list of a fold."
                )
            self._lists = published.by_class()
            self._labels = {c: f"{c:02d}" for c in self._lists}
            self._pairs = list(published.pairs)
        if name in _ALL:
            self.hsnet_episodes = None  # type: ignore[misc]
        self.class_names = dict(self._labels)

    @classmethod
    def read(cls, name: str, path: str | Path) -> ListDataset:
        """The data set of a list file."""
        return cls(name, read_list(path))

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """All classes of the list."""
        return tuple(self._lists)

    def label(self, class_id: int) -> str:
        """Two-digit id, or the name for fss-1000."""
        return self._labels[class_id]

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """The class's images in list order."""
        return list(self._lists[class_id])

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """All pairs in list order."""
        return list(self._pairs)

    def support_pool(self, class_id: int) -> list[str]:
        """List order; for fss-1000 by number."""
        keys: Sequence[str] = self._lists[class_id]
        return sorted(keys, key=lambda k: int(k.partition(".")[0])) if self.name == "fss-1000" else list(keys)

    def read_image(self, key: str) -> np.ndarray:
        """There are no images: raises `UserError`."""
        raise _no_pixels(key)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """There are no masks: raises `UserError`."""
        raise _no_pixels(key)


def _no_pixels(key: str) -> Any:
    return UserError(f"A data set made of lists has no pixels of '{key}'. Use the data set itself.")
