"""How sure a score is: the stratified bootstrap over episodes (protocols.md 3.6).

A class's IoU is a ratio of sums over its episodes, so its sampling noise has no simple formula. The bootstrap draws the
episodes of each class again with replacement, as many as there are, and computes mIoU from the drawn counts; that is
done `SAMPLES` times, and the middle 95 % of the results are the interval. Classes and folds are strata: none is ever
drawn more or less often than it was tested.

Drawing is the same as giving every episode a weight, the number of times it was drawn. The weights depend on nothing
but the manifest, the class and a fixed seed. So all methods tested on the same episodes get the same weights, and the
difference of two methods' samples *is* the paired bootstrap of their difference.

Shape legend: `S` samples, `R` runs (results on the same episodes), `N` episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

SAMPLES = 1000
"""Bootstrap samples behind every interval of the board."""
LEVEL = 0.95
LEVEL_TAIL = (1 - LEVEL) / 2
SEED = 0
BLOCK = 32
"""Runs computed at once: their samples stay in the processor's cache."""
FIRST = 128
"""Samples that are looked at first when two rows are compared: of equal rows half of them say so."""

Array = np.ndarray[Any, np.dtype[Any]]


def weights(stratum: str, class_id: int, episodes: int, samples: int = SAMPLES) -> Array:
    """How often each episode of a class is drawn: (S, N) float64 whole numbers, each row summing to N.

    stratum   SHA-256 (hex) of what is drawn from, e.g. the manifest; independent draws for different ones
    episodes  number N of episodes of the class
    """
    generator = np.random.default_rng([SEED, int(stratum[:16], 16), class_id])
    return generator.multinomial(episodes, np.full(episodes, 1 / episodes), size=samples).astype(np.float64)


def class_samples(
    stratum: str, class_id: int, intersection: Array, union: Array, samples: int = SAMPLES
) -> tuple[Array, Array]:
    """Sums of a class's intersections and unions in every bootstrap sample.

    intersection, union  (R, N) pixels of the class's episodes, in the same order for all runs
    -> two (R, S) float64; exact, since whole numbers below 2^53 are added
    """
    drawn = weights(stratum, class_id, intersection.shape[1], samples).T
    return intersection.astype(np.float64) @ drawn, union.astype(np.float64) @ drawn


class Samples(NamedTuple):
    """Scores of R runs in every bootstrap sample; fractions in [0, 1]."""

    miou: Array
    """(R, S)"""
    fb_iou: Array
    """(R, S)"""


def fold_samples(stratum: str, class_ids: Array, counts: Array, samples: int = SAMPLES) -> Samples:
    """mIoU and FB-IoU of runs on one fold in every bootstrap sample (their definition: `fssbench.metrics.scores`).

    class_ids  (N,) class of each episode
    counts     (4, R, N) pixels in the order of `COUNTS`
    """
    order = np.argsort(class_ids, kind="stable")
    classes, sizes = np.unique(class_ids, return_counts=True)
    ends = np.cumsum(sizes).tolist()
    drawn = np.concatenate(
        [weights(stratum, c, n, samples).T for c, n in zip(classes.tolist(), sizes.tolist(), strict=True)]
    )
    counts = counts[:, :, order].astype(np.float64)
    found = np.empty((2, counts.shape[1], samples))
    for start in range(0, counts.shape[1], BLOCK):
        rows = slice(start, start + BLOCK)
        fg_intersection, fg_union, bg_intersection, bg_union = counts[:, rows]
        total, pooled = np.zeros_like(found[0, rows]), [np.zeros_like(found[0, rows]) for _ in range(2)]
        for first, end in zip([0, *ends[:-1]], ends, strict=True):
            inter, union = (count[:, first:end] @ drawn[first:end] for count in (fg_intersection, fg_union))
            pooled[0] += inter
            pooled[1] += union
            total += _ratio(inter, union)
        found[0, rows] = total / len(classes)
        found[1, rows] = (_ratio(*pooled) + _ratio(bg_intersection @ drawn, bg_union @ drawn)) / 2
    return Samples(*found)


def _ratio(intersection: Array, union: Array) -> Array:
    """I / max(U, 1), in place."""
    found: Array = np.divide(intersection, np.maximum(union, 1, out=union), out=intersection)
    return found


def mean_over(samples: Sequence[Array]) -> Array:
    """Mean of samples of the same shape, e.g. of the folds to a row's."""
    return np.mean(np.stack(samples), axis=0)


def intervals(samples: Sequence[Array] | Array) -> list[tuple[float, float]]:
    """Percentile intervals at `LEVEL` of R runs' (S,) samples, or of (R, S)."""
    if not len(samples):
        return []
    low, high = np.quantile(np.asarray(samples), [LEVEL_TAIL, 1 - LEVEL_TAIL], axis=1).tolist()
    return list(zip(low, high, strict=True))


def interval(samples: Array) -> tuple[float, float]:
    """Percentile interval of (S,) samples at `LEVEL`."""
    return intervals([samples])[0]


def differ(one: Array, other: Array) -> bool:
    """Whether two runs on the same episodes differ by more than the noise: the paired interval leaves out 0."""
    low, high = interval(one - other)
    return low > 0 or high < 0


def shared_ranks(samples: Sequence[Array] | Array) -> list[int]:
    """Ranks of rows that are sorted best first: 1 + the number of rows that are better by more than the noise.

    So a row shares the rank of those above it from which the paired interval does not tell it apart.

    samples  (S,) of each row, or (R, S)
    """
    if not len(samples):
        return []
    every = np.asarray(samples)
    # How many samples say that the upper row is not better decides nearly all pairs without sorting differences.
    edge = LEVEL_TAIL * (every.shape[1] - 1)
    least, most = _cores(every, int((edge - 1) // 2))
    ranks = []
    for place, own in enumerate(every):
        unsure = np.flatnonzero(least[:place] <= most[place])
        better = place - len(unsure)
        against = np.zeros(len(unsure), int)
        for part in (slice(0, FIRST), slice(FIRST, None)):
            against += np.count_nonzero(every[unsure, part] <= own[part], axis=1)
            possible = against < edge + 1
            unsure, against = unsure[possible], against[possible]
        close = unsure[against > edge - 1]
        better += len(unsure) - len(close) + sum(differ(every[above], own) for above in close)
        ranks.append(1 + int(better))
    return ranks


def _cores(every: Array, outside: int) -> tuple[Array, Array]:
    """Lowest and highest sample of each row when the `outside` lowest and highest are left out.

    Where the lowest of one row lies above the highest of another, at most 2 `outside` samples say otherwise.
    """
    if outside < 0:  # too few samples to tell anything apart so simply
        return np.full(len(every), -np.inf), np.full(len(every), np.inf)
    places = outside, every.shape[1] - 1 - outside
    cores = [np.partition(every[start : start + BLOCK], places, axis=1) for start in range(0, len(every), BLOCK)]
    low, high = (np.concatenate([core[:, place] for core in cores]) for place in places)
    return low, high
