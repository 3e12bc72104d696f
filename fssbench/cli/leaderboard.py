"""`fssbench leaderboard`: a table of all records in a results folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fssbench.errors import UserError
from fssbench.results.leaderboard import FORMATS, Format, board, render
from fssbench.results.store import ResultStore


def run(verb: str, arguments: list[str]) -> int:
    """Print the board of a results folder."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument(
        "results", nargs="?", type=Path, default=Path("results"), help="results folder (default: results)"
    )
    parser.add_argument("--format", choices=list(FORMATS), default="text", help="default: text")
    options = parser.parse_args(arguments)
    if not options.results.is_dir():
        raise UserError(
            f"The results folder {options.results} is missing. Give its path, or make records with `fssbench test`."
        )
    print_board(options.results, options.format)
    return 0


def print_board(results: Path, style: Format = "text") -> None:
    """Print the board of a results folder; damaged records are named on stderr and left out."""
    found = ResultStore(results).read_all()
    for path, reason in found.damaged:
        print(f"fssbench: left out {path}: {reason}", file=sys.stderr)
    if not found.records and style == "text":
        print(f"No records in {results}. Make some with `fssbench test`.")
        return
    print(render(board(found.records), style), end="")
