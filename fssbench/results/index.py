"""An index of a results folder, so that a board of very many results is shown without reading them all again.

The index is one Parquet file in the cache folder with a row per record: what the board shows, and the foreground counts
of its episodes. It is only ever a copy. A record is read, checked against the schema and compared with its episode
table when its files are new or changed (size or time), and taken from the index otherwise. Deleting it loses nothing.

Polars does the work: of the libraries considered it reads many small Parquet files fastest and with the least memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fssbench.errors import UserError
from fssbench.files import cache_folder, sha256_text, written_whole
from fssbench.metrics.scores import COUNTS
from fssbench.results.entry import Entry
from fssbench.results.fields import from_json, to_json
from fssbench.results.record import SCHEMA_VERSION, Metadata, ResultRecord
from fssbench.results.store import Damaged, File, ResultStore

if TYPE_CHECKING:
    import polars as pl

    from fssbench.results.statistics import Array

LAYOUT = 1
"""Version of the index file; one of another version is made anew."""
BATCH = 2000
"""Results read at once: bounds the memory, and the work that one damaged file makes."""
FOREGROUND = COUNTS[:2]
"""What mIoU and its interval are made of."""


class StoreIndex:
    """The records of a results folder as they are now, those that are damaged, and the episodes' foreground counts."""

    def __init__(self, root: str | Path, files: Sequence[File] | None = None) -> None:
        """Bring the index of `root` up to date; `files` is its listing where the caller has it already."""
        import polars as pl

        self.store = ResultStore(root)
        self._file = cache_folder() / "boards" / f"{sha256_text(str(self.store.root.resolve()))[:16]}.parquet"
        files = self.store.files() if files is None else files
        wanted = pl.DataFrame(files, schema=["path", "stamp"], orient="row").with_columns(pl.all().cast(pl.String))
        known = self._read()
        kept = known.join(wanted, on=["path", "stamp"], how="semi")
        new = wanted.join(kept, on=["path", "stamp"], how="anti")
        parts = [self._examined(new[start : start + BATCH].rows()) for start in range(0, len(new), BATCH)]
        self.frame = pl.concat([kept, *parts]).sort("path")
        if parts or len(kept) < len(known):
            self._write()
        self._usable = self.frame.filter(pl.col("reason").is_null())
        self._position = {path: number for number, path in enumerate(self._usable["path"].to_list())}

    @property
    def damaged(self) -> list[Damaged]:
        """Files that are no usable results, with the reason."""
        bad = self.frame.drop_nulls("reason")
        return [Damaged(self.store.root / path, reason) for path, reason in bad.select("path", "reason").rows()]

    def entries(self) -> list[Entry]:
        """All usable results, by path."""
        names = [field.name for field in fields(Entry)]
        return [_entry(row) for row in self._usable.select(names).iter_rows(named=True)]

    def samples(self, entries: Iterable[Entry]) -> dict[str, Array]:
        """Bootstrap samples of each result's mIoU (see `statistics`): path -> (S,) fractions."""
        from fssbench.results.statistics import fold_samples, mean_over

        found: dict[str, Array] = {}
        for manifest, paths in self._by_episodes([entry.path for entry in entries]):
            frame = self._usable[[self._position[path] for path in paths]]
            class_ids = frame["class_id"][0].to_numpy()
            inter, union = (frame[name].explode().to_numpy().reshape(len(paths), -1) for name in FOREGROUND)
            miou = mean_over(list(fold_samples(manifest, class_ids, inter, union).values()))
            found.update(zip(paths, miou, strict=True))
        return found

    def _by_episodes(self, paths: list[str]) -> list[tuple[str, list[str]]]:
        """Paths of results with the same manifest and the same classes in the same order, which the manifest promises."""
        frame = self._usable[[self._position[path] for path in paths]]
        groups = frame.group_by("manifest_sha256", "class_id", maintain_order=True).agg("path")
        return [(manifest, same) for manifest, same in groups.select("manifest_sha256", "path").rows()]

    # -- reading what is new --------------------------------------------------------------------------------------

    def _examined(self, files: list[tuple[str, str]]) -> pl.DataFrame:
        """Index rows of new files: records read and checked, tables compared with them."""
        import polars as pl

        rows: list[dict[str, Any]] = []
        expected: list[tuple[Any, ...]] = []
        for path, stamp in files:
            row: dict[str, Any] = {"path": path, "stamp": stamp, "reason": None}
            try:
                record = self.store.read(self.store.root / path)
                row |= _columns(Entry.of(record, path))
                expected += _class_counts(path, record)
            except UserError as error:
                row["reason"] = str(error)
            rows.append(row)
        frame = pl.DataFrame(rows, schema={**_schema(), "path": pl.String})
        good = frame.filter(pl.col("reason").is_null())["path"].to_list()
        episodes, reasons = self._episodes(good)
        totals = pl.DataFrame(expected, schema=_totals_schema(), orient="row")
        counted = episodes.group_by("path", "class_id").agg(pl.len().cast(pl.Int64), *map(pl.sum, FOREGROUND))
        columns = list(_totals_schema())
        differing = pl.concat(
            [totals.join(counted, on=columns, how="anti")["path"], counted.join(totals, on=columns, how="anti")["path"]]
        )
        for path in differing.unique().to_list():
            reasons.setdefault(path, f"{self.store.root / path}: the record and its episode table differ; one is of another "
                                     "run. Restore both or run the test again.")  # fmt: skip
        lists = episodes.sort("path", "episode_id").group_by("path", maintain_order=True).agg("class_id", *FOREGROUND)
        frame = frame.drop("class_id", *FOREGROUND).join(lists, on="path", how="left")
        wrong = pl.DataFrame(list(reasons.items()), schema={"path": pl.String, "wrong": pl.String}, orient="row")
        frame = frame.join(wrong, on="path", how="left").with_columns(pl.coalesce("reason", "wrong").alias("reason"))
        return frame.select(list(_schema()))

    def _episodes(self, paths: list[str]) -> tuple[pl.DataFrame, dict[str, str]]:
        """Foreground counts of all episodes of these results, and why some could not be read."""
        import polars as pl

        empty = pl.DataFrame(schema={"path": pl.String, "episode_id": pl.Int64, **_count_schema()})
        if not paths:
            return empty, {}
        try:
            return self._scan(paths), {}
        except (pl.exceptions.PolarsError, OSError):
            if len(paths) > 1:
                middle = len(paths) // 2
                (one, reasons), (two, more) = self._episodes(paths[:middle]), self._episodes(paths[middle:])
                return pl.concat([one, two]), reasons | more
        (path,) = paths
        try:
            self.store.rows_of(self.store.root / path)
            reason = f"{self.store.root / path}: its episode table cannot be read; run the test again."
        except UserError as error:
            reason = str(error)
        return empty, {path: reason}

    def _scan(self, paths: list[str]) -> pl.DataFrame:
        import polars as pl

        tables = [str((self.store.root / path).with_suffix(".parquet")) for path in paths]
        scan = pl.scan_parquet(
            tables,
            schema={"episode_id": pl.Int64, **_count_schema()},
            extra_columns="ignore",
            include_file_paths="table",
            glob=False,
        )
        names = pl.DataFrame({"table": tables, "path": paths})
        return scan.collect().join(names, on="table").select("path", "episode_id", "class_id", *FOREGROUND)

    # -- the file -------------------------------------------------------------------------------------------------

    def _read(self) -> pl.DataFrame:
        import polars as pl

        try:
            frame = pl.read_parquet(self._file)
            version = pl.read_parquet_metadata(self._file).get("fssbench_index")
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=_schema())
        return frame if version == _version() else pl.DataFrame(schema=_schema())

    def _write(self) -> None:
        try:
            with written_whole(self._file) as temporary:
                self.frame.write_parquet(temporary, metadata={"fssbench_index": _version()})
        except UserError:  # no cache folder, no index: everything still works, only slower
            return


