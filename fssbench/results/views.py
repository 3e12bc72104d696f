"""What a board shows to people, as plain cells: the same words and roundings in terminal, Markdown, LaTeX and HTML.

Percent with two decimals; what all rows of a table share is said once, above it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fssbench.results.draws import DRAWS, MeanTable, over_draws
from fssbench.results.leaderboard import Row, Table
from fssbench.results.published import Published
from fssbench.results.record import counted_at

Show = Literal["board", "scores", "folds", "classes", "cost"]
SHOWS: tuple[Show, ...] = ("board", "scores", "folds", "classes", "cost")

DASH = "-"
"""Shown where there is no number."""
WORDS = ("method", "config", "selection", "device", "class", "backbone", "protocol", "scored at", "confidence", "paper")
"""Columns of text; the others are numbers."""


@dataclass(frozen=True)
class Grid:
    """A heading, cells, and remarks below them."""

    title: str
    facts: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    reported: bool = False
    """Whether the numbers are others', not measured here."""


def grids(tables: Sequence[Table], show: Show = "board", reported: bool = True, wide: bool = True) -> list[Grid]:
    """The tables in one view, each followed by the reported numbers that belong to it; `wide` gives the board the interval
    of FB-IoU too."""
    views = {"scores": _scores, "folds": _folds, "classes": _classes, "cost": _costs}
    found = []
    for table in tables:
        found.append(_board(table, wide) if show == "board" else views[show](table))
        if reported and show == "board" and table.reported:
            found.append(reported_grid(table))
    return [*found, *map(_mean_grid, over_draws(tables))] if show == "board" else found


def title(table: Table) -> str:
    """What a table's rows have in common, in one line."""
    return (
        f"{table.dataset}, {table.protocol} v{table.protocol_version}, {table.shot}-shot, scored at {counted_at(table.resolution)}, "
        f"track {table.track}, manifests {table.manifest_id}{f' ({table.truth})' if table.truth else ''}"
    )


def facts(table: Table) -> dict[str, str]:
    """What all rows share of what may differ: selection, seed, devices."""
    texts = [_differing(row) for row in table.rows]
    return {name: texts[0][name] for name in texts[0] if len({text[name] for text in texts}) == 1}


def _differing(row: Row) -> dict[str, str]:
    return {"selection": row.metadata.selection, "seed": str(row.seed), "device": ", ".join(row.devices)}


def _board(table: Table, wide: bool) -> Grid:
    shared = facts(table)
    own = [name for name in ("selection", "seed") if name not in shared]
    folds = [f"fold{fold}" for fold in range(table.n_folds)]
    has_intervals = any(row.interval for row in table.rows)
    middle = ["95 %"] if has_intervals else []
    last = ["FB 95 %"] if has_intervals and wide else []
    scores = ["mIoU", *middle, "FB-IoU", *last]
    columns = ["#", "method", "config", *own, *folds, *scores, "params", "trained", "s/ep", "GiB"]
    rows = []
    for row in table.rows:
        differing = _differing(row)
        rows.append([
            rank(table, row), row.method, row.config_hash[:8], *(differing[name] for name in own),
            *map(percent, row.fold_miou), percent(row.miou), *([span(row.interval)] if has_intervals else []),
            percent(row.fb_iou), *([span(row.fb_interval)] if last else []), count(row.parameters),
            count(row.trained_parameters), seconds(row.seconds_per_episode), gibibytes(row.peak_memory),
        ])  # fmt: skip
    said = "; ".join(f"{name} {value}" for name, value in shared.items() if value)
    return Grid(title(table), said, columns, rows, _notes(table))


def _scores(table: Table) -> Grid:
    rows = [
        [
            rank(table, row), row.method, row.config_hash[:8], percent(row.miou), span(row.interval), percent(row.fb_iou),
            span(row.fb_interval), str(row.episodes),
        ]
        for row in table.rows
    ]  # fmt: skip
    columns = ["#", "method", "config", "mIoU", "95 %", "FB-IoU", "FB 95 %", "episodes"]
    return Grid(title(table), "mean over the folds, with its interval", columns, rows, _notes(table))


def _mean_grid(means: MeanTable) -> Grid:
    first = means.first
    columns = ["method", "config", "seed", *(f"fold{fold}" for fold in range(first.n_folds)), "mIoU", "sd", "FB-IoU"]
    rows = [
        [row.method, row.config_hash[:8], str(row.seed), *map(percent, row.fold_miou), percent(row.miou),
         percent(row.deviation), percent(row.fb_iou)]
        for row in means.rows
    ]  # fmt: skip
    draws = len(DRAWS[means.protocol])
    heading = (
        f"{first.dataset}, {means.protocol} v{first.protocol_version}, mean of {draws} draws, {first.shot}-shot, scored at "
        f"{counted_at(first.resolution)}, track {first.track}"
    )
    return Grid(heading, f"means over the {draws} draws; sd is that of the draws' mIoU", columns, rows, [])


