"""`fssbench demo`: the whole benchmark in miniature, on generated pictures and with nothing to download.

A small FS-DINO is trained on the base classes of each fold of Shapes and tested on the novel ones, next to the
training-free prototype baseline on the same episodes and features. Ends with the board and a picture.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from fssbench.cli.leaderboard import print_board

METHOD, BASELINE = "fsdino-demo", "prototype-demo"
ENCODER = ["--model.backbone", "from_weights", "--model.backbone_weights", "shapes_vit.safetensors",
           "--model.image_size", "112"]  # fmt: skip


def run(verb: str, arguments: list[str]) -> int:
    """Fit, test, board and picture; a demo that was interrupted goes on where it was."""
    parser = argparse.ArgumentParser(
        prog=f"fssbench {verb}", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fssbench_demo"), help="folder to write (default: fssbench_demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: 0)")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    out, seed = options.out, options.seed
    suffix = f"_seed{seed}" if seed else ""
    for fold in range(4):
        print(f"-- fold {fold}", flush=True)
        common = [f"--results={out / 'results'}", f"--seed_everything={seed}", f"--data.fold={fold}"]
        run_dir = out / "runs" / f"fold{fold}{suffix}"
        trained = ["--config", "demo.yaml", "--name", METHOD, f"--run_dir={run_dir}", f"--data.seed={seed}"]
        checkpoint = [f"--ckpt_path={run_dir / 'last.ckpt'}"]
        baseline = ["--config", "methods/prototype.yaml", "--config", "data/shapes.yaml", *ENCODER, "--name", BASELINE]
        free = [*baseline, "--trainer.accelerator", "cpu"]  # several GPUs would start the whole demo once for each
        for step in (("fit", *trained), ("test", *trained, *checkpoint), ("test", *free)):
            status = _quietly(step[0], [*step[1:], *common])
            if status:
                return status
        if fold == 0:
            status = _quietly("predict", [*trained, *checkpoint, *common])
            if status:
                return status
            _picture(run_dir / "predictions", out / "episodes.png")
    print()
    print_board(out / "results")
    print(
        "mIoU of a mask that covers everything: " + "  ".join(f"fold {f} {100 * everything(f):.2f}" for f in range(4))
    )
    print(f"picture: {out / 'episodes.png'}   records: {out / 'results'}   {time.monotonic() - began:.0f} s")
    return 0


def _quietly(verb: str, arguments: list[str]) -> int:
    from fssbench.cli.running import run_once

    return run_once(verb, arguments)


def everything(fold: int) -> float:
    """mIoU of the all-foreground mask on a fold's 1-shot episodes: what a method must beat to have learned anything."""
    from datamodules.shapes import ShapesDataset
    from fssbench.protocols.manifest import build_manifest

    dataset = ShapesDataset()
    counts: dict[int, list[int]] = {}
    for episode in build_manifest(dataset, fold, 1).episodes:
        mask = dataset.read_mask(episode.query, episode.class_id)
        total = counts.setdefault(episode.class_id, [0, 0])
        total[0] += int((mask == 1).sum())
        total[1] += int((mask != 255).sum())
    return sum(foreground / pixels for foreground, pixels in counts.values()) / len(counts)


def _picture(predictions: Path, target: Path) -> None:
    """One episode per class of a fold: support, query, truth and prediction."""
    from datamodules.shapes import ShapesDataset
    from fssbench.images import read_binary_mask
    from fssbench.protocols.manifest import load_manifest
    from fssbench.viz import PREDICTED, episode_sheet, overlay, save_picture

    dataset, manifest = ShapesDataset(), load_manifest(predictions / "episodes.jsonl")
    rows, labels, shown = [], [], set()
    for number, episode in enumerate(manifest.episodes):
        if episode.class_id in shown:
            continue
        shown.add(episode.class_id)
        support, query = episode.supports[0], dataset.read_image(episode.query)
        truth = dataset.read_mask(episode.query, episode.class_id)
        predicted = read_binary_mask(predictions / f"{number:06d}.png")
        support_picture = overlay(dataset.read_image(support), dataset.read_mask(support, episode.class_id))
        rows.append([support_picture, query, overlay(query, truth), overlay(query, predicted, PREDICTED)])
        union = ((truth == 1) | (predicted == 1)).sum()
        overlap = ((truth == 1) & (predicted == 1)).sum()
        labels.append(f"{dataset.class_names[episode.class_id]}   IoU {overlap / max(1, union):.2f}")
    save_picture(target, episode_sheet(rows, ["support", "query", "truth", "prediction"], labels))
