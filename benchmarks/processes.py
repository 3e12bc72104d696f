"""A test run on one, two and four processes (DDP) that share the same cores.

    python benchmarks/processes.py --rounds 3
    python benchmarks/processes.py --cores 16 --method fsdino --size full

Whole test runs of one method with random weights on the same generated episodes, each started anew: one process with as
many threads as there are cores, two with half of them each, and so on. Starting is in the seconds of the command, not in
those of the test. All count the same pixels, but for networks that round differently with another number of threads; how
much that is in all pixels counted is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from generated import SIZES, Generated, build, seconds_of_test
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from measuring import alternating, heading, median_ratio, of_own_process


def main() -> None:
    """Measure and print the table, or one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="prototype", help="prototype, fsdino or sam2fss (default: prototype)")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the network (default: small)")
    parser.add_argument("--shot", type=int, default=1, help="default: 1")
    parser.add_argument("--classes", type=int, default=4, help="default: 4")
    parser.add_argument("--episodes", type=int, default=20, help="per class (default: 20)")
    parser.add_argument("--images", type=int, default=8, help="per class (default: 8)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--one", type=int, help="only measure one run, with so many processes")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_run(options)))
        return
    print(heading("torch", "lightning") + f"; {options.cores} core(s) used, {options.method}, {options.size} size")
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in options.processes}
    commands = alternating([partial(command, number, options, found) for number in options.processes], options.rounds)
    counts = {number: {run["counts"] for run in runs} for number, runs in found.items()}
    assert all(len(same) == 1 for same in counts.values()), "runs with as many processes count the same pixels"
    tests = {number: [run["seconds"] for run in runs] for number, runs in found.items()}
    first = tests[options.processes[0]]
    print("\n| processes x threads | test s | command s | times faster (test) |")
    print("|---|---|---|---|")
    for number, seconds in zip(options.processes, commands, strict=True):
        median, threads = statistics.median(tests[number]), max(1, options.cores // number)
        ratio = median_ratio(first, tests[number])
        print(f"| {number} x {threads} | {median:.2f} | {statistics.median(seconds):.2f} | {ratio:.2f} |")
    least, most = min(set.union(*counts.values())), max(set.union(*counts.values()))
    print(f"sums of intersections and unions differ by {(most - least) / most:.1e} between numbers of threads")


def command(number: int, options: argparse.Namespace, found: dict[int, list[dict[str, Any]]]) -> float:
    """Seconds of a run with so many processes, start and imports included."""
    threads = {"OMP_NUM_THREADS": str(max(1, options.cores // number))}
    began = time.perf_counter()
    found[number].append(of_own_process(__file__, "--one", str(number), environment=threads))
    return time.perf_counter() - began


class Clock(Callback):
    """Seconds from the first to the last episode on the first process, and the counts of the test, left in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start the clock where all processes are there."""
        trainer.strategy.barrier()
        self.began = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """All rows have been gathered: every process is done."""
        seconds = time.perf_counter() - self.began
        if trainer.is_global_zero:
            counts = sum(row["fg_intersection"] + row["fg_union"] for row in pl_module.episode_rows)
            self.file.write_text(json.dumps({"seconds": seconds, "counts": counts}))


def one_run(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and counts of one run."""
    seed_everything(0, verbose=False)  # the same random weights in every run
    method = build(options.method, options.size)
    data = Generated(options.classes, options.images, shot=options.shot, episodes_per_class=options.episodes)
    processes = {"devices": options.one, "strategy": "ddp_fork"} if options.one > 1 else {"devices": 1}
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "found.json"
        settings = {"accelerator": "cpu", **processes, "callbacks": [Clock(file)]}
        seconds_of_test(method, data, Path(name), time.perf_counter, **settings)
        found: dict[str, Any] = json.loads(file.read_text())
        return found


if __name__ == "__main__":
    main()
