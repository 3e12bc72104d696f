"""Comparing two methods on the episodes that both were tested on: is one better, by how much, and on what.

Every difference is B minus A with its paired 95 % bootstrap interval: in each sample the same episodes are drawn for
both, so what is hard for both cancels out. Scores are of the shared episodes alone, and so may differ from the board's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, NamedTuple

import numpy as np

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.metrics.scores import mean
from fssbench.results.fields import Checked
from fssbench.results.record import Key, ResultRecord
from fssbench.results.statistics import Array, class_samples, interval, mean_over
from fssbench.results.table import EpisodeRow

SAMPLES = 5000
SIZES = (0.01, 0.05, 0.2)
"""Where object sizes are cut: the object's share of the counted pixels of its image. Our choice."""
SIZE_NAMES = ("below 1 %", "1 to 5 %", "5 to 20 %", "20 % and more")

Result = tuple[ResultRecord, Sequence[EpisodeRow]]
"""A record and its episode table."""


@dataclass(frozen=True, kw_only=True)
class Difference(Checked):
    """Scores of A and B on one group of shared episodes, and their difference; fractions in [-1, 1]."""

    group: ClassVar[str] = "difference"
    what: str
    episodes: int
    a: float
    b: float
    difference: float
    """B minus A."""
    interval: tuple[float, ...]
    """Paired 95 % interval of the difference."""

    @property
    def verdict(self) -> str:
        """`A` or `B` where the interval leaves out 0, else `=`."""
        low, high = self.interval
        return "B" if low > 0 else "A" if high < 0 else "="


@dataclass(frozen=True, kw_only=True)
class EpisodePair(Checked):
    """One episode and the IoU of both."""

    group: ClassVar[str] = "episode"
    fold: int
    shot: int
    episode_id: int
    """Index in A's manifest."""
    class_name: str
    query_key: str
    support_keys: tuple[str, ...]
    a: float
    b: float


@dataclass(frozen=True, kw_only=True)
class Comparison(Checked):
    """What two methods' results on one data set and protocol say about each other."""

    group: ClassVar[str] = "comparison"
    dataset: str
    protocol: str
    resolution: str
    a: str
    b: str
    folds: tuple[int, ...]
    """Folds that both have."""
    n_folds: int
    left_out: int
    """Episodes that only one of the two was tested on."""
    by_shot: tuple[Difference, ...]
    """mIoU for every number of supports: mean over the folds, as on the board."""
    by_fold: tuple[Difference, ...]
    by_size: tuple[Difference, ...]
    """mIoU over the classes that have objects of a size; empty where the tables hold no sizes (schema version 1)."""
    by_class: tuple[Difference, ...]
    most_different: tuple[EpisodePair, ...]
    """Episodes where B is furthest ahead, then those where A is, in turn."""


class Cell(NamedTuple):
    """The shared episodes of one fold and shot; index 0 of the arrays is A, 1 is B."""

    key: Key
    class_names: dict[int, str]
    rows: list[tuple[EpisodeRow, EpisodeRow]]
    class_ids: Array
    """(N,)"""
    counts: dict[str, Array]
    """`fg_intersection` and `fg_union`, (2, N)."""
    sizes: Array
    """(N,) index into `SIZE_NAMES`, -1 where unknown."""


def compare(a: Sequence[Result], b: Sequence[Result], episodes: int = 10) -> list[Comparison]:
    """Compare the results of two methods, one comparison per data set, protocol and resolution that both have.

    episodes   how many of the most different episodes to list

    Raises:
        UserError: a side has several results for a fold and shot, its folds are of several experiments, or there is not
            one shared episode.
    """
    left, right = _by_place(a, "A"), _by_place(b, "B")
    places = sorted(left.keys() & right.keys())
    cells: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    left_out: Counter[tuple[str, str, str]] = Counter()
    for place in places:
        cell, lost = _shared(left[place], right[place])
        if cell.rows:
            cells[place[:3]].append(cell)
            left_out[place[:3]] += lost
    if not cells:
        raise UserError(
            "A and B have no episode in common: they need results on the same data set, fold and number of supports, with "
            "the same episodes. `fssbench leaderboard` shows what there is."
        )
    compared = []
    for group, found in sorted(cells.items()):
        mine, theirs = ([side[place][0] for place in places if place[:3] == group] for side in (left, right))
        names = _one_name(mine, "A"), _one_name(theirs, "B")
        n_folds = max(record.metadata.n_folds for record in (*mine, *theirs))
        compared.append(_comparison(group, names, found, left_out[group], n_folds, episodes))
    return compared


