"""A test run with features on disk against the usual loop, which encodes every image of every episode again.

    python benchmarks/warm_cache.py --rounds 3
    python benchmarks/warm_cache.py --size full --episodes 10 --rounds 1 --methods fsdino --preset fsdino

Both sides are whole test runs of one method with random weights on the same generated episodes, in turns: reading images,
features, `segment`, scores at original size. The loop has no feature cache. `cold` begins without any features and
encodes each image once; `warm` reads from disk what an earlier run left there, and encodes nothing. All three must give
the same counts in every episode. Goal: warm at least 5 times faster with one support, 10 times with five.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from generated import SIZES, Generated, build, seconds_of_test
from measuring import CLOCKS, alternating, heading, median_ratio

from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.store import FeatureStore
from fssbench.method import FewShotMethod

GOALS = {1: 5.0, 5: 10.0}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["fsdino", "sam2fss"], help="default: fsdino sam2fss")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5], help="default: 1 5")
    parser.add_argument("--preset", help="of fsdino; default: its own, with contrast")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the networks (default: small)")
    parser.add_argument("--episodes", type=int, default=20, help="per run (default: 20)")
    parser.add_argument("--images", type=int, default=8, help="distinct images (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(
        heading("torch", "timm") + f"; {torch.get_num_threads()} thread(s), {options.clock} clock, {options.size} size"
    )
    print("\n| method | shots | loop s | cold s | warm s | loop / cold | loop / warm | goal |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.methods:
        for shot in options.shots:
            settings: dict[str, Any] = {"train_shot": shot} if name == "sam2fss" else {}
            if name == "fsdino" and options.preset:
                settings["preset"] = options.preset
            print(
                f"| {settings.get('preset', name)} | {shot} | {row(build(name, options.size, **settings), shot, options)}"
            )


def row(method: FewShotMethod, shot: int, options: argparse.Namespace) -> str:
    """One row: median seconds of the three runs and the ratios within a round."""
    clock = CLOCKS[options.clock]
    with tempfile.TemporaryDirectory() as name:
        data = partial(Generated, classes=1, images=options.images, shot=shot, episodes_per_class=options.episodes)
        counted: list[Any] = []

        def run(cache: FeatureCache) -> float:
            method.cache = cache
            seconds = seconds_of_test(method, data(), Path(name), clock)
            rows = [{n: v for n, v in row.items() if n != "seconds"} for row in method.episode_rows]
            counted.append(rows)
            assert rows == counted[0], "all runs count the same pixels"
            return seconds

        sides = [
            lambda: run(FeatureCache(0)),
            lambda: run(FeatureCache(4096)),
            lambda: run(FeatureCache(4096, store=FeatureStore(Path(name) / "features", 100))),
        ]
        sides[-1]()  # puts the features on disk, and has run everything once
        loop, cold, warm = alternating(sides, options.rounds)
    medians = " | ".join(f"{statistics.median(seconds):.2f}" for seconds in (loop, cold, warm))
    ratio = median_ratio(loop, warm)
    goal = f"{GOALS[shot]:.0f}, {'met' if ratio >= GOALS[shot] else 'not met'}" if shot in GOALS else "none"
    return f"{medians} | {median_ratio(loop, cold):.1f} | {ratio:.1f} | {goal} |"


if __name__ == "__main__":
    main()
