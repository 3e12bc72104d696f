"""Ablations: train and test every row of a suite on every fold and seed, and print the table.

    python benchmarks/ablations/run.py benchmarks/ablations/shapes.yaml --out ablations/shapes
    python benchmarks/ablations/run.py benchmarks/ablations/coco.yaml --out ablations/coco --data.root data/coco328
    python benchmarks/ablations/run.py benchmarks/ablations/sam2fss.yaml --out ablations/untrained --model.trainable none

The suite is that of `fssbench test --suite` (docs/board.md): rows with their options, folds, shots and seeds; a row is
compared with the row that `--against` names. The options of all rows are checked before the first one runs. Every row is
trained on one shot and tested on all; the seed is that of the weights and of the training episodes, while the test episodes
are the same for all rows and seeds. All runs share one process, which saves their start, and one at a time uses the machine.
What was finished is kept, so that the same command goes on after an interruption, or with further seeds (`--seeds 0 1 2`).
Other options go to every run.

The table: mIoU on novel classes, the mean over folds and seeds (of the seeds with the most folds; `4 x 3 - 6` says that
six of the twelve runs are missing); behind it the standard deviation over seeds of the mean over folds; and the difference
to the row `--against`, pair by pair (same fold, seed and episodes), with its standard error over the pairs. It is printed
and kept in OUT/table.md, also while runs are missing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace

from fssbench.cli.running import TERMINATED, checked_config, number_of_folds, run_once
from fssbench.cli.suite import read_suite
from fssbench.errors import UserError
from fssbench.files import write_text_whole
from fssbench.results.store import ResultStore

Scores = dict[tuple[str, int], dict[tuple[int, int], float]]
"""(row, shots) -> (seed, fold) -> mIoU."""


class Cell(NamedTuple):
    """One training of a row, and its tests."""

    row: str
    fold: str
    seed: str
    trained: bool


def commands(cell: Cell, words: Sequence[str], shots: Sequence[str], out: Path) -> Iterator[tuple[str, list[str]]]:
    """The verbs and arguments of a cell: fit, unless there is nothing to train, and one test for each number of shots."""
    run_dir = out / "runs" / cell.row / f"fold{cell.fold}_seed{cell.seed}"
    common = [*words, "--data.fold", cell.fold, "--seed_everything", cell.seed, "--data.seed", cell.seed]
    common += ["--results", str(out / "results"), "--run_dir", str(run_dir)]
    if cell.trained:
        yield "fit", [*common, "--data.shot", "1"]
        common += ["--ckpt_path", str(run_dir / "last.ckpt")]
    for shot in shots:
        yield "test", [*common, "--data.shot", shot]


def is_trained(config: Namespace) -> bool:
    """Whether there is anything to train in a row's configuration: not in a training-free method, nor in one that is told
    so by `trainable: none`."""
    package, _, name = config.model.class_path.rpartition(".")
    method = getattr(import_module(package), name)
    return bool(method.needs_checkpoint) and config.model.init_args.get("trainable") != "none"


def scores_in(out: Path) -> Scores:
    """All results so far. Raises `UserError` where two configurations have one name."""
    found: Scores = defaultdict(dict)
    hashes: dict[str, str] = {}
    for record in ResultStore(out / "results").read_all().records:
        key = record.key
        if hashes.setdefault(key.method, key.config_hash) != key.config_hash:
            raise UserError(f"{out} holds two configurations of {key.method}. Remove one, or choose another --out.")
        found[key.method, key.shot][key.seed, key.fold] = 100 * record.scores.miou
    return found


def table(scores: Scores, rows: Sequence[str], shots: Sequence[int], against: str) -> str:
    """The markdown table."""
    head = ["row", "folds x seeds"]
    for shot in shots:
        head += [f"{shot}-shot", f"minus {against}"]
    lines = [f"| {' | '.join(head)} |", f"| --- | ---: |{' ---: |' * (len(head) - 2)}"]
    for row in rows:
        runs = scores.get((row, shots[0]), {})
        of_folds, of_seeds = len({fold for _, fold in runs}), len({seed for seed, _ in runs})
        missing = of_folds * of_seeds - len(runs)
        cells = [f"{of_folds} x {of_seeds}" + (f" - {missing}" if missing else "")]
        for shot in shots:
            cells += [_mean(scores.get((row, shot), {}))]
            cells += ["" if row == against else _difference(scores, row, against, shot)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(runs: dict[tuple[int, int], float]) -> str:
    if not runs:
        return "-"
    by_seed: dict[int, list[float]] = defaultdict(list)
    for (seed, _), value in runs.items():
        by_seed[seed].append(value)
    full = max(map(len, by_seed.values()))
    means = [statistics.mean(values) for values in by_seed.values() if len(values) == full]  # not the seed under way
    return f"{statistics.mean(means):.1f}" + (f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else "")


def _difference(scores: Scores, row: str, against: str, shot: int) -> str:
    one, other = scores.get((row, shot), {}), scores.get((against, shot), {})
    pairs = [one[place] - other[place] for place in one.keys() & other.keys()]
    if not pairs:
        return "-"
    error = f" ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.1f}" if len(pairs) > 1 else ""
    return f"{statistics.mean(pairs):+.1f}{error}"


def main() -> int:
    """Run what is missing and print the table after each row and fold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("suite")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, results and table.md")
    parser.add_argument("--against", help="the row that others are compared with: comp, or else the suite's first")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--folds", nargs="+", help="instead of the suite's")
    parser.add_argument("--shots", nargs="+", help="instead of the suite's")
    parser.add_argument("--seeds", nargs="+", help="instead of the suite's")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    options, others = parser.parse_known_args()
    methods, common, axes = read_suite(options.suite)
    against = options.against or ("comp" if "comp" in methods else next(iter(methods)))
    unknown = {*(options.rows or []), against} - {*methods}
    if unknown:
        raise UserError(f"{options.suite} has no row {', '.join(sorted(unknown))}, only {', '.join(methods)}.")
    rows = {row: words for row, words in methods.items() if row in (options.rows or methods)}
    words = {row: [*own.before, *common, *others, *own.after] for row, own in rows.items()}
    folds, shots, seeds = (getattr(options, axis) or axes.get(axis, ["0"]) for axis in ("folds", "shots", "seeds"))
    if folds == ["all"]:
        folds = [str(fold) for fold in range(number_of_folds(next(iter(words.values()))))]
    failed = []
    if not options.table:
        trained = {row: is_trained(checked_config(of_row)) for row, of_row in words.items()}
        cells = [Cell(row, fold, seed, trained[row]) for seed in seeds for fold in folds for row in rows]
        failed = _run_all(cells, words, shots, options.out)
    text = table(scores_in(options.out), list(methods), [int(shot) for shot in shots], against)
    write_text_whole(options.out / "table.md", text)
    print(text)
    return 1 if failed else 0


def _run_all(cells: Sequence[Cell], words: dict[str, list[str]], shots: Sequence[str], out: Path) -> list[str]:
    """Run the cells in turn; a failed one does not stop the others and is named."""
    failed = []
    for number, cell in enumerate(cells, 1):
        began, name = time.monotonic(), f"{cell.row}, fold {cell.fold}, seed {cell.seed}"
        try:
            statuses = (
                run_once(verb, list(arguments)) for verb, arguments in commands(cell, words[cell.row], shots, out)
            )
            status = next((status for status in statuses if status), 0)  # no test where the training did not end
            if status == TERMINATED:
                raise KeyboardInterrupt
        except UserError as error:
            status, name = 1, f"{name}: {error}"
        gc.collect()  # a finished run's features, which its trainer and method keep alive in a circle
        if status:
            failed.append(name)
        print(f"== {number}/{len(cells)} {name}: {time.monotonic() - began:.0f} s", flush=True)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"ablations: {error}")
    except KeyboardInterrupt:
        sys.exit("ablations: interrupted; the same command goes on where it was")
