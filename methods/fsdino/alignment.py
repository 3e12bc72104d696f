"""Student and teacher on one grid: resizing, the distillation loss, and how well one explains the other (fsdino.md 3.1).

Both networks see the whole image squashed to a square, so token i of n covers the same part of the image in both:
its centre lies at (i + 0.5) / n, and bilinear resizing without aligned corners maps one grid onto the other.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, autocast
from torchmetrics import Metric

Align = Literal["down_teacher", "up_student", "both"]


def down_to(features: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Features (B, C, g, g) on a smaller grid, antialiased bilinear; the identity on their own grid."""
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    return F.interpolate(features.float(), grid, mode="bilinear", align_corners=False, antialias=True)


def up_to(features: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Features (B, C, h, w) on a larger grid, bilinear; the identity on their own grid."""
    if tuple(features.shape[-2:]) == tuple(grid):
        return features
    return F.interpolate(features.float(), grid, mode="bilinear", align_corners=False)


def distillation_loss(student: Tensor, teacher: Tensor, align: Align = "down_teacher") -> Tensor:
    """Mean squared error over images, channels and positions, in float32.

    student  (B, C, h, w) the adapter's embedding
    teacher  (B, C, g, g) SAM's embedding
    align    `down_teacher` compares on the student's grid, `up_student` on the teacher's, `both` takes the mean of both
    """
    with autocast(student.device.type, enabled=False):
        student, teacher = student.float(), teacher.float()
        terms = []
        if align in ("down_teacher", "both"):
            terms.append(F.mse_loss(student, down_to(teacher, student.shape[-2:])))
        if align in ("up_student", "both"):
            terms.append(F.mse_loss(up_to(student, teacher.shape[-2:]), teacher))
        return torch.stack(terms).mean()


class DistillationScores(Metric):
    """How well the student explains the teacher on the student's grid, over all images counted.

    `compute` gives

    mse          mean squared error over positions and channels
    r2           explained variance 1 - MSE / Var, Var being the teacher's variance around the mean of each channel: 1
                 is perfect, 0 what the best constant vector reaches
    cosine       mean over positions of the cosine between the two vectors of channels
    channel_mse  (C,) mean squared error of each channel

    Sums are kept in float64 and added over processes.
    """

    full_state_update = False
    error: Tensor
    total: Tensor
    squares: Tensor
    cosines: Tensor
    positions: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, shape in (("error", (channels,)), ("total", (channels,)), ("squares", (channels,)), ("cosines", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("positions", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Count a batch: both (B, C, h, w) on the same grid."""
        student, teacher = student.double(), teacher.double()
        self.error += (student - teacher).square().sum((0, 2, 3))
        self.total += teacher.sum((0, 2, 3))
        self.squares += teacher.square().sum((0, 2, 3))
        self.cosines += F.cosine_similarity(student, teacher, dim=1).sum()
        self.positions += teacher[:, 0].numel()

    def compute(self) -> dict[str, Tensor]:
        """The scores, see above."""
        variance = (self.squares - self.total.square() / self.positions).sum()
        return {
            "mse": self.error.sum() / self.positions / len(self.error),
            "r2": 1 - self.error.sum() / variance,
            "cosine": self.cosines / self.positions,
            "channel_mse": self.error / self.positions,
        }
