"""The moving average of the weights: its values, what a checkpoint holds, going on, and frozen parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fssbench.cli.averaging import EMA
from fssbench.cli.configs import find_config, read_config
from tests.toy import ColourMethod, Toy


class Weights(Callback):
    """Remembers a trained weight after every step, and the weight that is validated."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.validated: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.trained.append(module.scale.item())

    def on_validation_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        self.validated.append(module.scale.item())


class PartlyFrozen(ColourMethod):
    """Freezes a part of what is not its encoder, as SAM2FSS does."""

    def __init__(self) -> None:
        super().__init__()
        self.bias.requires_grad_(False)

    def frozen_names(self) -> set[str]:
        return {*super().frozen_names(), "bias"}


def fit(
    folder: Path, epochs: int, kind: type[ColourMethod] = ColourMethod, **kwargs: Any
) -> tuple[ColourMethod, Weights, dict[str, Any]]:
    torch.manual_seed(0)
    method, weights = kind(), Weights()
    saver = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, max_epochs=epochs, default_root_dir=str(folder),
        callbacks=[EMA(0.9), weights, saver],
    )  # fmt: skip
    trainer.fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=6, val_episodes_per_class=1), **kwargs)
    return method, weights, torch.load(folder / "last.ckpt", weights_only=True)


def average(weights: list[float], start: float | None = None) -> float:
    for weight in weights:
        start = weight if start is None else 0.9 * start + 0.1 * weight
    assert start is not None
    return start


def test_the_average_is_validated_saved_and_kept(tmp_path: Path) -> None:
    method, weights, checkpoint = fit(tmp_path, 2)
    assert len(weights.trained) == 6
    expected = average(weights.trained)
    assert abs(expected - weights.trained[-1]) > 1e-3
    for found in (method.scale, checkpoint["state_dict"]["scale"], torch.tensor(weights.validated[-1])):
        torch.testing.assert_close(found.detach(), torch.tensor(expected))
    assert checkpoint["current_model_state"]["scale"].item() == weights.trained[-1]


def test_a_fit_goes_on_with_both(tmp_path: Path) -> None:
    _, whole, expected = fit(tmp_path / "whole", 2)
    _, first, _ = fit(tmp_path / "parts", 1)
    _, second, found = fit(tmp_path / "parts", 2, ckpt_path=tmp_path / "parts" / "last.ckpt")
    assert first.trained + second.trained == whole.trained
    assert found["state_dict"]["scale"] == expected["state_dict"]["scale"]


def test_the_shipped_config_makes_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    (callback,) = read_config(find_config("trainer/ema.yaml"))["trainer"]["callbacks"]
    ema = parser.instantiate(parser.parse_object({"callback": callback})).callback
    assert isinstance(ema, EMA)


def test_the_average_lies_on_the_device_of_the_training() -> None:
    callback, method = EMA(), ColourMethod()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    callback.setup(trainer, method, "fit")
    assert callback._average_model is not None
    assert {p.device.type for p in callback._average_model.parameters()} == {"meta"}
    assert method.scale.device.type == "cpu", "the method itself is moved by Lightning, later"


def test_frozen_parts_stay_bit_identical_and_out_of_the_checkpoint(tmp_path: Path) -> None:
    method, _, checkpoint = fit(tmp_path, 1)
    assert torch.equal(method.encoder.weight, ColourMethod().encoder.weight)
    for state in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        assert "scale" in state
        assert not any(name.startswith("encoder.") for name in state)


def test_frozen_parts_of_a_module_are_out_of_the_checkpoint_too(tmp_path: Path) -> None:
    _, _, checkpoint = fit(tmp_path, 1, PartlyFrozen)
    for state in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        assert set(state) == {"scale", "seen"}
    method, _, _ = fit(tmp_path, 2, PartlyFrozen, ckpt_path=tmp_path / "last.ckpt")
    assert method.bias.item() == ColourMethod().bias.item()
