"""The coarse-to-fine schedule of distillation: which stage an epoch belongs to (fsdino.md 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from fssbench.errors import UserError
from methods.fsdino.alignment import Align


@dataclass(frozen=True)
class DistillConfig:
    """Stages and optimiser. The resolutions are reported for FS-DINO (start and end; 252 elsewhere), the rest is our choice.

    Args:
        resolutions: side in pixels of the student's input in each stage; multiples of the encoder's patch size.
        epochs: length of each stage.
        batch: images per step and process in each stage.
        align: `down_teacher` compares on the student's grid, on which the decoder will work; `up_student` on the
            teacher's; `both` adds the second in the last stage (mean of both).
        lr: peak learning rate of AdamW in each stage.
        weight_decay: of AdamW.
        warmup_steps: linear warm-up of each stage, before a cosine to 0; never more than a tenth of the stage.
        cache_grid: store the teacher's features on this grid instead of its own (37: a third of the disk), from which
            the smaller grids are made; only with `down_teacher`.
    """

    resolutions: tuple[int, ...] = (126, 252, 518)
    epochs: tuple[int, ...] = (5, 5, 10)
    batch: tuple[int, ...] = (64, 64, 32)
    align: Align = "down_teacher"
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 500
    cache_grid: int | None = None


@dataclass(frozen=True)
class Stage:
    """One stage: `number` counts from 1, `first` is its first epoch in the whole training."""

    number: int
    first: int
    epochs: int
    resolution: int
    batch: int
    align: Align

    @property
    def last(self) -> int:
        """Its last epoch in the whole training."""
        return self.first + self.epochs - 1


class Schedule:
    """All stages in turn; raises `UserError` where their settings do not fit together or the patch size."""

    def __init__(self, config: DistillConfig, patch_size: int) -> None:
        _check(config, patch_size)
        count = len(config.resolutions)
        starts = [0, *accumulate(config.epochs)]
        aligns: list[Align] = [config.align] * count
        if config.align == "both":
            aligns[:-1] = ["down_teacher"] * (count - 1)
        self.total = starts[-1]
        self.stages = tuple(
            Stage(number, *parts)
            for number, *parts in zip(
                range(1, count + 1), starts, config.epochs, config.resolutions, config.batch, aligns, strict=False
            )
        )

    def at(self, epoch: int) -> Stage:
        """The stage of an epoch of the whole training; after the end, the last stage."""
        return next((stage for stage in self.stages if epoch <= stage.last), self.stages[-1])


def _check(config: DistillConfig, patch_size: int) -> None:
    lengths = {name: len(getattr(config, name)) for name in ("resolutions", "epochs", "batch")}
    if len(set(lengths.values())) > 1 or not config.resolutions:
        found = ", ".join(f"distill.{name} has {length}" for name, length in lengths.items())
        raise UserError(
            f"Each stage needs a resolution, a number of epochs and a batch size: {found}. Make them equal."
        )
    for name in lengths:
        if min(getattr(config, name)) < 1:
            raise UserError(f"distill.{name} must be at least 1 everywhere, not {list(getattr(config, name))}.")
    wrong = [side for side in config.resolutions if side % patch_size]
    if wrong:
        raise UserError(
            f"distill.resolutions holds {wrong[0]}, which is no multiple of the encoder's patch size {patch_size}. "
            f"Nearest: {max(1, round(wrong[0] / patch_size)) * patch_size}."
        )
    if config.cache_grid is not None and config.align != "down_teacher":
        raise UserError(
            f"distill.align: {config.align} compares on the teacher's own grid, which distill.cache_grid does not keep. "
            "Leave cache_grid out, or set align: down_teacher."
        )
