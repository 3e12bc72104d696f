"""`fssbench leaderboard`: the board of a results folder, for a terminal, a paper, a program or a browser."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fssbench.errors import UserError, nearest
from fssbench.files import write_text_whole
from fssbench.results.boards import Board, load_board
from fssbench.results.failures import Failure
from fssbench.results.leaderboard import Table
from fssbench.results.rendering import FORMATS, render
from fssbench.results.views import SHOWS

PAGE_BYTES = 10_000_000
"""Largest page: it is to be sent by mail and opened on a phone."""
FILTERS = ("dataset", "protocol", "shot", "track")


def run(verb: str, arguments: list[str]) -> int:
    """Print or write the board of a results folder."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="results folder (default: results)")
    parser.add_argument("--results", type=Path, help="the same, as the other commands have it")
    parser.add_argument("--format", choices=[*FORMATS, "html"], default="text", help="default: text")
    parser.add_argument(
        "--show", choices=SHOWS, default="board", help="what text, md and latex show: a row per method, both its "
        "scores with intervals, its folds with theirs, its classes, or its cost (default: board)"
    )  # fmt: skip
    for name in FILTERS:
        parser.add_argument(f"--{name}", nargs="+", help=f"only tables of this {name}")
    parser.add_argument("--no-reported", dest="reported", action="store_false", help="leave out published numbers")
    parser.add_argument("--out", type=Path, help="file to write instead of printing")
    parser.add_argument(
        "--gallery", nargs="+", type=Path, default=[], metavar="RECORD",
        help="with --format html: also show the best, median and worst episodes of these records, whose data and "
        "checkpoint must be here",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.folder and options.results:
        raise UserError(f"Two results folders, {options.folder} and --results {options.results}: give one.")
    options.results = options.results or options.folder or Path("results")
    if options.gallery and options.format != "html":
        raise UserError("--gallery belongs to the page: add --format html.")
    if not options.results.is_dir():
        raise UserError(
            f"The results folder {options.results} is missing. Give its path, or make records with `fssbench test`."
        )
    filters = {name: getattr(options, name) for name in FILTERS if getattr(options, name) is not None}
    board = load_board(options.results, partial(_is_wanted, filters) if filters else None)
    complain_about(board)
    tables = chosen(board.tables, filters)
    if not tables and not options.out and options.format == "text":
        print(f"No records in {options.results}. Make some with `fssbench test`.")
        return 0
    if options.format == "html":
        return _page(options, board._replace(tables=tables))
    _deliver(render(tables, options.format, columns(), options.show, options.reported), options.out)
    return 0


def print_board(results: Path) -> None:
    """Print the board of a results folder to the terminal; damaged records are named on stderr and left out."""
    board = load_board(results)
    complain_about(board)
    if not board.tables:
        print(f"No records in {results}. Make some with `fssbench test`.")
        return
    print(render(board.tables, width=columns()), end="")


def complain_about(board: Board) -> None:
    """Name the files that are no usable results, and the runs that failed, on stderr."""
    for path, reason in board.damaged:
        print(f"fssbench: left out {path}: {reason}", file=sys.stderr)
    by_reason: dict[str, list[Failure]] = {}
    for failure in board.failed:
        by_reason.setdefault(failure.reason, []).append(failure)
    for reason, alike in by_reason.items():
        names = ", ".join(dict.fromkeys(failure.name for failure in alike))
        print(f"fssbench: failed: {names}: {reason} ({max(failure.when for failure in alike)})", file=sys.stderr)


def _is_wanted(filters: Mapping[str, list[str]], table: Mapping[str, Any]) -> bool:
    return all(str(table[name]) in values for name, values in filters.items())


def chosen(tables: Sequence[Table], filters: Mapping[str, list[str]]) -> list[Table]:
    """The tables with the wanted values, e.g. `{"dataset": ["coco-20i"], "shot": ["1", "5"]}`.

    Raises `UserError` for a value that no table has.
    """
    for name, values in filters.items():
        known = {str(getattr(table, name)) for table in tables}
        for value in values:
            if value not in known:
                raise UserError(f"No table of {name} '{value}'.{nearest(value, known)}")
        tables = [table for table in tables if str(getattr(table, name)) in values]
    return list(tables)


def columns() -> int:
    """Width of the terminal; 100 where there is none, since nobody knows where the text ends up."""
    return max(100, shutil.get_terminal_size((100, 24)).columns) if sys.stdout.isatty() else 100


def _deliver(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
    else:
        write_text_whole(out, text)
        print(f"written: {out}")


def _page(options: argparse.Namespace, board: Board) -> int:
    """Write the page; it is for a browser, so it always goes to a file."""
    from fssbench.results.page import page

    galleries = []
    if options.gallery:
        from fssbench.cli.gallery import gallery

        galleries = [gallery(path) for path in options.gallery]
    text = page(options.results, board, galleries, options.reported)
    size = len(text.encode())
    if size > PAGE_BYTES:
        large = f"The page has {size / 1e6:.1f} MB, more than {PAGE_BYTES / 1e6:.0f}"
        if galleries:
            raise UserError(
                f"{large}: give fewer records to --gallery, or fewer tables with --dataset, --shot or --track."
            )
        print(f"fssbench: {large}: choose tables with --dataset, --shot or --track.", file=sys.stderr)
    out = options.out or Path("board.html")
    write_text_whole(out, text)
    print(f"written: {out} ({size / 1e6:.1f} MB); open it in a browser, or send it to somebody")
    return 0
