"""The store: files whole or not at all, damaged ones named, two writers at once."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.results import store as store_module
from fssbench.results.store import ResultStore
from fssbench.results.table import read_table, write_table
from tests.results.make import make_record, make_rows


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def _files(store: ResultStore) -> list[str]:
    """All files but the lock, below the root."""
    found = (p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.is_file())
    return sorted(name for name in found if name != ".lock")


def test_write_then_read_and_verify(store: ResultStore) -> None:
    rows = make_rows()
    record = make_record(rows)
    path = store.write(record, rows[::-1])
    folder = f"pascal-5i/clean-v1/prototype@{record.key.config_hash[:8]}"
    assert _files(store) == [f"{folder}/fold0_shot1_seed0.json", f"{folder}/fold0_shot1_seed0.parquet"]
    assert path == store.root / folder / "fold0_shot1_seed0.json"
    contents = store.read_all()
    assert contents.records == [record]
    assert contents.damaged == []
    assert store.rows(record) == rows
    store.verify(record)


def test_table_has_the_documented_columns(store: ResultStore) -> None:
    rows = make_rows()
    table = pq.read_table(store.write(make_record(rows), rows).with_suffix(".parquet"))
    assert [f"{field.name} {field.type}" for field in table.schema] == [
        "episode_id int64",
        "class_id int64",
        "query_key string",
        "support_keys list<element: string>",
        "fg_intersection int64",
        "fg_union int64",
        "bg_intersection int64",
        "bg_union int64",
        "fg_target int64",
        "seconds double",
    ]
    assert table.schema.metadata[b"fssbench_schema_version"] == b"2"
    assert table["support_keys"].to_pylist() == [["s0"]] * 4


def test_a_table_of_version_1_has_no_object_sizes(store: ResultStore) -> None:
    rows = make_rows()
    path = store.write(make_record(rows), rows).with_suffix(".parquet")
    old = pq.read_table(path).drop_columns(["fg_target"])
    pq.write_table(old.replace_schema_metadata({"fssbench_schema_version": "1"}), path)
    assert store.rows(make_record(rows)) == [dataclasses.replace(row, fg_target=None) for row in rows]
    store.verify(make_record(rows))


def test_counts_beyond_float32_survive_the_table(tmp_path: Path) -> None:
    row = dataclasses.replace(make_rows()[0], fg_intersection=2**53 + 1, fg_union=2**60 + 1, fg_target=2**60)
    write_table([row], tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet") == [row]


def test_other_resolutions_of_a_test_have_their_own_file(store: ResultStore) -> None:
    rows = make_rows()
    store.write(make_record(rows), rows)
    assert store.write(make_record(rows, resolution="400"), rows).name == "fold0_shot1_seed0_400.json"
    assert len(store.read_all().records) == 2


def test_rows_of_another_run_are_not_written(store: ResultStore) -> None:
    with pytest.raises(UserError, match="differ in class_iou"):
        store.write(make_record(), make_rows(shift=1))
    assert not store.root.exists()


def test_an_existing_result_is_replaced_only_on_request(store: ResultStore) -> None:
    first, second = make_rows(), make_rows(shift=1)
    store.write(make_record(first), first)
    with pytest.raises(UserError, match=r"already holds a result\. Pass overwrite=True"):
        store.write(make_record(second), second)
    with pytest.raises(UserError, match="already holds a result with another weights_sha256"):
        store.write(make_record(second, weights_sha256=sha256_text("w")), second)
    assert store.read_all().records == [make_record(first)]
    store.write(make_record(second), second, overwrite=True)
    assert store.read_all().records == [make_record(second)]
    store.verify(make_record(second))


def test_a_table_left_by_a_crash_is_no_result_and_is_replaced(store: ResultStore) -> None:
    rows = make_rows()
    path = store.write(make_record(rows), rows)
    path.unlink()
    assert store.read_all() == ([], [])
    store.write(make_record(rows), rows)
    assert len(store.read_all().records) == 1


def _damage(store: ResultStore, what: str) -> str:
    """Damage the second of two results; returns what the reason must say."""
    rows = make_rows()
    store.write(make_record(rows), rows)
    path = store.write(make_record(rows, fold=1), rows)
    if what == "half a file":
        path.write_bytes(path.read_bytes()[:200])
        return "is not JSON"
    if what == "changed score":
        path.write_text(path.read_text().replace('"miou": 0.245', '"miou": 0.9'))
        return "scores.miou is 0.9"
    if what == "missing table":
        path.with_suffix(".parquet").unlink()
        return "fold1_shot1_seed0.parquet is missing"
    if what == "copied elsewhere":
        path.rename(path.with_name("fold2_shot1_seed0.json"))
        return "its key belongs to .*fold1_shot1_seed0.json"
    path.unlink()
    path.mkdir()
    return "Cannot read"


@pytest.mark.parametrize("what", ["half a file", "changed score", "missing table", "copied elsewhere", "folder"])
def test_damaged_results_are_named_and_the_others_read(store: ResultStore, what: str) -> None:
    reason = _damage(store, what)
    contents = store.read_all()
    assert [r.key.fold for r in contents.records] == [0]
    assert len(contents.damaged) == 1
    with pytest.raises(UserError, match=reason):
        raise UserError(contents.damaged[0].reason)
    assert str(contents.damaged[0].path) in contents.damaged[0].reason


def test_damaged_result_is_replaced_only_on_request(store: ResultStore) -> None:
    _damage(store, "half a file")
    rows = make_rows()
    with pytest.raises(UserError, match=r"already holds a result \(damaged\)"):
        store.write(make_record(rows, fold=1), rows)
    store.write(make_record(rows, fold=1), rows, overwrite=True)
    assert len(store.read_all().records) == 2


def _replace_table(path: Path, what: str) -> str:
    """Put something else in the table's place; returns what `verify` must say."""
    table = pq.read_table(path)
    if what == "missing":
        path.unlink()
        return "table .*parquet is missing"
    if what == "half a file":
        path.write_bytes(path.read_bytes()[:300])
        return "Cannot read the episode table"
    if what == "other counts":
        write_table(make_rows(shift=1), path)
        return "differ in class_iou"
    if what == "impossible counts":
        column = table.schema.get_field_index("fg_intersection")
        pq.write_table(table.set_column(column, table.schema.field(column), [[101, 1, 1, 1]]), path)
        return "episode.fg_intersection is 101"
    if what == "empty cell":
        column = table.schema.get_field_index("query_key")
        pq.write_table(table.set_column(column, table.schema.field(column), [["a", None, "b", "c"]]), path)
        return "episode.query_key is None"
    if what == "other version":
        pq.write_table(table.replace_schema_metadata({"fssbench_schema_version": "3"}), path)
        return "schema version is 3"
    if what == "no version":
        pq.write_table(table.replace_schema_metadata(None), path)
        return "schema version is none"
    column = table.schema.get_field_index("fg_union")
    pq.write_table(table.set_column(column, "fg_union", table["fg_union"].cast(pa.float32())), path)
    return "columns are .*fg_union float, .*expected .*fg_union int64"


