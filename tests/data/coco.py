"""A tiny COCO: real JPEGs and an instances JSON with polygons, both kinds of run-length codes and crowds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_tools

from datamodules.coco20i import CLASS_NAMES, OFFICIAL_IDS

SIZES = [(96, 128), (120, 90), (104, 104)]  # (H, W), in turn


def make_coco(root: Path, classes: int = 8, images_per_class: int = 3, layout: str = "official") -> None:
    """Write images of the classes 1..`classes` to `root`.

    Each image shows one object of its class of at least 2048 pixels and a small one, below 2048 pixels, of the next
    class; the first image of each class also has a crowd of that class. `layout`: `official` (train2014, val2014 and
    two JSON files) or `single` (images, annotations/instances.json). The second image of each class is grey.
    """
    for split in ("train2014", "val2014") if layout == "official" else ("single",):
        folder = root / ("images" if split == "single" else split)
        folder.mkdir(parents=True)
        content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": n} for i, n in zip(OFFICIAL_IDS, CLASS_NAMES, strict=True)],
        }
        for number in range(classes * images_per_class):
            class_id, turn = number // images_per_class + 1, number % images_per_class
            prefix = "" if split == "single" else f"COCO_{split}_"
            # ids and names run against the order of the classes, so nothing can rely on file order
            image_id = 100 + (classes * images_per_class - number) + (1000 if split == "val2014" else 0)
            _add_image(
                content, folder / f"{prefix}{image_id:012d}.jpg", image_id, class_id, class_id % classes + 1, turn
            )
        name = "instances.json" if split == "single" else f"instances_{split}.json"
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / name).write_text(json.dumps(content))


def object_mask(height: int, width: int, turn: int) -> np.ndarray:
    """(H, W) bool mask of the large object: a rectangle of 56 x 64 pixels, moved by `turn`."""
    mask = np.zeros((height, width), bool)
    mask[8 + 2 * turn : 64 + 2 * turn, 10 + 3 * turn : 74 + 3 * turn] = True
    return mask


def _add_image(content: dict[str, Any], path: Path, image_id: int, class_id: int, other: int, turn: int) -> None:
    height, width = SIZES[turn % len(SIZES)]
    large = object_mask(height, width, turn)
    small = np.zeros((height, width), bool)
    small[70:90, 60:80] = True
    colours = np.random.default_rng(class_id).integers(0, 256, (2, 3))
    pixels = np.random.default_rng(image_id).integers(0, 64, (height, width, 3))
    pixels[large], pixels[small] = pixels[large] // 4 + colours[0] // 2, pixels[small] // 4 + colours[1] // 2
    image = Image.fromarray(pixels.astype(np.uint8))
    (image.convert("L") if turn == 1 else image).save(path, quality=90)
    content["images"].append({"id": image_id, "file_name": path.name, "height": height, "width": width})
    encode = (polygon, compressed, uncompressed)[turn % 3]
    _annotate(content, image_id, class_id, encode(large))
    _annotate(content, image_id, other, polygon(small))
    if turn == 0:
        crowd = np.zeros((height, width), bool)
        crowd[56:80, :] = True
        _annotate(content, image_id, class_id, uncompressed(crowd), crowd=1)


def _annotate(content: dict[str, Any], image_id: int, class_id: int, segmentation: Any, crowd: int = 0) -> None:
    content["annotations"].append(
        {
            "id": len(content["annotations"]) + 1,
            "image_id": image_id,
            "category_id": OFFICIAL_IDS[class_id - 1],
            "segmentation": segmentation,
            "iscrowd": crowd,
        }
    )


def polygon(rectangle: np.ndarray) -> list[list[float]]:
    """The polygon around a mask that is one rectangle."""
    rows, columns = np.flatnonzero(rectangle.any(1)), np.flatnonzero(rectangle.any(0))
    top, bottom, left, right = float(rows[0]), float(rows[-1] + 1), float(columns[0]), float(columns[-1] + 1)
    return [[left, top, right, top, right, bottom, left, bottom]]


def compressed(mask: np.ndarray) -> dict[str, Any]:
    """Compressed COCO run-length code of a mask."""
    code = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": code["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed COCO run-length code: lengths of runs down the columns, the first of zeros."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(int)])
    changes = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, mask.size]).tolist()}
