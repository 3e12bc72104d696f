"""A tiny VOC 2010 with PASCAL-Part's merged annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.coco import compressed

SIZE = (50, 60)  # (H, W)
PARTS = {
    "animals": {"bird": ["HEAD", "WING"], "cat": ["TAIL"]},
    "indoor": {"bottle": ["CAP"]},
    "person": {"person": ["ARM", "LEG"]},
    "vehicles": {"aeroplane": ["BODY", "TAIL"], "car": ["WHEEL"]},
}


def make_pascal_part(root: Path, images: int = 4) -> None:
    """Write `root/VOCdevkit/VOC2010`: per object `images` photographs in val and two in train.

    Each photograph shows two objects of the kind: the first has all of its parts, the second only in every other photograph.
    An object is 20 x 24 pixels, its parts are 5 x 6 pixels and stand one pixel out of its box. The cat's photographs also hold
    a thing that is no class. cat+EAR is in train alone.
    """
    home = root / "VOCdevkit" / "VOC2010"
    (home / "JPEGImages").mkdir(parents=True)
    (home / "Annotations_Part_json_merged_part_classes").mkdir()
    lists: dict[str, Any] = {}
    for kind, objects in PARTS.items():
        lists[kind] = {"object": {}}
        for number, (name, parts) in enumerate(objects.items()):
            names = {
                split: [f"{year}_{number}{len(lists):02d}{i:03d}" for i in range(count)]
                for split, year, count in (("val", 2008, images), ("train", 2009, 2))
            }
            # the order in the list is its own
            names["val"].reverse()
            lists[kind]["object"][name] = {"part": {part: names for part in parts}}
            if name == "cat":
                lists[kind]["object"][name]["part"]["EAR"] = {"train": names["train"], "val": []}
            for i, photograph in enumerate(sorted(names["val"]) + names["train"]):
                _photograph(home, photograph, name, parts, both=i % 2 == 0)
    (home / "all_obj_part_to_image.json").write_text(json.dumps(lists))


def _photograph(home: Path, photograph: str, name: str, parts: list[str], both: bool) -> None:
    pixels = np.random.default_rng(list(photograph.encode())).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "JPEGImages" / f"{photograph}.jpg")
    objects: list[dict[str, Any]] = [{"name": "vase", "bndbox": {}, "parts": []}] if name == "cat" else []
    for top, left, has in ((4, 6, True), (26, 30, both)):
        found = []
        for turn, part in enumerate(parts if has else []):
            mask = np.zeros(SIZE, bool)
            mask[top + 6 * turn - 1 : top + 6 * turn + 4, left - 1 : left + 5] = True
            found.append({"name": part, "mask": [compressed(mask)]})
        box = {"xmin": left, "ymin": top, "xmax": left + 24, "ymax": top + 20}
        objects.append({"name": name, "bndbox": box, "parts": found})
    path = home / "Annotations_Part_json_merged_part_classes" / f"{photograph}.json"
    path.write_text(json.dumps({"filename": photograph, "object": objects}))
