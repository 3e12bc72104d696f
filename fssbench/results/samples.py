"""Bootstrap samples of a single record, from its episode table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fssbench.results.record import ResultRecord
from fssbench.results.statistics import Array, fold_samples, mean_over
from fssbench.results.table import EpisodeRow


def record_samples(record: ResultRecord, rows: Sequence[EpisodeRow]) -> Array:
    """mIoU in every bootstrap sample: (S,) fractions, the same as the board's for this record."""
    ordered = sorted(rows, key=lambda row: row.episode_id)
    class_ids = np.array([row.class_id for row in ordered])
    inter, union = (np.array([[getattr(row, n) for row in ordered]]) for n in ("fg_intersection", "fg_union"))
    found: Array = mean_over(list(fold_samples(record.key.manifest_sha256, class_ids, inter, union).values()))[0]
    return found
