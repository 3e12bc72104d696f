"""A tiny LVIS v1 and PACO-LVIS on a few photographs of "COCO 2017": official JSON files, polygons and run-length codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.coco import compressed, polygon

SIZE = (48, 64)  # (H, W)
_URL = "http://images.cocodataset.org"


def _photograph(root: Path, folder: str, number: int) -> dict[str, Any]:
    path = root / "coco" / folder / f"{number:012d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)
    return {"id": number, "height": SIZE[0], "width": SIZE[1], "coco_url": f"{_URL}/{folder}/{path.name}"}


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    """(H, W) bool mask of a rectangle."""
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def make_lvis(root: Path, images: dict[int, int]) -> None:
    """Write `lvis_v1_train.json`, `lvis_v1_val.json` and the photographs: `images[c]` test photographs of category c, and two
    training photographs. Each shows two objects of the category, 10 x 12 and 6 x 8 pixels, apart from each other."""
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        for c, count in images.items():
            for i in range(2 if split == "train" else count):
                number = 1000 * c + i + (500 if split == "train" else 0)
                content["images"].append(_photograph(root, folder, number))
                for mask in (rectangle(2, 3, 10, 12), rectangle(30, 40, 6, 8)):
                    content["annotations"].append(
                        {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": c,
                         "segmentation": polygon(mask)}
                    )  # fmt: skip
        categories = [{"id": c, "name": f"thing_{c}", "frequency": "r"} for c in sorted(images)]
        (root / f"lvis_v1_{split}.json").write_text(json.dumps({**content, "categories": categories}))


def make_paco(root: Path, parts: int = 8, images: int = 4) -> None:
    """Write `paco/paco_lvis_v1_train.json`, `..._val.json` and the photographs.

    Part category 100 + p has `images` photographs in both splits, but the last one a single test photograph. Each shows two
    objects of 20 x 24 pixels (polygons); the part (a run-length code) is 6 x 8 pixels of the first, and of the second in every
    other photograph; it goes two pixels beyond the object's box.
    """
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        content: dict[str, list[Any]] = {"images": [], "annotations": []}
        for p in range(parts):
            for i in range(1 if split == "val" and p == parts - 1 else images):
                number = 1000 * (p + 1) + i + (500 if split == "train" else 0)
                content["images"].append(
                    {**_photograph(root, folder, number), "file_name": f"{folder}/{number:012d}.jpg"}
                )
                for top, left, shows in ((2, 4, True), (26, 36, i % 2 == 0)):
                    whole = len(content["annotations"]) + 1
                    common = {"image_id": number, "obj_ann_id": whole, "iscrowd": 0}
                    content["annotations"].append(
                        {**common, "id": whole, "category_id": 1, "bbox": [left + 0.6, top + 0.2, 24.0, 20.0],
                         "segmentation": polygon(rectangle(top, left, 20, 24))}
                    )  # fmt: skip
                    if shows:
                        mask = rectangle(top + 4, left - 2, 6, 8)
                        content["annotations"].append(
                            {**common, "id": whole + 1, "category_id": 100 + p, "segmentation": compressed(mask)}
                        )
        categories = [{"id": 1, "name": "mug"}]
        categories += [{"id": 100 + p, "name": f"mug:part{p}"} for p in range(parts + 1)]
        (root / "paco").mkdir(parents=True, exist_ok=True)
        (root / "paco" / f"paco_lvis_v1_{split}.json").write_text(json.dumps({**content, "categories": categories}))
