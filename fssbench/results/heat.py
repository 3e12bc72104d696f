"""Per-class scores as a heat map in HTML: one row per method, one column per class, one map per fold."""

from __future__ import annotations

from html import escape

from fssbench.results.leaderboard import ClassCell, Row, Table
from fssbench.results.views import percent, record_id, row_name


def heat_maps(table: Table) -> str:
    """Heat maps of a table's folds, closed until they are asked for; empty where there is no class."""
    maps = [
        _heat_map(table, fold)
        for fold in range(table.n_folds)
        if any(c.fold == fold for r in table.rows for c in r.cells())
    ]
    if not maps:
        return ""
    return f"<details><summary>IoU of each class</summary>{''.join(maps)}</details>"


def _heat_map(table: Table, fold: int) -> str:
    cells = {(number, c.class_id): c for number, row in enumerate(table.rows) for c in row.cells() if c.fold == fold}
    classes = {class_id: cell.name for (_, class_id), cell in sorted(cells.items(), key=lambda item: item[0][1])}
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in classes.values())
    lines = [
        f'<tr><th scope="row" class="word"><a href="#{escape(record_id(row.records[fold]))}">{escape(row_name(row))}</a></th>'
        + "".join(_cell(cells.get((number, class_id))) for class_id in classes)
        + "</tr>"
        for number, row in enumerate(table.rows)
        if _has(row, fold)
    ]
    return (
        f'<h3>fold {fold}</h3><div class="wide" tabindex="0" role="region" aria-label="classes of fold {fold}">'
        f'<table class="heat"><thead><tr><th scope="col" class="word">method</th>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _has(row: Row, fold: int) -> bool:
    return any(part.fold == fold for part in row.classes)


def _cell(cell: ClassCell | None) -> str:
    if cell is None:
        return '<td class="none">-</td>'
    return f'<td style="background:{colour(cell.iou)}" title="{cell.episodes} episodes">{percent(cell.iou)}</td>'


def colour(value: float) -> str:
    """A fraction as a colour from pale yellow (0) to green-blue (1); black text stays readable on all of them, and the
    order stays visible without telling red from green."""
    low, high = (253, 244, 206), (94, 180, 190)
    red, green, blue = (round(a + (b - a) * value) for a, b in zip(low, high, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
