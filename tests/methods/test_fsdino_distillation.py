"""Stage 1: hand-over between the stages, what is trained and what is not, resuming, and what stage 2 takes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor

from datamodules.image_files import ImageFiles
from datamodules.images import Images
from fssbench.encoders.sam import SamEncoder
from fssbench.errors import UserError
from fssbench.images import decode_image, resize_image
from methods.fsdino import FSDINO, Distillation
from methods.fsdino.adapter import AdapterConfig
from methods.fsdino.alignment import distillation_loss
from methods.fsdino.decoder import DecoderConfig
from methods.fsdino.prompts import PrototypeConfig
from methods.fsdino.stages import DistillConfig, Schedule
from tests.methods.sam import small_sam

SMALL = AdapterConfig(hidden=32, width=32, depth=1, heads=4)
STAGES = DistillConfig(resolutions=(32, 48, 64), epochs=(2, 1, 2), batch=(4, 4, 4))


def make_module(world: Path, cls: type[Distillation] = Distillation, **kwargs: Any) -> Distillation:
    torch.manual_seed(0)
    return cls(
        **{
            "backbone": "vit_tiny_patch16_224",
            "backbone_weights": "random",
            "teacher": "from_weights",
            "teacher_weights": str(world / "small_sam_0.pth"),
            "width": 8,
            "cache_dir": str(world / "kept"),
            "adapter": SMALL,
            "distill": STAGES,
            **kwargs,
        }
    )


def fit(world: Path, module: Distillation, folder: Path, ckpt_path: str | None = None, **kwargs: Any) -> Distillation:
    data = Images(str(world / "images"), **{"num_workers": 0, **kwargs.pop("data", {})})
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder, callbacks=[last],
        **module.trainer_settings(), **kwargs,
    )  # fmt: skip
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


class Watched(Distillation):
    """Writes down what holds at the beginning and end of each stage, and every learning rate and resolution."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.begun: list[dict[str, Any]] = []
        self.ended: list[dict[str, Tensor]] = []
        self.steps: list[tuple[int, int, float, int]] = []
        self.dies_in: int | None = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.current_epoch == self.dies_in and batch_idx == 1:
            raise KeyboardInterrupt

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.trainer.current_epoch == self.stage.first:
            facts = {"optimizer": self.trainer.optimizers[0], "state": len(self.trainer.optimizers[0].state)}
            facts |= {"scheduler": self.trainer.lr_scheduler_configs[0].scheduler.last_epoch, "best": self.best_loss}
            self.begun.append({**facts, "adapter": clone(self)})

    def on_train_epoch_end(self) -> None:
        best = self.best
        super().on_train_epoch_end()
        if self.trainer.current_epoch == self.stage.last:
            assert best is not None
            self.ended.append(best)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.steps.append((self.stage.number, batch.image.shape[-1], rate, len(batch.image)))
        return super().training_step(batch, batch_idx)


