"""Calibrated against stock memory attention of SAM 2, on the same memory bank.

    python benchmarks/memory_attention.py --rounds 10

All four layers of full size with random weights, in turns: the stock module without calibration, the same with
calibration (the bank as SAM2FSS builds it, K supports and the query), forward alone and with the backward pass of
training. Goal: at most 1.3 times the stock module's time. On CUDA the clock is that of the device.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measuring import CLOCKS, alternating, heading, median_ratio

from fssbench.encoders.sam2 import build_sam2, rope_attentions
from methods.sam2fss.calibration import Calibration
from methods.sam2fss.module import TARGETS

GOAL = 1.3


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5], help="default: 1 5")
    parser.add_argument("--image-size", type=int, default=512, help="default: 512, a memory grid of 32 x 32")
    parser.add_argument("--batch-size", type=int, default=1, help="episodes, default: 1")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="default: fp32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; ignored on CUDA")
    options = parser.parse_args()
    print(heading("torch", "sam2"))
    print(f"{options.device}, {options.precision}, {options.image_size} px, batch {options.batch_size}")
    print(f"\n| supports | pass | stock ms | calibrated ms | ratio | at most {GOAL} |")
    print("|---|---|---|---|---|---|")
    model = build_sam2(weights="random", image_size=options.image_size, targets=TARGETS).memory_attention
    model.to(options.device).requires_grad_(False)
    for module in rope_attentions(model):
        module.freqs_cis = module.freqs_cis.to(options.device)
    for name in (name for name, _ in model.named_parameters() if "norm" in name):
        model.get_parameter(name).requires_grad_(True)  # as in training
    for shot in options.shots:
        for training in (False, True):
            row = compare(model, shot, training, options)
            print(f"| {shot} | {'forward and backward' if training else 'forward'} | {row}")


def compare(model: Any, shot: int, training: bool, options: argparse.Namespace) -> str:
    """One row: median milliseconds of both, and the median of the ratios within a round."""
    number = (options.image_size // 16) ** 2
    torch.manual_seed(0)
    size, device = options.batch_size, options.device
    curr, curr_pos = torch.randn(2, number, size, 256, device=device)
    memory, memory_pos = torch.randn(2, (shot + 1) * (number + 4), size, 64, device=device)
    masks = (torch.rand(size, shot, number, device=device) < 0.2).float()
    model.train(training)

    def run(calibration: Calibration | None) -> float:
        extra = {} if calibration is None else {"calibration": calibration}
        stop = started(options)
        with torch.set_grad_enabled(training):
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=options.precision == "bf16"):
                out = model(curr, memory, curr_pos, memory_pos, 4 * (shot + 1), **extra)
            if training:
                out.float().square().mean().backward()
        return stop()

    actions = [lambda: run(None), lambda: run(Calibration(masks))]
    alternating(actions, 1)
    stock, ours = alternating(actions, options.rounds)
    ratio = median_ratio(ours, stock)
    medians = " | ".join(f"{1000 * statistics.median(seconds):.1f}" for seconds in (stock, ours))
    return f"{medians} | {ratio:.2f} | {'yes' if ratio <= GOAL else 'no'} |"


def started(options: argparse.Namespace) -> Callable[[], float]:
    """Start a clock; the function gives the seconds since."""
    if torch.device(options.device).type != "cuda":
        clock = CLOCKS[options.clock]
        began = clock()
        return lambda: clock() - began
    torch.cuda.synchronize()
    began = time.perf_counter()

    def stop() -> float:
        torch.cuda.synchronize()
        return time.perf_counter() - began

    return stop


if __name__ == "__main__":
    main()
