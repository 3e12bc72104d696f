"""PASCAL-5i (OSLSM, BMVC 2017; protocols.md 1.1): VOC 2012 + SBD in four folds of five novel classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.places import data_root
from datamodules.published import FoldLists, find_lists
from datamodules.voc_masks import CLASSES, VocFolders, VocIndex, load_voc_index, read_class_mask
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, nearest
from fssbench.images import read_image
from fssbench.protocols.profiles import ProtocolName

CLASS_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""Names of the VOC classes 1..20."""
FROM_COCO: tuple[tuple[int, ...], ...] = ((1, 4, 9, 11, 12, 15), (2, 6, 13, 18), (3, 7, 16, 17, 19, 20), (5, 8, 10, 14))
"""COCO -> PASCAL: the VOC classes whose COCO counterpart is novel in fold 0, 1, 2, 3 of interleaved COCO-20i.

RePRI's table swaps car (7, fold 2) and cat (8, fold 3) and so tests a base class in each; these are the correct sets
(protocols.md 1.2).
"""
OSLSM_CELLS = 2
"""OSLSM keeps a pair if more than this many cells remain."""
Partition = Literal["contiguous", "coco-20i"]


class PASCAL5iDataset(FewShotDataset):
    """PASCAL-5i from the official folders of VOC 2012 and SBD (see `VocFolders`); nothing has to be prepared.

    Fold f tests VOC classes 5 f + 1 .. 5 f + 5 on images of VOC val; all other classes are trained on images of VOC train
    and SBD. No image of VOC val is ever in a training list. A key is the image name, e.g. `2007_000033`. Masks: 1 the
    class, 255 the void rim (VOC's masks only), 0 anything else.

    `protocol` decides on lists (protocols.md 1.1):

    * `clean-v1`, `bam-compat`: pairs with at least `min_pixels` pixels of the class; training images are SBD's train list
      without VOC val, then VOC train (5953).
    * `hsnet-compat`: OSLSM's filter (`oslsm_cells`); training images are all of SBD and VOC train without VOC val
      (10,582). With `lists`, the published lists are taken as they are, `fold0.txt` to `fold3.txt` in it or in its
      folders `val` and `trn`.

    `partition`: `contiguous`, or `coco-20i` for the transfer from COCO: the data set is then `coco-to-pascal`, fold f tests
    the classes of `FROM_COCO[f]`, and there is nothing to train on.
    """

    name: ClassVar[str] = "pascal-5i"
    n_folds = 4
    episodes_per_class = 200
    mask_renderer = "voc-sbd"
    protocols = ("clean-v1", "hsnet-compat", "bam-compat")
    hsnet_queries = "sequential"

    def __init__(
        self,
        root: str | Path,
        protocol: ProtocolName = "clean-v1",
        lists: str | Path | None = None,
        partition: Partition = "contiguous",
        min_pixels: int = 2048,
    ) -> None:
        if partition not in get_args(Partition):
            raise UserError(f"Unknown class partition '{partition}'.{nearest(partition, get_args(Partition))}")
        if lists is not None and protocol != "hsnet-compat":
            raise UserError(f"{protocol} makes its lists from the masks: leave data.lists out, or use hsnet-compat.")
        self.folders = VocFolders.below(Path(root).expanduser())
        self.protocol, self.class_partition, self.min_pixels = protocol, partition, min_pixels
        self.class_names = dict(enumerate(CLASS_NAMES, start=1))
        if partition == "coco-20i":
            self.name = "coco-to-pascal"  # type: ignore[misc]
        self._place = Path(lists).expanduser() if lists is not None else None
        self._lists = find_lists(self._place, self.n_folds) if self._place else FoldLists()
        if self._place and not self._lists.folds:
            raise UserError(
                f"{self._place} holds no classes, expected HSNet's fold0.txt to fold3.txt (NAME__CC per line). Correct "
                "data.lists."
            )
        built = "oslsm-32" if protocol == "hsnet-compat" else f"min-pixels-{min_pixels}"
        self.image_filter = self._lists.identity or built
        self._indices: dict[Split, VocIndex] = {}
        self._positions: dict[Split, dict[str, int]] = {}
        self._checked: dict[Split, dict[int, list[str]]] = {}

    @property
    def draw_name(self) -> str:
        """`pascal-5i` for both partitions: they share pictures, classes and so the draw."""
        return "pascal-5i"

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The classes tested in `fold`; raises `UserError` for a fold outside 0..3."""
        own = novel_classes(sorted(self.class_names), fold, self.n_folds, "contiguous")
        return own if self.class_partition == "contiguous" else FROM_COCO[fold]

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """All that are not novel; none in the transfer from COCO, where training happened on COCO."""
        return super().base_classes(fold) if self.class_partition == "contiguous" else ()

    def saw_novel(self, fold: int, trained_on: str, trained_fold: int, trained_shot: int) -> bool:
        """Also of a training on COCO-20i (`FROM_COCO`), and of one on PASCAL-5i itself for the transfer from COCO."""
        if trained_on == "coco-20i":
            return not set(self.novel_classes(fold)).issubset(FROM_COCO[trained_fold])
        if trained_on == "pascal-5i":
            held_out = novel_classes(sorted(self.class_names), trained_fold, self.n_folds, "contiguous")
            return not set(self.novel_classes(fold)).issubset(held_out)
        return False

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the images of a class: of a published list in its order, else those that pass the protocol's filter,
        by name (`bam-compat` training images in the order of the source list)."""
        published = self._published(split).get(class_id)
        if published is not None:
            return published
        if split == "train" and self._published(split):  # not half published, half built
            raise UserError(
                f"{self._place}/trn list no training image of class {class_id}. Complete fold0.txt to fold3.txt."
            )
        index = self._index(split)
        keys = [index.names[i] for i in np.flatnonzero(self._passes(index)[:, class_id])]
        return keys if self.protocol == "bam-compat" else sorted(keys)

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """(class id, key) of the fold's list: a published one in its own order, else by name, then class.

        Raises `UserError` where published lists are given and lack the fold, or hold classes of another one.
        """
        if self._place is not None and self.class_partition == "contiguous":
            _ = self._published("test")
            pairs = self._lists.pairs(fold)
            wrong = sorted({c for c, _ in pairs} - set(self.novel_classes(fold)))
            if wrong:
                raise UserError(
                    f"{self._lists.folds[fold].path} lists class {wrong[0]}, which fold {fold} of {self.name} does not test. "
                    "Use lists that are named by their fold."
                )
            return list(pairs)
        if self._place is not None:  # the classes of a fold are spread over all lists
            absent = sorted(set(self.novel_classes(fold)) - self._published("test").keys())
            if absent:
                raise UserError(f"{self._place} lists no image of class {absent[0]}. Complete fold0.txt to fold3.txt.")
        return sorted(super().ordered_pairs(fold), key=lambda pair: (pair[1], pair[0]))

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids of all classes with at least one pixel in an image."""
        for split, index in self._indices.items():
            at = self._positions[split].get(key)
            if at is not None:
                return tuple(int(c) for c in np.flatnonzero(index.pixels[at]) if c > 0)
        return tuple(int(c) for c in np.unique(read_class_mask(self._mask_file(key))) if 0 < c <= CLASSES)

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return read_image(self.folders.image_file(key))

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8: 1 the class, 255 void, else 0."""
        ids = read_class_mask(self._mask_file(key))
        return np.where(ids == 255, 255, ids == class_id).astype(np.uint8)

    def _mask_file(self, key: str) -> Path:
        path = self.folders.mask_file(key)
        if not path.is_file():
            raise UserError(
                f"PASCAL-5i has no mask {path} of image '{key}'. Build the episodes again from these files."
            )
        return path

    def _passes(self, index: VocIndex) -> np.ndarray:
        """(N, 21) bool: which pairs the protocol's filter keeps."""
        if self.protocol == "hsnet-compat":
            return index.cells > OSLSM_CELLS
        return index.pixels >= max(1, self.min_pixels)

    def image_names(self, split: Split) -> list[str]:
        """All images of a split before the size filter, in the order of the source lists.

        Raises `UserError` where SBD is needed and not there.
        """
        if split == "test":
            return self.folders.names("val")
        held_out = set(self.folders.names("val"))
        sbd = self.folders.sbd_names("train")
        if self.protocol == "hsnet-compat":
            sbd += self.folders.sbd_names("val")
        own = [name for name in self.folders.names("train") if name not in held_out]
        return list(dict.fromkeys((*sbd, *own)))

    def _index(self, split: Split) -> VocIndex:
        if split not in self._indices:
            names = self.image_names(split)
            self._indices[split] = load_voc_index({name: self.folders.mask_file(name) for name in names})
            self._positions[split] = {name: at for at, name in enumerate(names)}
        return self._indices[split]

    def _published(self, split: Split) -> dict[int, list[str]]:
        """Class -> published names of a split, checked against VOC's own lists; empty without `lists`."""
        if self._place is None:
            return {}
        if split not in self._checked:
            self._checked[split] = self._read_published(split, self._place)
        return self._checked[split]

    def _read_published(self, split: Split, place: Path) -> dict[int, list[str]]:
        if split == "train":
            if not (place / "trn").is_dir():
                return {}
            lists = find_lists(place / "trn", self.n_folds).by_class()
        else:
            lists = self._lists.by_class()
        held_out = set(self.folders.names("val"))
        for names in lists.values():
            wrong = next((name for name in names if (name in held_out) != (split == "test")), None)
            if wrong:
                where = "is not in VOC val" if split == "test" else "is in VOC val, which is never trained on"
                raise UserError(
                    f"The published lists in {place} name {wrong} for {split}, which {where}. Correct lists."
                )
        return lists


class PASCAL5i(EpisodicDataModule):
    """Episodes of PASCAL-5i; folds, masks and lists are described at `PASCAL5iDataset`.

    Args:
        root: folder with VOCdevkit and benchmark_RELEASE (SBD, for training only); null: `$FSSBENCH_DATA/PASCAL`, else
            `data/PASCAL`.
        lists: HSNet's published lists, for `hsnet-compat`; null: built from the masks.
        partition: `contiguous` are the usual folds; `coco-20i` tests a method trained on COCO-20i.
        min_pixels: an image counts for a class that has at least this many pixels in it.
        kwargs: what every data module takes.
    """

    def __init__(
        self,
        root: str | None = None,
        lists: str | None = None,
        partition: Partition = "contiguous",
        min_pixels: int = 2048,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.lists = root, lists
        self.partition: Partition = partition
        self.min_pixels = min_pixels

    def make_dataset(self) -> PASCAL5iDataset:
        """PASCAL-5i at the configured place."""
        root = data_root(self.root, "PASCAL")
        return PASCAL5iDataset(root, self.protocol, self.lists, self.partition, self.min_pixels)

    def number_of_folds(self) -> int:
        """Four, known without opening a file."""
        return PASCAL5iDataset.n_folds
