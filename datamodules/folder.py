"""A user's own images and masks: one folder, two layouts, and errors that say which file to correct."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args
from unicodedata import normalize

import numpy as np
from tqdm import tqdm

from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.pairs import MaskFiles, count_pixels, listing
from datamodules.places import data_root
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError, nearest, some
from fssbench.files import sha256_text
from fssbench.images import UNREAD_SUFFIXES

MaskLayout = Literal["auto", "binary", "index"]


class FolderDataset(FewShotDataset):
    """Your own data set: `root/images` and `root/masks`, in one of two layouts (`mask="auto"` finds out which).

    binary  `masks/CLASS/NAME.png` is the mask of one class (light = object) for `images/NAME.jpg` or
            `images/CLASS/NAME.jpg`; an image may have masks in several classes. Class ids are 1..n by class name.
    index   `masks/NAME.png` (palette or 8-bit grey) holds a class id 1..254 per pixel, 0 background, 255 ignore, for
            `images/NAME.jpg`. Line i of an optional `root/classes.txt` names class i.

    Training and test use the same images (no class is in both) unless there are `root/train` and `root/test`, each with
    images and masks inside. `n_folds=1` tests every class; with more folds, fold f tests every n_folds-th class and
    trains on the others. Candidates of a class are the images with at least `min_pixels` pixels of it (and at least
    one), in the order of their keys. A key is the image's path below `root`; umlauts are always written as one letter
    (Unicode's NFC), whatever the file system does.

    Every mask is read once when the data set is made. All such sets are called `folder`, so `mask_renderer` ends with a hash of
    the test masks' names and pixel counts: neither another set nor a corrected one has the same manifests.

    Raises `UserError`, naming the file and the remedy, for missing folders, folders without images, masks without image or of
    another size, unreadable or colour index masks, and classes without a usable mask. Images without mask and empty masks
    are left out and listed.

    skipped  lines about the images left out, for reports
    """

    name: ClassVar[str] = "folder"
    class_partition = "interleaved"

    def __init__(
        self,
        root: str | Path,
        n_folds: int = 1,
        mask: MaskLayout = "auto",
        min_pixels: int = 0,
        episodes_per_class: int = 20,
    ) -> None:
        self.root = Path(root).expanduser()
        self.n_folds = n_folds
        self.episodes_per_class = episodes_per_class
        self.min_pixels = min_pixels
        self.image_filter = f"min-pixels-{min_pixels}" if min_pixels > 0 else "none"
        self.skipped: list[str] = []
        self._parts = _parts(self.root)
        parts = list(dict.fromkeys(self._parts.values()))
        index = _is_index([part / "masks" for part in parts], mask)
        self.mask_renderer = "index" if index else "threshold-128"
        pairs = {part: _match(part, index) for part in parts}
        self.skipped += [line for part in parts for line in _without_mask(part, pairs[part])]
        names = sorted({pair.class_name for found in pairs.values() for pair in found})
        ids = {name: 0 if index else class_id for class_id, name in enumerate(names, start=1)}
        self._files = MaskFiles({}, {}, index)
        self._first_mask: dict[int, str] = {}  # where each class was first seen
        self._counted: list[str] = []  # a line for each mask that may be tested
        self._candidates = {part: self._add(part, pairs[part], ids) for part in parts}
        self.mask_renderer += f"-{sha256_text(''.join(sorted(self._counted)))[:12]}"
        self.class_names = self._index_names() if index else {class_id: name for name, class_id in ids.items()}
        self._check_classes()

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The classes tested in `fold`: every n_folds-th. Raises `UserError` for a fold outside 0..n_folds-1."""
        return novel_classes(sorted(self.class_names), fold, self.n_folds, "interleaved")

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys, ascending, of the images of a split with enough pixels of the class."""
        return sorted(self._candidates[self._parts[split]].get(class_id, ()))

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return self._files.read_image(key)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1, 255}; all 0 where the image has no mask of the class."""
        return self._files.read_mask(key, class_id)

    def _add(self, part: Path, pairs: list[_Pair], ids: dict[str, int]) -> dict[int, list[str]]:
        """Read all masks of a part, register the files, and return the candidates by class."""
        candidates: dict[int, list[str]] = defaultdict(list)
        empty: list[str] = []
        small: list[str] = []
        for pair, counts in zip(pairs, _count_all(pairs, self._files.index), strict=True):
            key, mask = (_same(path.relative_to(self.root).as_posix()) for path in (pair.image, pair.mask))
            self._files.images[key] = pair.image
            self._files.masks.setdefault(key, {})[ids[pair.class_name]] = pair.mask
            pixels = {c: n for c, n in enumerate(counts) if 0 < c < 255 and n > 0}
            found = " ".join(f"{value}:{n}" for value, n in enumerate(counts.tolist()) if n)
            self._counted += [f"{mask} {found}\n"] if part == self._parts["test"] else []
            if not pixels:
                empty.append(mask)
            for value, n in pixels.items():
                class_id = value if self._files.index else ids[pair.class_name]
                self._first_mask.setdefault(class_id, mask)
                if n >= self.min_pixels:
                    candidates[class_id].append(key)
                else:
                    small.append(f"{mask} (class {class_id}, {n} pixels)")
        if empty:
            self.skipped.append(f"{len(empty)} empty masks left out: {some(empty)}. {_EMPTY_REMEDY[self._files.index]}")
        if small:
            self.skipped.append(
                f"{len(small)} masks with fewer than min_pixels={self.min_pixels} left out: {some(small)}."
            )
        return dict(candidates)

    def _index_names(self) -> dict[int, str]:
        """Class names of the index layout: the ids that occur, named by the lines of classes.txt where it exists."""
        found = sorted(self._first_mask)
        file = self.root / "classes.txt"
        if not file.is_file():
            return {class_id: str(class_id) for class_id in found}
        names = [line.strip() for line in file.read_text(encoding="utf-8").rstrip().splitlines()]
        if names[:1] and names[0].lower() == "background":
            raise UserError(
                f"{file} starts with '{names[0]}', expected the name of class 1. Remove that line: background is 0."
            )
        if found and found[-1] > len(names):
            raise UserError(
                f"{file} names {len(names)} classes, but {self._first_mask[found[-1]]} holds class {found[-1]}. Add "
                "the missing names, one per line, or correct the mask."
            )
        return dict(enumerate(names, start=1))

    def _check_classes(self) -> None:
        for class_id, name in self.class_names.items():
            if not any(class_id in by_class for by_class in self._candidates.values()):
                raise UserError(
                    f"Class {class_id} ('{name}') of {self.root} has no mask with at least {max(1, self.min_pixels)} "
                    f"pixels of it. Correct its masks, remove the class, or lower min_pixels. {' '.join(self.skipped)}"
                )
        if not self.class_names:
            raise UserError(f"The masks in {self.root} hold no class id 1..254. {_EMPTY_REMEDY[True]}")
        if not 1 <= self.n_folds <= len(self.class_names):
            raise UserError(
                f"n_folds={self.n_folds} does not fit {len(self.class_names)} classes in {self.root}, expected "
                f"1..{len(self.class_names)}. Set n_folds in this range."
            )


_EMPTY_REMEDY = {
    False: "Light pixels (grey value 128 or more, or 1 in a 0/1 mask) are the object: correct or remove these masks.",
    True: "Ids are 1..254 (0 background, 255 ignore); black-and-white masks belong into masks/CLASS/.",
}


@dataclass(frozen=True)
class _Pair:
    """An image file, one of its mask files, and the class the mask's folder names ("" in the index layout)."""

    image: Path
    mask: Path
    class_name: str


def _parts(root: Path) -> dict[Split, Path]:
    """The folder with images and masks of each split, checked."""
    if not root.is_dir():
        raise UserError(f"The data folder {root} does not exist. Set root to a folder with images/ and masks/ in it.")
    split = (root / "train").is_dir() and (root / "test").is_dir()
    parts: dict[Split, Path] = (
        {"train": root / "train", "test": root / "test"} if split else {"train": root, "test": root}
    )
    for part in parts.values():
        for folder in (part / "images", part / "masks"):
            if not folder.is_dir():
                raise UserError(
                    f"The folder {folder} does not exist, expected images/ and masks/ in {root}, or both in each of "
                    "train/ and test/. Create it or correct root."
                )
    return parts


def _is_index(folders: list[Path], mask: MaskLayout) -> bool:
    """Whether the mask folders hold index masks (files) or binary masks (class folders)."""
    if mask not in get_args(MaskLayout):
        raise UserError(f"Unknown mask layout '{mask}'.{nearest(mask, get_args(MaskLayout))}")
    where = some(folders)
    has = {
        "index": any(listing(folder) for folder in folders),
        "binary": any(_subfolders(folder) for folder in folders),
    }
    if mask != "auto" and has[mask]:
        return mask == "index"
    if not any(has.values()):
        raise UserError(f"{where} holds no masks. Put masks/CLASS/NAME.png or index masks/NAME.png there.")
    if mask != "auto":
        expected = "mask files" if mask == "index" else "class folders"
        raise UserError(
            f"{where} holds no {expected}, which mask={mask} expects. Use mask=auto or rearrange the masks."
        )
    if all(has.values()):
        raise UserError(
            f"{where} holds mask files and class folders, so the layout is not clear. Set mask to index or binary, or "
            "move the files into their class folders."
        )
    return has["index"]


def _match(part: Path, index: bool) -> list[_Pair]:
    """Every mask file of a part with its image."""
    images = _by_stem(part / "images")
    if not images and not any(listing(folder) for folder in _subfolders(part / "images")):
        raise UserError(f"{part / 'images'} holds no images. Put them there as JPEG or PNG.")
    pairs = []
    for folder in [part / "masks"] if index else _subfolders(part / "masks"):
        class_name = "" if index else _same(folder.name)
        own = part / "images" / folder.name
        inside = _by_stem(own) if own.is_dir() and not index else {}
        masks = _by_stem(folder)
        if not masks:
            raise UserError(f"The class folder {folder} holds no masks. Add PNG masks or remove the folder.")
        for stem, mask in masks.items():
            if stem not in images and stem not in inside:
                raise UserError(
                    f"{mask} has no image: expected {part / 'images' / stem} with .jpg, .png or a similar ending. "
                    f"{_image_remedy(part / 'images', stem)}"
                )
            pairs.append(_Pair(inside.get(stem) or images[stem], mask, class_name))
    return pairs


def _without_mask(part: Path, pairs: list[_Pair]) -> list[str]:
    """Lines about the images that no mask belongs to, and about those of a format that is not read."""
    folders = [part / "images", *_subfolders(part / "images")]
    unused = sorted({image for folder in folders for image in listing(folder)} - {pair.image for pair in pairs})
    unread = sorted(image for folder in folders for image in listing(folder, UNREAD_SUFFIXES))
    return [
        f"{len(files)} images in {part} {why} left out: {some(f.relative_to(part).as_posix() for f in files)}. {remedy}"
        for files, why, remedy in (
            (unused, "without a mask", "Add masks of the same name to use them."),
            (unread, "of a format that is not read", "Save them as JPEG or PNG to use them."),
        )
        if files
    ]


def _image_remedy(images: Path, stem: str) -> str:
    unread = [path for path in listing(images, UNREAD_SUFFIXES) if _same(path.stem) == stem]
    return f"Save {unread[0].name} as JPEG or PNG." if unread else "Add the image or remove the mask."


def _count_all(pairs: list[_Pair], index: bool) -> list[np.ndarray]:
    """`count_pixels` of every pair; decoding releases the interpreter, so threads help."""
    with ThreadPoolExecutor() as pool:
        counts = pool.map(lambda pair: count_pixels(pair.image, pair.mask, index), pairs)
        return list(tqdm(counts, "reading masks", total=len(pairs), delay=3, mininterval=1, unit="mask"))


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files by name without ending."""
    found: dict[str, Path] = {}
    for path in listing(folder):
        stem = _same(path.stem)
        if stem in found:
            raise UserError(f"{found[stem]} and {path} have the same name. Rename or remove one: masks match by name.")
        found[stem] = path
    return found


def _same(name: str) -> str:
    """A name however its umlauts are written: macOS and some archives write the letter and its dots apart."""
    return normalize("NFC", name)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


class Folder(EpisodicDataModule):
    """Episodes of a user's own images and masks; the layouts are described at `FolderDataset`.

    Args:
        root: folder with images/ and masks/.
        n_folds: 1 tests every class; more folds test every n_folds-th class and train on the others.
        mask: layout of the masks: `binary` (masks/CLASS/NAME.png), `index` (masks/NAME.png), or find out.
        min_pixels: an image counts for a class that has at least this many pixels in it.
        kwargs: what every data module takes.
    """

    training_remedy = "With --data.n_folds 4 each fold tests a fourth of the classes and trains on the others."

    def __init__(
        self, root: str, n_folds: int = 1, mask: MaskLayout = "auto", min_pixels: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.n_folds, self.mask, self.min_pixels = root, n_folds, mask, min_pixels

    def make_dataset(self) -> FolderDataset:
        """The user's data set."""
        return FolderDataset(data_root(self.root, "folder"), self.n_folds, self.mask, self.min_pixels)

    def number_of_folds(self) -> int:
        """As configured."""
        return self.n_folds
