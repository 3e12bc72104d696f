"""Metrics: few-shot mIoU and FB-IoU.

`scores` is free of torch and shared with `fssbench.results`; `FewShotIoU` and `episode_counts` import torch when they
are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fssbench.metrics.scores import COUNTS, IoUScores, iou_scores

if TYPE_CHECKING:
    from fssbench.metrics.iou import FewShotIoU, episode_counts

__all__ = ["COUNTS", "FewShotIoU", "IoUScores", "episode_counts", "iou_scores"]


def __getattr__(name: str) -> Any:
    """Import the torch part only when it is used (PEP 562): the leaderboard must stay light."""
    if name in ("FewShotIoU", "episode_counts"):
        from fssbench.metrics import iou

        return getattr(iou, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
