"""Means over the draws of a protocol that is reported as such: `bam-compat` with BAM's five seeds (protocols.md 2.4).

Each draw has a table of its own on the board. Beside them stands their mean, never the best of them, and only where all of
the protocol's draws are there with all folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import stdev

from fssbench.metrics.scores import mean
from fssbench.protocols.profiles import BAM_SEEDS, protocol_id
from fssbench.results.leaderboard import Row, Table

DRAWS = {"bam-compat": tuple(protocol_id("bam-compat", seed) for seed in BAM_SEEDS)}
"""Protocol -> the names of its draws."""


@dataclass(frozen=True, kw_only=True)
class MeanRow:
    """One method configuration over all draws; unrounded fractions in [0, 1].

    fold_miou  mean over the draws of each fold's mIoU
    miou       mean over draws and folds
    deviation  standard deviation (n - 1) of the draws' mIoU
    fb_iou     mean over draws and folds
    """

    method: str
    config_hash: str
    seed: int
    fold_miou: tuple[float, ...]
    miou: float
    deviation: float
    fb_iou: float


@dataclass(frozen=True, kw_only=True)
class MeanTable:
    """The means of all rows that share data set, shots, resolution and track, the highest first."""

    first: Table
    """The table of the first draw: what all of them share."""
    protocol: str
    rows: tuple[MeanRow, ...]


def over_draws(tables: Iterable[Table]) -> list[MeanTable]:
    """The means over draws that the tables give; none where a draw is missing or was tested on several manifests, and none of
    a row whose draws differ in weights, metadata or number of episodes."""
    groups: dict[tuple[str, ...], dict[str, list[Table]]] = defaultdict(lambda: defaultdict(list))
    for table in tables:
        protocol = next((name for name, draws in DRAWS.items() if table.protocol in draws), None)
        if protocol:
            shared = (table.dataset, table.protocol_version, table.shot, table.resolution, table.track)
            groups[protocol, *map(str, shared)][table.protocol].append(table)
    found = []
    for (protocol, *_), by_draw in groups.items():
        draws = [by_draw.get(name, []) for name in DRAWS[protocol]]
        if all(len(each) == 1 for each in draws):
            rows = _rows([each[0] for each in draws])
            if rows:
                found.append(MeanTable(first=draws[0][0], protocol=protocol, rows=rows))
    return found


def _rows(tables: list[Table]) -> tuple[MeanRow, ...]:
    by_method: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            if row.miou is not None:
                by_method[row.method, row.config_hash, row.seed].append(row)
    whole = [_mean_row(rows) for rows in by_method.values() if len(rows) == len(tables) and _alike(rows)]
    return tuple(sorted(whole, key=lambda row: (-row.miou, row.method, row.config_hash, row.seed)))


def _alike(rows: list[Row]) -> bool:
    """Whether the draws tested the same weights, on equally many episodes of every fold: else their mean is of nothing."""
    return all(
        row.weights == rows[0].weights and _episodes(row) == _episodes(rows[0]) and row.metadata == rows[0].metadata
        for row in rows
    )


def _episodes(row: Row) -> list[tuple[int, int]]:
    return [(part.fold, sum(part.episodes)) for part in row.classes]


def _mean_row(rows: list[Row]) -> MeanRow:
    mious = [row.miou for row in rows if row.miou is not None]
    return MeanRow(
        method=rows[0].method,
        config_hash=rows[0].config_hash,
        seed=rows[0].seed,
        fold_miou=tuple(
            mean(value for value in fold if value is not None)
            for fold in zip(*(row.fold_miou for row in rows), strict=True)
        ),
        miou=mean(mious),
        deviation=stdev(mious),
        fb_iou=mean(row.fb_iou for row in rows if row.fb_iou is not None),
    )
