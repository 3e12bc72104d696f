"""What a few-shot data set is: images, one mask per (image, class), and folds of novel classes.

Nothing here needs torch: episode manifests are made, checked and shown from this interface alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # keeps the light verbs light
    import numpy as np

Split = Literal["train", "test"]
HsnetQueries = Literal["class-uniform", "class-cycle", "sequential", "every-image", "object-cycle", "object-uniform"]


class FewShotDataset(ABC):
    """Base class of every data set.

    An image is named by a stable `key` (a string that does not depend on the machine, e.g. the path below the root).
    Masks are uint8 of the image's original size: 0 background, 1 the class, 255 ignore (void, crowd).
    """

    name: ClassVar[str]
    """Name used in manifests, records and on the board, e.g. `coco-20i`."""
    n_folds: int
    """Number of folds; fold f's novel classes are never trained on in fold f."""
    class_names: dict[int, str]
    """Class id -> name, ascending ids."""
    episodes_per_class: int
    """Test episodes per novel class of the `clean-v1` protocol (protocols.md 2.5)."""
    mask_renderer: str = "clean"
    """Identifier of how masks are made; part of every record."""
    image_filter: str = "none"
    """Identifier of the rule that decides which (image, class) pairs are candidates."""
    class_partition: str = "unknown"
    """How classes are dealt to folds, e.g. `interleaved` or `contiguous` for COCO-20i."""
    val_classes: Sequence[int] = ()
    """Classes of the set's own validation split, neither novel nor base; empty where it has none."""
    protocols: ClassVar[tuple[str, ...]] = ("clean-v1",)
    """Protocols that are defined for the data set (`fssbench.protocols.profiles`)."""
    hsnet_queries: ClassVar[HsnetQueries] = "sequential"
    """How `hsnet-compat` chooses classes and queries (protocols.md 2.3); read where that protocol is defined."""
    hsnet_episodes: ClassVar[int | None] = 1000
    """Episodes per fold of `hsnet-compat`; None = as many as the fold's list has pairs."""
    skipped: Sequence[str] = ()
    """One line for each item that was left out while reading the lists; shown to the user and recorded."""

    @property
    def draw_name(self) -> str:
        """Name of the data set in the texts that order `clean-v1` episodes: that of the pictures and classes, the same
        for all partitions of the classes into folds."""
        return self.name

    def for_shot(self, shot: int) -> FewShotDataset:
        """The data set as K-shot episodes see it: itself, unless its classes depend on K (LVIS-92i, PACO-Part)."""
        return self

    @abstractmethod
    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """Class ids tested in `fold`, ascending."""

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """Class ids trained on in `fold`, ascending: by default all that are not novel."""
        novel = set(self.novel_classes(fold))
        return tuple(c for c in sorted(self.class_names) if c not in novel)

    def saw_novel(self, fold: int, trained_on: str, trained_fold: int, trained_shot: int) -> bool:
        """Whether a training on `trained_fold` of the data set named `trained_on`, with K = `trained_shot`, had masks of
        classes that are novel in `fold` here. False for a set of which nothing is known here."""
        if trained_on != self.name:
            return False
        if not 0 <= trained_fold < self.n_folds:
            return True
        seen = self.for_shot(trained_shot).base_classes(trained_fold)
        return not set(seen).isdisjoint(self.novel_classes(fold))

    def label(self, class_id: int) -> str:
        """The class's label in canonical episode text: two-digit id unless the protocol says otherwise."""
        return f"{class_id:02d}"

    def episode_name(self, key: str) -> str:
        """The image's name in canonical episode text and in the hashes that order episodes: its key unless the protocol
        says otherwise (protocols.md 2.3)."""
        return key

    @abstractmethod
    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the images that may be query or support of a class, in a fixed order, after the size filter."""

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """(class id, key) of all novel candidates of a fold in the order of the protocol's list: by default class by
        class. Only the compat protocols depend on it."""
        return [(c, key) for c in self.novel_classes(fold) for key in self.candidates(c, "test")]

    def ordered_images(self, fold: int) -> list[str]:
        """Keys of the fold's test images, each once, in the order of the protocol's list (`bam-compat`)."""
        return list(dict.fromkeys(key for _, key in self.ordered_pairs(fold)))

    def support_pool(self, class_id: int) -> list[str]:
        """The test candidates of a class in the order in which `hsnet-compat` picks supports from them."""
        return self.candidates(class_id, "test")

    def hsnet_count(self, fold: int) -> int:
        """Episodes of `hsnet-compat` in a fold."""
        return self.hsnet_episodes or len(self.ordered_pairs(fold))

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids, ascending, of all classes with at least one pixel in an image, however small.

        This default reads every mask; a data set with an index overrides it.
        """
        return tuple(c for c in sorted(self.class_names) if (self.read_mask(key, c) == 1).any())

    @abstractmethod
    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB at original size."""

    @abstractmethod
    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 in {0, 1, 255} at original size, same size as the image."""


class ObjectDataset(FewShotDataset):
    """A data set of object parts: what it gives as an image is a single object, cut out at its ground-truth box.

    A key names one object of one photograph. `candidates` has one object per photograph and class, so that query and
    supports always come from different photographs. `hsnet-compat` draws the photograph first and then one of its objects,
    for which it needs the two lists below.
    """

    @abstractmethod
    def photographs(self, class_id: int) -> list[str]:
        """Names of the test photographs with the part, in the order in which they are picked from."""

    @abstractmethod
    def objects_in(self, class_id: int, photograph: str) -> list[tuple[str, bool]]:
        """(key, whether it shows the part) of each object that may be drawn for the class, in the order of the annotation."""