@pytest.mark.parametrize(
    "what",
    [
        "missing",
        "half a file",
        "other counts",
        "impossible counts",
        "empty cell",
        "other version",
        "no version",
        "other columns",
    ],
)
def test_verify_refuses_a_table_that_is_not_the_records(store: ResultStore, what: str) -> None:
    rows = make_rows()
    record = make_record(rows)
    message = _replace_table(store.write(record, rows).with_suffix(".parquet"), what)
    with pytest.raises(UserError, match=message) as error:
        store.verify(record)
    assert "fold0_shot1_seed0" in str(error.value)


def _full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["table", "record", "rename", "lock"])
@pytest.mark.parametrize("old", [False, True])
def test_full_disk_leaves_the_store_as_it_was(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, where: str, old: bool
) -> None:
    rows = make_rows()
    if old:
        store.write(make_record(rows), rows)
    before = {name: (store.root / name).read_bytes() for name in _files(store)}
    new = make_rows(shift=1)
    with monkeypatch.context() as patch:
        if where == "table":
            patch.setattr(pq, "write_table", _full_disk)
        elif where == "record":
            patch.setattr(Path, "write_text", _full_disk)
        elif where == "rename":
            patch.setattr(os, "replace", _full_disk)
        else:
            patch.setattr("filelock.FileLock.acquire", _full_disk)
            patch.setattr("tempfile.mkstemp", _full_disk)
        with pytest.raises(UserError, match=r"No space left on device.*Free some space"):
            store.write(make_record(new), new, overwrite=True)
    assert {name: (store.root / name).read_bytes() for name in _files(store)} == before
    store.write(make_record(new), new, overwrite=True)  # the lock was released
    store.verify(make_record(new))


