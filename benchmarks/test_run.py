"""Time of a whole `fssbench test` against the bare encoder on the same images.

    python benchmarks/test_run.py --rounds 3
    python benchmarks/test_run.py --method methods/prototype.yaml --data data/coco20i.yaml --rounds 3 \\
        -- --data.root data/COCO2014 --data.episodes_per_class 20

The run is the command line called in this process: parsing, episodes, building the method, reading images, encoder,
matching, counting at original size and writing the record; only the imports are left out. "Loop" is the part that the record
gives as its seconds, from the first episode to the scores. A network with random weights is written to a file first, so
that the run loads weights as a real one does instead of drawing them. The bare side has the distinct images of the run in memory at
network size and puts them through the method's `encode`, in groups as the run does, and nothing else. Each distinct image
is encoded once in a run, however many episodes it is in (the feature cache), so 1.00 is the least that is possible.
Goal: at most 1.10 with a network worth waiting for. What follows `--` goes to `fssbench test`; by default a small random
ViT at 224 px and generated photographs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from measuring import CLOCKS, alternating, generate_coco, heading, median_ratio
from safetensors.torch import save_file

from fssbench.cli.messages import quiet
from fssbench.cli.trainer import FssbenchCLI
from fssbench.images import resize_image

GOAL = 1.10
NETWORK = [
    "--model.backbone",
    "vit_tiny_patch16_224",
    "--model.backbone_weights",
    "random",
    "--model.image_size",
    "224",
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="methods/prototype.yaml", help="a config; default: methods/prototype.yaml")
    parser.add_argument("--data", help="a data config; default: generated photographs in COCO's layout")
    parser.add_argument("--images", type=int, default=80, help="generated photographs (default: 80)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    parser.add_argument("more", nargs="*", help="after --: further arguments of `fssbench test`")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    quiet()
    with tempfile.TemporaryDirectory() as name:
        arguments = ["--config", options.method, *(NETWORK if not options.more else []), *QUIET]
        if options.data:
            arguments += ["--config", options.data]
        else:
            generate_coco(Path(name) / "coco", options.images)
            arguments += ["--config", "data/coco20i.yaml", "--data.root", str(Path(name) / "coco")]
            arguments += ["--data.small_classes", "leave-out", "--data.episodes_per_class", "20"]
        measure([*arguments, *options.more], Path(name) / "results", options.rounds, options.clock)


def measure(arguments: list[str], results: Path, rounds: int, clock_name: str) -> None:
    """Run both sides in turn and print the table."""
    clock = CLOCKS[clock_name]
    arguments = [*arguments, *weights_file(arguments, results.parent)]
    cli, _, _ = whole_run(arguments, results, clock)  # warms up both sides
    images = distinct_images(cli)
    device = cli.trainer.strategy.root_device
    loops: list[float] = []

    def run() -> float:
        _, seconds, loop = whole_run(arguments, results, clock)
        loops.append(loop)
        return seconds

    print(heading("torch", "lightning", "timm") + f"; {clock_name} clock")
    group = cli.model.cache.group_on(device)
    whole, bare = alternating([run, lambda: encoder_alone(cli.model, images, device, group, clock)], rounds)
    episodes = len(cli.datamodule.test_manifest.episodes)
    print(f"{device}, {torch.get_num_threads()} threads; {episodes} episodes, {len(images)} distinct images\n")
    print(f"| | median s | median ratio to the encoder (goal {GOAL}) |\n|---|---|---|")
    print(f"| encoder alone | {statistics.median(bare):.2f} | 1.00 |")
    if clock_name == "wall":  # the record's seconds are wall-clock time
        print(f"| test run, loop | {statistics.median(loops):.2f} | {median_ratio(loops, bare):.2f} |")
    print(f"| test run, whole | {statistics.median(whole):.2f} | {median_ratio(whole, bare):.2f} |")


def weights_file(arguments: list[str], folder: Path) -> list[str]:
    """Arguments that take random weights from a file, where `arguments` ask for them to be drawn."""
    chosen = dict(pairwise(arguments))
    if chosen.get("--model.backbone_weights") != "random" or "--model.backbone" not in chosen:
        return []
    file = folder / "weights.safetensors"
    network = timm.create_model(chosen["--model.backbone"], num_classes=0, dynamic_img_size=True)
    save_file(network.state_dict(), file)
    return ["--model.backbone_weights", str(file)]


def whole_run(arguments: list[str], results: Path, clock: Callable[[], float]) -> tuple[Any, float, float]:
    """Run `fssbench test`; returns its command line object, its seconds, and those of the loop from the record."""
    began = clock()
    with contextlib.redirect_stdout(io.StringIO()):
        cli = FssbenchCLI(["test", *arguments, "--results", str(results), "--overwrite", "always"])
    seconds = clock() - began
    (record,) = results.rglob("fold*.json")
    return cli, seconds, json.loads(record.read_text())["provenance"]["seconds"]


def distinct_images(cli: Any) -> torch.Tensor:
    """The images of the run's episodes, each once, at network size: (M, 3, H, W) in [0, 1]."""
    data = cli.datamodule
    squares = [resize_image(data.dataset.read_image(key), data.image_size) for key in data.test_manifest.images()]
    return torch.stack([torch.from_numpy(s).permute(2, 0, 1).float().div(255) for s in squares])


@torch.inference_mode()
def encoder_alone(
    model: Any, images: torch.Tensor, device: torch.device, group: int, clock: Callable[[], float]
) -> float:
    """Seconds of the method's `encode` on all images, `group` at a time, in the precision of its trainer."""
    model.to(device).eval()
    began = clock()
    with model.trainer.precision_plugin.forward_context():
        for start in range(0, len(images), group):
            model.encode(images[start : start + group].to(device))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


if __name__ == "__main__":
    main()
