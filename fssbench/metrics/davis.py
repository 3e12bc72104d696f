"""DAVIS J, F and J&F by the official definitions (protocols.md 3.5), and the merge of one-shot predictions per object.

Masks are (H, W) bool arrays of one object in one frame. Everything is at original size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fssbench.errors import UserError

BOUNDARY_SHARE = 0.008
"""Boundaries match within this share of the frame's diagonal (official constant)."""
THRESHOLD = 0.5
"""A frame above it counts for recall."""
_BINS = 4


def region_similarity(predicted: np.ndarray, truth: np.ndarray) -> float:
    """J: intersection over union, 1 where both masks are empty."""
    predicted, truth = _pair(predicted, truth)
    union = np.count_nonzero(predicted | truth)
    return np.count_nonzero(predicted & truth) / union if union else 1.0


def boundary_accuracy(predicted: np.ndarray, truth: np.ndarray) -> float:
    """F: harmonic mean of boundary precision and recall; 1 where neither mask has a boundary, 0 where one has none."""
    predicted, truth = _pair(predicted, truth)
    own, theirs = boundary(predicted), boundary(truth)
    counts = np.count_nonzero(own), np.count_nonzero(theirs)
    if 0 in counts:
        return float(counts == (0, 0))
    disk = _disk(boundary_radius(*truth.shape))
    precision = np.count_nonzero(own & _dilated(theirs, disk)) / counts[0]
    recall = np.count_nonzero(theirs & _dilated(own, disk)) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that differ from their right, lower or lower-right neighbour.

    In the last row only the right, in the last column only the lower neighbour counts; the last corner never does. A mask
    that fills the whole frame has no boundary.
    """
    mask = mask.astype(bool)
    found = np.zeros_like(mask)
    found[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    found[:-1] |= mask[:-1] ^ mask[1:]
    found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return found


def boundary_radius(height: int, width: int) -> int:
    """Radius in pixels of the disk within which boundaries match: 8 for 480x854."""
    return math.ceil(BOUNDARY_SHARE * math.hypot(height, width))


def merge_objects(logits: Mapping[int, np.ndarray]) -> np.ndarray:
    """One index map (H, W) uint8 from the logits (H, W) of each object of a frame (object id -> logits).

    A pixel has the label that is most likely, objects taken for independent (fsdino.md 4): the object of the highest
    probability p, unless background, the product of (1 - p) over all objects, is more likely. So every pixel has one label, as
    the official scoring demands; of equal objects the lower id wins, and a single object is where its logit is above 0.
    """
    ids = sorted(logits)
    stack = np.stack([logits[i] for i in ids]).astype(np.float64)
    best, top = stack.argmax(0), stack.max(0)
    # log p - log background = logit of the best + sum over the others of log(1 + exp(logit)), exact where p rounds to 1
    others = np.logaddexp(0, stack).sum(0) - np.logaddexp(0, top)
    return np.where(top + others > 0, np.array(ids, np.uint8)[best], 0).astype(np.uint8)


@dataclass(frozen=True)
class Statistics:
    """Of one object over its frames."""

    mean: float
    recall: float
    """Share of frames above 0.5."""
    decay: float
    """Mean of the first quarter of frames minus mean of the last."""


def statistics(values: Sequence[float]) -> Statistics:
    """Mean, recall and decay of one object's values by frame, in order.

    Quarters share their edge frames: their limits are round(linspace(1, T, 5)). Raises `UserError` without a frame.
    """
    if not values:
        raise UserError("An object has no scored frame: its sequence needs at least three frames.")
    series = np.asarray(values, np.float64)
    # half up, as MATLAB rounds in the official evaluation code; NumPy would round halves to even
    edges = np.floor(np.linspace(1, len(series), _BINS + 1) + 0.5 + 1e-10).astype(int) - 1
    first, last = series[edges[0] : edges[1] + 1], series[edges[_BINS - 1] : edges[_BINS] + 1]
    return Statistics(float(series.mean()), float((series > THRESHOLD).mean()), float(first.mean() - last.mean()))


@dataclass(frozen=True)
class DavisScores:
    """Scores of a set of objects: means over objects, not over sequences or frames."""

    j: Statistics
    f: Statistics
    objects: dict[str, tuple[Statistics, Statistics]]
    """Object name -> J and F."""

    @property
    def jf(self) -> float:
        """J&F: mean of J-mean and F-mean."""
        return (self.j.mean + self.f.mean) / 2


def davis_scores(frames: Mapping[str, Sequence[tuple[float, float]]]) -> DavisScores:
    """Scores from (J, F) per frame of each object (object name -> frames in order).

    Raises `UserError` where there is no object, or one without frames.
    """
    if not frames:
        raise UserError("No object was scored: run at least one whole sequence.")
    objects = {
        name: (statistics([j for j, _ in values]), statistics([f for _, f in values]))
        for name, values in frames.items()
    }
    return DavisScores(_mean([j for j, _ in objects.values()]), _mean([f for _, f in objects.values()]), objects)


def sequence_scores(
    predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray]
) -> dict[int, list[tuple[float, float]]]:
    """(J, F) per frame of each object of a sequence, from index maps (H, W) uint8 of all its frames in order.

    As in the semi-supervised track: the first and the last frame are not scored, void (255) in the truth is background,
    there are as many objects as the highest id in the first frame of the truth, and an object that a prediction lacks is
    empty there.

    Raises `UserError` where the numbers of frames differ, the first frame shows no object, or a prediction holds an id that
    is no object of the sequence.
    """
    if len(predicted) != len(truth):
        raise UserError(
            f"There are {len(predicted)} predicted frames and {len(truth)} in the truth. Predict every frame."
        )
    first = truth[0]
    count = int(first[first != 255].max(initial=0))
    if not count:
        raise UserError("The first frame of the sequence shows no object. Use the official annotations.")
    scores: dict[int, list[tuple[float, float]]] = {number: [] for number in range(1, count + 1)}
    for at in range(1, len(truth) - 1):
        highest = int(predicted[at].max(initial=0))
        if highest > count:
            raise UserError(f"The prediction of frame {at} holds object {highest}, the sequence has {count}.")
        for number, values in scores.items():
            pair = predicted[at] == number, truth[at] == number
            values.append((region_similarity(*pair), boundary_accuracy(*pair)))
    return scores


def _mean(parts: list[Statistics]) -> Statistics:
    names = ("mean", "recall", "decay")
    return Statistics(*(math.fsum(getattr(part, name) for part in parts) / len(parts) for name in names))


def _pair(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != truth.shape:  # a broadcast would compare wrong pixels
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    return predicted.astype(bool), truth.astype(bool)


def _disk(radius: int) -> np.ndarray:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def _dilated(mask: np.ndarray, disk: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), disk).astype(bool)
