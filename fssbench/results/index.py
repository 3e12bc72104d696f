"""An index of a results folder, so that a board of very many results is shown without reading them all again.

The index lies in the cache folder: a Parquet file with a row per record (what the board shows of it), and a JSON file with
the ranks and intervals of each table. It is only ever a copy. A record is read, checked against the schema and compared
with its episode table when its files are new or changed (size or time), and taken from the index otherwise; the bootstrap
of a table is done again when one of its results changed. Deleting the index loses nothing.

Polars does the work: of the libraries considered it reads many small Parquet files fastest and with the least memory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fssbench.errors import UserError
from fssbench.files import cache_folder, sha256_text, write_text_whole, written_whole
from fssbench.metrics.scores import COUNTS
from fssbench.results.entry import Entry
from fssbench.results.examine import SHARED, counts_of, examined, result_schema
from fssbench.results.fields import from_json
from fssbench.results.noise import Noise, noise
from fssbench.results.record import SCHEMA_VERSION, Metadata
from fssbench.results.store import Damaged, File, ResultStore

if TYPE_CHECKING:
    import polars as pl

    from fssbench.results.statistics import Samples

LAYOUT = 4
"""Version of the index files; those of another version are made anew. Raised when a statistic is computed otherwise."""


class StoreIndex:
    """The records of a results folder as they are now, those that are damaged, and the statistics of its tables."""

    def __init__(self, root: str | Path, files: Sequence[File] | None = None) -> None:
        """Bring the index of `root` up to date; `files` is its listing where the caller has it already."""
        import polars as pl

        self.store = ResultStore(root)
        name = sha256_text(str(self.store.root.resolve()))[:16]
        self._file = cache_folder() / "boards" / f"{name}.parquet"
        self._noise_file = self._file.with_suffix(".noise.json")
        files = self.store.files() if files is None else files
        wanted = pl.DataFrame(files, schema=["path", "stamp"], orient="row").with_columns(pl.all().cast(pl.String))
        known = self._read()
        kept = known.join(wanted, on=["path", "stamp"], how="semi")
        new = [File(*row) for row in wanted.join(kept, on=["path", "stamp"], how="anti").rows()]
        fresh = examined(self.store.root, new)
        self._fresh = fresh.episodes
        """Episodes of what was read just now."""
        self._used_noise: dict[str, Any] = {}
        self.frame = pl.concat([kept, fresh.results]).sort("path")
        if new or len(kept) < len(known):
            self._write()
        self._usable = self.frame.filter(pl.col("reason").is_null())

    @property
    def damaged(self) -> list[Damaged]:
        """Files that are no usable results, with the reason."""
        bad = self.frame.drop_nulls("reason")
        return [Damaged(self.store.root / path, reason) for path, reason in bad.select("path", "reason").rows()]

    def entries(self) -> list[Entry]:
        """All usable results, by path."""
        names = [field.name for field in fields(Entry)]
        columns = {name: self._usable[name].to_list() for name in names}
        columns["class_ious"] = [tuple(ious) for ious in columns["class_ious"]]
        for name in SHARED:
            columns[name] = [(_metadata if name == "metadata" else _values)(text) for text in columns[name]]
        return [Entry(**dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]

    # -- statistics -----------------------------------------------------------------------------------------------

    def noise(self, ranked: Sequence[Sequence[str]], others: Sequence[str]) -> Noise:
        """Ranks and intervals of a table's rows (see `Judge`): kept ones where none of its results changed."""
        paths = [path for row in (*ranked, others) for path in row]
        sizes = " ".join(str(len(row)) for row in ranked)
        key = sha256_text("\n".join([sizes, *(f"{path} {self._stamps[path]}" for path in paths)]))
        if key in self._kept_noise:
            ranks, *ends = self._kept_noise[key]
            miou, fb_iou, folds = ([(low, high) for low, high in of] for of in ends)
            found = Noise(ranks, miou, fb_iou, dict(zip(paths, folds, strict=True)))
        else:
            found = noise(ranked, self.samples(paths))
        self._used_noise[key] = [*found[:3], [found.folds[path] for path in paths]]
        return found

    @cached_property
    def _stamps(self) -> dict[str, str]:
        return dict(self._usable.select("path", "stamp").rows())

    @cached_property
    def _kept_noise(self) -> dict[str, Any]:
        try:
            content = json.loads(self._noise_file.read_text(encoding="utf-8"))
            found: dict[str, Any] = content["tables"] if content["version"] == _version() else {}
        except (OSError, ValueError, KeyError, TypeError):  # absent, or not what we wrote
            return {}
        return found

    def keep_noise(self, others: bool = False) -> None:
        """Write the statistics that were asked for since the index was opened; `others` keeps those of other tables."""
        tables = {**(self._kept_noise if others else {}), **self._used_noise}
        if tables.keys() == self._kept_noise.keys():
            return
        try:
            write_text_whole(self._noise_file, json.dumps({"version": _version(), "tables": tables}))
        except UserError:  # no cache folder: they are computed again next time
            return

    def samples(self, paths: Sequence[str]) -> dict[str, Samples]:
        """Bootstrap samples of results: path -> (S,) of each score."""
        import polars as pl

        from fssbench.results.statistics import Samples, fold_samples

        found: dict[str, Samples] = {}
        manifests = self._usable.select("path", "manifest_sha256").join(pl.DataFrame({"path": paths}), on="path")
        rows = self._episodes(paths).join(manifests, on="path")
        # a manifest promises the same episodes; the same classes in the same order is what the bootstrap needs of it
        for (manifest, class_ids), same in rows.group_by("manifest_sha256", "class_id", maintain_order=True):
            counts = pl.concat([same[name].explode() for name in COUNTS]).to_numpy().reshape(len(COUNTS), len(same), -1)
            of_runs = fold_samples(str(manifest), pl.Series(class_ids).to_numpy(), counts)
            found.update(zip(same["path"], map(Samples, *of_runs), strict=True))
        gone = [path for path in paths if path not in found]
        if gone:
            raise UserError(f"{self.store.root / gone[0]} changed while it was read: run the command again.")
        return {path: found[path] for path in paths}

    def _episodes(self, paths: Sequence[str]) -> pl.DataFrame:
        """Counts of the episodes of these results; tables that were not read just now are read again."""
        import polars as pl

        wanted = pl.DataFrame({"path": paths}, schema={"path": pl.String})
        fresh = self._fresh.join(wanted, on="path", how="semi")
        absent = wanted.join(fresh, on="path", how="anti")["path"].to_list()
        return pl.concat([fresh, counts_of(self.store.root, absent)])

    # -- the files ------------------------------------------------------------------------------------------------

    def _read(self) -> pl.DataFrame:
        import polars as pl

        try:
            frame = pl.read_parquet(self._file)
            version = pl.read_parquet_metadata(self._file).get("fssbench_index")
        except (OSError, pl.exceptions.PolarsError):
            return pl.DataFrame(schema=result_schema())
        return frame if version == _version() else pl.DataFrame(schema=result_schema())

    def _write(self) -> None:
        try:
            with written_whole(self._file) as temporary:
                self.frame.write_parquet(temporary, metadata={"fssbench_index": _version()})
        except UserError:  # no cache folder, no index: everything still works, only slower
            return


def _version() -> str:
    return f"{LAYOUT}.{SCHEMA_VERSION}"


@cache
def _values(text: str) -> tuple[Any, ...]:
    """A value of an index row for every class; a few texts serve all rows."""
    return tuple(json.loads(text))


@cache
def _metadata(text: str) -> Metadata:
    """Metadata of an index row; a few texts serve all rows."""
    return from_json(Metadata, json.loads(text), "record.metadata")
