"""Reading results that are new or changed: each record checked against the schema and compared with its episode table.

Many files are shared out among processes, each of which is this module run as a program: Python checks records on one
core at a time, and a process that is started this way does not run its caller's script again.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fssbench.errors import UserError
from fssbench.metrics.scores import COUNTS
from fssbench.results.entry import Entry
from fssbench.results.fields import to_json
from fssbench.results.record import Metadata, pixel_counts
from fssbench.results.store import File, ResultStore

if TYPE_CHECKING:
    import polars as pl

BATCH = 2000
"""Results read at once: bounds the memory, and the work that one damaged file makes."""
SHARE = 4000
"""Results that are worth a process of their own: it takes about a second to start."""
SHARED = ("class_ids", "class_names", "class_episodes", "class_pixels", "metadata")
"""Fields of `Entry` that many results have alike: JSON texts in the frame, so that each of them is read once."""


class Examined(NamedTuple):
    """What is in new files."""

    results: pl.DataFrame
    """One row per file: `result_schema`."""
    episodes: pl.DataFrame
    """One row per usable file, the counts of its episodes in their order: `episode_schema`."""


def examined(root: Path, files: Sequence[File]) -> Examined:
    """Read and check results, in several processes where there are many."""
    processes = min(_cores(), len(files) // SHARE)
    if processes < 2:
        return examined_here(root, files)
    size = -(-len(files) // processes)
    shares = [files[start : start + size] for start in range(0, len(files), size)]
    with ThreadPoolExecutor(processes) as pool:
        return _joined(list(pool.map(lambda share: _examined_apart(root, share), shares)))


def examined_here(root: Path, files: Sequence[File]) -> Examined:
    """Read and check results in this process."""
    store = ResultStore(root)
    return _joined([_batch(store, files[start : start + BATCH]) for start in range(0, len(files), BATCH)])


def _joined(parts: Sequence[Examined]) -> Examined:
    import polars as pl

    results = pl.concat([pl.DataFrame(schema=result_schema()), *(part.results for part in parts)])
    return Examined(results, pl.concat([pl.DataFrame(schema=episode_schema()), *(part.episodes for part in parts)]))


def _batch(store: ResultStore, files: Sequence[File]) -> Examined:
    """Check records, then all their tables at once."""
    import polars as pl

    schema = result_schema()
    singles = {name: kind for name, kind in schema.items() if name != "class_ious"}
    rows: list[tuple[Any, ...]] = []
    classes: dict[str, list[Any]] = {name: [] for name in _class_schema()}
    reasons: dict[str, str] = {}
    for path, stamp in files:
        try:
            record = store.read(store.root / path)
        except UserError as error:
            reasons[path] = str(error)
            continue
        entry = Entry.of(record, path)
        others = {"stamp": stamp, "reason": None, **{name: _text(getattr(entry, name)) for name in SHARED}}
        rows.append(tuple([others[name] if name in others else getattr(entry, name) for name in singles]))
        classes["path"] += [path] * len(entry.class_ids)
        classes["class_id"] += entry.class_ids
        classes["len"] += entry.class_episodes
        classes["class_ious"] += entry.class_ious
        for name, column in zip(
            COUNTS, zip(*map(pixel_counts, record.scores.class_iou.values()), strict=True), strict=True
        ):
            classes[name] += column
    of_classes = pl.DataFrame(classes, schema=_class_schema())
    ious = of_classes.group_by("path", maintain_order=True).agg("class_ious")
    good = pl.DataFrame(rows, schema=singles, orient="row").join(ious, on="path")
    episodes, unread = read_episodes(store, good["path"].to_list())
    reasons |= unread | _differing(store, of_classes.drop("class_ious"), episodes)
    stamps = dict(files)
    bad = {"path": list(reasons), "stamp": [stamps[path] for path in reasons], "reason": list(reasons.values())}
    wrong = pl.DataFrame(bad, schema={name: pl.String for name in bad})
    results = pl.concat([good.join(wrong, on="path", how="anti"), wrong], how="diagonal").select(*schema)
    return Examined(results, _lists(episodes.join(wrong, on="path", how="anti")))


def _differing(store: ResultStore, classes: pl.DataFrame, episodes: pl.DataFrame) -> dict[str, str]:
    """Path -> reason, for results whose table does not add up to the record's counts of each class."""
    import polars as pl

    expected = classes.join(episodes, on="path", how="semi")
    counted = episodes.group_by("path", "class_id").agg(pl.len().cast(pl.Int64), *map(pl.sum, COUNTS))
    apart = [
        one.join(other, on=expected.columns, how="anti") for one, other in ((expected, counted), (counted, expected))
    ]
    why = "the record and its episode table differ; one is of another run. Restore both or run the test again."
    paths = pl.concat([frame["path"] for frame in apart]).unique().to_list()
    return {path: f"{store.root / path}: {why}" for path in paths}


