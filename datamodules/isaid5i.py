"""iSAID-5i (protocols.md 1.5): aerial images cut into patches, 15 classes in three folds of five."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.places import data_root
from datamodules.published import FoldLists, find_lists
from datamodules.voc_masks import VocIndex, load_voc_index, read_class_mask
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, some
from fssbench.images import read_image
from fssbench.protocols.profiles import ProtocolName

CLASS_NAMES = (
    "ship", "storage_tank", "baseball_diamond", "tennis_court", "basketball_court", "ground_track_field", "bridge",
    "large_vehicle", "small_vehicle", "helicopter", "swimming_pool", "roundabout", "soccer_ball_field", "plane", "harbor",
)  # fmt: skip
"""Names of the classes 1..15, in iSAID's order."""
_MASK = "_instance_color_RGB.png"
_FOLDER = {"test": "val", "train": "train"}
_LISTS = {"test": "val", "train": "trn"}


class ISAID5iDataset(FewShotDataset):
    """Patches `SPLIT/images/NAME.png` with class ids in `SPLIT/semantic_png/NAME_instance_color_RGB.png`, SPLIT `train` or
    `val`, below `root` or `root/iSAID_patches`.

    Fold f tests classes 5 f + 1 .. 5 f + 5 on the patches of `val`; the others are trained on in those of `train`. A key is
    the patch's name. Masks: 1 the class, 255 void, 0 anything else.

    `clean-v1` takes pairs with at least `min_pixels` pixels of the class. `hsnet-compat` is GF-SAM's way: every entry of the
    published list is a query once, in the list's order. How those lists were made is not known, so they must be there:
    `lists`, else `splits` below the patches (`val/fold0.txt` to `fold2.txt`, for training `trn/`).
    """

    name: ClassVar[str] = "isaid-5i"
    n_folds = 3
    episodes_per_class = 200
    mask_renderer = "isaid-semantic-png"
    class_partition = "contiguous"
    protocols = ("clean-v1", "hsnet-compat")
    hsnet_queries = "sequential"
    hsnet_episodes = None

    def __init__(
        self,
        root: str | Path,
        protocol: ProtocolName = "clean-v1",
        lists: str | Path | None = None,
        min_pixels: int = 2048,
    ) -> None:
        root = Path(root).expanduser()
        self.root = next((place for place in (root, root / "iSAID_patches") if (place / "val").is_dir()), root)
        self.class_names = dict(enumerate(CLASS_NAMES, start=1))
        self.min_pixels = min_pixels
        self.image_filter = f"min-pixels-{min_pixels}"
        if protocol != "hsnet-compat" and lists is not None:
            raise UserError(f"{protocol} makes its lists from the masks: leave data.lists out, or use hsnet-compat.")
        self._place = self.root / "splits" if lists is None else Path(lists).expanduser()
        self._published = protocol == "hsnet-compat"
        if self._published:
            self.image_filter = self._lists("test").identity
        self._indices: dict[Split, VocIndex] = {}
        self._read: dict[Split, FoldLists] = {}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The five classes tested in `fold`; raises `UserError` for a fold outside 0..2."""
        return novel_classes(sorted(self.class_names), fold, self.n_folds, "contiguous")

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the patches of a class: of the published list in its order, else those with enough pixels, by name."""
        if self._published:
            return self._checked(split).by_class().get(class_id, [])
        index = self._index(split)
        return [index.names[i] for i in np.flatnonzero(index.pixels[:, class_id] >= max(1, self.min_pixels))]

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """(class id, key) of the fold's published list in its own order, else class by class."""
        return list(self._checked("test").pairs(fold)) if self._published else super().ordered_pairs(fold)

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids of all classes with at least one pixel in a patch."""
        found = np.unique(read_class_mask(self._file(key, "semantic_png", _MASK), len(CLASS_NAMES)))
        return tuple(int(c) for c in found if 0 < c <= len(CLASS_NAMES))

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return read_image(self._file(key, "images", ".png"))

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8: 1 the class, 255 void, else 0."""
        ids = read_class_mask(self._file(key, "semantic_png", _MASK), len(CLASS_NAMES))
        return np.where(ids == 255, 255, ids == class_id).astype(np.uint8)

    @cached_property
    def _names(self) -> dict[Split, frozenset[str]]:
        return {split: frozenset(self._listing(split)) for split in ("test", "train")}

    def _listing(self, split: Split) -> list[str]:
        folder = self.root / _FOLDER[split] / "images"
        if split == "train" and not folder.is_dir():
            return []
        if not folder.is_dir():
            raise UserError(
                f"{self.root} holds no iSAID patches, expected val/images in it. Unpack them there, or set root."
            )
        return sorted(path.stem for path in folder.glob("*.png"))

    def _file(self, key: str, folder: str, ending: str) -> Path:
        for split, names in self._names.items():
            if key in names:
                return self.root / _FOLDER[split] / folder / f"{key}{ending}"
        raise UserError(f"iSAID-5i has no patch '{key}'. Build the episodes again from these files.")

    def _index(self, split: Split) -> VocIndex:
        if split not in self._indices:
            names = self._listing(split)
            if not names:
                raise UserError(
                    f"{self.root / _FOLDER[split] / 'images'} holds no patches. Unpack iSAID's there, or set root."
                )
            folder = self.root / _FOLDER[split] / "semantic_png"
            self._indices[split] = load_voc_index({name: folder / f"{name}{_MASK}" for name in names}, len(CLASS_NAMES))
        return self._indices[split]

    def _lists(self, split: Split) -> FoldLists:
        if not self._place.exists():
            raise UserError(
                f"hsnet-compat needs the published lists of iSAID-5i, and {self._place} does not exist. Put GF-SAM's splits/isaid "
                "there, or name the folder with data.lists."
            )
        found = find_lists(self._place, self.n_folds, _LISTS[split])
        if not found.folds:
            raise UserError(
                f"{self._place} holds no classes, expected fold0.txt to fold2.txt (NAME__CC per line). Correct data.lists."
            )
        return found

    def _checked(self, split: Split) -> FoldLists:
        """The published lists of a split, whose patches and classes all exist."""
        if split not in self._read:
            lists = self._lists(split)
            for fold, found in lists.folds.items():
                wrong = sorted({c for c, _ in found.pairs} - set(self.novel_classes(fold)))
                absent = [name for _, name in found.pairs if name not in self._names[split]]
                if wrong or absent:
                    what = (
                        f"class {wrong[0]}, which is not of fold {fold}"
                        if wrong
                        else f"patches that are absent: {some(absent)}"
                    )
                    raise UserError(f"{found.path} lists {what}. Use the lists of these patches.")
            self._read[split] = lists
        return self._read[split]


class ISAID5i(EpisodicDataModule):
    """Episodes of iSAID-5i; layout and lists are described at `ISAID5iDataset`.

    Args:
        root: folder with train and val; null: `$FSSBENCH_DATA/iSAID`, else `data/iSAID`.
        lists: published lists, for `hsnet-compat`; null: `splits` beside train and val.
        min_pixels: a patch counts for a class that has at least this many pixels in it.
        kwargs: what every data module takes.
    """

    def __init__(
        self, root: str | None = None, lists: str | None = None, min_pixels: int = 2048, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.lists, self.min_pixels = root, lists, min_pixels

    def make_dataset(self) -> ISAID5iDataset:
        """iSAID-5i at the configured place."""
        return ISAID5iDataset(data_root(self.root, "iSAID"), self.protocol, self.lists, self.min_pixels)

    def number_of_folds(self) -> int:
        """Three, known without opening a file."""
        return ISAID5iDataset.n_folds