def _folds(table: Table) -> Grid:
    folds = range(table.n_folds)
    columns = ["#", "method", "config", *(head for fold in folds for head in (f"fold{fold}", f"95 % of {fold}"))]
    rows = []
    for row in table.rows:
        cells = [rank(table, row), row.method, row.config_hash[:8]]
        for fold in folds:
            inside = fold < len(row.fold_miou)
            cells.append(percent(row.fold_miou[fold]) if inside else DASH)
            cells.append(span(row.fold_intervals[fold]) if inside else DASH)
        rows.append(cells)
    return Grid(title(table), "mIoU of each fold with its own interval", columns, rows, _notes(table))


def _classes(table: Table) -> Grid:
    cells = {(number, c.fold, c.class_id): c for number, row in enumerate(table.rows) for c in row.cells()}
    found = sorted({(fold, class_id) for _, fold, class_id in cells})
    names = [row_name(row) for row in table.rows]
    rows = []
    for fold, class_id in found:
        of_rows = [cells.get((number, fold, class_id)) for number in range(len(table.rows))]
        first = next(cell for cell in of_rows if cell)
        ious = [percent(cell.iou if cell else None) for cell in of_rows]
        rows.append([str(fold), str(class_id), first.name, str(first.episodes), *ious])
    return Grid(title(table), "IoU of each class", ["fold", "id", "class", "episodes", *names], rows, [])


def _costs(table: Table) -> Grid:
    columns = ["#", "method", "config", "params", "trained", "s/ep", "GiB", "device"]
    rows = [
        [
            rank(table, row), row.method, row.config_hash[:8], count(row.parameters), count(row.trained_parameters),
            seconds(row.seconds_per_episode), gibibytes(row.peak_memory), ", ".join(row.devices),
        ]
        for row in table.rows
    ]  # fmt: skip
    return Grid(title(table), "weights, those trained, seconds per episode, largest memory", columns, rows, [])


def reported_grid(table: Table) -> Grid:
    """The reported numbers of a table, under a heading that cannot be taken for measured ones."""
    columns = ["method", "backbone", *(f"fold{fold}" for fold in range(4)), "mIoU", "FB-IoU", "protocol", "scored at",
               "confidence", "paper"]  # fmt: skip
    rows = [reported_cells(result) for result in table.reported]
    head = f"reported by others: {table.dataset}, {table.shot}-shot, track {table.track}"
    said = "not measured here, under other protocols: not ranked, not comparable"
    return Grid(head, said, columns, rows, [], reported=True)


def reported_cells(result: Published) -> list[str]:
    """Cells of a reported number, in the order of `reported_grid`."""
    return [
        result.method, result.backbone, *(value or DASH for value in (*result.fold_miou, result.miou, result.fb_iou)),
        result.protocol, result.resolution, result.confidence, result.paper + (f"; {result.remark}" if not result.miou else ""),
    ]  # fmt: skip


def _notes(table: Table) -> list[str]:
    notes = [f"{row.name} seed {row.seed}: not ranked, {row.note}." for row in table.unranked]
    notes += [f"{row.name} seed {row.seed}: masks of another program." for row in table.rows if row.external]
    if any(table.shares_rank(row) for row in table.rows):
        notes.append("rank: 1 + the rows better by more than the noise (paired 95 % interval without 0); = shared.")
    return notes


def row_name(row: Row) -> str:
    """Method, configuration, and the seed where it is not 0."""
    return row.name if row.seed == 0 else f"{row.name} seed {row.seed}"


def record_id(path: str | None) -> str:
    """Name of a record's place on the page; empty without a path."""
    return f"record/{path.removesuffix('.json')}" if path else ""


def rank(table: Table, row: Row) -> str:
    """`1`, `2=` where several rows share it, `-` for an unranked row."""
    return DASH if row.rank is None else f"{row.rank}{'=' if table.shares_rank(row) else ''}"


def percent(value: float | None) -> str:
    """A fraction as per cent with two decimals."""
    return DASH if value is None else f"{100 * value:.2f}"


def span(interval: tuple[float, ...]) -> str:
    """An interval of fractions as per cent."""
    return f"{100 * interval[0]:.2f}-{100 * interval[1]:.2f}" if interval else DASH


def count(value: int | None) -> str:
    """A number of weights, three digits and a unit."""
    if value is None:
        return DASH
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)


def seconds(value: float | None) -> str:
    """Seconds, three digits."""
    return DASH if value is None else f"{value:.3g}"


def gibibytes(value: int | None) -> str:
    """Bytes as GiB, two decimals."""
    return DASH if value is None else f"{value / 2**30:.2f}"
