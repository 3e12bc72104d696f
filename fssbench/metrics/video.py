"""J and F of a test run on one-shot video: what a method says about single objects becomes one map per frame."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from fssbench.metrics.davis import (
    DavisScores,
    boundary_accuracy,
    davis_scores,
    merge_objects,
    region_similarity,
)


class VideoScores:
    """Collects the logits of a frame's objects; when all are there, merges and scores them.

    Args:
        object_of: class id -> (sequence, object id).
        frames: sequence -> its frames in order; the first and the last are not scored.

    Episodes must come frame by frame in one process, so that no more than one frame's logits are held.
    """

    name: ClassVar[str] = "video"

    def __init__(self, object_of: Callable[[int], tuple[str, int]], frames: Mapping[str, Sequence[str]]) -> None:
        self._object_of, self._frames = object_of, frames
        self.start()

    def start(self) -> None:
        """Forget everything, for a new run."""
        self._pending: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._at = ("", "")
        self.values: dict[tuple[str, int], list[tuple[str, float, float]]] = defaultdict(list)
        """(sequence, object id) -> (frame, J, F) of the scored frames, in order."""

    def update(self, episode_id: int, class_id: int, key: str, logits: np.ndarray, truth: np.ndarray) -> None:
        """Take one episode: logits (H0, W0) and the object's true mask (H0, W0) {0, 1} in frame `SEQ/FRAME`."""
        sequence, number = self._object_of(class_id)
        at = sequence, key.partition("/")[2]
        if at != self._at:
            self._score()
            self._at = at
        self._pending[number] = logits, truth == 1

    def compute(self) -> DavisScores:
        """Scores of all objects seen so far."""
        self._score()
        return davis_scores(
            {f"{name}:{number}": [(j, f) for _, j, f in found] for (name, number), found in self.values.items()}
        )

    def lines(self) -> list[str]:
        """What a person wants to read, in per cent."""
        scores = self.compute()
        j, f = (f"{n} {100 * s.mean:.2f} (recall {100 * s.recall:.2f}, decay {100 * s.decay:.2f})"
                for n, s in (("J", scores.j), ("F", scores.f)))  # fmt: skip
        return [f"  {len(scores.objects)} objects: J&F {100 * scores.jf:.2f}  {j}  {f}"]

    def csv(self) -> str:
        """One line per object and scored frame, unrounded: every score follows from it."""
        self._score()
        rows = [f"{n},{o},{frame},{j!r},{f!r}" for (n, o), found in self.values.items() for frame, j, f in found]
        return "\n".join(["sequence,object,frame,j,f", *rows]) + "\n"

    def _score(self) -> None:
        sequence, frame = self._at
        if self._pending and frame not in (self._frames[sequence][0], self._frames[sequence][-1]):
            merged = merge_objects({number: logits for number, (logits, _) in self._pending.items()})
            for number, (_, truth) in self._pending.items():
                own = merged == number
                self.values[sequence, number].append(
                    (frame, region_similarity(own, truth), boundary_accuracy(own, truth))
                )
        self._pending = {}
