"""The result store: a folder of records and episode tables that can be copied, merged and reviewed as plain files.

    root/<dataset>/<protocol>/<method>@<first 8 of the config hash>/fold0_shot1_seed0.json
    root/<dataset>/<protocol>/<method>@<first 8 of the config hash>/fold0_shot1_seed0.parquet

A JSON file that is there is complete, and so is its table. Reading records needs neither torch nor pyarrow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fssbench.errors import UserError, nearest
from fssbench.files import written_whole
from fssbench.results.record import Key, ResultRecord, read_record
from fssbench.results.table import EpisodeRow, read_table, recompute, write_table

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK_SECONDS = 60
"""How long a writer waits for another one; writing takes well under a second."""


class Damaged(NamedTuple):
    """A file of the store that is not a usable result."""

    path: Path
    reason: str


class File(NamedTuple):
    """A JSON file of the store."""

    path: str
    """Below the root, with slashes."""
    stamp: str
    """Sizes and times of the file and its table."""


class Contents(NamedTuple):
    """Everything in a store."""

    records: list[ResultRecord]
    damaged: list[Damaged]


class ResultStore:
    """Records and episode tables below `root` (made when the first result is written)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, key: Key) -> Path:
        """The JSON file of a key; its table lies beside it with the suffix `.parquet`.

        The name leaves out the weights and the manifest: a second result of the same method configuration on the same
        fold, shot and seed replaces the first on purpose (`overwrite`) or goes to another store.
        """
        return self.root.joinpath(*_place(key))

    def write(self, record: ResultRecord, rows: Sequence[EpisodeRow], overwrite: bool = False) -> Path:
        """Write a record and its episode table, both or none, after recomputing the record from the rows.

        Returns the path of the JSON file.

        Raises:
            UserError: the rows do not give the record's scores, a result is already there and `overwrite` is off, or
                the files cannot be written (full disk, no permission).
        """
        recompute(record, rows)
        path = self.path(record.key)
        with self._locked():
            if path.exists() and not overwrite:
                raise UserError(
                    f"{path} already holds a result{_difference(path, record.key)}. Pass overwrite=True "
                    "(--overwrite always) to replace it, or write to another results folder to keep both."
                )
            # Both files are complete on disk before either gets its name; the inner one, the table, is named first.
            with written_whole(path) as json_file:
                json_file.write_text(record.to_text(), encoding="utf-8", newline="\n")
                with written_whole(path.with_suffix(".parquet")) as table_file:
                    write_table(rows, table_file)
        return path

    def claim(self, key: Key) -> Callable[[], None] | None:
        """Claim a result that is to be computed, so that no other process computes it meanwhile.

        Returns a function that gives the claim up, or None where another process has it. A process that dies, however it
        dies, loses its claims. Claims are locks on empty files in `.running`, which may be deleted when nothing runs. Where
        a claim is given up in the very moment another process asks for it, both may compute the result: work done twice,
        and one record as ever.
        """
        from filelock import FileLock, Timeout

        name = self.path(key).relative_to(self.root).with_suffix(".lock").as_posix().replace("/", "__")
        lock = FileLock(self.root / ".running" / name, timeout=0)
        try:
            (self.root / ".running").mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            return None
        except (NotImplementedError, OSError):
            pass  # no locks, or no folder, to be had: as in `_locked`
        return partial(_give_up, lock)

    def files(self) -> list[File]:
        """The JSON files of the store with stamps that change when they or their tables do, by path."""
        found = []
        for dataset in _folders(self.root):
            for protocol in _folders(dataset):
                for method in (folder for folder in _folders(protocol) if "@" in folder.name):
                    found += _files(method, f"{dataset.name}/{protocol.name}/{method.name}")
        return sorted(found)

    def read(self, path: Path) -> ResultRecord:
        """The record in a JSON file of this store.

        Of its table it is only checked that it exists (`verify` reads it).

        Raises:
            UserError: the record is damaged, lies where another belongs, or has no table.
        """
        record = read_record(path)
        if path.parts != (*self.root.parts, *_place(record.key)):
            raise UserError(f"{path}: its key belongs to {self.path(record.key)}; was the file moved or renamed?")
        if not os.path.isfile(f"{os.fspath(path).removesuffix('.json')}.parquet"):
            table = f"{path.stem}.parquet"
            raise UserError(f"{path}: the episode table {table} is missing; restore it or run the test again.")
        return record

    def read_all(self) -> Contents:
        """All records, sorted by path, and the files that are not usable results with the reason.

        Reads the JSON files only. `StoreIndex` does the same for very many results, and compares the tables too.
        """
        contents = Contents([], [])
        for name, _ in self.files():
            path = self.root / name
            try:
                contents.records.append(self.read(path))
            except UserError as error:
                contents.damaged.append(Damaged(path, str(error)))
        return contents

    def find(self, **key: Any) -> list[ResultRecord]:
        """Usable records whose key has these values, e.g. `find(dataset="coco-20i", fold=0)` or `find(**vars(key))`.

        Raises:
            UserError: a name that is not a field of `Key`.
        """
        names = [field.name for field in fields(Key)]
        for name in key:
            if name not in names:
                raise UserError(f"'{name}' is not a part of the result key.{nearest(name, names)}")
        return [r for r in self.read_all().records if all(getattr(r.key, name) == value for name, value in key.items())]

    def rows(self, record: ResultRecord) -> list[EpisodeRow]:
        """The episode table of a record of this store, ascending by episode.

        Raises:
            UserError: the table is missing or damaged.
        """
        return self.rows_of(self.path(record.key))

    def rows_of(self, path: Path) -> list[EpisodeRow]:
        """The episode table beside a JSON file, ascending by episode. Raises as `rows` does."""
        return read_table(path.with_suffix(".parquet"))

    def verify(self, record: ResultRecord) -> None:
        """Recompute every score of a record from its episode table.

        Raises:
            UserError: the table is missing, damaged or gives other scores; names the file.
        """
        rows = self.rows(record)
        try:
            recompute(record, rows)
        except UserError as error:
            raise UserError(f"{self.path(record.key)}: {error}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, so that no record ends up beside another run's table. Released when a process dies."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.root / ".lock", timeout=LOCK_SECONDS)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another process has been writing to {self.root} for {LOCK_SECONDS} s: "
                "end it, or choose another results folder."
            ) from error
        except (NotImplementedError, OSError):
            # Some network file systems have no locks: better unlocked than a result lost. Where the folder cannot be
            # written at all, writing the files says so.
            pass
        try:
            yield
        finally:
            lock.release()