@pytest.mark.parametrize("old", [False, True])
def test_a_crash_between_the_two_names_is_never_taken_for_a_result(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """The table gets its name first: without the record it is no result, beside an older record `verify` tells."""
    rows, new = make_rows(), make_rows(shift=1)
    if old:
        store.write(make_record(rows), rows)
    replace = os.replace

    def crash(source: Path, target: Path) -> None:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.write(make_record(new), new, overwrite=True)
    assert not list(store.root.rglob(".*.part"))
    assert store.path(make_record().key).with_suffix(".parquet").exists()
    assert store.read_all() == ([make_record(rows)] if old else [], [])
    if old:
        with pytest.raises(UserError, match="differ in class_iou"):
            store.verify(make_record(rows))
    store.write(make_record(new), new, overwrite=True)
    store.verify(make_record(new))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        ResultStore(tmp_path / "results").write(make_record(), make_rows())


def test_two_writers_at_once_leave_one_whole_result(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every writer pauses between its two files, which without the lock mixes one's table with another's record."""
    slow = threading.Event()

    def slow_write_table(rows: Any, path: Any) -> None:
        slow.wait(0.02)
        write_table(rows, path)

    monkeypatch.setattr(store_module, "write_table", slow_write_table)
    results: list[str] = []

    def write(shift: int, overwrite: bool) -> None:
        rows = make_rows(shift=shift)
        try:
            ResultStore(store.root).write(make_record(rows), rows, overwrite=overwrite)
            results.append("written")
        except UserError as error:
            results.append(str(error))

    for overwrite in (False, True):
        shutil.rmtree(store.root, ignore_errors=True)
        results.clear()
        writers = [threading.Thread(target=write, args=(shift, overwrite)) for shift in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert results.count("written") == (6 if overwrite else 1)
        assert all("already holds a result" in result for result in results if result != "written")
        (record,) = store.read_all().records
        store.verify(record)
        assert len(_files(store)) == 2


def test_a_stuck_writer_is_reported(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LOCK_SECONDS", 0)
    rows = make_rows()
    with store._locked(), pytest.raises(UserError, match="Another process has been writing"):
        ResultStore(store.root).write(make_record(rows), rows)


def test_find_by_parts_of_the_key(store: ResultStore) -> None:
    rows = make_rows()
    for fold in (0, 1):
        for method in ("comp", "prototype"):
            store.write(make_record(rows, fold=fold, method=method), rows)
    assert [(r.key.method, r.key.fold) for r in store.find(fold=1)] == [("comp", 1), ("prototype", 1)]
    wanted = make_record(rows, fold=1, method="comp")
    assert store.find(**vars(wanted.key)) == [wanted]
    assert store.find(fold=2) == []
    with pytest.raises(UserError, match=r"'metod' is not a part of the result key. Did you mean 'method'"):
        store.find(metod="comp")


def test_a_store_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert ResultStore(tmp_path / "none").read_all() == ([], [])
    assert not (tmp_path / "none").exists()


def test_reading_and_showing_results_imports_nothing_heavy(store: ResultStore) -> None:
    rows = make_rows()
    store.write(make_record(rows), rows)
    code = (
        "import sys\n"
        "from fssbench.results.store import ResultStore\n"
        "from fssbench.results.leaderboard import board\n"
        "from fssbench.results.rendering import render\n"
        f"tables = board(ResultStore({str(store.root)!r}).read_all().records)\n"
        "assert len(tables) == 1 and render(tables, 'csv')\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'rich', 'lightning', 'torchmetrics'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(store_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_stamps_change_with_a_file_of_the_same_size_and_with_its_table(store: ResultStore) -> None:
    rows = make_rows()
    path = store.write(make_record(rows), rows)
    stamps = [store.files()]
    for file in (path, path.with_suffix(".parquet")):
        os.utime(file, ns=(1, 1))
        stamps.append(store.files())
    assert len({str(found) for found in stamps}) == 3
    path.with_suffix(".parquet").unlink()
    assert store.files() not in stamps


def test_an_object_has_at_least_its_hits_and_at_most_the_union() -> None:
    row = dataclasses.replace(make_rows()[0], fg_intersection=10, fg_union=100)
    for possible in (10, 100, None):
        assert dataclasses.replace(row, fg_target=possible).fg_target == possible
    for wrong in (9, 101):
        with pytest.raises(UserError, match=r"fg_target is .*, expected 10 to 100"):
            dataclasses.replace(row, fg_target=wrong)
