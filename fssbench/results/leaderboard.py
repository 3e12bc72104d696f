"""The leaderboard: records grouped into tables whose rows may be compared, and ranked only where that is fair.

A row is one experiment over all folds of a data set. Its records agree in every part of the key but three:
- the fold, which tells them apart;
- the manifest, which holds the episodes of one fold. Rows of one table must have used the same manifest on every fold;
  otherwise the table is split, as it is where they counted other numbers of pixels: then their data or masks differ;
- the weights, which differ where a method is trained per fold. See `_weights_problem` for what must hold instead.
Their metadata must agree as well: a mean over a fold selected on its test set and one that was not is no single number.

Tables hold one track each: what a method may have seen is not made up for by a better score. Rows share a rank where
their difference is within the noise of the episodes (`statistics.shared_ranks`).
Nothing is rounded here; the renderers round what they show to people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

from fssbench.files import sha256_text
from fssbench.metrics.scores import mean
from fssbench.results.entry import KEY_NAMES, Entry
from fssbench.results.fields import Checked
from fssbench.results.noise import Judge
from fssbench.results.published import Published, published
from fssbench.results.record import Metadata, ResultRecord

_PER_FOLD = ("fold", "manifest_sha256", "weights_sha256")
_ROW_KEYS = tuple(name for name in KEY_NAMES if name not in _PER_FOLD)
_TABLE_KEYS = ("dataset", "protocol", "protocol_version", "shot", "resolution")


class ClassCell(NamedTuple):
    """A row's score on one class of one fold; an unrounded fraction in [0, 1]."""

    fold: int
    class_id: int
    name: str
    iou: float
    episodes: int


@dataclass(frozen=True, kw_only=True)
class FoldClasses(Checked):
    """A row's scores on the classes of one fold, as columns."""

    group: ClassVar[str] = "classes"
    fold: int
    ids: tuple[int, ...]
    names: tuple[str, ...]
    ious: tuple[float, ...]
    episodes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Row(Checked):
    """One method configuration with one seed over the folds of a data set; IoUs are unrounded fractions in [0, 1]."""

    group: ClassVar[str] = "row"
    rank: int | None
    """1 for the best; shared by rows that the episodes cannot tell apart; None where the row is not ranked."""
    method: str
    config_hash: str
    seed: int
    fold_miou: tuple[float | None, ...]
    """mIoU of fold 0, 1, ...; None where the fold is missing or has several results."""
    miou: float | None
    """Mean of the folds' mIoU, None unless all folds are there and may be averaged."""
    interval: tuple[float, ...]
    """95 % interval of `miou`, low and high; empty where there is no mean or no episode table."""
    fold_intervals: tuple[tuple[float, ...], ...]
    """The same for every fold."""
    fb_iou: float | None
    """Mean of the folds' FB-IoU, None like `miou`."""
    fb_interval: tuple[float, ...]
    """95 % interval of `fb_iou`, empty like `interval`."""
    episodes: int
    """Episodes of the folds that are there."""
    classes: tuple[FoldClasses, ...]
    note: str
    """Why the row is not ranked; empty where it is."""
    parameters: int | None
    trained_parameters: int | None
    seconds_per_episode: float | None
    """Mean over all episodes of the folds that are there."""
    peak_memory: int | None
    """Largest of the folds, in bytes."""
    devices: tuple[str, ...]
    external: bool
    """Whether the masks were made by another program."""
    manifests: dict[int, str]
    """Fold -> SHA-256 of its manifest."""
    weights: dict[int, str | None]
    """Fold -> SHA-256 of the weights."""
    records: dict[int, str]
    """Fold -> path of its record below the results folder."""
    metadata: Metadata

    @property
    def name(self) -> str:
        """Short name: method and configuration."""
        return f"{self.method}@{self.config_hash[:8]}"

    def cells(self) -> Iterator[ClassCell]:
        """The scores of all classes, by fold, then class."""
        for part in self.classes:
            for columns in zip(part.ids, part.names, part.ious, part.episodes, strict=True):
                yield ClassCell(part.fold, *columns)


@dataclass(frozen=True, kw_only=True)
class Table(Checked):
    """Rows that were scored in the same way on the same episodes: ranked rows, best first, then the others by name."""

    group: ClassVar[str] = "table"
    dataset: str
    protocol: str
    protocol_version: int
    shot: int
    resolution: str
    track: str
    n_folds: int
    manifests: dict[int, str]
    """Fold -> SHA-256 of the manifest that every row of the table used."""
    manifest_id: str
    """Short name of `manifests` (and of `truth`): equal for equal sets."""
    truth: str
    """What is counted here, where another table has the same manifests and counts something else; else empty."""
    rows: tuple[Row, ...]
    reported: tuple[Published, ...]
    """Numbers that others published for this data set, shot and track; under other protocols, so never ranked."""

    @property
    def unranked(self) -> list[Row]:
        """Rows without a rank."""
        return [row for row in self.rows if row.rank is None]

    def shares_rank(self, row: Row) -> bool:
        """Whether another row has the same rank."""
        return row.rank is not None and sum(other.rank == row.rank for other in self.rows) > 1


