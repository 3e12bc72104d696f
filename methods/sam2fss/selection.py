"""Keeping the best checkpoint of a training beside the last one, labelled by what it was selected on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

Selection = Literal["last", "base", "best_on_test"]
LABELS = {"base": "base-selected", "best_on_test": "best-on-test (legacy)"}
"""What the record of a selected checkpoint says (docs/records.md)."""
VALIDATION = {"base": "base", "best_on_test": "test"}
"""Which episodes (`data.validation`) a selection needs."""


class BestCheckpoint(Callback):
    """Writes `best.ckpt` into the run folder whenever a validation of a fit reaches a higher mIoU than all before."""

    def __init__(self, selection: Literal["base", "best_on_test"]) -> None:
        self.label = LABELS[selection]
        self.best = -1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare this validation, and keep its weights if it is the best."""
        module: Any = pl_module
        if trainer.state.fn != "fit" or trainer.sanity_checking or module.scores["miou"] <= self.best:
            return
        self.best = module.scores["miou"]
        facts = module.training_facts
        module.training_facts = {**facts, "selection": self.label}
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "best.ckpt")
        module.training_facts = facts

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, for a fit that goes on."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.best = state_dict["best"]
