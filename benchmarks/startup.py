"""Start-up time of the verbs that only read small files, against an interpreter that does nothing.

    python benchmarks/startup.py --rounds 10

Each round runs every command once, in processes of their own, and `python -c pass` beside them. Goal: below 0.5 s. The
processor time beside the wall-clock time is what a machine without other work would need.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measuring import alternating, heading, median_ratio

from fssbench.protocols.manifest import Episode, Manifest, ManifestHeader

GOAL = 0.5


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "results").mkdir()
        toy_manifest(folder / "episodes.jsonl")
        verbs = ["--version", "--help", "list", "leaderboard", "episodes show episodes.jsonl"]
        verbs += ["episodes verify episodes.jsonl"]
        commands = [["-c", "pass"], *(["-m", "fssbench", *verb.split()] for verb in verbs)]
        processor: dict[tuple[str, ...], list[float]] = {}
        actions: list[Callable[[], float]] = [partial(seconds_of, command, folder, processor) for command in commands]
        alternating(actions, 1)  # byte code and disk cache
        processor.clear()
        print(heading("fssbench"))
        times = alternating(actions, rounds)
    names = ["python -c pass", *(f"fssbench {verb}" for verb in verbs)]
    print(f"\n| {'command':<40} | median s | processor s | times `python -c pass` | below {GOAL} s |")
    print("|---|---|---|---|---|")
    for name, command, seconds in zip(names, commands, times, strict=True):
        median, busy = statistics.median(seconds), statistics.median(processor[tuple(command)])
        met = "yes" if median < GOAL else "no"
        print(f"| {name:<40} | {median:.3f} | {busy:.3f} | {median_ratio(seconds, times[0]):.1f} | {met} |")


def toy_manifest(path: Path) -> None:
    """A manifest of 2000 episodes, as many as a fold of COCO-20i."""
    episodes = tuple(Episode(1, f"{i:06d}.jpg", (f"{i + 1:06d}.jpg",)) for i in range(2000))
    header = ManifestHeader(
        "toy", "clean-v1", 0, 1, 1, 0, len(episodes), len(episodes), "test", "none", "none", {"1": "a"}
    )
    Manifest(header, episodes).save(path)


def seconds_of(arguments: list[str], folder: Path, processor: dict[tuple[str, ...], list[float]]) -> float:
    """Wall-clock seconds of a Python process; its processor seconds are added to `processor`."""
    began, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, os.times()
    busy = after.children_user + after.children_system - before.children_user - before.children_system
    processor.setdefault(tuple(arguments), []).append(busy)
    return seconds


if __name__ == "__main__":
    main()
