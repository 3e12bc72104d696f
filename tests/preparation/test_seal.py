"""The signed-off statement: taken back while a preparation runs, and compared with what is there now."""

from __future__ import annotations

from pathlib import Path

import pytest

from fssbench.errors import UserError
from fssbench.preparation.seal import Report, begin, changes, finish, read_prepared, refuse_unfinished


def test_a_preparation_that_begins_takes_the_statement_of_the_one_before_back(tmp_path: Path) -> None:
    finish(tmp_path, "toy", True, True, {}, Report())
    assert read_prepared(tmp_path) is not None
    refuse_unfinished(tmp_path)
    begin(tmp_path, "toy")
    assert read_prepared(tmp_path) is None
    with pytest.raises(UserError, match="is half prepared"):
        refuse_unfinished(tmp_path)


def test_counts_and_lists_that_are_new_or_gone_are_changes() -> None:
    signed = {"dataset": "toy", "counts": {"same": 1, "gone": 2, "other": 3}, "lists": {}}
    now = Report(counts={"same": 1, "other": 4, "new": 0}, lists={"val": {"entries": 7}})
    assert changes(signed, "toy", now) == ["gone", "new", "other", "val"]
