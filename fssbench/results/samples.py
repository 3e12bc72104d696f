"""Bootstrap samples of a single record, from its episode table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fssbench.metrics.scores import COUNTS
from fssbench.results.record import ResultRecord
from fssbench.results.statistics import Samples, fold_samples
from fssbench.results.table import EpisodeRow


def record_samples(record: ResultRecord, rows: Sequence[EpisodeRow]) -> Samples:
    """mIoU and FB-IoU in every bootstrap sample: (1, S) fractions, the same as the board's for this record."""
    ordered = sorted(rows, key=lambda row: row.episode_id)
    class_ids = np.array([row.class_id for row in ordered])
    counts = np.array([[[getattr(row, name) for row in ordered]] for name in COUNTS])
    return fold_samples(record.key.manifest_sha256, class_ids, counts)
