"""FSDINO as a method: presets and settings, starting weights, a real short training, its optimiser and checkpoint."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import nn

from fssbench.errors import UserError
from fssbench.method import FewShotMethod
from methods.fsdino import FSDINO
from methods.fsdino.adapter import Adapter, AdapterConfig
from methods.fsdino.correlation import CorrConfig
from methods.fsdino.decoder import DecoderConfig
from methods.fsdino.model import FSDINONet
from methods.fsdino.module import TrainConfig
from methods.fsdino.prompts import PrototypeConfig
from tests.methods.sam import Sam
from tests.toy import Toy

TINY = {"backbone": "vit_tiny_patch16_224", "backbone_weights": "random", "image_size": 64}
SMALL = DecoderConfig(width=32, depth=1, heads=4, mlp_dim=64)
LOW = PrototypeConfig(block=3)  # blocks above the highest one used are not built
CORR = CorrConfig(blocks=(2, 3), channels=(4, 8, 8))
CONFIGS = Path(__file__).parents[2] / "configs" / "methods"


def make_method(**kwargs: Any) -> FSDINO:
    torch.manual_seed(0)
    return FSDINO(**{**TINY, "preset": "comp", "sam_weights": "random", "decoder": SMALL, "prototype": LOW, **kwargs})


def make_trainer(folder: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=str(folder),
        **{"enable_checkpointing": False, **kwargs},
    )  # fmt: skip


def test_features_are_the_two_blocks_that_are_needed() -> None:
    features = make_method(prototype=PrototypeConfig()).encode(torch.rand(2, 3, 64, 64))
    assert {name: tuple(value.shape) for name, value in features.items()} == dict.fromkeys(
        ("block3", "block12"), (2, 192, 4, 4)
    )
    method = make_method(adapter=AdapterConfig(block=2))
    assert (method.net.early, method.net.late) == ("block2", "block3")
    assert set(method.encode(torch.rand(1, 3, 64, 64))) == {"block2", "block3"}
    assert set(make_method().encode(torch.rand(1, 3, 64, 64))) == {"block3"}


def test_presets_decide_on_the_decoder_and_settings_win(adapter_file: str) -> None:
    def parts(**kwargs: Any) -> set[str]:
        return set(make_method(adapter_weights=adapter_file, **kwargs).net.trained_parameters())

    frozen = DecoderConfig(train=False, width=32, depth=1, heads=4, mlp_dim=64)
    assert parts(preset="comp") == {"prompts", "decoder"}
    assert parts(preset="comp_star") == parts(preset="comp", decoder=frozen) == {"prompts"}
    full = {"prompts", "correlation", "decoder"}
    assert parts(preset="fsdino", corr=CORR) == parts(preset="fsdino_ce", corr=CORR) == full
    assert parts(preset="fsdino", dense="pcs") == {"prompts", "decoder"}
    assert parts(preset="comp", dense="corr", corr=CORR) == full


def test_contrast_is_decided_by_the_preset_or_by_its_setting() -> None:
    def contrast(preset: str, ce: bool | None = None) -> bool | None:
        method = make_method(preset=preset, corr=replace(CORR, ce=ce))
        assert method.net.corr is not None
        return method.net.corr.config.ce

    assert (contrast("fsdino"), contrast("fsdino_ce")) == (False, True)
    assert (contrast("fsdino", True), contrast("fsdino_ce", False)) == (True, False)
    assert inspect.signature(FSDINO).parameters["preset"].default == "fsdino_ce"
    balanced = replace(CORR, ce_balance=True)
    assert make_method(preset="fsdino_ce", corr=balanced).net.corr.config.ce_balance
    with pytest.raises(UserError, match=r"there is no contrast. Add corr\.ce true"):
        make_method(preset="fsdino", corr=balanced)


def test_blocks_of_the_correlation() -> None:
    method = make_method(preset="fsdino", corr=CorrConfig(channels=(4, 8, 8)), prototype=PrototypeConfig())
    assert method.net.matched == tuple(f"block{number}" for number in range(7, 13)), "the last six of twelve"
    method = make_method(preset="fsdino", corr=replace(CORR, blocks=(3, -11)))
    assert method.net.matched == ("block2", "block3"), "earliest first"
    assert set(method.encode(torch.rand(1, 3, 64, 64))) == {"block2", "block3"}
    for wrong in ((), (3, 3), (2, -11)):
        with pytest.raises(UserError, match=r"corr\.blocks"):
            make_method(preset="fsdino", corr=replace(CORR, blocks=wrong))


def test_adapter_is_trained_where_it_has_no_weights(adapter_file: str) -> None:
    assert "adapter" in make_method().net.trained_parameters()
    assert "adapter" in make_method(adapter_weights=adapter_file, train_adapter=True).net.trained_parameters()
    assert "adapter" not in make_method(adapter_weights=adapter_file).net.trained_parameters()
    with pytest.raises(UserError, match="adapter would stay random"):
        make_method(train_adapter=False)


def test_sams_weights_need_sams_sizes() -> None:
    with pytest.raises(UserError, match="SAM's own width"):
        make_method(sam_weights="sam_vit_h_4b8939.pth")


@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_that_no_token_can_be_measured_by_is_refused(threshold: float) -> None:
    with pytest.raises(UserError, match=r"mask_threshold is .* Give 0 to 1"):
        make_method(mask_threshold=threshold)


def test_the_record_says_what_came_from_sam(adapter_file: str) -> None:
    def facts(**kwargs: Any) -> tuple[str, tuple[str, ...]]:
        found = make_method(**{"decoder": DecoderConfig(), **kwargs}).metadata()
        return found["supervision"], found["contamination"]

    sam = ("SA-1B masks (SAM)", ("class-agnostic masks",))
    assert facts() == ("none", ("none",))
    assert facts(sam_weights="folder/sam_vit_b_01ec64.pth") == sam
    assert facts(sam_weights="own_sam.pth") == ("unknown", ("unknown",)), "nobody knows on what masks"
    distilled = facts(adapter_weights=adapter_file)
    assert distilled == ("unknown", ("unknown",)), "from a teacher, without SAM's decoder: this file does not say which"


def test_random_start_follows_the_seed() -> None:
    one, same = make_method().state_dict(), make_method().state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())


def test_starting_weights_are_read_before_fit_only(tmp_path: Path) -> None:
    sam, file = Sam(tmp_path), tmp_path / "adapter.safetensors"
    save_file(Adapter(192).state_dict(), file)
    method = make_method(sam_weights=str(sam.path), adapter_weights=str(file), decoder=DecoderConfig())
    random = {name: value.clone() for name, value in method.net.state_dict().items()}
    method.setup("test")
    assert all(torch.equal(value, random[name]) for name, value in method.net.state_dict().items())
    method.setup("fit")
    for name, value in sam.mask_decoder.state_dict().items():
        assert torch.equal(method.net.decoder.mask_decoder.state_dict()[name], value)
    assert torch.equal(method.net.svp.projections[0][2].bias, sam.prompt_encoder.point_embeddings[1].weight[0])
    assert torch.equal(method.net.pcs.encoder[0].weight, sam.prompt_encoder.mask_downscaling[0].weight)
    assert torch.equal(method.net.adapter.expand.weight, load_file(file)["expand.weight"])
    assert {n for n, p in method.net.named_parameters() if p.requires_grad} == {
        n for n, _ in method.net.named_parameters() if not n.startswith(("adapter.", "decoder.mask_decoder.iou_pred"))
    }


def test_short_training(tmp_path: Path, adapter_file: str) -> None:
    method = make_method(adapter_weights=adapter_file, train=TrainConfig(lr=1e-2, decoder_lr=1e-2))
    method.load_starting_weights()
    frozen = [*method.encoder.named_parameters(), *method.net.adapter.state_dict().items()]
    before = [value.clone() for _, value in frozen]
    losses = Losses()
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    trainer = make_trainer(tmp_path, max_steps=12, enable_checkpointing=True, callbacks=[saver, losses])
    trainer.fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=4))

    assert len(losses.values) == 12
    assert sum(losses.values[-3:]) < 0.93 * sum(losses.values[:3])
    after = [*method.encoder.parameters(), *method.net.adapter.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    method.train()
    assert not any(module.training for part in (method.encoder, method.net.adapter) for module in part.modules())

    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(checkpoint["state_dict"]) == {f"net.{name}" for name in method.net.state_dict()}
    tested = make_method(adapter_weights=adapter_file, train=TrainConfig(lr=1e-2, decoder_lr=1e-2), kshot_merge="vote")
    Path(adapter_file).rename(tmp_path / "away")  # a checkpoint needs none of the starting weights
    try:
        make_trainer(tmp_path).test(
            tested, datamodule=Toy(shot=2, episodes_per_class=1), ckpt_path=tmp_path / "last.ckpt", verbose=False
        )
    finally:
        (tmp_path / "away").rename(adapter_file)
    assert all(torch.equal(value, method.net.state_dict()[name]) for name, value in tested.net.state_dict().items())
    assert tested.complete


class Losses(Callback):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.types: list[torch.dtype] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs["loss"]))
        self.types.append(outputs["loss"].dtype)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_full_model_trains_and_is_tested_with_several_shots(tmp_path: Path, precision: Any) -> None:
    settings: dict[str, Any] = {"preset": "fsdino_ce", "corr": CORR, "train": TrainConfig(lr=1e-2, decoder_lr=1e-2)}
    method, losses, correlations = make_method(**settings), Losses(), []
    assert method.net.corr is not None
    first = method.net.corr.squeeze[0].first
    first.norm.register_forward_pre_hook(lambda _, args: correlations.append(args[0].dtype))
    saver = ModelCheckpoint(dirpath=tmp_path, filename="last")
    trainer = make_trainer(
        tmp_path, max_steps=12, precision=precision, gradient_clip_val=1.0, enable_checkpointing=True,
        callbacks=[saver, losses],
    )  # fmt: skip
    trainer.fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=4))
    # a fused optimiser and clipping do not go together in mixed precision
    assert trainer.optimizers[0].defaults["fused"] == (True if precision == "32-true" else None)
    assert sum(losses.values[-3:]) < 0.93 * sum(losses.values[:3])
    assert set(losses.types) == set(correlations) == {torch.float32}
    assert method.net.corr.head[-1].weight.abs().sum() > 0, "the 4D part has left its start at zero"
    for merge in ("feature", "logit", "vote"):
        tested = make_method(**settings, kshot_merge=merge)
        data = Toy(shot=3, episodes_per_class=1)
        make_trainer(tmp_path).test(tested, datamodule=data, ckpt_path=tmp_path / "last.ckpt", verbose=False)
        assert tested.complete
        assert tested.scores is not None


def test_recomputing_the_correlation_trains_alike(tmp_path: Path) -> None:
    def trained(recompute: bool) -> dict[str, torch.Tensor]:
        train = TrainConfig(lr=1e-2, recompute_correlation=recompute)
        method = make_method(preset="fsdino_ce", corr=CORR, train=train)
        make_trainer(tmp_path, max_steps=2).fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=4))
        return method.net.state_dict()

    kept, recomputed = trained(False), trained(True)
    for name, value in kept.items():
        torch.testing.assert_close(recomputed[name], value)


def test_compiled_network_gives_the_same_and_keeps_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    # everything but the last step, writing and building C++ or Triton code, which takes minutes
    monkeypatch.setattr(FSDINONet, "compile", partialmethod(nn.Module.compile, backend="eager"))
    plain = make_method(preset="fsdino_ce", corr=replace(CORR, zero_init_head=False))
    compiled = make_method(preset="fsdino_ce", corr=replace(CORR, zero_init_head=False), compile=True)
    data = Toy(image_size=64, eval_batch_size=2, episodes_per_class=1)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    gradients = []
    for method in (plain, compiled):
        method.setup("test")
        method.training_step(batch, 0).backward()
        gradients.append({name: p.grad for name, p in method.net.named_parameters()})
    assert plain.net._compiled_call_impl is None
    assert compiled.net._compiled_call_impl is not None
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.fixture(scope="module")
def parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FewShotMethod, "model")
    return parser


def test_nested_settings_on_the_command_line(parser: ArgumentParser) -> None:
    chosen = ["--model=methods.fsdino.FSDINO", "--model.preset=comp_star", "--model.adapter.norm=ln2d"]
    small = ["--model.decoder.width=32", "--model.decoder.heads=4", "--model.sam_weights=random"]
    tiny = [f"--model.{name}={value}" for name, value in TINY.items()] + ["--model.prototype.block=3"]
    method = parser.instantiate(parser.parse_args([*chosen, *small, *tiny])).model
    assert isinstance(method, FSDINO)
    assert type(method.net.adapter.squeeze[1]).__name__ == "LayerNorm2d"
    assert method.settings()["adapter"] == {**asdict(AdapterConfig()), "norm": "ln2d"}
    with pytest.raises(ArgumentError, match="ln3d"):
        parser.parse_args([*chosen, "--model.adapter.norm=ln3d"])


@pytest.mark.parametrize("name", ["fsdino", "comp", "comp_star", "prototype"])
def test_shipped_configs_name_settings_that_exist(parser: ArgumentParser, name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    parsed = parser.parse_object({"model": config["model"]})
    assert parsed.model.class_path == (
        "methods.prototype.Prototype" if name == "prototype" else "methods.fsdino.FSDINO"
    )
    if name != "prototype":
        assert config["trainer"] == {"gradient_clip_val": 1.0, "max_epochs": 20}
        assert parsed.model.init_args.preset == ("fsdino_ce" if name == "fsdino" else name)