def board(
    records: Iterable[ResultRecord | Entry],
    judge: Judge | None = None,
    judged: Callable[[Mapping[str, Any]], bool] | None = None,
) -> list[Table]:
    """Tables of all records, by data set, protocol, shot, resolution and track, and by manifests where they differ.

    Without a `judge`, and in tables that are not `judged` by these fields, there are no intervals, and rows share a rank
    only where their means are equal.
    """
    experiments: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for record in records:
        entry = Entry.of(record) if isinstance(record, ResultRecord) else record
        experiments[tuple(getattr(entry, name) for name in _ROW_KEYS)].append(entry)
    grouped: dict[tuple[Any, ...], list[_Draft]] = defaultdict(list)
    for group in experiments.values():
        draft = _draft(group)
        shared = tuple(getattr(group[0], name) for name in _TABLE_KEYS)
        grouped[(*shared, draft.row.metadata.track)].append(draft)
    tables = []
    for values, every in sorted(grouped.items(), key=itemgetter(0)):
        common = dict(zip((*_TABLE_KEYS, "track"), values, strict=True))
        its_judge = judge if judged is None or judged(common) else None
        parts = _comparable(every)
        for tested, drafts in parts:
            others = [other for other, _ in parts if other is not tested]
            tables.append(_table(common, tested, drafts, its_judge, _truth(tested, others)))
    return tables


@dataclass(frozen=True)
class _Draft:
    """A row without rank and intervals, and the results it is made of."""

    row: Row
    single: dict[int, Entry]


def _draft(group: list[Entry]) -> _Draft:
    """One experiment's results as an unranked row, with the reason if it must stay unranked."""
    by_fold: dict[int, list[Entry]] = defaultdict(list)
    for entry in group:
        if not any(entry.same_result(other) for other in by_fold[entry.fold]):
            by_fold[entry.fold].append(entry)
    single = {fold: found[0] for fold, found in sorted(by_fold.items()) if len(found) == 1}
    first, entries = group[0], list(single.values())
    n_folds = max(entry.metadata.n_folds for entry in group)
    note = _problem(by_fold, single, n_folds)
    row = Row.trusted(
        rank=None,
        method=first.method,
        config_hash=first.config_hash,
        seed=first.seed,
        fold_miou=tuple(single[f].miou if f in single else None for f in range(n_folds)),
        miou=None if note else mean(e.miou for e in entries),
        interval=(),
        fold_intervals=((),) * n_folds,
        fb_iou=None if note else mean(e.fb_iou for e in entries),
        fb_interval=(),
        episodes=sum(e.episodes for e in entries),
        classes=tuple(_classes(e) for e in entries),
        note=note,
        **_cost(entries),
        devices=tuple(sorted({e.device for e in entries})),
        external=any(e.origin == "external" for e in group),
        manifests={fold: e.manifest_sha256 for fold, e in single.items()},
        weights={fold: e.weights_sha256 for fold, e in single.items()},
        records={fold: e.path for fold, e in single.items()},
        metadata=first.metadata,
    )
    return _Draft(row, single)


def _classes(entry: Entry) -> FoldClasses:
    return FoldClasses.trusted(
        fold=entry.fold,
        ids=entry.class_ids,
        names=entry.class_names,
        ious=entry.class_ious,
        episodes=entry.class_episodes,
    )


def _cost(entries: list[Entry]) -> dict[str, Any]:
    """The cost of a row from that of its folds; None where a fold does not know it, or the folds disagree."""

    def common(values: list[int | None]) -> int | None:
        return values[0] if values and len(set(values)) == 1 else None

    seconds = [e.seconds_per_episode for e in entries]
    memory = [e.peak_memory for e in entries]
    episodes = sum(e.episodes for e in entries)
    total = [s * e.episodes for s, e in zip(seconds, entries, strict=True) if s is not None]
    return {
        "parameters": common([e.parameters for e in entries]),
        "trained_parameters": common([e.trained_parameters for e in entries]),
        "seconds_per_episode": sum(total) / episodes if entries and len(total) == len(entries) else None,
        "peak_memory": None if None in memory else max((m for m in memory if m is not None), default=None),
    }


def _problem(by_fold: Mapping[int, list[Entry]], single: Mapping[int, Entry], n_folds: int) -> str:
    """Why the results of one experiment do not make a mean over folds; empty where they do."""
    for fold in sorted(by_fold):
        if len(by_fold[fold]) > 1:
            return f"fold {fold} has {len(by_fold[fold])} different results; keep one"
    if len(single) < n_folds:
        missing = [str(fold) for fold in range(n_folds) if fold not in single]
        return f"{len(single)} of {n_folds} folds; missing {', '.join(missing)}"
    entries = list(single.values())
    if any(e.metadata != entries[0].metadata for e in entries):
        for field in fields(Metadata):
            if any(getattr(e.metadata, field.name) != getattr(entries[0].metadata, field.name) for e in entries):
                return f"folds differ in {field.name}"
    precisions = sorted({entry.dtype for entry in entries})
    if len(precisions) > 1:
        return f"folds differ in precision ({', '.join(precisions)})"
    return _weights_problem(entries)


