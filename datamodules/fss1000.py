"""FSS-1000 (CVPR 2020; protocols.md 1.3): 1000 classes of 10 images each, read from the official folders."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.pairs import MaskFiles, count_pixels, listing
from datamodules.places import data_root
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, nearest, some

_TEST_LISTS = ("test.txt", "fss_test_set.txt")  # the second is the name of the official list


class FSS1000Dataset(FewShotDataset):
    """FSS-1000 with `<class>/N.jpg` and `<class>/N.png` in `root`, `root/data`, `root/FSS-1000` or `root/fewshot_data`.

    `splits`: a folder with `test.txt` or `fss_test_set.txt` (and `trn.txt`, `val.txt`), or one file with the names of
    the test classes; by default the folder `splits` in the data set, if there is one. Without `trn.txt` every class
    that is in no other list is for training; without any list all classes are for testing, and `skipped` says so.

    There is one fold: test classes are novel, training classes are base, `val_classes` are neither. Class ids are 1..n
    in code-point order of the names found; the label is the name. Candidates are all images of a class in string order
    (1.jpg, 10.jpg, 2.jpg), less those with an empty mask. Keys are `CLASS/N.jpg`; canonical episode text says `N.jpg`.

    skipped  lines about classes and images left out; complete once the candidates of all classes were asked for
    """

    name: ClassVar[str] = "fss-1000"
    n_folds = 1
    episodes_per_class = 10
    mask_renderer = "threshold-128"
    class_partition = "class-lists"
    protocols = ("clean-v1", "hsnet-compat")
    hsnet_queries = "every-image"

    def __init__(self, root: str | Path, splits: str | Path | None = None) -> None:
        self.root = Path(root).expanduser()
        self.skipped: list[str] = []
        home = _class_home(self.root)
        names = sorted(folder.name for folder in home.iterdir() if _is_class(folder))
        self.class_names = dict(enumerate(names, start=1))
        self._ids = {name: class_id for class_id, name in self.class_names.items()}
        self._novel, self._base, self.val_classes = self._read_splits(home, splits)
        self._files, self._keys = _find_pairs(home, self._ids)
        self._candidates: dict[int, list[str]] = {}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The test classes; raises `UserError` for a fold other than 0."""
        return novel_classes(self._novel, fold, self.n_folds, "contiguous")

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """The training classes; the validation classes are neither novel nor base."""
        self.novel_classes(fold)
        return self._base

    def label(self, class_id: int) -> str:
        """The class's name."""
        return self.class_names[class_id]

    def episode_name(self, key: str) -> str:
        """`N.jpg`: canonical text names the class once per line."""
        return key.rpartition("/")[2]

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the class's images whose mask is not empty, the same for both splits, whose classes differ.

        The first call for a class reads its masks; raises `UserError` where a mask has not the size of its image.
        """
        if class_id not in self._candidates:
            self._candidates[class_id] = [key for key in self._keys[class_id] if self._is_usable(key, class_id)]
        return list(self._candidates[class_id])

    def support_pool(self, class_id: int) -> list[str]:
        """The class's candidates by number: 1.jpg, 2.jpg, ..., 10.jpg."""
        return sorted(self.candidates(class_id, "test"), key=lambda key: int(key.rpartition("/")[2].partition(".")[0]))

    def classes_in(self, key: str) -> tuple[int, ...]:
        """The one class of the image."""
        return (self._ids[key.partition("/")[0]],)

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return self._files.read_image(key)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1}: greyscale >= 128; all 0 for any class but the image's own."""
        return self._files.read_mask(key, class_id)

    def _is_usable(self, key: str, class_id: int) -> bool:
        mask = self._files.masks[key][class_id]
        usable = bool(count_pixels(self._files.images[key], mask, index=False)[1])
        if not usable:
            self.skipped.append(f"{mask} is empty (no pixel reaches grey value 128): {key} left out.")
        return usable

    def _read_splits(
        self, home: Path, splits: str | Path | None
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Ids of the test, training and validation classes."""
        lists = _split_lists(self.root, home, splits)
        if not lists:
            self.skipped.append(
                f"No class lists found for {self.root}: all {len(self._ids)} classes are tested and none is for "
                f"training. Put test.txt, trn.txt and val.txt into {self.root / 'splits'}, or set splits."
            )
            self.class_partition = "no-lists"
            return tuple(self.class_names), (), ()
        ids = {split: self._class_list(path) for split, path in lists.items()}
        test, val = ids["test"], ids.get("val", set())
        train = ids.get("trn", set(self.class_names) - test - val)
        if not test:
            raise UserError(
                f"None of the classes in {lists['test']} is a folder in {home}. Use lists and images of the same data "
                "set."
            )
        unlisted = [self.class_names[c] for c in sorted(set(self.class_names) - test - val - train)]
        if unlisted:
            self.skipped.append(f"{len(unlisted)} classes in {home} are in no list and not used: {some(unlisted)}.")
        double = [self.class_names[c] for c in sorted(test & (val | train) | val & train)]
        if double:
            raise UserError(
                f"The lists in {lists['test'].parent} overlap: {some(double)}. Put each class into one list."
            )
        return tuple(sorted(test)), tuple(sorted(train)), tuple(sorted(val))

    def _class_list(self, path: Path) -> set[int]:
        """Ids of the classes in a list file that are on disk; the others are reported in `skipped`."""
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        absent = [name for name in names if name not in self._ids]
        if absent:
            hint = nearest(absent[0], self._ids) if len(absent) == 1 else ""
            self.skipped.append(f"{path}: {len(absent)} of {len(names)} classes are not on disk: {some(absent)}.{hint}")
        return {self._ids[name] for name in names if name in self._ids}


def _class_home(root: Path) -> Path:
    """The folder that holds the class folders."""
    if not root.is_dir():
        raise UserError(f"The FSS-1000 folder {root} does not exist. Unpack the data set there, or set root.")
    for parent in (root, root / "FSS-1000", root / "fewshot_data", root / "fewshot_data" / "fewshot_data"):
        for home in (parent / "data", parent):
            if home.is_dir() and any(_is_class(folder) for folder in home.iterdir()):
                return home
    raise UserError(
        f"{root} holds no FSS-1000 class folders, expected CLASS/1.jpg with CLASS/1.png in it, in its folder data, "
        "FSS-1000 or fewshot_data. Set root to the unpacked data set."
    )


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and any(_numbered(folder))


def _numbered(folder: Path) -> list[Path]:
    return [path for path in listing(folder) if re.fullmatch(r"[0-9]+\.(jpg|png)", path.name)]


def _split_lists(root: Path, home: Path, splits: str | Path | None) -> dict[str, Path]:
    """The list files by split (`test`, `trn`, `val`), empty where there are none and none were named."""
    if splits is not None and Path(splits).expanduser().is_file():
        return {"test": Path(splits).expanduser()}
    if splits is not None:
        folders = [Path(splits).expanduser()]
    else:
        inside = [home] if home == root else [home, home.parent, root]
        folders = [folder for parent in inside for folder in (parent / "splits", parent)]
    for folder in folders:
        for test in _TEST_LISTS:
            if (folder / test).is_file():
                others = {split: folder / f"{split}.txt" for split in ("trn", "val")}
                return {"test": folder / test} | {split: path for split, path in others.items() if path.is_file()}
    if splits is not None:
        raise UserError(
            f"{splits} holds no test.txt, expected a folder with test.txt, trn.txt and val.txt, or a file with one "
            "test class per line. Correct splits."
        )
    return {}


def _find_pairs(home: Path, class_ids: dict[str, int]) -> tuple[MaskFiles, dict[int, list[str]]]:
    """Images and masks of all classes, and the keys of each class in string order.

    Raises `UserError` where an image has no mask or a mask no image.
    """
    images: dict[str, Path] = {}
    masks: dict[str, dict[int, Path]] = {}
    keys: dict[int, list[str]] = {class_id: [] for class_id in class_ids.values()}
    alone: list[str] = []
    for name, class_id in class_ids.items():
        files = _numbered(home / name)
        stems = Counter(path.stem for path in files)
        alone += [f"{name}/{path.name}" for path in files if stems[path.stem] == 1]
        for path in files:
            if path.suffix == ".jpg":
                key = f"{name}/{path.name}"
                keys[class_id].append(key)
                images[key] = path
                masks[key] = {class_id: path.with_suffix(".png")}
    if alone:
        raise UserError(
            f"{len(alone)} files in {home} are an image without its mask or a mask without its image: "
            f"{some(alone, 10)}. Every N.jpg needs an N.png: unpack the data set again."
        )
    return MaskFiles(images, masks, index=False), keys


class FSS1000(EpisodicDataModule):
    """Episodes of FSS-1000; the layouts that are understood are described at `FSS1000Dataset`.

    Args:
        root: folder with the classes; null: `$FSSBENCH_DATA/FSS-1000`, else `data/FSS-1000`.
        splits: folder with test.txt, trn.txt and val.txt, or one file with the test classes; null: the set's own.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, splits: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.splits = root, splits

    def make_dataset(self) -> FSS1000Dataset:
        """FSS-1000 at the configured place."""
        return FSS1000Dataset(data_root(self.root, "FSS-1000"), self.splits)

    def number_of_folds(self) -> int:
        """One, known without opening a file."""
        return FSS1000Dataset.n_folds
