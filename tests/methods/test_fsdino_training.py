"""How FSDINO is trained: groups of the optimiser, learning rates step by step, and a moving average that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from fssbench.cli.averaging import EMA
from fssbench.errors import UserError
from methods.fsdino import FSDINO
from methods.fsdino.module import TrainConfig, warmup_cosine
from tests.methods.test_fsdino_module import CORR, make_method, make_trainer
from tests.toy import Toy


def test_groups_of_the_optimiser(tmp_path: Path, adapter_file: str) -> None:
    def groups(**kwargs: Any) -> dict[str, tuple[float, int]]:
        method = make_method(**kwargs)
        make_trainer(tmp_path, max_steps=1).fit(method, datamodule=Toy(batch_size=1, episodes_per_epoch=1))
        found = method.optimizers().param_groups
        assert {g["weight_decay"] for g in found} == {1e-4}
        return {g["name"]: (g["initial_lr"], sum(p.numel() for p in g["params"])) for g in found}

    net = make_method().net
    prompts = sum(p.numel() for p in [*net.svp.parameters(), *net.pcs.parameters()])
    decoder = sum(p.numel() for p in net.decoder.trained_parameters())
    adapter = sum(p.numel() for p in net.adapter.parameters())
    assert groups(preset="comp_star", adapter_weights=adapter_file) == {"prompts": (1e-4, prompts)}
    assert groups() == {"prompts": (1e-4, prompts), "decoder": (5e-5, decoder), "adapter": (1e-4, adapter)}
    assert groups(adapter_weights=adapter_file, train_adapter=True)["adapter"] == (1e-5, adapter)
    full = make_method(preset="fsdino", corr=CORR).net.corr
    assert full is not None
    found = groups(preset="fsdino", corr=CORR)
    assert found["correlation"] == (1e-4, sum(p.numel() for p in full.parameters()))
    assert list(found) == ["prompts", "correlation", "decoder", "adapter"]
    set_lr = groups(train=TrainConfig(lr=0.2, decoder_lr=0.3, adapter_lr=0.4))
    assert {name: lr for name, (lr, _) in set_lr.items()} == {"prompts": 0.2, "decoder": 0.3, "adapter": 0.4}


class Rates(Callback):
    """Remembers the learning rate of every group at every step of the optimiser."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.values.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize(
    "length", [{"max_epochs": 2, "accumulate_grad_batches": 2}, {"max_steps": 6}, {"max_epochs": 9, "max_steps": 6}]
)
def test_every_step_has_its_rate_however_the_length_is_given(tmp_path: Path, length: dict[str, int]) -> None:
    rates = Rates()
    trainer = make_trainer(tmp_path, callbacks=[rates], **length)
    train = TrainConfig(lr=0.5, decoder_lr=0.25, adapter_lr=0.0)
    trainer.fit(make_method(train=train), datamodule=Toy(batch_size=1, episodes_per_epoch=5))  # 3 steps of 2, 2 and 1
    factor = warmup_cosine(6, 500)
    wanted = [{"prompts": 0.5 * factor(k), "decoder": 0.25 * factor(k), "adapter": 0.0} for k in range(6)]
    assert rates.values == [pytest.approx(step) for step in wanted]


def test_a_moving_average_goes_on_with_the_starting_weights_of_files(tmp_path: Path, adapter_file: str) -> None:
    """The callback copies the method before `setup` has read them."""

    def fit(folder: Path, epochs: int, **kwargs: Any) -> FSDINO:
        method = make_method(preset="fsdino_ce", corr=CORR, adapter_weights=adapter_file, train=TrainConfig(lr=1e-2))
        saver = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
        callbacks = [EMA(0.5), saver, Stop(epochs)]
        trainer = make_trainer(folder, max_epochs=4, enable_checkpointing=True, callbacks=callbacks)
        trainer.fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=4), **kwargs)
        return method

    whole = fit(tmp_path / "whole", 2)
    fit(tmp_path / "parts", 1)
    parts = fit(tmp_path / "parts", 2, ckpt_path=tmp_path / "parts" / "last.ckpt", weights_only=True)
    start = make_method(preset="fsdino_ce", corr=CORR, adapter_weights=adapter_file)
    start.load_starting_weights()
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, parts.net.state_dict()[name]), name
        if name.startswith("adapter."):
            assert torch.equal(value, start.net.state_dict()[name]), name
    assert not torch.equal(whole.net.svp.projections[0][0].weight, start.net.svp.projections[0][0].weight)


class Stop(Callback):
    """Ends a training after some epochs, as a kill would; its schedule stays that of the whole."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_schedule() -> None:
    factor = warmup_cosine(10_000, 500)
    assert [factor(s) for s in (0, 499)] == pytest.approx([1 / 501, 500 / 501])
    assert factor(500) == 1
    assert factor(5250) == pytest.approx(0.5)
    assert factor(10_000) == pytest.approx(0, abs=1e-9)
    short = warmup_cosine(50, 500)
    assert max(short(s) for s in range(50)) == short(5) == 1, "the warm-up is cut to a tenth"
    assert warmup_cosine(1, 500)(0) == 1


def test_training_without_an_end_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=-1)
    with pytest.raises(UserError, match="needs an end"):
        trainer.fit(make_method(), datamodule=Toy(batch_size=1, episodes_per_epoch=1))