def _weights_problem(entries: list[Entry]) -> str:
    """What is wrong with the weights of the folds; empty where they belong together.

    - Either every fold has weights or none.
    - Without training all folds have the same ones.
    - With training on base classes only (track `strict`) every fold has its own: one checkpoint for two folds was
      trained on classes that are novel in one of them.
    """
    metadata = entries[0].metadata
    weights = [entry.weights_sha256 for entry in entries]
    if None in weights and len(set(weights)) > 1:
        return "some folds have weights, others none"
    if metadata.selection == "not trained" and len(set(weights)) > 1:
        return "not trained, yet weights differ between folds"
    trained = metadata.track == "strict" and metadata.selection != "not trained" and None not in weights
    if trained and len(set(weights)) < len(weights):
        return "one checkpoint on several folds: novel classes were trained on"
    return ""


class _Tested(NamedTuple):
    """What a result was scored on."""

    manifest_sha256: str
    pixels: tuple[int, ...]
    """Counted pixels of each class: another number means other images or masks."""


def _comparable(drafts: list[_Draft]) -> list[tuple[dict[int, _Tested], list[_Draft]]]:
    """Split rows so that every part used one manifest per fold, and counted as many pixels of every class.

    Complete rows make the parts; an incomplete row joins the largest part that it does not contradict.
    """
    parts: list[tuple[dict[int, _Tested], list[_Draft]]] = []
    for draft in sorted(drafts, key=lambda d: (-len(d.single), sorted(_tested(d).items()), _order(d))):
        own = _tested(draft)
        fitting = [part for part in parts if all(part[0].get(fold, tested) == tested for fold, tested in own.items())]
        if fitting:
            tested, members = max(fitting, key=lambda part: len(part[1]))
            tested.update(own)
            members.append(draft)
        else:
            parts.append((dict(own), [draft]))
    return parts


def _tested(draft: _Draft) -> dict[int, _Tested]:
    return {fold: _Tested(entry.manifest_sha256, entry.class_pixels) for fold, entry in draft.single.items()}


def _truth(tested: Mapping[int, _Tested], others: Iterable[Mapping[int, _Tested]]) -> str:
    """`Table.truth` of a part beside the other parts."""
    twins = (
        fold in other and other[fold].manifest_sha256 == own.manifest_sha256 and other[fold].pixels != own.pixels
        for other in others
        for fold, own in tested.items()
    )
    pixels = sum(sum(own.pixels) for own in tested.values())
    return (
        f"{pixels} pixels counted, unlike another table of these manifests: other images or masks" if any(twins) else ""
    )


def _table(
    group: dict[str, Any], tested: Mapping[int, _Tested], drafts: list[_Draft], judge: Judge | None, truth: str
) -> Table:
    n_folds = max(len(d.row.fold_miou) for d in drafts)
    ranked = sorted((d for d in drafts if d.row.miou is not None), key=lambda d: (-(d.row.miou or 0.0), _order(d)))
    others = sorted((d for d in drafts if d.row.miou is None), key=_order)
    rows = _judged(ranked, others, judge) if judge else _by_mean(ranked, others)
    manifests = {fold: tested[fold].manifest_sha256 for fold in sorted(tested)}
    lines = [*(f"{fold} {sha256}" for fold, sha256 in manifests.items()), *([truth] if truth else [])]
    return Table(
        **group,
        n_folds=n_folds,
        manifests=manifests,
        manifest_id=sha256_text("\n".join(lines))[:8],
        truth=truth,
        rows=tuple(rows),
        reported=published(group["dataset"], group["shot"], group["track"]),
    )


def _by_mean(ranked: list[_Draft], others: list[_Draft]) -> list[Row]:
    means = [d.row.miou for d in ranked]
    return [*(replace(d.row, rank=means.index(d.row.miou) + 1) for d in ranked), *(d.row for d in others)]


def _judged(ranked: list[_Draft], others: list[_Draft], judge: Judge) -> list[Row]:
    noise = judge([_paths(draft) for draft in ranked], [path for draft in others for path in _paths(draft)])
    rows = []
    for place, draft in enumerate([*ranked, *others]):
        by_fold = {fold: noise.folds[entry.path] for fold, entry in draft.single.items()}
        found: dict[str, Any] = {
            "fold_intervals": tuple(by_fold.get(fold, ()) for fold in range(len(draft.row.fold_miou)))
        }
        if place < len(ranked):
            found |= {"rank": noise.ranks[place], "interval": noise.miou[place], "fb_interval": noise.fb_iou[place]}
        rows.append(Row.trusted(**{**vars(draft.row), **found}))
    return rows


def _paths(draft: _Draft) -> list[str]:
    return [entry.path for entry in draft.single.values()]


def _order(draft: _Draft) -> tuple[str, str, int]:
    return draft.row.method, draft.row.config_hash, draft.row.seed
