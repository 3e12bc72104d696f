"""The index and the kept board: the same as reading everything, always up to date, and never in the way."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from fssbench.errors import UserError
from fssbench.results import boards, examine
from fssbench.results import index as index_module
from fssbench.results.boards import load_board
from fssbench.results.entry import Entry
from fssbench.results.index import StoreIndex
from fssbench.results.leaderboard import board
from fssbench.results.record import ResultRecord
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow, write_table
from tests.processes import PATIENCE
from tests.results.make import make_record, make_rows


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def _fill(store: ResultStore, method: str = "comp", shift: int = 0, folds: int = 4) -> list[ResultRecord]:
    records = []
    for fold in range(folds):
        rows = make_rows(2 * fold + shift)
        records.append(make_record(rows, fold=fold, method=method))
        store.write(records[-1], rows, overwrite=True)
    return records


def _entries(store: ResultStore, records: list[ResultRecord]) -> list[Entry]:
    return [Entry.of(r, store.path(r.key).relative_to(store.root).as_posix()) for r in records]


def test_the_index_says_what_the_records_say(store: ResultStore) -> None:
    records = _fill(store)
    for _ in range(2):  # made, then read
        index = StoreIndex(store.root)
        assert index.entries() == _entries(store, records)
        assert index.damaged == []


def test_only_what_changed_is_read_again(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(store)
    StoreIndex(store.root)
    read: list[str] = []
    original = ResultStore.read
    monkeypatch.setattr(ResultStore, "read", lambda self, path: read.append(path.name) or original(self, path))
    assert len(StoreIndex(store.root).entries()) == 4
    assert read == []
    rows = make_rows(9)
    path = store.write(make_record(rows, fold=2, method="comp"), rows, overwrite=True)
    assert StoreIndex(store.root).entries()[2].miou == make_record(rows, fold=2).scores.miou
    assert read == ["fold2_shot1_seed0.json"]
    path.unlink()
    assert [entry.fold for entry in StoreIndex(store.root).entries()] == [0, 1, 3]


def _spoil(store: ResultStore, path: Path, how: str) -> str:
    table = path.with_suffix(".parquet")
    if how == "half a record":
        path.write_text(path.read_text()[:100])
        return "is not JSON"
    if how == "no table":
        table.unlink()
        return "is missing"
    if how == "half a table":
        table.write_bytes(table.read_bytes()[:200])
        return "Cannot read the episode table"
    if how == "table of another run":
        write_table(make_rows(1), table)
        return "record and its episode table differ"
    if how == "an episode twice":
        rows = store.rows_of(path)
        write_table([*rows, rows[0]], table)
        return "record and its episode table differ"
    if how == "a class more":
        rows = store.rows_of(path)
        write_table([*rows, replace(rows[0], episode_id=4, class_id=9)], table)
        return "record and its episode table differ"
    if how == "a class less":
        write_table([row for row in store.rows_of(path) if row.class_id == 3], table)
        return "record and its episode table differ"
    write_table([replace(row, class_id=9) if row.class_id == 7 else row for row in store.rows_of(path)], table)
    return "record and its episode table differ"


HOW = ["half a record", "no table", "half a table", "table of another run", "an episode twice", "a class more",
       "a class less", "another class"]  # fmt: skip


@pytest.mark.parametrize("how", HOW)
def test_damaged_results_are_named_and_the_others_read(store: ResultStore, how: str) -> None:
    records = _fill(store)
    reason = _spoil(store, store.path(records[1].key), how)
    for _ in range(2):
        index = StoreIndex(store.root)
        assert [entry.fold for entry in index.entries()] == [0, 2, 3]
        ((path, why),) = index.damaged
        assert path == store.path(records[1].key)
        assert reason in why
        assert str(path.with_suffix("")) in why
    (table,) = load_board(store.root).tables
    assert table.rows[0].note == "3 of 4 folds; missing 1"


def test_many_results_at_once_are_read_in_batches(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "BATCH", 3)
    records = _fill(store, "one") + _fill(store, "two")
    _spoil(store, store.path(records[5].key), "half a table")
    assert len(StoreIndex(store.root).entries()) == 7


def test_several_processes_read_what_one_reads(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    records = _fill(store, "one") + _fill(store, "two")
    _spoil(store, store.path(records[2].key), "half a record")
    _spoil(store, store.path(records[5].key), "table of another run")
    files = store.files()
    here = examine.examined_here(store.root, files)
    assert here.results["reason"].null_count() == len(here.episodes) == 6
    monkeypatch.setattr(examine, "SHARE", 4)
    monkeypatch.setattr(examine, "_cores", lambda: 2)
    with monkeypatch.context() as patch:
        patch.setattr(examine, "examined_here", lambda *_: pytest.fail("a process of its own did not work"))
        apart = examine.examined(store.root, files)
    assert apart.results.sort("path").equals(here.results.sort("path"))
    assert apart.episodes.sort("path").equals(here.episodes.sort("path"))
    monkeypatch.setattr(examine.sys, "executable", "/bin/false")
    assert examine.examined(store.root, files).results.sort("path").equals(here.results.sort("path"))


def test_statistics_are_computed_again_for_tables_that_changed(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "KEPT_RECORDS", 0)
    _fill(store, "one")
    _fill(store, "two", 3)
    for fold in range(4):
        rows = make_rows(fold, shot=5)
        store.write(make_record(rows, fold=fold, method="one", shot=5), rows)
    made = load_board(store.root)
    computed: list[int] = []
    original = index_module.noise
    monkeypatch.setattr(
        index_module, "noise", lambda ranked, *rest: computed.append(len(ranked)) or original(ranked, *rest)
    )
    assert load_board(store.root) == made
    assert computed == []
    _fill(store, "two", 9)
    again = load_board(store.root)
    assert computed == [2], "only the table with the new results"
    assert again.tables[1] == made.tables[1]
    assert again.tables[0].rows[0].interval != made.tables[0].rows[0].interval
    noise_file = StoreIndex(store.root)._noise_file
    noise_file.write_text("{}")
    assert load_board(store.root) == again
    assert computed == [2, 2, 1]


def test_only_wanted_tables_of_a_large_folder_get_statistics(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(store, "one")
    for fold in range(4):
        rows = make_rows(fold, shot=5)
        store.write(make_record(rows, fold=fold, method="one", shot=5), rows)
    whole = load_board(store.root)
    assert load_board(store.root, lambda table: table["shot"] == 5) == whole, "a small folder's board is kept whole"
    monkeypatch.setattr(boards, "KEPT_RECORDS", 0)
    monkeypatch.setattr(boards, "LAYOUT", 99)  # forget the kept board
    five = load_board(store.root, lambda table: table["shot"] == 5)
    assert five.tables[1] == whole.tables[1]
    assert five.tables[0].rows[0].interval == ()
    assert five.tables[0].rows[0].miou == whole.tables[0].rows[0].miou
    monkeypatch.setattr(index_module, "noise", lambda *_: pytest.fail("statistics of both tables are known"))
    assert load_board(store.root, lambda table: table["shot"] == 1).tables[0] == whole.tables[0]
    assert load_board(store.root) == whole


def test_samples_are_those_of_the_episodes(store: ResultStore) -> None:
    """Against the definition, with loops: draw episodes of each class, sum, divide, average."""
    from fssbench.results.statistics import SAMPLES, weights

    (record,) = _fill(store, folds=1)
    rows = store.rows(record)
    index = StoreIndex(store.root)
    (samples,) = index.samples([entry.path for entry in index.entries()]).values()
    for number in (0, 1, SAMPLES - 1):
        ious = []
        for class_id in (3, 7):
            mine = [row for row in rows if row.class_id == class_id]
            times = weights(record.key.manifest_sha256, class_id, len(mine))[number]
            inter = sum(t * row.fg_intersection for t, row in zip(times, mine, strict=True))
            ious.append(inter / sum(t * row.fg_union for t, row in zip(times, mine, strict=True)))
        assert samples.miou[number] == pytest.approx(np.mean(ious), abs=1e-15)


def test_an_index_of_another_version_or_a_broken_one_is_made_again(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(store)
    file = StoreIndex(store.root)._file
    assert file.is_file()
    file.write_bytes(b"broken")
    assert len(StoreIndex(store.root).entries()) == 4
    monkeypatch.setattr(index_module, "LAYOUT", 99)
    assert len(StoreIndex(store.root).entries()) == 4


def test_without_a_cache_folder_everything_works(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(store)
    (store.root / "file").write_text("")
    monkeypatch.setenv("FSSBENCH_CACHE", str(store.root / "file" / "cache"))
    assert load_board(store.root) == load_board(store.root)
    assert load_board(store.root).tables[0].rows[0].rank == 1


def test_an_empty_and_an_absent_folder_have_an_empty_board(tmp_path: Path) -> None:
    assert load_board(tmp_path) == ([], [], [])
    assert load_board(tmp_path / "absent") == ([], [], [])


# -- the board --------------------------------------------------------------------------------------------------------


def test_the_board_has_intervals_around_the_means(store: ResultStore) -> None:
    _fill(store, "low")
    _fill(store, "high", 30)
    (table,) = load_board(store.root).tables
    assert [(row.rank, row.method) for row in table.rows] == [(1, "high"), (2, "low")]
    for row in table.rows:
        low, high = row.interval
        assert row.miou is not None
        assert low < row.miou < high
        low, high = row.fb_interval
        assert row.fb_iou is not None
        assert low < row.fb_iou < high
        assert len(row.fold_intervals) == 4
        for (low, high), miou in zip(row.fold_intervals, row.fold_miou, strict=True):
            assert miou is not None
            assert low <= miou <= high


def _noisy(gain: int, generator: np.random.Generator) -> list[EpisodeRow]:
    """40 episodes of two classes whose hits vary by chance from 10 to 90, plus `gain`."""
    base = make_rows()
    hits = generator.integers(10, 80, 40) + gain
    rows = []
    for number, hit in enumerate(hits.tolist()):
        like = base[2 * (number % 2)]
        rows.append(replace(like, episode_id=number, fg_intersection=hit, fg_target=None, bg_union=1000 - hit))
    return rows


def test_rows_share_a_rank_where_the_paired_interval_contains_0(store: ResultStore) -> None:
    """The same gain on the same episodes is significant although the intervals overlap; by chance it is not."""
    tables = {
        "base": _noisy(0, np.random.default_rng(1)),
        "always-a-little-better": _noisy(2, np.random.default_rng(1)),
        "other-noise": _noisy(2, np.random.default_rng(2)),
    }
    for method, rows in tables.items():
        store.write(make_record(rows, method=method, n_folds=1), rows)
    (table,) = load_board(store.root).tables
    ranks = {row.method: row.rank for row in table.rows}
    better, base = (next(r for r in table.rows if r.method == m) for m in ("always-a-little-better", "base"))
    assert better.interval[0] < base.interval[1], "the intervals overlap"
    assert ranks["always-a-little-better"] is not None
    assert ranks["base"] is not None
    assert ranks["always-a-little-better"] < ranks["base"]
    assert ranks["other-noise"] in (ranks["base"], ranks["always-a-little-better"])
    assert any(table.shares_rank(row) for row in table.rows)


def test_a_kept_board_is_the_same_and_light(store: ResultStore) -> None:
    _fill(store)
    made = load_board(store.root)
    code = (
        "import sys\n"
        "from fssbench.results.boards import load_board\n"
        f"assert len(load_board({str(store.root)!r}).tables) == 1\n"
        "heavy = {'torch', 'pyarrow', 'numpy', 'polars', 'rich', 'lightning'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(boards.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    assert load_board(store.root) == made
    assert made.tables == board(StoreIndex(store.root).entries(), StoreIndex(store.root).noise)


def test_a_kept_board_is_made_again_when_a_file_changes(store: ResultStore) -> None:
    records = _fill(store)
    before = load_board(store.root)
    rows = make_rows(11)
    store.write(make_record(rows, fold=0, method="comp"), rows, overwrite=True)
    assert load_board(store.root).tables[0].rows[0].miou != before.tables[0].rows[0].miou
    store.path(records[3].key).write_text("{")
    assert len(load_board(store.root).damaged) == 1


def test_a_kept_board_is_made_again_when_published_numbers_change(
    store: ResultStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(store)
    load_board(store.root)
    changed, made = store.root.parent / "published.json", list[int]()
    changed.write_text("[]")
    monkeypatch.setattr(boards, "PUBLISHED_FILE", changed)
    monkeypatch.setattr(boards, "board", lambda *args: made.append(1) or board(*args))
    assert load_board(store.root) == load_board(store.root)
    assert made == [1], "made once more, then kept"


def test_the_order_of_an_episode_table_does_not_matter(store: ResultStore) -> None:
    """Paired samples need the episodes of both runs in the same order."""
    rows = _noisy(0, np.random.default_rng(1))
    for method in ("one", "other"):
        path = store.write(make_record(rows, method=method, n_folds=1), rows).with_suffix(".parquet")
    table = pq.read_table(path)
    pq.write_table(table.take(list(range(len(table)))[::-1]), path)
    index = StoreIndex(store.root)
    one, other = index.samples([entry.path for entry in index.entries()]).values()
    assert np.array_equal(one.miou, other.miou)


# -- several processes ------------------------------------------------------------------------------------------------


def _write_many(root: str, cache: str, worker: int, results: Any) -> None:
    os.environ["FSSBENCH_CACHE"] = cache
    store, outcome = ResultStore(root), []
    for fold in range(4):
        rows = make_rows(worker)
        try:  # its own result, and one that all processes want to write
            store.write(make_record(rows, fold=fold, method=f"own{worker}"), rows)
            store.write(make_record(rows, fold=fold, method="shared"), rows)
            outcome.append("written")
        except UserError as error:
            outcome.append(str(error))
        assert load_board(root).damaged == []
    results.put(outcome)


def test_many_processes_write_and_read_at_once(store: ResultStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = [(str(store.root), str(tmp_path / "cache"), worker, results) for worker in range(3)]
    workers = [context.Process(target=_write_many, args=args) for args in arguments]
    for worker in workers:
        worker.start()
    outcomes = [outcome for _ in workers for outcome in results.get(timeout=PATIENCE)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert outcomes.count("written") == 4, "each shared result was written once"
    assert all("already holds a result" in outcome for outcome in outcomes if outcome != "written")
    contents = store.read_all()
    assert len(contents.records) == 16
    for record in contents.records:
        store.verify(record)
    assert not list(store.root.rglob("*.part"))
