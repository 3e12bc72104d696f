"""A tiny VOC 2012 + SBD: palette PNGs with void rims, and MATLAB masks without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZES = [(104, 136), (136, 104), (120, 120)]  # (H, W), in turn


def make_pascal(root: Path, classes: int = 20, val: int = 2, train: int = 2, sbd: int = 2) -> None:
    """Write `root/VOCdevkit/VOC2012` and `root/benchmark_RELEASE/dataset`.

    Each class has `val` images in VOC val, `train` in VOC train and `sbd` in SBD. Image n of a class shows one large
    object (rows 20-83, columns 24-87) and, below 2048 pixels, a small one of the next class. The first VOC train image of
    each class is in SBD train, too, with another mask; the first VOC val image is in SBD val.
    """
    voc, dataset = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", voc / "ImageSets" / "Segmentation", dataset / "cls"):
        folder.mkdir(parents=True)
    lists: dict[str, list[str]] = {"val": [], "train": [], "sbd_train": [], "sbd_val": []}
    for c in range(1, classes + 1):
        for group, count in (("val", val), ("train", train), ("sbd_train", sbd)):
            for turn in range(count):
                year = {"val": 2007, "train": 2009, "sbd_train": 2008 if turn else 2010}[group]
                name = f"{year}_{c:03d}{turn:03d}"
                lists[group].append(name)
                mask = class_mask(c, c % classes + 1, turn, void=group != "sbd_train")
                colour = np.random.default_rng(c).integers(64, 256, 3)
                noise = np.random.default_rng(turn + 9 * c).integers(0, 64, (*mask.shape, 3))
                pixels = np.where((mask == c)[..., None], colour, noise).astype(np.uint8)
                Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.jpg", quality=90)
                if group == "sbd_train":
                    save_mat(dataset / "cls" / f"{name}.mat", mask)
                else:
                    save_palette(voc / "SegmentationClass" / f"{name}.png", mask)
                if group != "sbd_train" and turn == 0:  # also in SBD, where the mask is another one
                    save_mat(dataset / "cls" / f"{name}.mat", class_mask(c, c, 0, void=False))
                    lists["sbd_train" if group == "train" else "sbd_val"].append(name)
    for split in ("val", "train"):
        text = "".join(f"{name}\n" for name in sorted(lists[split]))
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
        (dataset / f"{split}.txt").write_text("".join(f"{name}\n" for name in sorted(lists[f"sbd_{split}"])))


def class_mask(class_id: int, other: int, turn: int, void: bool) -> np.ndarray:
    """(H, W) uint8 class ids, with a rim of 255 around the large object where `void`."""
    mask = np.zeros(SIZES[turn % len(SIZES)], np.uint8)
    if void:
        mask[18:86, 22:90] = 255
    mask[20:84, 24:88] = class_id
    mask[90:100, 4:14] = other
    return mask


def save_palette(path: Path, mask: np.ndarray) -> None:
    """Write a palette PNG whose pixel values are the ids."""
    image = Image.fromarray(mask)
    image.putpalette([i * 37 % 256 for i in range(768)])
    image.save(path)


def save_mat(path: Path, mask: np.ndarray) -> None:
    """Write an SBD class file."""
    present = np.unique(mask[mask > 0])[:, None]
    savemat(path, {"GTcls": {"Boundaries": np.zeros((20, 1)), "Segmentation": mask, "CategoriesPresent": present}})
