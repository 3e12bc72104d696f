"""The board of a results folder, kept until a file in it changes, so that showing it again starts in no time."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fssbench.errors import UserError
from fssbench.files import cache_folder, sha256_text, write_text_whole
from fssbench.results.failures import Failure, failures
from fssbench.results.fields import from_json, to_json
from fssbench.results.leaderboard import Table, board
from fssbench.results.published import FILE as PUBLISHED_FILE
from fssbench.results.record import SCHEMA_VERSION
from fssbench.results.store import Damaged, File, ResultStore

LAYOUT = 4
"""Version of the kept board; raised with every change of `Table`, `Row` or of how they are computed."""
KEPT_RECORDS = 2000
"""Boards of more records are not kept: reading them would take as long as making them from the index."""


class Board(NamedTuple):
    """Tables, the files that are no usable results, and the runs that left none."""

    tables: list[Table]
    damaged: list[Damaged]
    failed: list[Failure]
    """Runs of grids that failed and have not succeeded since."""


def load_board(root: str | Path, wanted: Callable[[Mapping[str, Any]], bool] | None = None) -> Board:
    """The board of a results folder with intervals and shared ranks.

    Every record is checked and compared with its episode table once, and again when a file changes.

    Args:
        root: the results folder.
        wanted: whether a table is of interest, by its data set, protocol, shot and so on (the fields of `Table` that all
            its rows share). In a large folder the other tables come without intervals and shared ranks, which takes less
            time. Default: all tables are of interest.
    """
    store = ResultStore(root)
    files = store.files()
    fingerprint = _fingerprint(store, files)
    kept = cache_folder() / "boards" / f"{sha256_text(str(store.root.resolve()))[:16]}.json"
    found = _kept(kept, fingerprint)
    if found is None:
        from fssbench.results.index import StoreIndex

        small = len(files) <= KEPT_RECORDS
        with _no_garbage_collection():
            index = StoreIndex(root, files)
            found = Board(board(index.entries(), index.noise, None if small else wanted), index.damaged, [])
        index.keep_noise(others=wanted is not None)
        if small:
            _keep(kept, fingerprint, found)
    return found._replace(failed=failures(store.root))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of objects without a cycle are made here: looking for some takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _fingerprint(store: ResultStore, files: list[File]) -> str:
    """Changes with every file of the store, with the published numbers and with this code."""
    published = PUBLISHED_FILE.stat()
    lines = [f"{LAYOUT}.{SCHEMA_VERSION}", f"{published.st_size}@{published.st_mtime_ns}", str(store.root.resolve())]
    return sha256_text("\n".join([*lines, *(f"{path} {stamp}" for path, stamp in files)]))


def _kept(path: Path, fingerprint: str) -> Board | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["fingerprint"] != fingerprint:
            return None
        tables = [from_json(Table, table, "table") for table in content["tables"]]
        return Board(tables, [Damaged(Path(damaged), reason) for damaged, reason in content["damaged"]], [])
    except (OSError, ValueError, KeyError, TypeError):  # UserError is a ValueError: a copy of another layout
        return None


def _keep(path: Path, fingerprint: str, made: Board) -> None:
    damaged = [(str(path), reason) for path, reason in made.damaged]
    content = {"fingerprint": fingerprint, "tables": [to_json(table) for table in made.tables], "damaged": damaged}
    try:
        write_text_whole(path, json.dumps(content, ensure_ascii=False, allow_nan=False))
    except UserError:  # no cache folder: the board is made again next time
        return
