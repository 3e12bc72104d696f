"""What distillation refuses: callbacks and trainers that would end a stage early or change its weights, other mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, Timer
from torch import Tensor

from datamodules.images import Images
from fssbench.cli.averaging import EMA
from fssbench.errors import UserError
from methods.fsdino import Distillation
from methods.fsdino.stages import DistillConfig
from tests.data.images import make_images
from tests.methods.test_fsdino_distillation import fit, make_module


def refused(world: Path, folder: Path, **kwargs: Any) -> str:
    """What a trainer with these settings is refused with."""
    module = make_module(world)
    settings = {"enable_checkpointing": False, **module.trainer_settings(), **kwargs}
    trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=folder, **settings)
    with pytest.raises(UserError) as error:
        trainer.fit(module, datamodule=Images(str(world / "images"), num_workers=0))
    assert list(folder.iterdir()) == []
    return str(error.value)


def test_averages_of_weights_are_refused(world: Path, tmp_path: Path) -> None:
    for average in (EMA(), StochasticWeightAveraging(1e-3)):
        message = refused(world, tmp_path, callbacks=[average])
        assert "Leave the averaging callback (trainer/ema.yaml) out" in message


def test_what_would_end_a_stage_early_is_refused(world: Path, tmp_path: Path) -> None:
    """It would leave no adapter behind, and a run that counts as finished."""
    assert "max_epochs=5" in refused(world, tmp_path, max_epochs=3)
    assert "max_steps=-1" in refused(world, tmp_path, max_steps=3)
    assert "limit_train_batches" in refused(world, tmp_path, fast_dev_run=True)
    for callback, name in ((EarlyStopping("val_loss"), "EarlyStopping"), (Timer("00:01:00:00"), "Timer (max_time)")):
        assert name in refused(world, tmp_path, callbacks=[callback])


def test_a_training_that_diverges_is_stopped(world: Path, tmp_path: Path) -> None:
    class Diverging(Distillation):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * float("inf")

    with pytest.raises(UserError, match=r"loss of stage 1 is inf in its epoch 0.*distill\.lr"):
        fit(world, make_module(world, Diverging), tmp_path)
    assert not list(tmp_path.glob("adapter*"))


def test_a_run_does_not_go_on_with_other_images(world: Path, tmp_path: Path) -> None:
    fit(world, make_module(world), tmp_path, limit_train_batches=1)
    make_images(tmp_path / "grown" / "images", 14)
    with pytest.raises(UserError, match="began with 11 training images; now there are 13"):
        fit(tmp_path / "grown", make_module(world), tmp_path, str(tmp_path / "last.ckpt"))


def test_mistakes_are_named(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 channels, model.width is 256"):
        fit(world, make_module(world, width=256), tmp_path)
    with pytest.raises(UserError, match=r"largest grid \(4\) and the teacher's \(4\)"):
        fit(world, make_module(world, distill=DistillConfig((32, 64), (1, 1), (4, 4), cache_grid=2)), tmp_path)
