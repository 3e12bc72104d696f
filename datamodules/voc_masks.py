"""Class masks of VOC 2012 and SBD: where they lie, how they are read, and how many pixels each class has (iSAID's, too).

VOC's masks are palette PNGs whose objects have a void rim (255); SBD's are MATLAB files without one. Both are read as
class ids 0..20 and 255, so a converted folder is a saving of time and not another data set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from datamodules.array_cache import cached_arrays
from datamodules.parallel import parallel_map
from fssbench.errors import UserError
from fssbench.images import read_index_mask

CLASSES = 20
CELL = 32
_VERSION = 1  # of the cache file: raise it whenever the counting or the layout below changes


def read_sbd_mask(path: Path) -> np.ndarray:
    """(H0, W0) uint8 class ids 0..20 of an SBD file `cls/NAME.mat` (field `GTcls.Segmentation`).

    Raises `UserError` where the file is missing, damaged, or holds something else.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(str(path), variable_names=["GTcls"])["GTcls"]
        mask = np.asarray(content["Segmentation"][0, 0])
        if mask.ndim != 2 or mask.max(initial=0) > CLASSES:
            raise ValueError(f"a mask of shape {mask.shape} with values up to {mask.max(initial=0)}")
        return mask.astype(np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist. Unpack SBD's benchmark.tgz again.") from None
    except Exception as error:  # scipy's reader raises what it likes on damaged files
        raise UserError(
            f"{path} is no class mask of SBD ({type(error).__name__}: {error}), expected GTcls.Segmentation with class "
            "ids 0..20. Unpack SBD's benchmark.tgz again."
        ) from None


def read_class_mask(path: Path, classes: int = CLASSES) -> np.ndarray:
    """(H0, W0) uint8 class ids 0..`classes` and 255 void, from a PNG or an SBD file. Raises `UserError` as its readers do,
    and for a higher id."""
    if path.suffix == ".mat":
        return read_sbd_mask(path)
    mask = read_index_mask(path)
    highest = int(mask[mask != 255].max(initial=0))
    if highest > classes:
        raise UserError(f"{path} holds class {highest}, expected ids 0..{classes} and 255. Use the official masks.")
    return mask


@dataclass(frozen=True)
class VocIndex:
    """Pixel counts of some masks. Arrays, not objects, so that loader workers share the memory.

    names   image names, in the order of the split's list
    pixels  (N, C + 1) int32 pixels of each class at original size; void is not counted
    cells   (N, C + 1) int16 cells of each class that OSLSM's filter sees, see `oslsm_cells`
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    cells: np.ndarray


def oslsm_cells(mask: np.ndarray, classes: int = CLASSES) -> np.ndarray:
    """(C + 1,) int16: how many cells of each class remain after OSLSM's downsampling by 32.

    OSLSM pads the binary mask with 15 zeros and takes the nearest pixel to the centre of each 32 x 32 cell. The centre
    lies half-way between two pixels; the later one is taken here, which is pixel 1, 33, 65, ... of rows and columns.
    """
    cells = mask[1::CELL, 1::CELL]
    return np.bincount(cells[cells <= classes], minlength=classes + 1).astype(np.int16)


def load_voc_index(masks: dict[str, Path], classes: int = CLASSES) -> VocIndex:
    """Counts of the masks (image name -> file): from the cache, or from all files, on all cores, and cached.

    The cache is found by the files' names, sizes and times. Raises `UserError` as `read_class_mask` does, and where a
    file is missing.
    """
    digest = hashlib.sha256(f"{classes}\n".encode())
    for name, path in masks.items():
        try:
            stat = path.stat()
        except OSError:
            raise UserError(
                f"The mask {path} of image {name} does not exist. Unpack the data set again (PASCAL-5i: VOC 2012, and SBD for "
                "training)."
            ) from None
        digest.update(f"{name}|{path.suffix}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())

    def make() -> dict[str, np.ndarray]:
        counts = parallel_map(partial(_count, classes), list(masks.values()), "counting pixels of masks", "mask")
        pixels = np.array([p for p, _ in counts], np.int32).reshape(-1, classes + 1)
        return {"pixels": pixels, "cells": np.array([c for _, c in counts], np.int16).reshape(-1, classes + 1)}

    arrays = cached_arrays(f"voc-v{_VERSION}-{digest.hexdigest()}", make, "Counting the pixels of masks")
    return VocIndex(tuple(masks), arrays["pixels"], arrays["cells"])


def _count(classes: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    mask = read_class_mask(path, classes)
    return np.bincount(mask[mask <= classes], minlength=classes + 1), oslsm_cells(mask, classes)


@dataclass(frozen=True)
class VocFolders:
    """The official folders of VOC 2012 and, where they are, of SBD.

    voc   `.../VOC2012` with JPEGImages, SegmentationClass and ImageSets
    sbd   `.../dataset` with cls, train.txt and val.txt; None where SBD is not there
    """

    voc: Path
    sbd: Path | None

    @classmethod
    def below(cls, root: Path) -> VocFolders:
        """The folders below `root`: VOC in it, in VOC2012, or in VOCdevkit/VOC2012; SBD in SBD, sbd, or
        benchmark_RELEASE, with or without its folder dataset.

        Raises `UserError` where VOC is not there.
        """
        homes = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012", root.parent / "VOC2012")
        voc = next((home for home in homes if (home / "ImageSets" / "Segmentation" / "val.txt").is_file()), None)
        if voc is None:
            raise UserError(
                f"{root} holds no VOC 2012, expected ImageSets/Segmentation/val.txt in it, in VOC2012 or in "
                "VOCdevkit/VOC2012. Unpack VOCtrainval_11-May-2012.tar there, or set root."
            )
        parents = dict.fromkeys((root, voc, voc.parent, voc.parent.parent))
        names = ("benchmark_RELEASE/dataset", "SBD/dataset", "SBD", "sbd/dataset", "sbd", "dataset")
        places = (parent / name for parent in parents for name in names)
        return cls(voc, next((place for place in places if (place / "cls").is_dir()), None))

    def names(self, split: str) -> list[str]:
        """Image names of VOC's own list `train` or `val`; raises `UserError` where it is missing or lists one twice."""
        return _read_names(self.voc / "ImageSets" / "Segmentation" / f"{split}.txt")

    def sbd_names(self, split: str) -> list[str]:
        """Image names of SBD's list `train` or `val`, without the images of VOC val, which are never trained on.

        Raises `UserError` where SBD is not there.
        """
        if self.sbd is None:
            raise UserError(
                f"Training on PASCAL-5i needs SBD, and there is no benchmark_RELEASE/dataset beside {self.voc}. Unpack "
                "SBD's benchmark.tgz there (`fssbench prepare pascal5i` takes the archive)."
            )
        held_out = set(self.names("val"))
        return [name for name in _read_names(self.sbd / f"{split}.txt") if name not in held_out]

    @cached_property
    def own(self) -> frozenset[str]:
        """Images whose mask is VOC's, whatever SBD says about them."""
        return frozenset((*self.names("train"), *self.names("val")))

    def mask_file(self, name: str) -> Path:
        """The mask of an image: VOC's own for VOC's images, else SBD's, converted (SegmentationClassAug) or not."""
        if name in self.own:
            return self.voc / "SegmentationClass" / f"{name}.png"
        converted = self.voc / "SegmentationClassAug" / f"{name}.png"
        return converted if converted.is_file() or self.sbd is None else self.sbd / "cls" / f"{name}.mat"

    def image_file(self, name: str) -> Path:
        """The photograph; SBD's are all in VOC's JPEGImages."""
        return self.voc / "JPEGImages" / f"{name}.jpg"


def _read_names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"The list {path} is missing. Unpack the data set again.")
    names = path.read_text(encoding="utf-8").split()
    double = next((name for name, again in zip(sorted(names), sorted(names)[1:], strict=False) if name == again), None)
    if double or not names:
        raise UserError(f"{path} {f'lists {double} twice' if double else 'is empty'}. Unpack the data set again.")
    return names
