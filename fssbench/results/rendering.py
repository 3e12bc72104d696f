"""Leaderboard tables as text, Markdown, LaTeX, CSV and JSON (HTML: `page`).

People get percent with two decimals; programs get unrounded fractions in [0, 1].
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from fssbench.errors import UserError, nearest
from fssbench.results.fields import to_json
from fssbench.results.leaderboard import Row, Table
from fssbench.results.published import Published
from fssbench.results.views import WORDS, Grid, Show, grids

Format = Literal["text", "md", "latex", "csv", "json"]
FORMATS: tuple[Format, ...] = ("text", "md", "latex", "csv", "json")

WIDE = 120
"""Columns of a terminal from which on the board has the interval of FB-IoU; `--show scores` has it in any."""
_LIMITS = {"method": 9, "selection": 12, "class": 12, "device": 20, "backbone": 12, "protocol": 10, "paper": 16}
"""Width at which the usual entries of a column of words stay whole; longer ones are folded."""


def render(
    tables: Sequence[Table], format: Format = "text", width: int = 100, show: Show = "board", reported: bool = True
) -> str:
    """The tables as text for a terminal (`width` columns, ASCII), Markdown, LaTeX, or unrounded as CSV or JSON.

    `show` chooses what text, Markdown and LaTeX show; CSV and JSON hold everything. `reported` adds published numbers.

    Raises:
        UserError: an unknown format.
    """
    tables = list(tables)
    if format == "csv":
        return csv_text(tables, reported)
    if format == "json":
        return json_text(tables, reported)
    writers = {"text": lambda shown: text(shown, width), "md": markdown, "latex": latex}
    wide = format != "text" or width >= WIDE
    if format not in writers:
        raise UserError(f"Leaderboard format '{format}' is not known.{nearest(format, FORMATS)}")
    return writers[format](grids(tables, show, reported, wide))


def text(shown: Sequence[Grid], width: int) -> str:
    """ASCII tables for a terminal of `width` columns: they survive a pipe, a log file and a terminal of any encoding.

    Words are folded onto a second line to fit. Numbers never are: a table of many folds is wider than the terminal
    rather than wrong.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    rule = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
    out = io.StringIO()
    for grid in shown:
        widths = _widths(grid, width)
        needed = sum(widths) + len(widths) - 1
        console = Console(
            file=out,
            width=max(width, needed),
            color_system=None,
            force_terminal=False,
            highlight=False,
            markup=False,
            emoji=False,
        )
        cells = RichTable(box=rule, show_edge=False, padding=0)
        for name, size in zip(grid.columns, widths, strict=True):
            cells.add_column(name, justify="left" if name in ("#", *WORDS) else "right", width=size, overflow="fold")
        for row in grid.rows:
            cells.add_row(*row)
        console.print(grid.title, *([grid.facts] if grid.facts else []), "", cells, sep="\n")
        for note in grid.notes:
            console.print(f"  {note}")
        console.print()
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n" if shown else "No results.\n"


def _widths(grid: Grid, width: int) -> list[int]:
    """Characters per column: numbers as wide as they are, words up to a limit, the method's name takes what is left."""
    columns = [[name, *cells] for name, *cells in zip(grid.columns, *grid.rows, strict=True)]
    widths = [min(max(map(len, column)), _LIMITS.get(column[0], 10**6)) for column in columns]
    method = grid.columns.index("method") if "method" in grid.columns else None
    if method is not None:
        left = width - sum(widths) + widths[method] - len(widths) + 1
        widths[method] = max(min(max(map(len, columns[method])), left), _LIMITS["method"])
    return widths


def markdown(shown: Sequence[Grid]) -> str:
    """One heading and one pipe table per grid, and its notes as a list."""
    blocks = []
    for grid in shown:
        align = ["---" if name in WORDS else "---:" for name in grid.columns]
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (grid.columns, align, *grid.rows)]
        lines = [f"### {grid.title}", "", *([grid.facts, ""] if grid.facts else [])]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        blocks.append("\n".join([*lines, "", *(f"- {note}" for note in grid.notes)]).rstrip() + "\n")
    return "\n".join(blocks) if blocks else "No results.\n"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {char: f"\\{char}" for char in "&%$#_{}"}


