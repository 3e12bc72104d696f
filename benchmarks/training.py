"""Steps per second and peak memory of training against a straightforward loop of the same modules.

    python benchmarks/training.py --rounds 1
    python benchmarks/training.py --methods fsdino --size full --images 4 --features disk --clock processor
    python benchmarks/training.py --batch 4 --precision bf16-mixed

The straightforward side takes one episode at a time in float32, encodes its images in every step, computes FS-DINO's 4D
branch as `correlation.py` does plainly, and steps the optimiser, which is not fused, after as many episodes as our side has
in a batch; ours takes them as one batch, keeps features in memory or on disk, and may use another precision. Both see the same episodes of
generated images of two base classes and start with the same weights, so their losses can be compared: two seeds say how
much losses differ anyway. FS-DINO's adapter is frozen, as published, but random. Every run is a process of its own.

The peak is the highest resident memory during training minus that before it, when the network is there (on a GPU torch's
own peak). Goal: at most half the time and 0.6 of the memory. What a cache saves depends on how often images repeat, and
what it needs on how many there are; the table says how many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from correlation import Plain
from generated import SIZES, Generated, build, trainer
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from measuring import CLOCKS, alternating, forget_peak, heading, median_ratio, of_own_process, resident
from safetensors.torch import save_file

from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.store import FeatureStore
from methods.fsdino import FSDINO
from methods.fsdino.module import TrainConfig

SIDES = ("plain", "ours")
SEEDS = (0, 1)


def main() -> None:
    """Measure and print the table, or one training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fsdino", "sam2fss"], help="default: fsdino sam2fss")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the networks (default: small)")
    parser.add_argument("--steps", type=int, default=16, help="optimiser steps (default: 16)")
    parser.add_argument("--batch", type=int, default=1, help="episodes per step (default: 1)")
    parser.add_argument("--images", type=int, default=8, help="distinct images of each of two classes (default: 8)")
    parser.add_argument(
        "--features", choices=("memory", "disk"), default="memory", help="where ours keeps them (default: memory)"
    )
    parser.add_argument("--precision", default="32-true", help="of our side (default: 32-true)")
    parser.add_argument(
        "--recompute",
        action="store_true",
        help="ours computes FS-DINO's correlation, or SAM2FSS's memories and attention, again in the backward pass",
    )
    parser.add_argument("--rounds", type=int, default=1, help="of both sides and both seeds (default: 1)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "SIDE", "SEED"), help="only train once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(one_training(*options.one, options)))
        return
    print(heading("torch", "lightning") + f"; {options.threads} thread(s), {options.clock} clock, {options.size} size")
    where = {"memory": "in memory", "disk": "on disk"}[options.features]
    print(f"{options.steps} steps of {options.batch} episodes, {2 * options.images} distinct images, kept {where}")
    print("\n| method | side | steps/s | time, of plain | peak MiB | of plain | loss, first and last quarter |")
    print("|---|---|---|---|---|---|---|")
    for name in options.methods:
        compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    """Two rows and a sentence about the losses."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in SEEDS:
        actions = [partial(measured, name, side, seed, found) for side in SIDES]
        alternating(actions, options.rounds)
    seconds = {side: [run["seconds"] for run in runs] for side, runs in found.items()}
    peaks = {side: statistics.median(run["peak"] for run in runs) for side, runs in found.items()}
    for side in SIDES:
        losses, quarter = found[side][0]["losses"], max(1, options.steps // 4)
        cells = [
            f"{options.steps / statistics.median(seconds[side]):.2f}",
            f"{median_ratio(seconds[side], seconds['plain']):.2f}",
            f"{peaks[side] / 2**20:.0f}",
            f"{peaks[side] / peaks['plain']:.2f}",
            f"{statistics.mean(losses[:quarter]):.4f}, {statistics.mean(losses[-quarter:]):.4f}",
        ]
        print(f"| {name} | {side} | {' | '.join(cells)} |")
    (plain, other), (ours, _) = ([found[side][0]["losses"], found[side][options.rounds]["losses"]] for side in SIDES)
    print(
        f"{name}: losses differ by {distance(plain, ours):.5f} between the sides, by {distance(plain, other):.5f} "
        "between the seeds (mean absolute difference over the steps)"
    )


def measured(name: str, side: str, seed: int, found: dict[str, list[dict[str, Any]]]) -> float:
    """Seconds of one training in a process of its own; all that it found is added to `found`."""
    result = of_own_process(__file__, "--one", name, side, str(seed))
    found[side].append(result)
    return float(result["seconds"])


def distance(one: list[float], other: list[float]) -> float:
    """Mean absolute difference of two loss curves."""
    return statistics.mean(abs(a - b) for a, b in zip(one, other, strict=True))


class Watch(Callback):
    """Losses per optimiser step, seconds and peak memory of a training."""

    def __init__(self, clock: str, plain: bool) -> None:
        self.clock, self.plain = CLOCKS[clock], plain
        self.losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Everything is there: the clock starts."""
        if self.plain:  # torch's own choice
            for group in trainer.optimizers[0].param_groups:
                group["fused"] = None
        forget_peak()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        self.before, self.began = resident("VmRSS"), self.clock()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the loss, on its device."""
        self.losses.append(outputs["loss"].detach())

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop."""
        cuda = pl_module.device.type == "cuda"
        if cuda:  # which may be steps behind
            torch.cuda.synchronize()
        self.peak = torch.cuda.max_memory_allocated() if cuda else resident("VmHWM") - self.before
        self.seconds = self.clock() - self.began


def one_training(name: str, side: str, seed: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds, peak bytes and the loss of each optimiser step."""
    seed_everything(int(seed), verbose=False)
    plain = side == "plain"
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        adapter = folder / "adapter.safetensors"
        recompute = options.recompute and not plain
        settings: dict[str, Any] = {"recompute": recompute}
        if name == "fsdino":
            settings = {"adapter_weights": str(adapter), "train": TrainConfig(recompute_correlation=recompute)}
        method = build(name, options.size, **settings)
        if isinstance(method, FSDINO):
            save_file(method.net.adapter.state_dict(), adapter)
            assert method.net.corr is not None
            method.net.corr = Plain.like(method.net.corr) if plain else method.net.corr  # type: ignore[assignment]
        on_disk = options.features == "disk"
        store = FeatureStore(folder / "features", 100) if on_disk and not plain else None
        method.cache = FeatureCache(0 if plain or on_disk else 4096, store=store)
        data = Generated(
            2,
            options.images,
            seed=int(seed),
            batch_size=1 if plain else options.batch,
            episodes_per_epoch=options.steps * options.batch,
        )
        watch = Watch(options.clock, plain)
        runner = trainer(
            folder,
            max_epochs=1,
            limit_val_batches=0,
            accumulate_grad_batches=options.batch if plain else 1,
            precision="32-true" if plain else options.precision,
            callbacks=[watch],
        )
        runner.fit(method, datamodule=data)
    losses = torch.stack(watch.losses).float().cpu() * (options.batch if plain else 1)  # Lightning's are divided
    return {
        "seconds": watch.seconds,
        "peak": watch.peak,
        "losses": losses.view(options.steps, -1).mean(1).tolist(),
    }


if __name__ == "__main__":
    main()