def _place(key: Key) -> tuple[str, str, str, str]:
    """Folders and name of a key's JSON file below the root."""
    square = "" if key.resolution == "original" else f"_{key.resolution}"
    name = f"fold{key.fold}_shot{key.shot}_seed{key.seed}{square}.json"
    return key.dataset, key.protocol, f"{key.method}@{key.config_hash[:8]}", name


def _give_up(lock: BaseFileLock) -> None:
    if lock.is_locked:
        with suppress(OSError):  # Windows keeps a file that is open
            Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _folders(folder: str | Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """Folders in a folder; none in one that has gone."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(folder: os.DirEntry[str], name: str) -> list[File]:
    """The JSON files of a method's folder; what a writer renames meanwhile is left out."""
    stamps = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("fold") and entry.name.endswith((".json", ".parquet")):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    stamps[entry.name] = f"{status.st_size}@{status.st_mtime_ns}"
    records = (file for file in stamps if file.endswith(".json"))
    return [File(f"{name}/{r}", f"{stamps[r]} {stamps.get(f'{r[:-5]}.parquet', 'no table')}") for r in records]


def _difference(path: Path, key: Key) -> str:
    """What an existing result has other than the new one, for the message of `write`."""
    try:
        old = read_record(path).key
    except UserError:
        return " (damaged)"
    other = [field.name for field in fields(Key) if getattr(old, field.name) != getattr(key, field.name)]
    return f" with another {', '.join(other)}" if other else ""