def _version() -> str:
    return f"{LAYOUT}.{SCHEMA_VERSION}"


def _schema() -> dict[str, Any]:
    """Columns of the index: the file, the excerpt of the record, the counts of its episodes."""
    import polars as pl

    kinds = {
        "str": pl.String, "str | None": pl.String, "int": pl.Int64, "int | None": pl.Int64, "float": pl.Float64,
        "float | None": pl.Float64, "tuple[int, ...]": pl.List(pl.Int64), "tuple[str, ...]": pl.List(pl.String),
        "tuple[float, ...]": pl.List(pl.Float64), "Metadata": pl.String,
    }  # fmt: skip
    excerpt = {field.name: kinds[str(field.type)] for field in fields(Entry)}
    counts = {name: pl.List(kind) for name, kind in _count_schema().items()}
    return {"path": pl.String, "stamp": pl.String, "reason": pl.String, **excerpt, **counts}


def _count_schema() -> dict[str, Any]:
    import polars as pl

    return {name: pl.Int64 for name in ("class_id", *FOREGROUND)}


def _totals_schema() -> dict[str, Any]:
    import polars as pl

    return {"path": pl.String, "class_id": pl.Int64, "len": pl.Int64, **dict.fromkeys(FOREGROUND, pl.Int64)}


def _class_counts(path: str, record: ResultRecord) -> list[tuple[Any, ...]]:
    """What the episode table must add up to: (path, class, episodes, foreground intersection, foreground union)."""
    classes = record.scores.class_iou.items()
    return [(path, c, score.episodes, *(getattr(score, name) for name in FOREGROUND)) for c, score in classes]


def _columns(entry: Entry) -> dict[str, Any]:
    row = {field.name: getattr(entry, field.name) for field in fields(Entry)}
    return {**row, "metadata": json.dumps(to_json(entry.metadata))}


def _entry(row: dict[str, Any]) -> Entry:
    row = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Entry(**{**row, "metadata": _metadata(row["metadata"])})


@cache
def _metadata(text: str) -> Metadata:
    """Metadata of an index row; a few texts serve all rows."""
    return from_json(Metadata, json.loads(text), "record.metadata")
