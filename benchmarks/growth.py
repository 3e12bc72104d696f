"""How time and memory of a test run grow with its episodes, supports, image size and classes.

    python benchmarks/growth.py --rounds 3
    python benchmarks/growth.py --method fsdino --size full --rounds 1

Whole test runs of one method with random weights on generated episodes (two classes of 8 images, one support), each in
a process of its own; one quantity is doubled and doubled again while the others stay. Growth is the factor of the time
where the quantity grows fourfold: 4 is linear. "Pixels" change the network's input. The peak is the highest resident
memory of the process; the goal is that it does not grow with the number of episodes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch
from generated import SIZES, Generated, build, seconds_of_test
from measuring import CLOCKS, alternating, heading, of_own_process, resident

BASE = {"episodes per class": 4, "shots": 1, "classes": 2, "side": 1}
STEPS = {"episodes per class": (1, 2, 4), "shots": (1, 2, 4), "classes": (1, 2, 4), "side": (1, 2)}
"""Factors of each quantity; twice the side is four times the pixels."""
IMAGES = 8
"""Of each class."""


def main() -> None:
    """Measure and print the table, or one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="prototype", help="prototype, fsdino or sam2fss (default: prototype)")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the network (default: small)")
    parser.add_argument("--episodes", type=int, default=BASE["episodes per class"], help="per class (default: 4)")
    parser.add_argument("--only", choices=STEPS, nargs="+", default=list(STEPS), help="default: all quantities")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    parser.add_argument("--one", type=json.loads, help="only measure one run, given as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one_run(options.one, options)))
        return
    base = {**BASE, "episodes per class": options.episodes}
    print(heading("torch", "timm") + f"; one thread, {options.clock} clock, {options.method}, {options.size} size")
    print("\n| quantity | values | seconds | growth | peak MiB |")
    print("|---|---|---|---|---|")
    for quantity in options.only:
        cases = [{**base, quantity: base[quantity] * factor} for factor in STEPS[quantity]]
        peaks: list[list[float]] = [[] for _ in cases]
        actions = [partial(measured, case, found) for case, found in zip(cases, peaks, strict=True)]
        seconds = [statistics.median(times) for times in alternating(actions, options.rounds)]
        unit = SIZES[options.size]["side"] if quantity == "side" else 1
        columns = [
            [f"{unit * case[quantity]}" for case in cases],
            [f"{value:.2f}" for value in seconds],
            [f"{seconds[-1] / seconds[0]:.2f}"],
            [f"{statistics.median(found):.0f}" for found in peaks],
        ]
        print(f"| {quantity} | {' | '.join(', '.join(column) for column in columns)} |")


def measured(case: dict[str, int], peaks: list[float]) -> float:
    """Seconds of a run in a process of its own; its peak memory is added to `peaks`."""
    found = of_own_process(__file__, "--one", json.dumps(case))
    peaks.append(found["peak"])
    return float(found["seconds"])


def one_run(case: dict[str, int], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a test run, and the highest resident memory of this process in MiB."""
    method = build(options.method, options.size, case["side"])
    data = Generated(case["classes"], IMAGES, shot=case["shots"], episodes_per_class=case["episodes per class"])
    with tempfile.TemporaryDirectory() as name:
        seconds = seconds_of_test(method, data, Path(name), CLOCKS[options.clock])
    return {"seconds": seconds, "peak": resident("VmHWM") / 2**20}


if __name__ == "__main__":
    main()
