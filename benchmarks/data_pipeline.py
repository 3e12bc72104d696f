"""Episodes per second of the data pipeline on one core, against bare Pillow on the same images.

    python benchmarks/data_pipeline.py --rounds 5
    python benchmarks/data_pipeline.py --root data/COCO2014 --episodes-per-class 20

The pipeline reads, renders masks, resizes and batches test episodes in this process (no loader processes, one thread).
Bare Pillow opens, decodes and resizes the images of the same episodes in the same order, and does nothing else: no masks,
no tensors. A ratio of 1 would mean that everything else is free. By default the photographs are generated (640x480).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from measuring import CLOCKS, alternating, generate_coco, heading, median_ratio
from PIL import Image

from datamodules.coco20i import COCO20i


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="COCO 2014 in its official layout (default: generated)")
    parser.add_argument("--images", type=int, default=80, help="generated photographs (default: 80)")
    parser.add_argument("--episodes-per-class", type=int, default=20, help="default: 20")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 448], help="network sides in pixels")
    parser.add_argument("--shot", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = options.root or Path(name) / "coco"
        if options.root is None:
            generate_coco(root, options.images)
        print(heading("torch", "pillow", "numpy", "pycocotools") + f"; {options.clock} clock")
        print("\n| side | episodes | pipeline episodes/s | Pillow episodes/s | time pipeline / Pillow |")
        print("|---|---|---|---|---|")
        for side in options.sizes:
            measure(root, side, options)


def measure(root: Path, side: int, options: argparse.Namespace) -> None:
    """One row of the table."""
    clock = CLOCKS[options.clock]
    data = COCO20i(
        str(root),
        shot=options.shot,
        episodes_per_class=options.episodes_per_class,
        small_classes="leave-out",
        image_size=side,
        num_workers=0,
    )
    data.setup("test")
    episodes = data.test_manifest.episodes
    files = [root / key for e in episodes for key in (e.query, *e.supports)]

    def pipeline() -> float:
        began = clock()
        for batch in data.test_dataloader():
            assert batch.query_image.shape[-1] == side
        return clock() - began

    def pillow() -> float:
        began = clock()
        for file in files:
            with Image.open(file) as image:
                np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))
        return clock() - began

    alternating([pipeline, pillow], 1)
    ours, bare = alternating([pipeline, pillow], options.rounds)
    rates = [len(episodes) / statistics.median(seconds) for seconds in (ours, bare)]
    print(f"| {side} | {len(episodes)} | {rates[0]:.1f} | {rates[1]:.1f} | {median_ratio(ours, bare):.2f} |")


if __name__ == "__main__":
    main()
