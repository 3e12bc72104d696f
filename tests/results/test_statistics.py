"""The bootstrap: stratified, paired, fixed, and right about how sure a number is."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from fssbench.files import sha256_text
from fssbench.metrics.scores import iou_scores
from fssbench.results import statistics
from fssbench.results.statistics import (
    SAMPLES,
    class_samples,
    differ,
    fold_samples,
    interval,
    mean_over,
    shared_ranks,
    weights,
)

STRATUM = sha256_text("manifest")
PINNED = [[1, 1, 1, 0, 2], [0, 1, 2, 2, 0], [0, 2, 1, 0, 2]]


def test_every_sample_draws_as_many_episodes_as_there_are() -> None:
    drawn = weights(STRATUM, 3, 7)
    assert drawn.shape == (SAMPLES, 7)
    assert (drawn.sum(1) == 7).all()
    assert (drawn == np.round(drawn)).all()
    assert drawn.mean(0) == pytest.approx(1, abs=0.15)
    assert drawn.var(0) == pytest.approx(6 / 7, abs=0.2), "multinomial: n p (1 - p)"


def test_draws_are_fixed_and_differ_between_manifests_and_classes() -> None:
    """Pinned, so that a published interval does not move unnoticed with a library."""
    assert weights(STRATUM, 3, 5, 3).tolist() == PINNED
    assert (weights(STRATUM, 3, 5, 3) == weights(STRATUM, 3, 5, 3)).all()
    for other in (weights(STRATUM, 4, 5), weights(sha256_text("other"), 3, 5)):
        assert (weights(STRATUM, 3, 5) != other).any()


def test_sums_are_exact_beyond_float32() -> None:
    pixels = np.array([[2**40 + 1, 2**40 + 3]])
    sums, _ = class_samples(STRATUM, 1, pixels, pixels, 50)
    drawn = weights(STRATUM, 1, 2, 50)
    assert sums[0].tolist() == [int(a) * (2**40 + 1) + int(b) * (2**40 + 3) for a, b in drawn]


def test_classes_are_strata() -> None:
    """A class whose episodes are all alike adds no noise, and never loses an episode to another class."""
    class_ids = np.array([1, 2, 1, 2])
    inter, union = np.array([[10, 50, 30, 50]]), np.array([[100, 100, 100, 100]])
    counts = np.stack([inter, union, inter, union])
    both = fold_samples(STRATUM, class_ids, counts).miou
    assert set(np.unique(both)) == {0.3, 0.35, 0.4}, "one class is 0.5 in every sample, the other 0.1, 0.2 or 0.3"


def test_samples_follow_the_definitions_of_the_scores() -> None:
    """Against `iou_scores`, sample by sample, in several blocks of runs."""
    generator = np.random.default_rng(0)
    class_ids = np.array([4, 2, 2, 4, 4, 2, 9])
    runs = statistics.BLOCK + 3
    union = generator.integers(1, 100, (2, runs, 7))
    inter = generator.integers(0, union + 1)
    counts = np.stack([inter[0], union[0], inter[1], union[1]])
    found = fold_samples(STRATUM, class_ids, counts, 5)
    assert found.miou.shape == found.fb_iou.shape == (runs, 5)
    for run, sample in itertools.product(range(runs), range(5)):
        sums = {}
        for c in (2, 4, 9):
            drawn = weights(STRATUM, c, int((class_ids == c).sum()), 5)[sample].astype(int)
            sums[c] = (counts[:, run, class_ids == c] * drawn).sum(1).tolist()
        expected = iou_scores(sums, {2: 3, 4: 3, 9: 1})
        assert found.miou[run, sample] == pytest.approx(expected["miou"], abs=1e-15)
        assert found.fb_iou[run, sample] == pytest.approx(expected["fb_iou"], abs=1e-15)


def test_an_empty_union_counts_as_0() -> None:
    zero = np.zeros((4, 1, 2), np.int64)
    for samples in fold_samples(STRATUM, np.array([1, 1]), zero):
        assert (samples == 0).all()


def _of(hits: Any) -> Any:
    """Counts of runs with these hits in unions of 100."""
    return np.stack([hits, np.full_like(hits, 100)] * 2)


def test_the_interval_covers_the_true_score_about_as_often_as_it_says() -> None:
    """400 draws of 30 episodes from a known distribution (binomial error of the rate at 400: 0.011)."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(400):
        hits = generator.integers(0, 100, (1, 30))
        samples = fold_samples(sha256_text(str(trial)), np.ones(30, int), _of(hits), 400).miou[0]
        low, high = interval(samples)
        covered += low <= 0.495 <= high
    assert 0.90 <= covered / 400 <= 0.97


def test_pairing_sees_a_small_constant_gain() -> None:
    generator = np.random.default_rng(0)
    hits = generator.integers(0, 90, (1, 50))
    both = np.concatenate([hits, hits + 1])
    samples = fold_samples(STRATUM, np.ones(50, int), _of(both)).miou
    low, high = interval(samples[1] - samples[0])
    assert (low, high) == pytest.approx((0.01, 0.01))
    assert interval(samples[1])[0] < interval(samples[0])[1]
    assert differ(samples[1], samples[0])
    assert differ(samples[0], samples[1]), "whichever comes first"
    assert not differ(samples[0], samples[0])


def _ranks(*rows: list[float]) -> list[int]:
    """Ranks of rows given by how far they are above 0, each in 1000 samples with its own noise."""
    return shared_ranks([np.asarray(row) for row in rows])


def test_ranks_count_the_rows_that_are_better_by_more_than_the_noise() -> None:
    generator = np.random.default_rng(0)
    noise = [generator.normal(0, 1, SAMPLES) for _ in range(3)]
    far = [n + mean for n, mean in zip(noise, (20, 10, 0), strict=True)]
    assert _ranks(*far) == [1, 2, 3]
    assert _ranks(*[n + mean for n, mean in zip(noise, (0.2, 0.1, 0), strict=True)]) == [1, 1, 1]
    # the second is told apart from the third, with which it is paired, but not from the first
    assert _ranks(3 * noise[0] + 0.2, noise[1] + 0.1, noise[1]) == [1, 1, 2]
    assert _ranks() == []


@pytest.mark.parametrize("worse", range(20, 31))
def test_ranks_agree_with_the_interval_at_its_edge(worse: int) -> None:
    upper = np.r_[np.full(worse, -1e-6), np.full(SAMPLES - worse, 1.0)]
    lower = np.zeros(SAMPLES)
    assert shared_ranks([upper, lower]) == [1, 2 if differ(upper, lower) else 1]


def test_ranks_are_those_of_comparing_every_pair() -> None:
    """Against the definition, on rows from far apart to nearly equal, with noise that is shared in part."""
    generator = np.random.default_rng(0)
    shared = generator.normal(0, 1, SAMPLES)
    rows = [m + s * shared + generator.normal(0, 1, SAMPLES) for m in range(8) for s in (0.1, 1, 3) for _ in range(2)]
    rows.sort(key=lambda row: -row.mean())
    expected = [1 + sum(interval(above - row)[0] > 0 for above in rows[:place]) for place, row in enumerate(rows)]
    assert shared_ranks(rows) == expected
    assert 10 < len(set(expected)) < len(rows)


def test_mean_over_keeps_the_samples_apart() -> None:
    assert mean_over([np.array([1.0, 2.0]), np.array([3.0, 6.0])]).tolist() == [2.0, 4.0]
