"""Comparing two methods: same episodes only, paired, and by what differs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.results.comparison import Result, compare
from fssbench.results.table import EpisodeRow
from tests.results.make import make_record, make_rows


def _result(shift: int = 0, rows: list[EpisodeRow] | None = None, **changes: Any) -> Result:
    rows = make_rows(shift, changes.get("shot", 1)) if rows is None else rows
    return make_record(rows, **changes), rows


def _folds(method: str, shift: int, folds: int = 4, **changes: Any) -> list[Result]:
    return [_result(shift + fold, method=method, fold=fold, **changes) for fold in range(folds)]


def test_scores_and_difference_are_those_of_the_records() -> None:
    a, b = _folds("a", 0), _folds("b", 3)
    (found,) = compare(a, b)
    (whole,) = found.by_shot
    assert whole.a == pytest.approx(sum(r.scores.miou for r, _ in a) / 4)
    assert whole.b == pytest.approx(sum(r.scores.miou for r, _ in b) / 4)
    assert whole.difference == pytest.approx(0.03)
    assert whole.interval == pytest.approx((0.03, 0.03)), "a constant gain has no noise when it is paired"
    assert whole.verdict == "B"
    assert (found.left_out, found.folds, found.n_folds) == (0, (0, 1, 2, 3), 4)
    assert [d.what for d in found.by_fold] == [f"fold {fold}, 1-shot" for fold in range(4)]
    assert {d.what for d in found.by_class} == {"bird, 1-shot", "car, 1-shot"}
    assert [(d.episodes, d.a) for d in found.by_class[:2]] == [(2, 41 / 200), (2, 57 / 200)]
    assert all(d.difference == pytest.approx(0.03) for d in (*found.by_fold, *found.by_class))


def test_swapping_the_sides_changes_the_sign() -> None:
    a, b = _folds("a", 0), _folds("b", 3)
    (one,), (other,) = compare(a, b), compare(b, a)
    assert other.by_shot[0].difference == -one.by_shot[0].difference
    assert other.by_shot[0].interval == tuple(-x for x in reversed(one.by_shot[0].interval))
    assert other.by_shot[0].verdict == "A"


def test_equal_methods_do_not_differ() -> None:
    (found,) = compare(_folds("a", 0), _folds("b", 0))
    assert found.by_shot[0].verdict == "="
    assert found.most_different == ()


def test_only_shared_episodes_count() -> None:
    """B was tested on another fourth episode, and in another order."""
    rows = make_rows(2)
    other = [replace(rows[3], support_keys=("other",), fg_intersection=0, bg_union=1000), *rows[2::-1]]
    other = [replace(row, episode_id=number) for number, row in enumerate(other)]
    (found,) = compare([_result()], [_result(rows=other, manifest_sha256=sha256_text("other"))])
    assert found.left_out == 2
    assert found.by_fold[0].episodes == 3
    assert found.by_fold[0].a == pytest.approx((41 / 200 + 40 / 100) / 2)
    assert found.by_fold[0].b == pytest.approx((45 / 200 + 42 / 100) / 2)


def test_an_episode_that_is_there_twice_is_matched_twice() -> None:
    rows = [*make_rows(), replace(make_rows()[0], episode_id=4, fg_intersection=20, bg_union=980)]
    (found,) = compare([_result(rows=rows)], [_result(rows=rows)])
    assert found.by_fold[0].episodes == 5
    assert found.left_out == 0


def test_shots_are_compared_with_their_like() -> None:
    a = _folds("a", 0) + _folds("a", 5, shot=5)
    b = _folds("b", 1) + _folds("b", 9, shot=5)
    (found,) = compare(a, b)
    assert [(d.what, round(d.difference, 6)) for d in found.by_shot] == [("1-shot", 0.01), ("5-shot", 0.04)]


def _sized(shift: int, targets: list[int | None]) -> list[EpisodeRow]:
    rows = make_rows(shift)
    return [
        replace(row, fg_union=100, bg_intersection=9900, bg_union=9900, fg_target=t)
        for row, t in zip(rows, targets, strict=True)
    ]


def test_sizes_are_shares_of_the_counted_pixels() -> None:
    """99 of 10000 pixels are below 1 %, 100 are not."""
    (found,) = compare([_result(rows=_sized(0, [99, 99, 100, 99]))], [_result(rows=_sized(4, [99, 99, 100, 99]))])
    assert [(d.what, d.episodes) for d in found.by_size] == [("below 1 %", 3), ("1 to 5 %", 1)]
    assert all(d.difference == pytest.approx(0.04) for d in found.by_size)


def test_a_size_that_one_table_lacks_is_taken_from_the_other() -> None:
    unknown = _sized(0, [None] * 4)
    (found,) = compare([_result(rows=unknown)], [_result(rows=_sized(4, [99, 99, 100, 99]))])
    assert sum(d.episodes for d in found.by_size) == 4
    (found,) = compare([_result(rows=unknown)], [_result(rows=unknown)])
    assert found.by_size == ()


def test_the_most_different_episodes_come_in_turn() -> None:
    hits = [50, 31, 45, 10]  # against 10, 31, 40, 17
    rows = [replace(row, fg_intersection=hit, bg_union=1000 - hit) for row, hit in zip(make_rows(), hits, strict=True)]
    (found,) = compare([_result()], [_result(rows=rows)])
    assert [(e.episode_id, round(100 * (e.b - e.a))) for e in found.most_different] == [(0, 40), (3, -7), (2, 5)]
    (found,) = compare([_result()], [_result(rows=rows)], episodes=1)
    assert len(found.most_different) == 1
    assert found.most_different[0].query_key == "a"


def test_nothing_in_common_and_too_much_are_refused() -> None:
    with pytest.raises(UserError, match="no episode in common"):
        compare([_result(fold=0)], [_result(fold=1)])
    with pytest.raises(UserError, match="no episode in common"):
        compare([_result()], [_result(rows=[replace(r, query_key=r.query_key + "x") for r in make_rows()])])
    with pytest.raises(UserError, match="B has several results on pascal-5i fold 0, 1-shot.*--seed"):
        compare([_result()], [_result(), _result(seed=1)])


def test_folds_of_several_experiments_are_no_method() -> None:
    """Fold 0 of one configuration and folds 1 to 3 of another make no mean, although no fold is there twice."""
    mixed = [_result(1, method_config={"class": "x"}), *_folds("prototype", 0)[1:]]
    with pytest.raises(UserError, match=r"B mixes folds of several experiments at 1-shot \(prototype@.*, prototype@"):
        compare(_folds("prototype", 0), mixed)
    with pytest.raises(UserError, match="A mixes folds .*seed 0, .*seed 1"):
        compare([_result(1, seed=1), *_folds("prototype", 0)[1:]], _folds("b", 0))


def test_a_model_of_its_own_for_five_shots_is_one_method() -> None:
    a = _folds("a", 0) + _folds("a", 5, shot=5, method_config={"shot": 5})
    (found,) = compare(a, _folds("b", 1) + _folds("b", 9, shot=5))
    assert found.a.startswith("a@")
    assert ", a@" in found.a
    assert len(found.by_shot) == 2


def test_folds_are_counted_for_each_data_set() -> None:
    sets = [[*_folds(name, 0), _result(0, method=name, dataset="fss-1000", n_folds=1)] for name in ("a", "b")]
    assert {(c.dataset, c.n_folds) for c in compare(*sets)} == {("fss-1000", 1), ("pascal-5i", 4)}
