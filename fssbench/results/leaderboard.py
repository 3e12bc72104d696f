"""The leaderboard: records grouped into tables whose rows may be compared, and ranked only where that is fair.

A row is one experiment over all folds of a data set. Its records agree in every part of the key but three:
- the fold, which tells them apart;
- the manifest, which holds the episodes of one fold. Rows of one table must have used the same manifest on every fold;
  otherwise the table is split;
- the weights, which differ where a method is trained per fold. See `_weights_problem` for what must hold instead.
Their metadata must agree as well: a mean over a fold selected on its test set and one that was not is no single number.
Nothing is rounded here; `render` rounds what it shows to people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from fssbench.errors import UserError, nearest
from fssbench.files import sha256_text
from fssbench.metrics.scores import mean
from fssbench.results.record import Key, Metadata, ResultRecord

Format = Literal["text", "md", "csv", "json"]
FORMATS: tuple[Format, ...] = ("text", "md", "csv", "json")

_PER_FOLD = ("fold", "manifest_sha256", "weights_sha256")
_ROW_KEYS = tuple(field.name for field in fields(Key) if field.name not in _PER_FOLD)
_TABLE_KEYS = ("dataset", "protocol", "protocol_version", "shot", "resolution")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method configuration with one seed over the folds of a data set; IoUs are unrounded fractions in [0, 1]."""

    rank: int | None
    """1 for the highest mean mIoU, equal for equal means; None where the row is not ranked."""
    method: str
    config_hash: str
    seed: int
    fold_miou: tuple[float | None, ...]
    """mIoU of fold 0, 1, ...; None where the fold is missing or has several results."""
    miou: float | None
    """Mean of the folds' mIoU, None unless all folds are there and may be averaged."""
    fb_iou: float | None
    """Mean of the folds' FB-IoU, None like `miou`."""
    episodes: int
    """Episodes of the folds that are there."""
    note: str
    """Why the row is not ranked; empty where it is."""
    manifests: dict[int, str]
    """Fold -> SHA-256 of its manifest."""
    weights: dict[int, str | None]
    """Fold -> SHA-256 of the weights."""
    metadata: Metadata


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that were scored in the same way on the same episodes: ranked rows, best first, then the others by name."""

    dataset: str
    protocol: str
    protocol_version: int
    shot: int
    resolution: str
    n_folds: int
    manifests: dict[int, str]
    """Fold -> SHA-256 of the manifest that every row of the table used."""
    manifest_id: str
    """Short name of `manifests`: equal for equal sets."""
    rows: tuple[Row, ...]


def board(records: Iterable[ResultRecord]) -> list[Table]:
    """Tables of all records, by data set, protocol, shot and resolution, and by manifests where they differ."""
    experiments: dict[tuple[Any, ...], list[ResultRecord]] = defaultdict(list)
    for record in records:
        experiments[tuple(getattr(record.key, name) for name in _ROW_KEYS)].append(record)
    grouped: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for group in experiments.values():
        grouped[tuple(getattr(group[0].key, name) for name in _TABLE_KEYS)].append(_row(group))
    return [
        _table(dict(zip(_TABLE_KEYS, group, strict=True)), manifests, rows)
        for group in sorted(grouped)
        for manifests, rows in _comparable(grouped[group])
    ]


def render(tables: Iterable[Table], format: Format = "text", width: int = 100) -> str:
    """The tables as text for a terminal (`width` columns, ASCII), as Markdown, or unrounded as CSV or JSON.

    Raises:
        UserError: an unknown format.
    """
    from fssbench.results import rendering

    if format not in FORMATS:
        raise UserError(f"Leaderboard format '{format}' is not known.{nearest(format, FORMATS)}")
    tables = list(tables)
    if format == "text":
        return rendering.text(tables, width)
    return {"md": rendering.markdown, "csv": rendering.csv_text, "json": rendering.json_text}[format](tables)


def _row(group: list[ResultRecord]) -> Row:
    """One experiment's records as an unranked row, with the reason if it must stay unranked."""
    by_fold: dict[int, list[ResultRecord]] = defaultdict(list)
    for record in group:
        # the same result found in two stores is one result
        if all(record.key != other.key or record.scores != other.scores for other in by_fold[record.key.fold]):
            by_fold[record.key.fold].append(record)
    single = {fold: found[0] for fold, found in sorted(by_fold.items()) if len(found) == 1}
    first = group[0]
    n_folds = max(record.metadata.n_folds for record in group)
    note = _problem(by_fold, single, n_folds)
    return Row(
        rank=None,
        method=first.key.method,
        config_hash=first.key.config_hash,
        seed=first.key.seed,
        fold_miou=tuple(single[f].scores.miou if f in single else None for f in range(n_folds)),
        miou=None if note else mean(r.scores.miou for r in single.values()),
        fb_iou=None if note else mean(r.scores.fb_iou for r in single.values()),
        episodes=sum(r.scores.episodes for r in single.values()),
        note=note,
        manifests={fold: r.key.manifest_sha256 for fold, r in single.items()},
        weights={fold: r.key.weights_sha256 for fold, r in single.items()},
        metadata=first.metadata,
    )


