"""A tiny FSS-1000: class folders of N.jpg and N.png, masks with anti-aliased edges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("abe's_flyingfish", "ab_wheel", "zebra", "pizza", "screw", "Apple")


def make_fss1000(
    root: Path, layout: str = "plain", classes: Sequence[str] = CLASSES, images: int = 10, side: int = 64
) -> Path:
    """Write the classes to `root` and return the folder that holds them.

    `layout`: `plain` (root/CLASS), `nested` (root/FSS-1000/CLASS) or `data` (root/data/CLASS). Masks are RGBA, RGB or
    grey in turn, as in the original. No class lists are written: see `write_lists`.
    """
    home = root / {"plain": "", "nested": "FSS-1000", "data": "data"}[layout]
    for number, name in enumerate(classes):
        (home / name).mkdir(parents=True)
        generator = np.random.default_rng(number)
        colour = generator.integers(96, 256, 3)
        for i in range(1, images + 1):
            mask = soft_disc(side, i)
            pixels = generator.integers(0, 64, (side, side, 3)) * (1 - mask) + colour * mask
            Image.fromarray(pixels.astype(np.uint8)).save(home / name / f"{i}.jpg", quality=90)
            grey = Image.fromarray(np.round(255 * mask[..., 0]).astype(np.uint8))
            grey.convert(("RGBA", "RGB", "L")[i % 3]).save(home / name / f"{i}.png")
    return home


def soft_disc(side: int, i: int) -> np.ndarray:
    """(side, side, 1) coverage in [0, 1] of a disc that moves and grows with `i`; its edge is three pixels wide."""
    rows, columns = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(rows - side / 2 - i, columns - side / 2 + i)
    return np.clip((side / 5 + i - distance) / 3 + 0.5, 0, 1)[..., None]


def write_lists(folder: Path, train: Sequence[str], val: Sequence[str], test: Sequence[str]) -> None:
    """Write trn.txt, val.txt and test.txt; test.txt has CRLF line ends as in HSNet."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, classes, end in (("trn", train, "\n"), ("val", val, "\n"), ("test", test, "\r\n")):
        (folder / f"{name}.txt").write_bytes("".join(f"{c}{end}" for c in classes).encode())
