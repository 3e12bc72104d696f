"""The board as one HTML file: no server, no request to anywhere, and complete without its script.

Each number links to its record on the page: what it is, where it comes from, and the command that makes it again.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fssbench.results.boards import Board
from fssbench.results.heat import heat_maps
from fssbench.results.leaderboard import Row, Table
from fssbench.results.plots import cost_plot, interval_bar
from fssbench.results.published import Published
from fssbench.results.views import count, facts, gibibytes, percent, rank, record_id, seconds, span, title
from fssbench.version import __version__

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "page"


@dataclass(frozen=True)
class Shown:
    """One episode of a gallery: pictures as data URIs with what they show."""

    group: str
    """`best`, `median` or `worst`."""
    caption: str
    pictures: tuple[tuple[str, str], ...]
    """(what it shows, data URI)."""


@dataclass(frozen=True)
class Gallery:
    """Episodes of one record."""

    title: str
    record: str
    """Path of the record below the results folder."""
    episodes: tuple[Shown, ...]


def page(root: str | Path, board: Board, galleries: Sequence[Gallery] = (), reported: bool = True) -> str:
    """The whole HTML file. `root` is the results folder as it should stand in commands."""
    tables = board.tables
    body = [
        '<a class="skip" href="#tables">Skip to the tables</a>',
        _head(board),
        _filters(tables, reported),
        '<p id="status" class="soft" role="status" aria-live="polite"></p>',
        '<main id="tables">',
        *(_table(number, table, reported) for number, table in enumerate(tables)),
        *([] if tables else ["<p>No results.</p>"]),
        _galleries(galleries),
        _records(Path(root), tables),
        _failed(board),
        _damaged(board),
        _reading(),
        "</main>",
    ]
    return _document("\n".join(part for part in body if part))


def _document(body: str) -> str:
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # nothing may be loaded from anywhere, whatever a record's text says
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>fssbench board</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _head(board: Board) -> str:
    rows = [row for table in board.tables for row in table.rows]
    what = f"{len(rows)} rows from {sum(len(row.records) for row in rows)} records; fssbench {__version__}"
    links = {"tables": "tables", "records": "records", "reading": "how to read this"}
    nav = "".join(f'<a href="#{target}">{text}</a>' for target, text in links.items())
    theme = (
        '<label>theme <select id="theme"><option value="">as the system</option><option>light</option>'
        "<option>dark</option></select></label>"
    )
    return (
        f'<header><div><h1>Few-shot segmentation board</h1><p class="soft">{what}</p></div>{theme}</header>\n'
        f'<nav aria-label="page">{nav}</nav>'
    )


def _filters(tables: Sequence[Table], reported: bool) -> str:
    choices = []
    for name in ("dataset", "shot", "track"):
        values = sorted({getattr(table, name) for table in tables})
        options = "".join(f"<option>{escape(str(value))}</option>" for value in values)
        choices.append(f'<label>{name} <select name="{name}"><option value="">all</option>{options}</select></label>')
    check = (
        f'<label class="inline"><input type="checkbox" name="reported"{" checked" if reported else ""}> '
        "numbers reported by others</label>"
    )
    words = '<label>words in a row <input type="search" name="words" placeholder="method, device, ..."></label>'
    return f'<form class="filters" role="search" onsubmit="return false">{words}{"".join(choices)}{check}</form>'


# -- tables -----------------------------------------------------------------------------------------------------------


def _table(number: int, table: Table, reported: bool) -> str:
    shared = "; ".join(f"{name} {value}" for name, value in facts(table).items() if value)
    low, high = _range(table)
    heads = [
        _th("#", "rank", first="ascending"), _th("method", word=True),
        *(_th(f"fold{fold}", f"mIoU of fold {fold}") for fold in range(table.n_folds)), _th("mIoU"),
        f'<th scope="col">95 % interval<br><span class="soft">{100 * low:.0f} to {100 * high:.0f}</span></th>',
        _th("FB-IoU"), _th("params", "weights, frozen ones included"), _th("trained", "weights that were trained"),
        _th("s/ep", "seconds per episode", first="ascending"), _th("GiB", "largest memory", first="ascending"),
    ]  # fmt: skip
    results = table.reported if reported else ()
    told = bool(results) or "device" not in facts(table)  # else the heading says it all
    heads += [_th("device or source", word=True), _th("protocol", word=True)] if told else []
    rows = [_row(table, row, (low, high), told) for row in table.rows]
    rows += [_reported(table, result) for result in results]
    unranked = [f"{row.name} seed {row.seed}: not ranked, {row.note}." for row in table.unranked]
    notes = f'<ul class="soft">{"".join(f"<li>{escape(note)}</li>" for note in unranked)}</ul>' if unranked else ""
    data = " ".join(f'data-{name}="{escape(str(getattr(table, name)))}"' for name in ("dataset", "shot", "track"))
    return (
        f'<section class="table" id="table{number}" {data}>\n<h2>{escape(table.dataset)}, {table.shot}-shot, track '
        f'{escape(table.track)}</h2>\n<p class="soft">{escape(title(table))}. {escape(shared)}</p>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="results"><table class="board"><caption class="skip">'
        f"{escape(title(table))}</caption><thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + f"\n</tbody></table></div>\n{notes}"
        + f"{cost_plot(table)}{heat_maps(table)}</section>"
    )


def _th(text: str, meaning: str = "", word: bool = False, first: str = "descending") -> str:
    kind = ' class="word"' if word else ""
    meaning = f' title="{meaning}"' if meaning else ""
    return f'<th scope="col"{kind} data-first="{first}"><button type="button"{meaning}>{text}</button></th>'


def _row(table: Table, row: Row, bounds: tuple[float, float], told: bool) -> str:
    """A measured row; `told` adds its device and protocol."""
    folds = [
        _td(percent(value), value, record_id(row.records.get(fold)), span(row.fold_intervals[fold]))
        for fold, value in enumerate(row.fold_miou)
    ]
    folds += [_td("-", None)] * (table.n_folds - len(row.fold_miou))
    own = next(iter(row.records.values()), None)
    external = ' <span class="tag">external masks</span>' if row.external else ""
    name = f'<a href="#{record_id(own)}">{escape(row.method)}</a> <code>{row.config_hash[:8]}</code>{external}'
    if row.seed:
        name += f' <span class="soft">seed {row.seed}</span>'
    bar = interval_bar(row.miou, row.interval, bounds) if row.miou is not None else ""
    mean = _td(percent(row.miou), row.miou, record_id(own))
    low = row.interval[0] if row.interval else None
    cells = [
        _td(rank(table, row), row.rank), f'<th scope="row" class="word">{name}</th>', *folds, mean,
        f'<td data-value="{_plain(low)}">{bar}<span class="soft small">{span(row.interval)}</span></td>',
        _td(percent(row.fb_iou), row.fb_iou, record_id(own), after=span(row.fb_interval)), _td(count(row.parameters), row.parameters),
        _td(count(row.trained_parameters), row.trained_parameters),
        _td(seconds(row.seconds_per_episode), row.seconds_per_episode), _td(gibibytes(row.peak_memory), row.peak_memory),
    ]  # fmt: skip
    if told:
        device = "" if "device" in facts(table) else ", ".join(row.devices)
        cells += [f'<td class="word">{escape(text)}</td>' for text in (device, table.protocol)]
    kind = ' class="unranked"' if row.rank is None else ""
    return f"<tr{kind}>{''.join(cells)}</tr>"


def _reported(table: Table, result: Published) -> str:
    """A row of a number that others published; in another dress, and without a rank."""
    folds = [*result.fold_miou, *[""] * table.n_folds][: table.n_folds]
    where = f"{result.paper}; {result.read_in}; {result.confidence}" + (f"; {result.remark}" if result.remark else "")
    name = f'{escape(result.method)} ({escape(result.backbone)}) <span class="tag">reported</span>'
    protocol = ", ".join(
        filter(None, (result.protocol, result.resolution, result.episodes and f"{result.episodes} episodes"))
    )
    cells = [
        "<td></td>", f'<th scope="row" class="word" title="{escape(where)}">{name}</th>',
        *(f"<td>{value or '-'}</td>" for value in folds), f"<td>{result.miou or '-'}</td>", '<td data-value=""></td>',
        f"<td>{result.fb_iou or '-'}</td>", *['<td data-value=""></td>'] * 4,
        f'<td class="word">{escape(where)}</td>', f'<td class="word">{escape(protocol)}</td>',
    ]  # fmt: skip
    return f'<tr class="reported">{"".join(cells)}</tr>'


def _td(text: str, value: float | None, link: str = "", hint: str = "", after: str = "") -> str:
    """A cell; its interval as a `hint` for the pointer, or below it (`after`)."""
    hint = f' title="95 %: {hint}"' if hint and hint != "-" else ""
    shown = f'<a href="#{link}"{hint}>{text}</a>' if link and value is not None else text
    shown += f'<br><span class="soft small">{after}</span>' if after and after != "-" else ""
    return f'<td data-value="{_plain(value)}">{shown}</td>'


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


def _range(table: Table) -> tuple[float, float]:
    """Common scale of a table's intervals: full tens of per cent around all of them."""
    ends = [end for row in table.rows for end in (*row.interval, *([row.miou] if row.miou is not None else []))]
    if not ends:
        return 0.0, 1.0
    return int(10 * min(ends)) / 10, min(1.0, (int(10 * max(ends)) + 1) / 10)