def _one_name(records: Sequence[ResultRecord], side: str) -> str:
    """What a side's results are of. A mean over folds must be of one experiment; another number of supports may have a
    configuration of its own.

    Raises `UserError` where the folds are of several.
    """
    for shot in {record.key.shot for record in records}:
        mixed = sorted({(_name(r), r.key.seed) for r in records if r.key.shot == shot})
        if len(mixed) > 1:
            found = ", ".join(f"{name} seed {seed}" for name, seed in mixed)
            raise UserError(
                f"{side} mixes folds of several experiments at {shot}-shot ({found}): name one configuration (METHOD@HASH), one "
                "--seed, or the records themselves."
            )
    return ", ".join(sorted({_name(record) for record in records}))


def _by_place(results: Iterable[Result], side: str) -> dict[tuple[str, str, str, int, int], Result]:
    found: dict[tuple[str, str, str, int, int], Result] = {}
    for record, rows in results:
        key = record.key
        place = (key.dataset, key.protocol, key.resolution, key.shot, key.fold)
        if place in found:
            raise UserError(
                f"{side} has several results on {key.dataset} fold {key.fold}, {key.shot}-shot: name one configuration "
                "(METHOD@HASH), one --seed, or the records themselves."
            )
        found[place] = record, rows
    return found


def _shared(a: Result, b: Result) -> tuple[Cell, int]:
    """The episodes that two results share, in A's order, and how many they do not share."""
    theirs = _identified(b[1])
    mine = _identified(a[1])
    rows = [(row, theirs[identity]) for identity, row in mine.items() if identity in theirs]
    lost = len(mine) + len(theirs) - 2 * len(rows)
    names = {c: score.name for c, score in a[0].scores.class_iou.items()}
    counts = {
        name: np.array([[getattr(row, name) for row in pair] for pair in rows], np.int64).reshape(-1, 2).T
        for name in ("fg_intersection", "fg_union")
    }
    class_ids = np.array([one.class_id for one, _ in rows], np.int64)
    sizes = np.array([_size(*pair) for pair in rows], np.int64)
    return Cell(a[0].key, names, rows, class_ids, counts, sizes), lost


def _identified(rows: Iterable[EpisodeRow]) -> dict[tuple[object, ...], EpisodeRow]:
    """Episodes by what they are: class, query and supports; the n-th repetition is another episode."""
    seen: Counter[tuple[object, ...]] = Counter()
    found: dict[tuple[object, ...], EpisodeRow] = {}
    for row in rows:
        what = (row.class_id, row.query_key, row.support_keys)
        found[(*what, seen[what])] = row
        seen[what] += 1
    return found


def _size(one: EpisodeRow, other: EpisodeRow) -> int:
    target = one.fg_target if one.fg_target is not None else other.fg_target
    counted = one.fg_union + one.bg_intersection  # every counted pixel is in one of the two
    return -1 if target is None else int(np.searchsorted(SIZES, target / max(1, counted), side="right"))


def _comparison(
    group: tuple[str, str, str], names: tuple[str, str], cells: list[Cell], left_out: int, n_folds: int, episodes: int
) -> Comparison:
    shots = sorted({cell.key.shot for cell in cells})
    of_shot = {shot: [cell for cell in cells if cell.key.shot == shot] for shot in shots}

    def per(what: Callable[[Cell], str]) -> tuple[Difference, ...]:
        return tuple(_difference(what(cell), [_scores(cell)]) for cell in cells)

    return Comparison(
        dataset=group[0],
        protocol=group[1],
        resolution=group[2],
        a=names[0],
        b=names[1],
        folds=tuple(sorted({cell.key.fold for cell in cells})),
        n_folds=n_folds,
        left_out=left_out,
        by_shot=tuple(_difference(f"{k}-shot", [_scores(cell) for cell in of_shot[k]]) for k in shots),
        by_fold=per(lambda cell: f"fold {cell.key.fold}, {cell.key.shot}-shot"),
        by_size=tuple(_by_size(cells)),
        by_class=tuple(_by_class(cells)),
        most_different=tuple(_most_different(cells, episodes)),
    )