# -- episode tables ---------------------------------------------------------------------------------------------------


def counts_of(root: Path, paths: Sequence[str]) -> pl.DataFrame:
    """The episodes of usable results: `episode_schema`; without those whose tables have gone since."""
    return _lists(read_episodes(ResultStore(root), list(paths))[0])


def read_episodes(store: ResultStore, paths: list[str]) -> tuple[pl.DataFrame, dict[str, str]]:
    """Counts of all episodes of these results, one row each, and why some could not be read."""
    import polars as pl

    empty = pl.DataFrame(schema={"path": pl.String, "episode_id": pl.Int64, **_count_schema()})
    if not paths:
        return empty, {}
    if len(paths) <= BATCH:
        try:
            return _scan(store, paths), {}
        except (pl.exceptions.PolarsError, OSError):
            pass  # look for the one that is damaged
    if len(paths) > 1:
        middle = len(paths) // 2
        (one, reasons), (two, more) = read_episodes(store, paths[:middle]), read_episodes(store, paths[middle:])
        return pl.concat([one, two]), reasons | more
    (path,) = paths
    try:
        store.rows_of(store.root / path)
        reason = f"{store.root / path}: its episode table cannot be read; run the test again."
    except UserError as error:
        reason = str(error)
    return empty, {path: reason}


def _scan(store: ResultStore, paths: list[str]) -> pl.DataFrame:
    import polars as pl

    tables = [str((store.root / path).with_suffix(".parquet")) for path in paths]
    scan = pl.scan_parquet(
        tables,
        schema={"episode_id": pl.Int64, **_count_schema()},
        extra_columns="ignore",
        include_file_paths="table",
        glob=False,
    )
    names = pl.DataFrame({"table": tables, "path": paths})
    return scan.collect().join(names, on="table").select("path", "episode_id", "class_id", *COUNTS)


def _lists(episodes: pl.DataFrame) -> pl.DataFrame:
    """One row per result, its episodes as lists."""
    ordered = episodes.sort("path", "episode_id")
    return ordered.group_by("path", maintain_order=True).agg("class_id", *COUNTS).select(*episode_schema())


# -- columns ----------------------------------------------------------------------------------------------------------


def result_schema() -> dict[str, Any]:
    """Columns of `Examined.results`: the file, why it is no usable result, and the fields of `Entry`."""
    import polars as pl

    kinds = {
        "str": pl.String, "str | None": pl.String, "int": pl.Int64, "int | None": pl.Int64, "float": pl.Float64,
        "float | None": pl.Float64, "tuple[float, ...]": pl.List(pl.Float64),
    }  # fmt: skip
    excerpt = {field.name: pl.String if field.name in SHARED else kinds[str(field.type)] for field in fields(Entry)}
    return {"path": pl.String, "stamp": pl.String, "reason": pl.String, **excerpt}


def episode_schema() -> dict[str, Any]:
    """Columns of `Examined.episodes`: the path, and lists with an item per episode."""
    import polars as pl

    return {"path": pl.String, **{name: pl.List(kind) for name, kind in _count_schema().items()}}


def _count_schema() -> dict[str, Any]:
    import polars as pl

    return {name: pl.Int64 for name in ("class_id", *COUNTS)}


def _class_schema() -> dict[str, Any]:
    import polars as pl

    counts = dict.fromkeys(COUNTS, pl.Int64)
    return {"path": pl.String, "class_id": pl.Int64, "len": pl.Int64, **counts, "class_ious": pl.Float64}


@cache
def _text(value: Metadata | tuple[int | str, ...]) -> str:
    return json.dumps(to_json(value))


# -- several processes ------------------------------------------------------------------------------------------------


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _examined_apart(root: Path, files: Sequence[File]) -> Examined:
    """The same as `examined_here`, in a process of its own; here where that does not work."""
    import polars as pl

    with tempfile.TemporaryDirectory(prefix="fssbench_") as name:
        folder = Path(name)
        (folder / "files.json").write_text(json.dumps(files), encoding="utf-8")
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(root), name],
            env={**os.environ, "PYTHONPATH": path, "POLARS_MAX_THREADS": "1"},
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            return examined_here(root, files)
        return Examined(*(pl.read_parquet(folder / part) for part in Examined._fields))


def main(root: str, folder: str) -> None:
    """Examine the files that `files.json` in a folder names; the frames go there."""
    gc.disable()  # records hold no cycles, and looking for some takes a fifth of the time
    files = [File(*pair) for pair in json.loads((Path(folder) / "files.json").read_text(encoding="utf-8"))]
    for name, frame in examined_here(Path(root), files)._asdict().items():
        frame.write_parquet(Path(folder) / name, compression="lz4")


if __name__ == "__main__":
    main(*sys.argv[1:])
