"""Means over the draws of bam-compat: of all five, never of some, never the best."""

from __future__ import annotations

from typing import Any

import pytest

from fssbench.protocols.profiles import BAM_SEEDS
from fssbench.results.draws import over_draws
from fssbench.results.leaderboard import board
from fssbench.results.record import ResultRecord
from fssbench.results.rendering import render
from tests.results.make import make_record, make_rows


def draws(method: str, seeds: tuple[int, ...] = BAM_SEEDS, **changes: Any) -> list[ResultRecord]:
    """Two folds of each draw; draw n of fold f has 2 n + f more hits."""
    return [
        make_record(
            make_rows(2 * turn + fold), method=method, protocol=f"bam-compat.s{seed}", fold=fold, n_folds=2,
            manifest_sha256=f"{fold}{turn}" * 32, **changes,
        )
        for turn, seed in enumerate(seeds)
        for fold in (0, 1)
    ]  # fmt: skip


def test_the_mean_of_all_draws_stands_beside_them() -> None:
    tables = board(draws("whole") + draws("part", BAM_SEEDS[:4]))
    assert len(tables) == 5
    (means,) = over_draws(tables)
    (row,) = means.rows
    mious = [next(r.miou for r in table.rows if r.method == "whole") for table in tables]
    assert row.method == "whole"
    assert row.miou == pytest.approx(sum(m for m in mious if m is not None) / 5)
    assert row.fold_miou == pytest.approx([0.245 + 0.04, 0.245 + 0.05])
    assert row.deviation == pytest.approx(0.02 * 2.5**0.5)
    text = render(tables)
    assert "pascal-5i, bam-compat v1, mean of 5 draws, 1-shot, scored at original size" in text
    assert all(number in text for number in ("28.50", "29.50", "29.00", "3.16"))


@pytest.mark.parametrize("changes", [{"seeds": BAM_SEEDS[1:]}, {"seeds": (1, 2, 3, 4, 5)}])
def test_there_is_no_mean_of_some_draws(changes: dict[str, Any]) -> None:
    assert over_draws(board(draws("a", **changes))) == []


def test_shots_resolutions_and_tracks_have_means_of_their_own() -> None:
    found = over_draws(
        board(draws("a") + draws("b", shot=5) + draws("c", resolution="473-pad") + draws("d", track="strict"))
    )
    assert sorted(row.method for table in found for row in table.rows) == ["a", "b", "c", "d"]
    assert len(found) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_sha256": "a" * 64},  # the best checkpoint for each draw
        {"rows": make_rows()[:3]},  # a shorter test
        {"supervision": "boxes"},
    ],
    ids=["weights", "episodes", "metadata"],
)
def test_draws_of_other_experiments_have_no_mean(changes: dict[str, Any]) -> None:
    first = {"method": "a", "protocol": f"bam-compat.s{BAM_SEEDS[0]}", "n_folds": 2, "rows": make_rows()} | changes
    odd = [make_record(**first.copy(), fold=fold, manifest_sha256=f"{fold}0" * 32) for fold in (0, 1)]
    tables = board([*odd, *(record for record in draws("a") if record.key.protocol != first["protocol"])])
    assert sum(row.miou is not None for table in tables for row in table.rows) == 5
    assert over_draws(tables) == []


def test_a_draw_that_was_tested_on_two_manifests_has_no_mean() -> None:
    other = [make_record(make_rows(), method="b", protocol=f"bam-compat.s{BAM_SEEDS[0]}", fold=fold, n_folds=2,
                         manifest_sha256=f"{fold}9" * 32) for fold in (0, 1)]  # fmt: skip
    assert len(over_draws(board(draws("a")))) == 1
    assert over_draws(board(draws("a") + other)) == []


def test_runs_of_several_seeds_are_not_mixed() -> None:
    (means,) = over_draws(board(draws("a") + draws("a", seed=1)))
    assert [(row.seed, row.miou) for row in means.rows] == [(0, pytest.approx(0.29)), (1, pytest.approx(0.29))]
