"""`fssbench compare A B`: two methods on the same episodes, with the paired interval of every difference.

A and B are methods on the board (`comp`, or `comp@1a2b3c4d` where there are several configurations), records, or folders
of records.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fssbench.errors import UserError, nearest
from fssbench.results.fields import to_json
from fssbench.results.record import ResultRecord, read_record
from fssbench.results.store import ResultStore
from fssbench.results.table import read_table
from fssbench.results.views import Grid, percent

if TYPE_CHECKING:
    from fssbench.results.comparison import Comparison, Difference, Result


def run(verb: str, arguments: list[str]) -> int:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        prog=f"fssbench {verb}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder in which methods "
        "are looked up (default: results)")  # fmt: skip
    parser.add_argument("--dataset", help="only this data set")
    parser.add_argument("--shots", type=int, nargs="+", help="only these numbers of supports")
    parser.add_argument("--seed", type=int, help="only runs with this seed")
    parser.add_argument("--top", type=int, default=10, help="episodes to list where A and B differ most (default: 10)")
    parser.add_argument("--format", choices=["text", "md", "json"], default="text", help="default: text")
    options = parser.parse_args(arguments)
    if options.top < 0:
        raise UserError(f"--top is {options.top}, expected 0 or more episodes.")
    from fssbench.cli.leaderboard import columns
    from fssbench.results import rendering
    from fssbench.results.comparison import compare

    found = compare(_results(options.a, options), _results(options.b, options), options.top)
    if options.format == "json":
        print(json.dumps([to_json(comparison) for comparison in found], indent=2, ensure_ascii=False))
        return 0
    shown = [grid for comparison in found for grid in grids(comparison)]
    print(rendering.markdown(shown) if options.format == "md" else rendering.text(shown, columns()), end="")
    return 0


def _results(name: str, options: argparse.Namespace) -> list[Result]:
    """The records that a name means, with their tables."""
    path = Path(name)
    if path.is_file():
        wanted = [result for result in [_result(path, options)] if result]
    else:
        files = sorted(path.rglob("fold*_shot*_seed*.json")) if path.is_dir() else _of_method(name, options.results)
        wanted = [result for file in files if (result := _usable(file, options))]
    if not wanted:
        raise UserError(
            f"'{name}' has no results with the wanted data set, shots and seed. See `fssbench leaderboard`."
        )
    return wanted


def _result(path: Path, options: argparse.Namespace) -> Result | None:
    """A record with its table, where it is one of those wanted."""
    record = read_record(path)
    return (record, read_table(path.with_suffix(".parquet"))) if _wanted(record, options) else None


def _usable(path: Path, options: argparse.Namespace) -> Result | None:
    """The same of a folder's file; a damaged one is named on stderr and left out, as on the board."""
    try:
        return _result(path, options)
    except UserError as error:
        print(f"fssbench: left out {path}: {error}", file=sys.stderr)
        return None


def _of_method(name: str, root: Path) -> list[Path]:
    """Records of a method, `METHOD` or `METHOD@HASH`."""
    paths = [root / path for path, _ in ResultStore(root).files()]
    method, _, digest = name.partition("@")
    # the folder is METHOD@ and the first eight characters of the configuration's hash
    found = [path for path in paths if path.parent.name.startswith(f"{method}@{digest[:8]}")]
    if not found:
        known = {known for path in paths for known in (path.parent.name, path.parent.name.partition("@")[0])}
        hint = (
            nearest(name, known) or f" {root} has no results: make some with `fssbench test`, or give --results FOLDER."
        )
        raise UserError(f"'{name}' is neither a file nor a method with results in {root}.{hint}")
    return found


def _wanted(record: ResultRecord, options: argparse.Namespace) -> bool:
    key = record.key
    return (
        (options.dataset is None or key.dataset == options.dataset)
        and (options.shots is None or key.shot in options.shots)
        and (options.seed is None or key.seed == options.seed)
    )


def grids(comparison: Comparison) -> list[Grid]:
    """A comparison as tables for people."""
    head = f"A = {comparison.a}, B = {comparison.b} on {comparison.dataset}, {comparison.protocol}"
    said = "same episodes, difference B - A with its paired 95 % interval"
    missing = comparison.n_folds - len(comparison.folds)
    notes = (
        [f"{missing} of {comparison.n_folds} folds are not shared: no number of the whole data set."] if missing else []
    )
    if comparison.left_out:
        notes.append(f"{comparison.left_out} episodes of only one of the two were left out.")
    sections = [
        ("mIoU by number of shots", comparison.by_shot, notes),
        ("mIoU by fold", comparison.by_fold, []),
        ("mIoU by object size (share of the image)", comparison.by_size, []),
        ("IoU by class", comparison.by_class, []),
    ]
    found = [_grid(f"{head}: {what}", said, rows, remarks) for what, rows, remarks in sections if rows]
    columns = ["fold", "shot", "episode", "class", "A", "B", "B - A", "query"]
    rows = [
        [str(e.fold), str(e.shot), str(e.episode_id), e.class_name, percent(e.a), percent(e.b), signed(e.b - e.a), e.query_key]
        for e in comparison.most_different
    ]  # fmt: skip
    return [
        *found,
        *([Grid(f"{head}: episodes that differ most", "IoU of the episode", columns, rows, [])] if rows else []),
    ]


def _grid(title: str, facts: str, rows: tuple[Difference, ...], notes: list[str]) -> Grid:
    cells = [
        [r.what, str(r.episodes), percent(r.a), percent(r.b), signed(r.difference),
         f"{signed(r.interval[0])} to {signed(r.interval[1])}", {"=": "no difference"}.get(r.verdict, f"{r.verdict} better")]
        for r in rows
    ]  # fmt: skip
    return Grid(title, facts, ["", "episodes", "A", "B", "B - A", "95 %", "verdict"], cells, notes)


def signed(value: float) -> str:
    """A difference of fractions in points of per cent, with its sign."""
    return f"{100 * value:+.2f}"
