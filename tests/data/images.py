"""A folder of small unlabelled images: loose at several depths, and in a tar file like one of SA-1B's."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(seed: int, side: int = 40, suffix: str = "png") -> bytes:
    """A random smooth picture as a file's bytes; its left half is brighter."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 200, (5, 6, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((side + 8, side), Image.Resampling.BICUBIC)).astype(np.int64)
    pixels[:, : side // 2] += 55
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, format="JPEG" if suffix == "jpg" else suffix)
    return buffer.getvalue()


def make_images(root: Path, count: int) -> Path:
    """`count` PNG images in `root/a` and `root/a/b`."""
    for number in range(count):
        path = root / ("a" if number % 2 else "a/b") / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    return root


def make_tar(path: Path, count: int, first: int = 100) -> Path:
    """`count` JPEG images in a tar file, each followed by a .json, as in SA-1B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            for name, content in (
                (f"./sa_{number}.jpg", encoded(number, suffix="jpg")),
                (f"./sa_{number}.json", b"{}"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path
