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
from typing import Any

import numpy as np

SAMPLES = 1000
"""Bootstrap samples behind every interval of the board."""
LEVEL = 0.95
LEVEL_TAIL = (1 - LEVEL) / 2
SEED = 0

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


def fold_samples(
    stratum: str, class_ids: Array, intersection: Array, union: Array, samples: int = SAMPLES
) -> dict[int, Array]:
    """IoU of every class in every bootstrap sample: class id -> (R, S) fractions.

    class_ids            (N,) class of each episode
    intersection, union  (R, N) foreground pixels
    """
    found = {}
    for class_id in np.unique(class_ids).tolist():
        of_class = class_ids == class_id
        sums = class_samples(stratum, class_id, intersection[:, of_class], union[:, of_class], samples)
        found[class_id] = sums[0] / np.maximum(sums[1], 1)
    return found


def mean_over(samples: Sequence[Array]) -> Array:
    """Mean of samples of the same shape: of classes to a fold's mIoU, of folds to a row's."""
    return np.mean(np.stack(samples), axis=0)


def intervals(samples: Sequence[Array]) -> list[tuple[float, float]]:
    """Percentile intervals at `LEVEL` of R runs' (S,) samples."""
    if not len(samples):
        return []
    low, high = np.quantile(np.stack(samples), [LEVEL_TAIL, 1 - LEVEL_TAIL], axis=1).tolist()
    return list(zip(low, high, strict=True))


def interval(samples: Array) -> tuple[float, float]:
    """Percentile interval of (S,) samples at `LEVEL`."""
    return intervals([samples])[0]


def differ(one: Array, other: Array) -> bool:
    """Whether two runs on the same episodes differ by more than the noise: the paired interval leaves out 0."""
    low, high = interval(one - other)
    return low > 0 or high < 0


def shared_ranks(samples: Sequence[Array]) -> list[int]:
    """Ranks of rows that are sorted best first: 1 + the number of rows that are better by more than the noise.

    So a row shares the rank of those above it from which the paired interval does not tell it apart.
    """
    ranks: list[int] = []
    every = np.stack(samples) if len(samples) else np.empty((0, 0))
    for place, own in enumerate(every):
        # how many samples say that the upper row is not better decides nearly all cases without sorting them
        against = np.count_nonzero(every[:place] <= own, axis=1)
        edge = LEVEL_TAIL * (own.size - 1)
        close = np.flatnonzero((against > edge - 1) & (against < edge + 1))
        better = np.count_nonzero(against <= edge - 1) + sum(differ(every[above], own) for above in close)
        ranks.append(1 + int(better))
    return ranks
