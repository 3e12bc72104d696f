"""Time and memory of reading a COCO instances file of val2014's size: masks rendered, lists built, and read again.

    python benchmarks/coco_lists.py
    python benchmarks/coco_lists.py --annotations data/COCO2014/annotations/instances_val2014.json

By default the file is generated: 40,000 images of 640x480 with 290,000 objects, of which one in a hundred is a crowd with a
run-length code, the others polygons of 6 to 60 corners (COCO's own have about 24 on average). Each row is a process of its
own: `parse` is Python's json alone, the floor for everything; `clean` and `legacy` parse, render every mask and build the
lists of all 80 classes; `again` is what every later run does, from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import heading

OFFICIAL = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, help="an instances JSON (default: generated)")
    parser.add_argument("--images", type=int, default=40_000, help="generated images (default: 40000)")
    parser.add_argument("--objects", type=int, default=290_000, help="generated objects (default: 290000)")
    parser.add_argument("--step", choices=("parse", "clean", "legacy"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(run(options.step, options.annotations)))
        return
    with tempfile.TemporaryDirectory() as name:
        path = options.annotations or Path(name) / "instances.json"
        if options.annotations is None:
            generate(path, options.images, options.objects)
        print(heading("numpy", "pycocotools") + f"; {path.stat().st_size / 2**20:.0f} MiB of JSON")
        print("\n| step | seconds | masks | masks/s | pairs | peak MiB |")
        print("|---|---|---|---|---|---|")
        for step in ("parse", "clean", "clean", "legacy", "legacy"):
            row = measure(step, path, Path(name) / "cache")
            rate = f"{row['masks'] / row['seconds']:.0f}" if row["masks"] else ""
            print(
                f"| {row['step']} | {row['seconds']:.2f} | {row['masks'] or ''} | {rate} | {row['pairs'] or ''} | {row['peak']:.0f} |"
            )


def measure(step: str, path: Path, cache: Path) -> dict[str, Any]:
    """One step in a process of its own; a second run of a renderer finds the first one's cache."""
    again = any(cache.glob(f"coco-{step}-*")) if cache.is_dir() else False
    command = [sys.executable, __file__, "--annotations", str(path), "--step", step]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "FSSBENCH_CACHE": str(cache)}
    )
    return {"step": f"{step}, again" if again else step, **json.loads(done.stdout)}


def run(step: str, path: Path) -> dict[str, Any]:
    """Seconds, masks rendered, (image, class) pairs of at least 2048 pixels, and the peak memory of the process."""
    from datamodules.coco_index import load_index

    began = time.perf_counter()
    masks = pairs = 0
    if step == "parse":
        json.loads(path.read_text())
    else:
        index = load_index(path, step)  # type: ignore[arg-type]
        masks = len(index.codes)
        pairs = sum(len(index.images_of(category, 2048)) for category in index.categories)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "masks": masks, "pairs": pairs, "peak": peak}


def generate(path: Path, images: int, objects: int) -> None:
    """Write an instances file with round, overlapping objects of COCO-like sizes; the same bytes for the same arguments."""
    random = np.random.default_rng(0)
    entries = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(images)]
    with open(path, "w") as file:
        file.write('{"images":' + json.dumps(entries) + ',"annotations":[')
        for number in range(objects):
            image = number if number < images else int(random.integers(images))
            crowd = number % 100 == 99
            annotation = {
                "id": number,
                "image_id": image,
                "category_id": OFFICIAL[int(random.integers(len(OFFICIAL)))],
                "segmentation": _crowd(random) if crowd else _polygon(random),
                "iscrowd": int(crowd),
            }
            file.write(("," if number else "") + json.dumps(annotation))
        categories = [{"id": i, "name": f"class {i}"} for i in OFFICIAL]
        file.write('],"categories":' + json.dumps(categories) + "}")


def _polygon(random: np.random.Generator) -> list[list[float]]:
    corners = int(random.integers(6, 61)) if random.random() < 0.4 else int(random.integers(6, 25))
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radius = float(np.exp(random.uniform(np.log(6), np.log(160)))) * random.uniform(0.7, 1, corners)
    points = random.uniform((0, 0), (640, 480)) + np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return [points.clip((0, 0), (640, 480)).round(2).flatten().tolist()]


def _crowd(random: np.random.Generator) -> dict[str, Any]:
    runs = random.integers(50, 400, 400)
    counts = np.append(runs, 640 * 480 - runs.sum()).tolist()
    return {"size": [480, 640], "counts": counts}


if __name__ == "__main__":
    main()