# -- records, galleries, remarks --------------------------------------------------------------------------------------


def _records(root: Path, tables: Sequence[Table]) -> str:
    blocks = [_record(root, table, row, fold) for table in tables for row in table.rows for fold in row.records]
    return f'<section id="records"><h2>Records</h2>\n{"".join(blocks)}</section>' if blocks else ""


def _record(root: Path, table: Table, row: Row, fold: int) -> str:
    path = row.records[fold]
    classes = [c for c in row.cells() if c.fold == fold]
    ious = "; ".join(f"{escape(c.name)} {percent(c.iou)} ({c.episodes} episodes)" for c in classes)
    again = "" if row.external else _command(f"fssbench replay {shlex.quote(str(root / path))}")
    told = {
        "mIoU": f"{percent(row.fold_miou[fold])}, 95 % {span(row.fold_intervals[fold])}",
        "classes": ious,
        "episodes": f"{escape(table.protocol)} version {table.protocol_version}, fold {fold} of {table.n_folds}, "
        f"{table.shot}-shot, manifest <code>{row.manifests[fold]}</code>",
        "weights": f"<code>{row.weights[fold]}</code>" if row.weights[fold] else "none recorded",
        "configuration": f"<code>{row.config_hash}</code>, seed {row.seed}",
        "method": escape(row.metadata.method_class),
        "track": escape(row.metadata.track),
        "selection": escape(row.metadata.selection),
        "pre-training": f"{escape(row.metadata.backbone)}, {escape(row.metadata.backbone_pretraining)}; contamination: "
        f"{escape(', '.join(row.metadata.contamination))}",
        "made by": "another program; the masks were counted by fssbench" if row.external else "fssbench",
        "record": f"<code>{escape(str(root / path))}</code>",
        "run it again": again or "the masks of another program can only be counted again",
        "more": _command(f"fssbench explain {shlex.quote(str(root / path))}"),
    }
    items = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in told.items())
    head = f"{escape(row.name)}: {escape(table.dataset)} fold {fold}, {table.shot}-shot, seed {row.seed}"
    return f'<details id="{escape(record_id(path))}"><summary>{head}</summary><dl>{items}</dl></details>\n'


