"""Trainable: what `fssbench fit` can train, and what its checkpoints hold and must agree with."""

from __future__ import annotations

import inspect
import os
from abc import ABC
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, ClassVar, Literal, Self

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from fssbench.checkpoint import checkpoint_mismatch, class_path, plain, without
from fssbench.encoders.weights import tensors_sha256
from fssbench.errors import UserError


class Trainable(LightningModule, ABC):
    """A module with frozen parts: few-shot methods, and the training stages that come before one.

    Checkpoints hold what was trained, the settings it was trained with, and the hash of the frozen parts it belongs to;
    loading one refuses another class, other settings and other frozen weights.
    """

    frozen: ClassVar[tuple[str, ...]] = ("encoder",)
    """Attributes whose modules are never trained: always in eval mode, kept out of checkpoints, checked by hash. One
    that freezes a part of a module overrides `frozen_names` too."""
    free_settings: ClassVar[tuple[str, ...]] = ("backbone_weights",)
    """Init arguments in which a run may differ from the checkpoint (weights are checked by content instead)."""
    neutral_settings: ClassVar[tuple[str, ...]] = ()
    """Init arguments that change no number, only what the work costs (`a.b`: field b of argument a): neither checkpoints
    nor the identity of a result know them."""
    needs_checkpoint: ClassVar[bool] = True
    """False for a training-free method; a trained one refuses to be tested without a checkpoint."""
    reads: ClassVar[Literal["episodes", "images"]] = "episodes"
    """What it is trained on; a data module says in `gives` what it has."""
    verbs: ClassVar[tuple[str, ...]] = ("fit", "validate", "test", "predict")
    """The verbs of the command line that it can run."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.trained = not self.needs_checkpoint
        self.training_facts: dict[str, Any] = {}
        """How the loaded or just trained weights came about; empty for a training-free method."""
        self.stopped_early = ""
        """Where the loaded checkpoint was saved before its training reached its end: after how much of it. Of a checkpoint
        that was selected that is the point, and nothing is said."""

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments of the Trainer that follow from this module's own settings, so that no user has to repeat them."""
        return {}

    @classmethod
    def without_files(cls) -> dict[str, Any]:
        """Init arguments with which it is built without reading a weight file (`fssbench list --verbose`)."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: "random" for p in parameters if p.name.endswith("weights") and isinstance(p.default, str)}

    def parameter_counts(self) -> dict[str, int]:
        """Numbers of parameters: in `total`, `trainable` (of the parts that are trained) and `optimised`."""
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        return {"total": sum(p.numel() for p in self.parameters()), "trainable": trained, "optimised": trained}

    @property
    def fused(self) -> bool | None:
        """The argument of that name for a torch optimiser: true in float32, where one pass over all parameters takes the
        place of one for each operation; torch's own choice in mixed precision, where a fused one allows no clipping."""
        return True if str(self.trainer.precision) == "32-true" else None

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # -- weights --------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but never for the frozen parts."""
        super().train(mode)
        for module in self._frozen_modules().values():
            module.eval()
        return self

    def _frozen_modules(self) -> dict[str, nn.Module]:
        found = {name: self.get_submodule(name) for name in self.frozen if _has_submodule(self, name)}
        return {name: module for name, module in found.items() if isinstance(module, nn.Module)}

    def frozen_names(self) -> set[str]:
        """Names in the state dict that are never trained: all below the modules in `frozen`."""
        below = tuple(f"{name}." for name in self._frozen_modules())
        return {name for name in self.state_dict() if below and name.startswith(below)}

    def setup(self, stage: str) -> None:
        """Put the frozen parts in eval mode, since Lightning does not call `train()` when a fit starts."""
        self.train(self.training)

    def settings(self) -> dict[str, Any]:
        """The init arguments as plain JSON values, without `neutral_settings`; weight files by name, so a record does not
        depend on where they lie."""
        values = {name: plain(value) for name, value in self.hparams.items() if not name.startswith("_")}
        values = without(values, self.neutral_settings)
        return {
            name: PurePath(value).name if name.endswith("weights") and isinstance(value, str) else value
            for name, value in values.items()
        }

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """The defaults of the init arguments, as `settings` has them. A new setting's default is what was done before it
        existed: it holds for checkpoints and runs of earlier versions."""
        parameters = inspect.signature(cls).parameters.values()
        return {p.name: plain(p.default) for p in parameters if p.default is not p.empty}

    def weights_sha256(self, only: tuple[str, ...] | None = None) -> str:
        """SHA-256 over names, types, shapes and bytes of all weights and buffers (or of those below `only`)."""

        def counts(name: str) -> bool:
            return only is None or name.startswith(tuple(f"{part}." for part in only))

        return tensors_sha256({name: value for name, value in self.state_dict().items() if counts(name)})

    def frozen_sha256(self) -> str:
        """SHA-256 of the weights that are never trained."""
        frozen = self.frozen_names()
        return tensors_sha256({name: value for name, value in self.state_dict().items() if name in frozen})

    def on_fit_start(self) -> None:
        """Remember how the weights are made, for the checkpoint and the record."""
        self.training_facts = {"selection": self._selection(), **self._data.training_facts(), **self._trainer_facts()}

    def _selection(self) -> str:
        """`last`, or what the validation is where a ModelCheckpoint of the user's own keeps the best of its scores."""
        kept = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        chosen = any((callback.monitor or "").startswith("val_") for callback in kept)
        return str(getattr(self._data, "validation_label", "val-split")) if chosen else "last"

    def _trainer_facts(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "precision": str(trainer.precision),
            "processes": trainer.world_size,
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),  # where Lightning's seed_everything leaves it
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
        }

    def on_train_end(self) -> None:
        """The weights are trained now."""
        self.trained = True

    def checkpoint_problem(self, facts: Mapping[str, Any] | None) -> str | None:
        """Why a checkpoint with this `fssbench` entry does not fit the method as it is configured; None if it does."""
        if facts is not None:  # entries made before a setting was declared neutral still have it
            facts = {**facts, "settings": without(facts["settings"], self.neutral_settings)}
        known, defaults = self.settings(), self.default_settings()
        return checkpoint_mismatch(facts, class_path(type(self)), known, self.free_settings, defaults)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained, plus the hash of the frozen weights it belongs to."""
        state, frozen = checkpoint["state_dict"], self.frozen_names()
        checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}
        # our own entry instead of Lightning's `hyper_parameters`, which its command line would merge over the config
        for key in ("hyper_parameters", "hparams_name", "hparams_type"):
            checkpoint.pop(key, None)
        checkpoint["fssbench"] = {
            "method_class": class_path(type(self)),
            "settings": self.settings(),
            "frozen_sha256": self.frozen_sha256(),
            "training": self.training_facts,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another method, other settings or another encoder; then complete its state."""
        facts = checkpoint.get("fssbench")
        problem = self.checkpoint_problem(facts)
        if problem:
            raise UserError(problem)
        assert facts is not None
        if facts["frozen_sha256"] != self.frozen_sha256():
            theirs = {n: v for n, v in facts["settings"].items() if n.endswith("weights") and v is not None}
            raise UserError(
                "The checkpoint was trained on other frozen encoder weights than those configured. Give the same "
                f"weights ({', '.join(f'{name} {value}' for name, value in theirs.items())}) or train again."
            )
        frozen = self.frozen_names()
        checkpoint["state_dict"].update({n: v for n, v in self.state_dict().items() if n in frozen})
        self.training_facts = facts["training"]
        self.stopped_early = _stopped_early(checkpoint, self.training_facts)
        self.trained = True


def _stopped_early(checkpoint: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """`3 of 20 epochs` where a checkpoint is not selected and neither of the training's two ends was reached, else empty."""
    if facts.get("selection") != "last":
        return ""
    done = {"epochs": (int(checkpoint.get("epoch", -1)) + 1, facts.get("max_epochs")),
            "steps": (int(checkpoint.get("global_step", 0)), facts.get("max_steps"))}  # fmt: skip
    ends = {unit: (count, int(end)) for unit, (count, end) in done.items() if end not in (None, -1)}
    if not ends or any(count >= end for count, end in ends.values()):
        return ""
    return " and ".join(f"{count} of {end} {unit}" for unit, (count, end) in ends.items())


def _has_submodule(module: nn.Module, name: str) -> bool:
    return any(found == name for found, _ in module.named_modules())
