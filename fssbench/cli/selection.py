"""Keeping the best checkpoint of a fit beside the last one, labelled by what it was chosen on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from fssbench.method import FewShotMethod

BEST_FILE = "best.ckpt"


class BestCheckpoint(Callback):
    """Writes `best.ckpt` into the run folder whenever a validation of a fit reaches a higher mIoU than all before it.

    The checkpoint says how it was chosen (`label`), and so does every record made with it.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.path, self.label = folder / BEST_FILE, label
        self.best = -1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this validation, and keep its weights if it is the best."""
        assert isinstance(pl_module, FewShotMethod)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        assert pl_module.scores is not None
        if pl_module.scores["miou"] <= self.best:  # the same on every process, so all of them save
            return
        self.best = pl_module.scores["miou"]
        facts = pl_module.training_facts
        pl_module.training_facts = {**facts, "selection": self.label}
        trainer.save_checkpoint(self.path)
        pl_module.training_facts = facts

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the checkpoint is."""
        rank_zero_info(f"{self.label}: {self.path} (validation mIoU {100 * self.best:.2f})")

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, for a fit that goes on."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.best = state_dict["best"]