def _command(text: str) -> str:
    return f'<span class="command"><code>{escape(text)}</code><button type="button" class="copy">copy</button></span>'


def _galleries(galleries: Iterable[Gallery]) -> str:
    parts = []
    for gallery in galleries:
        parts.append(
            f'<section><h2>{escape(gallery.title)}</h2><p><a href="#{escape(record_id(gallery.record))}">its record</a></p>'
        )
        for group in dict.fromkeys(shown.group for shown in gallery.episodes):
            parts.append(f"<h3>{group}</h3>")
            parts += [_figure(shown) for shown in gallery.episodes if shown.group == group]
        parts.append("</section>")
    return "\n".join(parts)


def _figure(shown: Shown) -> str:
    pictures = "".join(
        f'<div><img src="{uri}" alt="{escape(what)}, {escape(shown.caption)}" loading="lazy">{escape(what)}</div>'
        for what, uri in shown.pictures
    )
    return f'<figure><div class="strip">{pictures}</div><figcaption>{escape(shown.caption)}</figcaption></figure>'


def _damaged(board: Board) -> str:
    if not board.damaged:
        return ""
    items = "".join(f"<li>{escape(reason)}</li>" for _, reason in board.damaged)
    return f"<section><h2>Left out: damaged records</h2><ul>{items}</ul></section>"


def _failed(board: Board) -> str:
    if not board.failed:
        return ""
    items = "".join(
        f'<li>{escape(f.name)}: {escape(f.reason)} <span class="soft">{escape(f.when)}</span>'
        f"{_command(shlex.join(('fssbench', *f.arguments)))}</li>"
        for f in board.failed
    )
    return f'<section id="failed"><h2>Failed runs</h2><ul>{items}</ul></section>'


def _reading() -> str:
    """What a reader must know, in a few lines; docs/board.md says more."""
    points = [
        "Rows of one table were scored on exactly the same episodes, at the same resolution, in the same track.",
        "mIoU is the mean over all folds, and only there if all folds are; other rows have no rank.",
        "The interval is where 95 % of stratified bootstrap samples of the episodes lie.",
        "A rank is 1 + the number of rows that are better by more than the noise: the paired interval of the difference "
        "leaves out 0. Rows with = share theirs.",
        "Numbers reported by others come from papers and other evaluation code. They are orientation, not comparison.",
    ]
    items = "".join(f"<li>{point}</li>" for point in points)
    return f'<section id="reading"><h2>How to read this</h2><ul>{items}</ul></section>'
