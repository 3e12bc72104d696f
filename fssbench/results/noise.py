"""What the bootstrap says about the rows of a table: which of them may share a rank, and the interval of every score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fssbench.results.statistics import Samples

Interval = tuple[float, float]
"""Low and high end, 95 %; fractions in [0, 1]."""


class Noise(NamedTuple):
    """Ranks and intervals; the lists have one entry per ranked row, best first."""

    ranks: list[int]
    miou: list[Interval]
    fb_iou: list[Interval]
    folds: dict[str, Interval]
    """Path of a result -> the interval of its mIoU, also of rows without a rank."""


Judge = Callable[[Sequence[Sequence[str]], Sequence[str]], Noise]
"""Takes the paths of each ranked row's results, best row first, and those of the other rows' results;
`StoreIndex.noise` is one."""


def noise(ranked: Sequence[Sequence[str]], samples: Mapping[str, Samples]) -> Noise:
    """Ranks and intervals from samples.

    ranked   paths of each ranked row's results, best row first
    samples  path -> (S,) samples, of the ranked rows and of others
    """
    from fssbench.results.statistics import intervals, mean_over, shared_ranks

    mious = [mean_over([samples[path].miou for path in paths]) for paths in ranked]
    fb_ious = [mean_over([samples[path].fb_iou for path in paths]) for paths in ranked]
    of_paths = intervals([sample.miou for sample in samples.values()])
    folds = dict(zip(samples, of_paths, strict=True))
    return Noise(shared_ranks(mious), intervals(mious), intervals(fb_ious), folds)
