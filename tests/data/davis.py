"""A tiny DAVIS: palette PNGs of moving squares, the first sequence with two objects and a void rim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.pascal import save_palette

SEQUENCES = {"bear": 2, "boat": 1}


def make_davis(root: Path, frames: int = 6, split: str = "val") -> None:
    """Write the sequences (name -> number of objects) of `SEQUENCES` in the layout of the 480p archive."""
    for number, (name, objects) in enumerate(SEQUENCES.items()):
        for frame in range(frames):
            ids = index_map(objects, frame)
            colours = np.random.default_rng(number).integers(60, 256, (3, 3))
            pixels = np.random.default_rng(frame).integers(0, 50, (*ids.shape, 3))
            for i in range(1, objects + 1):
                pixels[ids == i] = colours[i]
            image = root / "JPEGImages" / "480p" / name / f"{frame:05d}.jpg"
            mask = root / "Annotations" / "480p" / name / f"{frame:05d}.png"
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(image, quality=95)
            save_palette(mask, ids)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in SEQUENCES))


def index_map(objects: int, frame: int) -> np.ndarray:
    """(48, 64) uint8: object 1 moves to the right and has void on its left, object 2 stays and is gone in frame 3."""
    ids = np.zeros((48, 64), np.uint8)
    ids[6:26, 3 + 2 * frame : 5 + 2 * frame] = 255
    ids[6:26, 5 + 2 * frame : 25 + 2 * frame] = 1
    if objects > 1 and frame != 3:
        ids[30:44, 40:60] = 2
    return ids
