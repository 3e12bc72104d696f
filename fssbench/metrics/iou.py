"""Few-shot mIoU and FB-IoU (protocols.md 3.1): pixel counts per episode, summed per class as int64.

Class-accumulated IoU is the standard of the field: intersections and unions are summed over a class's episodes before
they are divided. Averaging the IoU of single episodes gives other numbers (protocols.md 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from fssbench.episode import IGNORE
from fssbench.errors import UserError
from fssbench.metrics.scores import IoUScores, iou_scores


def episode_counts(prediction: Tensor, target: Tensor) -> Tensor:
    """Intersection and union of foreground and background of each episode, in pixels.

    Pixels whose target is 255 are removed from prediction and target before anything is counted. Runs on the tensors'
    device and never waits for it.

    Args:
        prediction: (..., H0, W0) bool, or uint8 {0, 1}; the thresholded mask, not logits.
        target: (..., H0, W0) uint8 {0, 1, 255}.

    Returns:
        (..., 4) int64 in the order of `scores.COUNTS`: FG intersection, FG union, BG intersection, BG union.

    Raises:
        ValueError: shapes differ (a broadcast would count wrong pixels), or the prediction is not a mask.
    """
    return counts_and_target(prediction, target)[..., :4]


def counts_and_target(prediction: Tensor, target: Tensor) -> Tensor:
    """As `episode_counts`, with the pixels of the target's foreground as a fifth count: (..., 5) int64."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    if prediction.dtype not in (torch.bool, torch.uint8):
        raise ValueError(f"prediction is {prediction.dtype}, expected a bool or uint8 mask: threshold the logits first")
    valid = target != IGNORE
    foreground = target == 1
    predicted = (prediction != 0) & valid
    kept, true, positive, hit = (_pixels(mask) for mask in (valid, foreground, predicted, predicted & foreground))
    fg_union = true + positive - hit
    # a kept pixel outside the FG union is background on both sides; one outside the FG hits is background on some side
    return torch.stack([hit, fg_union, kept - fg_union, kept - hit, true], -1)


def _pixels(masks: Tensor) -> Tensor:
    """True pixels of bool masks (..., H0, W0): (...) int64. (bincount would wait for the device to learn its size.)"""
    if masks.device.type != "cpu":
        return masks.sum((-2, -1))
    # several times faster than a sum there, but only over a whole tensor
    counts = [torch.count_nonzero(mask) for mask in masks.reshape(-1, *masks.shape[-2:])]
    return (
        torch.stack(counts).view(masks.shape[:-2]) if counts else masks.new_zeros(masks.shape[:-2], dtype=torch.int64)
    )


class FewShotIoU(Metric):
    """mIoU and FB-IoU over the episodes of one fold.

    The states are int64 sums per class, so the result has the same bits on any number of processes and in any order;
    float32 sums would stop counting single pixels at 2^24 (sixteen 1024x1024 masks).

    Args:
        class_ids: the fold's novel classes, without repetition.
        strict: refuse to compute while a class has no episode (see `iou_scores`). Leave it on for every number that is
            reported; switch it off for a part of a manifest, e.g. with `limit_test_batches`.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    counts: Tensor
    episodes: Tensor
    foreign: Tensor
    _ids: Tensor

    def __init__(self, class_ids: Sequence[int], strict: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not class_ids or len(set(class_ids)) != len(class_ids):
            raise UserError(f"class_ids is {list(class_ids)}, expected the fold's novel classes, each once.")
        self.class_ids = tuple(sorted(int(c) for c in class_ids))
        self.strict = strict
        self.register_buffer("_ids", torch.tensor(self.class_ids, dtype=torch.int64), persistent=False)
        n = len(self.class_ids)
        self.add_state("counts", torch.zeros(n, 4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("episodes", torch.zeros(n, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("foreign", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: Tensor, class_id: Tensor) -> None:
        """Add B episodes.

        Args:
            counts: (B, 4) int64, rows from `episode_counts`.
            class_id: (B,) int64, each among `class_ids`.

        Raises:
            UserError: an episode of a class that is not novel in this fold.
        """
        if class_id.device.type == "cpu":  # elsewhere this would wait for the device: `compute` does it then
            self._refuse(np.setdiff1d(class_id.numpy(), self.class_ids).tolist())
        counts, class_id = counts.to(self._ids.device), class_id.to(self._ids.device)
        row = torch.searchsorted(self._ids, class_id).clamp(max=len(self.class_ids) - 1)
        known = self._ids[row] == class_id
        self.foreign = self.foreign + (~known).sum()
        # out of place: a state made under inference_mode (a reset inside a test loop) cannot be changed in place later
        self.counts = self.counts.index_add(0, row, counts)
        self.episodes = self.episodes.index_add(0, row, torch.ones_like(row))

    def _refuse(self, unknown: Sequence[Any]) -> None:
        if unknown:
            raise UserError(
                f"Episodes of class {', '.join(map(str, unknown))} were scored, but the fold's novel classes are "
                f"{', '.join(map(str, self.class_ids))}: the manifest belongs to another fold or data set."
            )

    def compute(self) -> IoUScores:
        """Scores of all episodes of all processes, as unrounded Python numbers (see `IoUScores`).

        Raises:
            UserError: no episode at all, a class without episodes where `strict` is set, or episodes of a class that is
                not novel, counted on a device that `update` does not wait for.
        """
        if int(self.foreign):
            self._refuse(["unknown"])
        counts = dict(zip(self.class_ids, self.counts.tolist(), strict=True))
        episodes = dict(zip(self.class_ids, self.episodes.tolist(), strict=True))
        return iou_scores(counts, episodes, self.strict)
