"""A tiny user folder: images/ and masks/, binary masks by class or index masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "owl", "rat")


def make_folder(
    root: Path, layout: str = "binary", classes: Sequence[str] = CLASSES, images_per_class: int = 3, split: bool = False
) -> None:
    """Write `layout` `binary` (masks/CLASS/NAME.png), `nested` (the same with images/CLASS/NAME.jpg) or `index`.

    Image number n shows class n modulo the number of classes as a square, and a smaller square of the next class; index
    masks have a column of 255 at the right. With `split` there are root/train and root/test with half of the names
    each, otherwise images and masks are in `root`. Index masks come with classes.txt.
    """
    for number in range(len(classes) * images_per_class):
        part = root / ("train" if number % 2 else "test") if split else root
        class_id = number % len(classes) + 1
        other = class_id % len(classes) + 1
        index = index_mask(number, class_id, other)
        generator = np.random.default_rng(number)
        pixels = generator.integers(0, 48, (*index.shape, 3)) + 40 * (index % 5)[..., None]
        image = part / "images" / (classes[class_id - 1] if layout == "nested" else "") / f"photo{number:02d}.jpg"
        _save(image, pixels)
        if layout == "index":
            _save(part / "masks" / f"photo{number:02d}.png", index)
            continue
        for c in (class_id,) if layout == "nested" else (class_id, other):
            _save(part / "masks" / classes[c - 1] / f"photo{number:02d}.png", 255 * (index == c))
    if layout == "index":
        (root / "classes.txt").write_text("\n".join(classes) + "\n")


def index_mask(number: int, class_id: int, other: int) -> np.ndarray:
    """(48, 40 + 4 * (number % 3)) class ids: 20x20 pixels of `class_id`, 8x8 of `other`, a last column of 255."""
    mask = np.zeros((48, 40 + 4 * (number % 3)), np.uint8)
    mask[4:24, 6:26] = class_id
    mask[30:38, 10:18] = other
    mask[:, -1] = 255
    return mask


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
