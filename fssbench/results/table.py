"""The episode table: one row per episode with its pixel counts, from which every score can be computed again."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fssbench.errors import UserError
from fssbench.metrics.scores import COUNTS, IoUScores, iou_scores, mean
from fssbench.results.fields import Checked
from fssbench.results.record import SCHEMA_VERSION, ClassScore, ResultRecord, Scores

if TYPE_CHECKING:
    import pyarrow

_VERSION_KEY = b"fssbench_schema_version"
_RESTORE = "Restore both files or run the test again."


@dataclass(frozen=True, kw_only=True)
class EpisodeRow(Checked):
    """One scored episode."""

    group: ClassVar[str] = "episode"
    episode_id: int
    """Index in the manifest."""
    class_id: int
    query_key: str
    support_keys: tuple[str, ...]
    fg_intersection: int
    fg_union: int
    bg_intersection: int
    bg_union: int
    fg_target: int | None
    """Foreground pixels of the query's ground truth: the size of the object. None in tables of schema version 1."""
    seconds: float
    """Wall-clock time of the forward pass, shared equally among the episodes of a batch."""

    def _check(self) -> None:
        for part in ("fg", "bg"):
            union = getattr(self, f"{part}_union")
            self.require(0 <= getattr(self, f"{part}_intersection") <= union, f"{part}_intersection", f"0 to {union}")
        if self.fg_target is not None:
            possible = self.fg_intersection <= self.fg_target <= self.fg_union
            self.require(possible, "fg_target", f"{self.fg_intersection} to {self.fg_union}")
        self.require(self.seconds >= 0, "seconds", "0 or more")


def scores_from(
    rows: Iterable[EpisodeRow], class_names: Mapping[int, str], computed: IoUScores | None = None
) -> Scores:
    """The scores of a fold, computed from its episode rows in exact integer arithmetic.

    Args:
        rows: all episodes of the run, in any order.
        class_names: id -> name of the fold's novel classes.
        computed: what `FewShotIoU.compute()` returned for the same run; the two ways of counting must agree.

    Raises:
        UserError: an episode counted twice, a class that is not novel or has no episode, disagreement with `computed`.
    """
    counts: dict[int, list[int]] = {c: [0, 0, 0, 0] for c in class_names}
    queries: dict[int, set[str]] = defaultdict(set)
    episodes: Counter[int] = Counter()
    seen: set[int] = set()
    for row in rows:
        if row.episode_id in seen:
            raise UserError(f"Episode {row.episode_id} was counted twice: only one process may score an episode.")
        if row.class_id not in counts:
            raise UserError(f"Episode {row.episode_id} is of class {row.class_id}, not a novel class of the fold.")
        seen.add(row.episode_id)
        counts[row.class_id] = [a + getattr(row, name) for a, name in zip(counts[row.class_id], COUNTS, strict=True)]
        queries[row.class_id].add(row.query_key)
        episodes[row.class_id] += 1
    scored = iou_scores(counts, {c: episodes[c] for c in class_names})
    if computed is not None and computed != scored:
        wrong = [name for name in scored if computed[name] != scored[name]]  # type: ignore[literal-required]
        raise UserError(
            f"The metric and the episode table differ in {', '.join(wrong)}: episodes were lost or counted twice; "
            "nothing was written. Run the test again with one process and report it if the difference stays."
        )
    return Scores(
        miou=scored["miou"],
        fb_iou=scored["fb_iou"],
        episodes=len(seen),
        class_iou={
            c: ClassScore(
                name=class_names[c],
                iou=iou,
                episodes=episodes[c],
                distinct_queries=len(queries[c]),
                **dict(zip(COUNTS, counts[c], strict=True)),
            )
            for c, iou in scored["class_iou"].items()
        },
    )