def latex(shown: Sequence[Grid]) -> str:
    """One `tabular` per grid in booktabs style, ready to paste; needs `\\usepackage{booktabs}` and nothing else.

    The best mIoU is bold, with those that share its rank; reported numbers are in italics.
    """
    blocks = []
    for grid in shown:
        align = "".join("l" if name in WORDS else "r" for name in grid.columns)
        lines = [f"% {grid.title}", *([f"% {grid.facts}"] if grid.facts else []), f"\\begin{{tabular}}{{{align}}}"]
        lines += ["\\toprule", _latex_line(grid.columns), "\\midrule"]
        for row in grid.rows:
            cells = [_latex_cell(cell) for cell in row]
            if grid.reported:
                cells = [f"\\textit{{{cell}}}" for cell in cells]
            elif row[0] in ("1", "1=") and "mIoU" in grid.columns:
                best = grid.columns.index("mIoU")
                cells[best] = f"\\textbf{{{cells[best]}}}"
            lines.append(" & ".join(cells) + " \\\\")
        lines += ["\\bottomrule", "\\end{tabular}", *(f"% {note}" for note in grid.notes)]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks) if blocks else "% No results.\n"


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex_cell, cells)) + " \\\\"


def _latex_cell(cell: str) -> str:
    """A cell with LaTeX's own characters escaped, and an interval's hyphen as a dash between numbers."""
    if cell == "-":
        return "--"
    cell = "".join(_LATEX.get(char, char) for char in cell)
    return re.sub(r"^(\d+\.\d+)-(\d+\.\d+)$", r"\1--\2", cell)


def csv_text(tables: Sequence[Table], reported: bool = True) -> str:
    """One line per row of every table, measured ones before reported ones; empty where there is no number.

    A column `miou_fold<f>` for every fold.
    """
    folds = range(max((table.n_folds for table in tables), default=0))
    measured = [_flat(table, row, folds) for table in tables for row in table.rows]
    others = [_flat_reported(result, folds) for table in tables for result in table.reported if reported]
    out = io.StringIO()
    if measured:
        writer = csv.DictWriter(out, list(measured[0]), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows([*measured, *others])
    return out.getvalue()


def json_text(tables: Sequence[Table], reported: bool = True) -> str:
    """The tables as they are: a list of objects with the fields of `Table` and `Row`."""
    plain = [{**to_json(table), **({} if reported else {"reported": []})} for table in tables]
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _flat(table: Table, row: Row, folds: range) -> dict[str, Any]:
    """One CSV line: the key, the scores, the cost, the metadata, the note."""
    fold_miou = dict(enumerate(row.fold_miou))
    metadata = to_json(row.metadata)
    metadata["contamination"] = "; ".join(metadata["contamination"])
    low, high = row.interval or (None, None)
    fb_low, fb_high = row.fb_interval or (None, None)
    return {
        "kind": "external" if row.external else "measured",
        **{name: getattr(table, name) for name in ("dataset", "protocol", "protocol_version", "shot", "resolution")},
        "manifests": table.manifest_id,
        **{name: getattr(row, name) for name in ("rank", "method", "config_hash", "seed")},
        **{f"miou_fold{fold}": fold_miou.get(fold) for fold in folds},
        **{"miou": row.miou, "miou_low": low, "miou_high": high, "fb_iou": row.fb_iou, "fb_iou_low": fb_low},
        **{"fb_iou_high": fb_high, "episodes": row.episodes},
        **{name: getattr(row, name) for name in ("parameters", "trained_parameters", "seconds_per_episode")},
        **{"peak_memory": row.peak_memory, "devices": "; ".join(row.devices), "note": row.note, "source": ""},
        **metadata,
    }


def _flat_reported(result: Published, folds: range) -> dict[str, Any]:
    """A CSV line of a reported number, its scores as fractions too."""

    def fraction(printed: str) -> float | None:
        return round(float(printed) / 100, 6) if printed else None

    scores = {f"miou_fold{fold}": fraction(printed) for fold, printed in zip(folds, result.fold_miou, strict=False)}
    return {
        **{"kind": "reported", "dataset": result.dataset, "shot": result.shot, "track": result.track},
        **{"protocol": result.protocol, "resolution": result.resolution, "method": result.method, **scores},
        **{"miou": fraction(result.miou), "fb_iou": fraction(result.fb_iou), "episodes": result.episodes},
        **{"backbone": result.backbone, "contamination": "; ".join(result.contamination), "note": result.remark},
        "source": f"{result.paper}; {result.read_in}; {result.confidence}",
    }
