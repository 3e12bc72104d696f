"""Moving average of the weights while a method is trained; what is validated, saved and tested is the average."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fssbench.trainable import Trainable

CURRENT = "current_model_state"


class EMA(WeightAveraging):
    """Lightning's weight averaging after every optimiser step, w_ema + (1 - decay) (w - w_ema).

    In this form weights that do not change stay bit-identical (in `EMAWeightAveraging`'s they are rounded), which the
    hash of a frozen encoder depends on. Frozen parts are in a checkpoint neither once nor twice.

    Args:
        decay: part of the old average in the new one.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the average where the weights will be. Lightning moves them there only afterwards: the average would stay
        in the CPU's memory, and all weights would be copied there after every step."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the weights that training goes on with, without the frozen parts."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        frozen = pl_module.frozen_names() if isinstance(pl_module, Trainable) else set()
        if CURRENT in checkpoint:
            checkpoint[CURRENT] = {n: v for n, v in checkpoint[CURRENT].items() if n not in frozen}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Complete them with the frozen parts, which the method has put back into `state_dict`."""
        if CURRENT in checkpoint:
            checkpoint[CURRENT] = {**checkpoint["state_dict"], **checkpoint[CURRENT]}
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
