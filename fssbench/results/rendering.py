"""Leaderboard tables as text, Markdown, CSV and JSON.

People get percent with two decimals; programs get unrounded fractions in [0, 1].
"""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from fssbench.results.fields import to_json
from fssbench.results.leaderboard import Row, Table

DASH = "-"
"""Shown where there is no number."""

_WORDS = {"method": 9, "track": 13, "selection": 12}
"""Columns of words and the width at which their usual entries stay whole; 100 columns hold these and four folds."""


def text(tables: list[Table], width: int) -> str:
    """ASCII tables for a terminal of `width` columns: they survive a pipe, a log file and a terminal of any encoding.

    Words are folded onto a second line to fit. Numbers never are: a table of many folds is wider than the terminal
    rather than wrong.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    rule = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    out = io.StringIO()
    for table in tables:
        widths = _widths(table, width)
        needed = sum(widths.values()) + len(widths) - 1
        console = Console(
            file=out,
            width=max(width, needed),
            color_system=None,
            force_terminal=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        grid = RichTable(box=rule, show_edge=False, padding=0)
        for name in _columns(table):
            left: bool = name in _WORDS or name == "config"
            grid.add_column(name, justify="left" if left else "right", width=widths[name], overflow="fold")
        for row in table.rows:
            grid.add_row(*_cells(row))
        console.print(title(table), "", grid, sep="\n")
        for row in _unranked(table):
            console.print(f"  {_name(row)} seed {row.seed}: not ranked, {row.note}.")
        console.print()
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n" if tables else "No results.\n"


def _widths(table: Table, width: int) -> dict[str, int]:
    """Column -> characters: numbers as wide as they are, words up to a limit, the method's name takes what is left."""
    columns = zip(_columns(table), *map(_cells, table.rows), strict=True)
    widths = {name: max(map(len, (name, *cells))) for name, *cells in columns}
    widths |= {name: min(widths[name], limit) for name, limit in _WORDS.items() if name != "method"}
    left = width - sum(widths.values()) + widths["method"] - len(widths) + 1
    widths["method"] = max(min(widths["method"], left), _WORDS["method"])
    return widths


def markdown(tables: list[Table]) -> str:
    """One heading and one pipe table per table, and a list of why rows are not ranked."""
    blocks = []
    for table in tables:
        head = _columns(table)
        align = ["---" if name in (*_WORDS, "config") else "---:" for name in head]
        lines = [
            f"### {title(table)}",
            "",
            *("| " + " | ".join(r) + " |" for r in (head, align, *map(_cells, table.rows))),
        ]
        notes = [f"- {_name(row)} seed {row.seed}: not ranked, {row.note}." for row in _unranked(table)]
        blocks.append("\n".join([*lines, "", *notes]).rstrip() + "\n")
    return "\n".join(blocks) if blocks else "No results.\n"


def csv_text(tables: list[Table]) -> str:
    """One line per row of every table; a column `miou_fold<f>` for every fold; empty where there is no number."""
    folds = range(max((table.n_folds for table in tables), default=0))
    lines = [_flat(table, row, folds) for table in tables for row in table.rows]
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()


def json_text(tables: list[Table]) -> str:
    """The tables as they are: a list of objects with the fields of `Table` and `Row`."""
    plain = [
        {**vars(table), "rows": [{**vars(row), "metadata": to_json(row.metadata)} for row in table.rows]}
        for table in tables
    ]
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def title(table: Table) -> str:
    """What a table's rows have in common, in one line."""
    where = "original size" if table.resolution == "original" else f"{table.resolution} px square"
    return (
        f"{table.dataset}, {table.protocol} v{table.protocol_version}, {table.shot}-shot, scored at {where}, "
        f"manifests {table.manifest_id}"
    )


def _columns(table: Table) -> list[str]:
    folds = [f"fold{fold}" for fold in range(table.n_folds)]
    return ["#", "method", "config", "track", "selection", "seed", *folds, "mIoU", "FB-IoU", "episodes"]


def _cells(row: Row) -> list[str]:
    return [
        DASH if row.rank is None else str(row.rank),
        row.method,
        row.config_hash[:8],
        row.metadata.track,
        row.metadata.selection,
        str(row.seed),
        *map(_percent, row.fold_miou),
        _percent(row.miou),
        _percent(row.fb_iou),
        str(row.episodes),
    ]


def _flat(table: Table, row: Row, folds: range) -> dict[str, Any]:
    """One CSV line: the key, the scores, the metadata, the note."""
    fold_miou = dict(enumerate(row.fold_miou))
    metadata = to_json(row.metadata)
    metadata["contamination"] = "; ".join(metadata["contamination"])
    return {
        **{name: getattr(table, name) for name in ("dataset", "protocol", "protocol_version", "shot", "resolution")},
        "manifests": table.manifest_id,
        **{name: getattr(row, name) for name in ("rank", "method", "config_hash", "seed")},
        **{f"miou_fold{fold}": fold_miou.get(fold) for fold in folds},
        **{name: getattr(row, name) for name in ("miou", "fb_iou", "episodes", "note")},
        **metadata,
    }


def _unranked(table: Table) -> list[Row]:
    return [row for row in table.rows if row.rank is None]


def _name(row: Row) -> str:
    return f"{row.method}@{row.config_hash[:8]}"


def _percent(value: float | None) -> str:
    return DASH if value is None else f"{100 * value:.2f}"
