"""A tiny iSAID-5i: patches with class ids, and published lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64


def make_isaid(root: Path, patches: int = 3) -> None:
    """Write `train` and `val` of `root`: `patches` patches per class and split, and `splits` with lists of all large objects.

    A patch of a class shows 2304 pixels of it, 64 pixels of the next class and a row of void.
    """
    for split, folder in (("val", "val"), ("train", "trn")):
        for c in range(1, 16):
            for i in range(patches):
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[4:52, 4:52] = c
                mask[54:62, 54:62] = c % 15 + 1
                mask[0] = 255
                name = f"P{1000 * (split == 'val') + c:04d}_0_64_{64 * i}_{64 * i + 64}"
                pixels = np.random.default_rng(c).integers(0, 256, 3) * (mask == c)[..., None]
                for kind, content in (("images", pixels.astype(np.uint8)), ("semantic_png", mask)):
                    place = root / split / kind
                    place.mkdir(parents=True, exist_ok=True)
                    ending = ".png" if kind == "images" else "_instance_color_RGB.png"
                    Image.fromarray(content).save(place / f"{name}{ending}")
                lists = root / "splits" / folder
                lists.mkdir(parents=True, exist_ok=True)
                with open(lists / f"fold{(c - 1) // 5}.txt", "a") as file:
                    file.write(f"{name}__{c:02d}\n")