def _problem(by_fold: Mapping[int, list[ResultRecord]], single: Mapping[int, ResultRecord], n_folds: int) -> str:
    """Why the records of one experiment do not make a mean over folds; empty where they do."""
    for fold in sorted(by_fold):
        if len(by_fold[fold]) > 1:
            return f"fold {fold} has {len(by_fold[fold])} different results; keep one"
    if len(single) < n_folds:
        missing = [str(fold) for fold in range(n_folds) if fold not in single]
        return f"{len(single)} of {n_folds} folds; missing {', '.join(missing)}"
    records = list(single.values())
    for field in fields(Metadata):
        if len({getattr(record.metadata, field.name) for record in records}) > 1:
            return f"folds differ in {field.name}"
    return _weights_problem(records)


def _weights_problem(records: list[ResultRecord]) -> str:
    """What is wrong with the weights of the folds; empty where they belong together.

    - Either every fold has weights or none.
    - Without training all folds have the same ones.
    - With training on base classes only (track `strict`) every fold has its own: one checkpoint for two folds was
      trained on classes that are novel in one of them.
    """
    metadata = records[0].metadata
    weights = [record.key.weights_sha256 for record in records]
    if None in weights and len(set(weights)) > 1:
        return "some folds have weights, others none"
    if metadata.selection == "not trained" and len(set(weights)) > 1:
        return "not trained, yet weights differ between folds"
    trained = metadata.track == "strict" and metadata.selection != "not trained" and None not in weights
    if trained and len(set(weights)) < len(weights):
        return "one checkpoint on several folds: novel classes were trained on"
    return ""


def _comparable(rows: list[Row]) -> list[tuple[dict[int, str], list[Row]]]:
    """Split rows so that every part used one manifest per fold.

    Complete rows make the parts; an incomplete row joins the largest part that it does not contradict.
    """
    parts: list[tuple[dict[int, str], list[Row]]] = []
    for row in sorted(rows, key=lambda r: (-len(r.manifests), sorted(r.manifests.items()), _order(r))):
        fitting = [
            part for part in parts if all(part[0].get(fold, sha256) == sha256 for fold, sha256 in row.manifests.items())
        ]
        if fitting:
            manifests, members = max(fitting, key=lambda part: len(part[1]))
            manifests.update(row.manifests)
            members.append(row)
        else:
            parts.append((dict(row.manifests), [row]))
    return parts


def _table(group: dict[str, Any], manifests: dict[int, str], rows: list[Row]) -> Table:
    ranked = sorted((r for r in rows if r.miou is not None), key=lambda r: (-(r.miou or 0.0), _order(r)))
    means = [r.miou for r in ranked]
    ranked = [replace(r, rank=means.index(r.miou) + 1) for r in ranked]
    manifests = dict(sorted(manifests.items()))
    return Table(
        **group,
        n_folds=max(len(r.fold_miou) for r in rows),
        manifests=manifests,
        manifest_id=sha256_text("\n".join(f"{fold} {sha256}" for fold, sha256 in manifests.items()))[:8],
        rows=(*ranked, *sorted((r for r in rows if r.miou is None), key=_order)),
    )


def _order(row: Row) -> tuple[str, str, int]:
    return row.method, row.config_hash, row.seed