class _Scores(NamedTuple):
    """Mean class IoU of A and B over some episodes: exact, and in bootstrap samples (2, S)."""

    episodes: int
    exact: tuple[float, float]
    samples: Array


def _scores(cell: Cell, chosen: Array | None = None, name: str = "") -> _Scores:
    """mIoU of A and B over all shared episodes of a cell, or over the `chosen` (N,) bool ones, a stratum of that name."""
    chosen = np.ones(len(cell.class_ids), bool) if chosen is None else chosen
    stratum = sha256_text(f"{cell.key.manifest_sha256} {name}") if name else cell.key.manifest_sha256
    exact, samples = [], []
    for class_id in np.unique(cell.class_ids[chosen]).tolist():
        of_class = chosen & (cell.class_ids == class_id)
        inter, union = (cell.counts[count][:, of_class] for count in ("fg_intersection", "fg_union"))
        exact.append([int(i) / max(int(u), 1) for i, u in zip(inter.sum(1), union.sum(1), strict=True)])
        sums = class_samples(stratum, class_id, inter, union, SAMPLES)
        samples.append(sums[0] / np.maximum(sums[1], 1))
    both = mean(a for a, _ in exact), mean(b for _, b in exact)
    return _Scores(int(chosen.sum()), both, mean_over(samples))


def _difference(what: str, parts: Sequence[_Scores]) -> Difference:
    """The difference of the parts' means."""
    a, b = (mean(part.exact[side] for part in parts) for side in (0, 1))
    samples = mean_over([part.samples for part in parts])
    return Difference(
        what=what,
        episodes=sum(part.episodes for part in parts),
        a=a,
        b=b,
        difference=b - a,
        interval=interval(samples[1] - samples[0]),
    )


def _by_size(cells: Sequence[Cell]) -> Iterable[Difference]:
    for number, name in enumerate(SIZE_NAMES):
        parts = [_scores(cell, cell.sizes == number, name) for cell in cells if (cell.sizes == number).any()]
        if parts:
            yield _difference(name, parts)


def _by_class(cells: Sequence[Cell]) -> Iterable[Difference]:
    for cell in cells:
        for class_id in np.unique(cell.class_ids).tolist():
            what = f"{cell.class_names[class_id]}, {cell.key.shot}-shot"
            yield _difference(what, [_scores(cell, cell.class_ids == class_id)])


def _most_different(cells: Sequence[Cell], episodes: int) -> list[EpisodePair]:
    pairs = [
        EpisodePair(
            fold=cell.key.fold,
            shot=cell.key.shot,
            episode_id=one.episode_id,
            class_name=cell.class_names[one.class_id],
            query_key=one.query_key,
            support_keys=one.support_keys,
            a=one.fg_intersection / max(1, one.fg_union),
            b=other.fg_intersection / max(1, other.fg_union),
        )
        for cell in cells
        for one, other in cell.rows
    ]
    ahead = sorted((pair for pair in pairs if pair.a != pair.b), key=lambda pair: pair.a - pair.b)
    half = (len(ahead) + 1) // 2
    return [*_in_turn(ahead[:half], ahead[: half - 1 : -1])][:episodes] if half else []


def _in_turn(one: Sequence[EpisodePair], other: Sequence[EpisodePair]) -> Iterable[EpisodePair]:
    """The first of each, the second of each, ...; a sequence that ends leaves the rest to the other."""
    for pair in zip_longest(one, other):
        yield from (item for item in pair if item is not None)


def _name(record: ResultRecord) -> str:
    return f"{record.key.method}@{record.key.config_hash[:8]}"
