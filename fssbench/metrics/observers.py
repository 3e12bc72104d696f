"""What looks at the predictions of a test besides the metric, and keeps numbers of its own for each episode."""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

import numpy as np

from fssbench.episode import IGNORE
from fssbench.metrics.boundary import boundary_iou, hausdorff95


class Observer(Protocol):
    """Sees every test episode once, in order and in one process.

    name   ending of the file beside the record: `....NAME.csv`
    """

    name: ClassVar[str]

    def start(self) -> None:
        """Forget everything, for a new run."""

    def update(self, episode_id: int, class_id: int, key: str, logits: np.ndarray, truth: np.ndarray) -> None:
        """Take one episode: logits (H0, W0) float, its true mask (H0, W0) uint8 {0, 1, 255}; `key` is the query's."""

    def lines(self) -> list[str]:
        """What a person wants to read at the end."""

    def csv(self) -> str:
        """All numbers, unrounded, as a table with a head."""


class BoundaryScores:
    """Boundary IoU and 95th-percentile Hausdorff distance of each episode (`data.boundary`)."""

    name: ClassVar[str] = "boundary"

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forget everything, for a new run."""
        self.rows: list[tuple[int, int, float, float]] = []
        """(episode, class, boundary IoU, Hausdorff distance in pixels)."""

    def update(self, episode_id: int, class_id: int, key: str, logits: np.ndarray, truth: np.ndarray) -> None:
        """Take one episode; a pixel is predicted where its logit is above 0."""
        masks = logits > 0, truth == 1, truth == IGNORE
        self.rows.append((episode_id, class_id, boundary_iou(*masks), hausdorff95(*masks)))

    def lines(self) -> list[str]:
        """Means over the episodes; a prediction without any object has no distance and is counted apart."""
        finite = [distance for *_, distance in self.rows if math.isfinite(distance)]
        iou = math.fsum(value for _, _, value, _ in self.rows) / len(self.rows)
        mean = f"{math.fsum(finite) / len(finite):.1f} px" if finite else "none"
        empty = len(self.rows) - len(finite)
        return [
            f"  mean over episodes: boundary IoU {100 * iou:.2f}, 95 % Hausdorff {mean} ({empty} without a distance)"
        ]

    def csv(self) -> str:
        """One line per episode; `inf` where only one of the masks is empty."""
        rows = [f"{e},{c},{iou!r},{distance!r}" for e, c, iou, distance in sorted(self.rows)]
        return "\n".join(["episode_id,class_id,boundary_iou,hausdorff95", *rows]) + "\n"