def clone(module: Distillation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.adapter.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def watched(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Watched, Path]:
    folder = tmp_path_factory.mktemp("run")
    module = fit(world, make_module(world, Watched), folder)
    assert isinstance(module, Watched)
    return module, folder


# -- the stages -----------------------------------------------------------------------------------------------------


def test_each_stage_begins_fresh_from_the_best_of_the_one_before(watched: tuple[Watched, Path]) -> None:
    """The defect to avoid: taking optimiser, epoch counter and best loss over, so that later stages hardly train."""
    module, _ = watched
    assert [len(module.begun), len(module.ended)] == [3, 3]
    assert len({id(facts["optimizer"]) for facts in module.begun}) == 3
    for facts in module.begun:
        assert (facts["state"], facts["scheduler"], facts["best"]) == (0, 0, math.inf)
    for ended, facts in zip(module.ended, module.begun[1:], strict=False):
        assert same(ended, facts["adapter"])
    assert same(module.ended[-1], clone(module)), "and the whole ends with its best"


class Worsening(Watched):
    """Does worse in the second epoch of each stage than in the first."""

    def on_train_batch_end(self, *args: Any) -> None:
        if self.trainer.current_epoch > self.stage.first:
            for parameter in self.adapter.parameters():
                parameter.data.mul_(3)


def test_the_best_weights_of_a_stage_are_handed_on_and_not_its_last(world: Path, tmp_path: Path) -> None:
    module = fit(world, make_module(world, Worsening), tmp_path)
    assert isinstance(module, Worsening)
    assert [stage["best_epoch"] for stage in module.reports] == [0, 0, 0]
    assert same(module.ended[0], module.begun[1]["adapter"])
    assert same(module.ended[-1], clone(module))
    first = load_file(tmp_path / "adapter_32px.safetensors")
    assert same(first, module.ended[0]), "on disk too"


def test_each_stage_trains_all_its_epochs_at_its_own_resolution(watched: tuple[Watched, Path]) -> None:
    module, _ = watched
    batches = 2  # 11 training images, 4 each, the rest dropped
    assert [(number, side) for number, side, _, _ in module.steps] == (
        [(1, 32)] * 2 * batches + [(2, 48)] * batches + [(3, 64)] * 2 * batches
    )
    rates = {number: [rate for n, _, rate, _ in module.steps if n == number] for number in (1, 2, 3)}
    for of_stage in rates.values():
        assert of_stage[0] == pytest.approx(1e-3), "each stage starts at the full rate (too short for a warm-up)"
        assert of_stage == sorted(of_stage, reverse=True)
    assert len(rates[1]) == len(rates[3])
    assert rates[1] == pytest.approx(rates[3])


def test_the_report_holds_the_scores_of_each_stage(watched: tuple[Watched, Path]) -> None:
    module, folder = watched
    report = json.loads((folder / "distillation.json").read_text())
    assert [stage["resolution"] for stage in report["stages"]] == [32, 48, 64]
    assert [stage["batches"] for stage in report["stages"]] == [4, 2, 4]
    for stage in report["stages"]:
        assert stage["r2"] < 1
        assert -1 <= stage["cosine"] <= 1
        assert stage["best_epoch"] in range(stage["epochs"])
        assert sum(stage["channel_mse"]) / 8 == pytest.approx(stage["mse"])
    assert report["teacher_sha256"] == module.teacher_sha256
    assert report["training"]["images"] == 11
    assert report["training"] == module.training_facts, "which images, flips, seed and precision"


def test_the_schedule_refuses_what_does_not_fit() -> None:
    stages = Schedule(DistillConfig(), 14)
    assert stages.total == 20
    assert [stages.at(epoch).resolution for epoch in (0, 4, 5, 9, 10, 19, 20)] == [126, 126, 252, 252, 518, 518, 518]
    assert [s.align for s in Schedule(DistillConfig(align="both"), 14).stages] == [
        "down_teacher",
        "down_teacher",
        "both",
    ]
    assert {s.align for s in Schedule(DistillConfig(align="up_student"), 14).stages} == {"up_student"}
    for message, config in {
        "Make them equal": DistillConfig(epochs=(5, 5)),
        "at least 1 everywhere": DistillConfig(batch=(64, 0, 32)),
        "Nearest: 126": DistillConfig(resolutions=(128, 252, 518)),
        "Leave cache_grid out": DistillConfig(align="both", cache_grid=37),
    }.items():
        with pytest.raises(UserError, match=message):
            Schedule(config, 14)


# -- what is trained --------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained(world: Path, tmp_path: Path) -> None:
    module = make_module(world)
    before = clone(module), module.weights_sha256(("encoder",))
    teacher = SamEncoder("from_weights", module.teacher_weights)
    fit(world, module, tmp_path, limit_train_batches=1)
    assert module.weights_sha256(("encoder",)) == before[1]
    assert module.teacher_sha256 == teacher.sha256(), "the teacher is what its file says"
    trained = {name: value for name, value in module.adapter.named_parameters()}
    assert all(not torch.equal(value, before[0][name]) for name, value in trained.items())
    optimised = {id(p) for group in module.trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trained.values()}
    assert all(p.grad is None for p in module.encoder.parameters())
    module.train()
    assert module.adapter.training
    assert not any(m.training for m in module.encoder.modules())


@pytest.mark.parametrize("align", ["down_teacher", "up_student"])
def test_four_images_can_be_learned_by_heart(world: Path, align: Any) -> None:
    module = make_module(world).train()
    files = ImageFiles(world / "images")
    squares = [decode_image(files.content(row), "x") for row in range(4)]
    teacher = SamEncoder("from_weights", module.teacher_weights)
    images, large = (
        torch.stack([torch.from_numpy(resize_image(s, side)).permute(2, 0, 1) for s in squares]).float() / 255
        for side in (64, teacher.image_size)
    )
    target = teacher(large)
    optimizer = torch.optim.AdamW(module.adapter.parameters(), lr=5e-3)
    losses = []
    for _ in range(150):
        loss = distillation_loss(module(images), target, align)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_training_without_validation_keeps_the_last_weights(world: Path, tmp_path: Path) -> None:
    module = fit(world, make_module(world), tmp_path, data={"max_images": 4, "val_images": 0})
    assert module.best is None
    assert same(load_file(tmp_path / "adapter.safetensors"), clone(module))
    assert [set(stage) for stage in module.reports] == [{"resolution", "epochs", "batches"}] * 3


# -- resuming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [1, 2, 4])  # in the middle of a stage, at a hand-over, in the last stage
def test_a_killed_run_goes_on_to_the_same_weights(
    world: Path, watched: tuple[Watched, Path], tmp_path: Path, stop: int
) -> None:
    killed = make_module(world, Watched)
    killed.dies_in = stop  # type: ignore[assignment]
    with pytest.raises(SystemExit):
        fit(world, killed, tmp_path)
    torch.rand(7)  # the random state of the new process is another one
    # with loader processes, which ask for batches before Lightning tells the sampler its epoch
    last, workers = str(tmp_path / "last.ckpt"), {"num_workers": 2}
    resumed = fit(world, make_module(world, Watched), tmp_path, last, data=workers)
    whole, folder = watched
    assert same(clone(resumed), clone(whole))
    ours, theirs = (torch.load(f / "last.ckpt", weights_only=True) for f in (tmp_path, folder))
    assert same(ours["state_dict"], theirs["state_dict"])
    assert ours["global_step"] == theirs["global_step"]
    assert (tmp_path / "distillation.json").read_text() == (folder / "distillation.json").read_text()
    assert (tmp_path / "adapter.safetensors").read_bytes() == (folder / "adapter.safetensors").read_bytes()


def test_a_checkpoint_of_another_teacher_is_refused(world: Path, tmp_path: Path) -> None:
    fit(world, make_module(world), tmp_path, limit_train_batches=1)
    small_sam(tmp_path, seed=1).rename(tmp_path / "small_sam_0.pth")
    other = make_module(world, teacher_weights=str(tmp_path / "small_sam_0.pth"))
    with pytest.raises(UserError, match="another teacher"):
        fit(world, other, tmp_path, str(tmp_path / "last.ckpt"))


# -- what stage 2 takes -----------------------------------------------------------------------------------


def test_stage_2_takes_the_adapter(watched: tuple[Watched, Path]) -> None:
    module, folder = watched
    method = FSDINO(
        backbone="vit_tiny_patch16_224",
        backbone_weights="random",
        image_size=64,
        sam_weights="random",
        adapter_weights=str(folder / "adapter.safetensors"),
        adapter=SMALL,
        prototype=PrototypeConfig(block=3),
        decoder=DecoderConfig(width=8, depth=1, heads=1, mlp_dim=16),
    )
    method.load_starting_weights()
    assert same(dict(method.net.adapter.state_dict()), clone(module))
    images = torch.rand(1, 3, 64, 64)
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(method.net.embed(method.encode(images)["block3"]), module(images))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [
        "adapter.safetensors", "adapter_32px.safetensors", "adapter_48px.safetensors"
    ]  # fmt: skip


def stage_2(adapter_weights: Path, **kwargs: Any) -> FSDINO:
    settings = {"adapter": SMALL, "prototype": PrototypeConfig(block=4), **kwargs}
    return FSDINO(
        preset="comp",
        backbone="vit_tiny_patch16_224",
        backbone_weights="random",
        image_size=64,
        sam_weights="random",
        adapter_weights=str(adapter_weights),
        decoder=DecoderConfig(width=8, depth=1, heads=1, mlp_dim=16),
        **settings,
    )


def test_stage_2_refuses_an_adapter_that_fits_but_means_something_else(watched: tuple[Watched, Path]) -> None:
    file = watched[1] / "adapter.safetensors"
    for change, name in (
        ({"heads": 2}, "adapter.heads=4"),
        ({"act": "relu"}, "adapter.act"),
        ({"block": 2}, "block=3"),
    ):
        with pytest.raises(UserError, match=rf"adapter\.safetensors was distilled with model\.(adapter\.)?{name}"):
            stage_2(file, adapter=replace(SMALL, **change)).load_starting_weights()
    with pytest.raises(UserError, match=r"model\.apply_final_norm=True, the configuration says False"):
        stage_2(file, apply_final_norm=False).load_starting_weights()
    other = stage_2(file, adapter=replace(SMALL, dropout=0.1))
    other.encoder.vit.blocks[3].norm1.weight.data.add_(1)
    other.load_starting_weights()  # above the adapter's block: makes no difference to it
    other.encoder.vit.blocks[2].norm1.weight.data.add_(1)
    with pytest.raises(UserError, match=r"another encoder \(vit_tiny_patch16_224, weights random\)"):
        other.load_starting_weights()


def test_a_final_norm_starts_at_the_teachers(world: Path, tmp_path: Path) -> None:
    state = torch.load(world / "small_sam_0.pth", weights_only=True)
    last = {name: f"image_encoder.neck.3.{name}" for name in ("weight", "bias")}
    state |= {key: torch.rand(8) for key in last.values()}
    torch.save(state, tmp_path / "sam.pth")
    settings: dict[str, Any] = {"teacher_weights": str(tmp_path / "sam.pth"), "adapter": replace(SMALL, final_ln=True)}
    module = fit(world, make_module(world, distill=replace(STAGES, lr=0.0), **settings), tmp_path)
    for name, key in last.items():
        assert torch.equal(getattr(module.adapter.final_ln, name), state[key])