def recompute(record: ResultRecord, rows: Sequence[EpisodeRow]) -> Scores:
    """The scores of a record's episode table, which must equal the record's own to the last bit.

    Raises:
        UserError: the table is not the record's: other scores, episodes, classes or number of supports.
    """
    for row in rows:
        if len(row.support_keys) != record.key.shot:
            supports = len(row.support_keys)
            raise UserError(
                f"Episode {row.episode_id} has {supports} supports, the record says {record.key.shot}. {_RESTORE}"
            )
    scores = scores_from(rows, {c: score.name for c, score in record.scores.class_iou.items()})
    for name in ("episodes", "class_iou", "miou", "fb_iou"):
        told, found = getattr(record.scores, name), getattr(scores, name)
        if told != found:
            detail = f": {told!r} against {found!r}"
            if name == "class_iou":
                detail = f" of class {', '.join(str(c) for c in found if told[c] != found[c])}"
            raise UserError(
                f"The record and its episode table differ in {name}{detail}; one is of another run. {_RESTORE}"
            )
    if record.cost.seconds_per_episode not in (None, seconds_per_episode(rows)):
        raise UserError(
            f"The record and its episode table differ in seconds_per_episode; one is of another run. {_RESTORE}"
        )
    return scores


def seconds_per_episode(rows: Sequence[EpisodeRow]) -> float:
    """Mean time of an episode in seconds; does not depend on the order of the rows."""
    return mean(row.seconds for row in rows)


def write_table(rows: Iterable[EpisodeRow], path: str | Path) -> None:
    """Write the rows as Parquet, ascending by episode, so that the file does not depend on the number of processes."""
    import pyarrow.parquet as parquet

    ordered = sorted(rows, key=lambda row: row.episode_id)
    schema = _schema(SCHEMA_VERSION)
    columns = {name: [getattr(row, name) for row in ordered] for name in schema.names}
    parquet.write_table(_pyarrow().table(columns, schema=schema), path)


def read_table(path: str | Path) -> list[EpisodeRow]:
    """Read and check an episode table.

    Raises:
        UserError: the file is missing, is not Parquet, or has other columns or another schema version.
    """
    import pyarrow.parquet as parquet

    try:
        table = parquet.ParquetFile(path).read()
    except FileNotFoundError as error:
        raise UserError(f"The episode table {path} is missing: restore it or run the test again.") from error
    except (OSError, _pyarrow().ArrowException) as error:
        raise UserError(f"Cannot read the episode table {path} ({error}): restore it or run the test again.") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode(errors="replace")
    if version not in _SINCE:
        known = f"up to {SCHEMA_VERSION}"
        raise UserError(f"{path}: schema version is {version}, this fssbench reads {known}: update fssbench.")
    expected = _schema(int(version))
    if not table.schema.equals(expected):
        raise UserError(f"{path}: columns are {_columns(table.schema)}, expected {_columns(expected)}.")
    absent = dict.fromkeys(set(_schema(SCHEMA_VERSION).names) - set(expected.names))
    try:
        return [
            EpisodeRow(**{**absent, **row, "support_keys": tuple(row["support_keys"] or ())})
            for row in table.to_pylist()
        ]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


_SINCE: dict[str, tuple[str, ...]] = {"1": (), "2": ("fg_target",)}
"""Schema version -> columns that were new in it."""


def _schema(version: int) -> pyarrow.Schema:
    """Columns of the table in a schema version, from the fields of `EpisodeRow`."""
    pa = _pyarrow()
    arrow = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "tuple[str, ...]": pa.list_(pa.string())}
    arrow["int | None"] = pa.int64()
    later = {name for number, names in _SINCE.items() if int(number) > version for name in names}
    columns = [(field.name, arrow[str(field.type)]) for field in fields(EpisodeRow) if field.name not in later]
    return pa.schema(columns, metadata={_VERSION_KEY: str(version).encode()})


def _columns(schema: pyarrow.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _pyarrow() -> Any:
    """pyarrow takes a third of a second to import: only writing and reading tables pays for it."""
    import pyarrow

    return pyarrow
