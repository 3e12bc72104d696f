"""SAM2FSS in training: what changes in both ways of training, checkpoints, real short runs, facts for the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

pytest.importorskip("sam2")

from sam2.modeling.sam2_utils import LayerNorm2d

from fssbench.encoders.sam2 import build_sam2
from fssbench.errors import UserError
from fssbench.method import FewShotMethod
from methods.sam2fss import SAM2FSS
from methods.sam2fss.module import poly
from methods.sam2fss.trainable import trainable_names
from tests.methods.sam2 import SIDE, TINY_SAM2, encoded, episode, small_method
from tests.toy import Toy

PREFIX = "net.sam2.model."


def make_trainer(folder: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, default_root_dir=str(folder),
        **{"enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0, **kwargs},
    )  # fmt: skip


# -- what is trained ----------------------------------------------------------------------------------------------------


def test_the_trained_parameters_are_those_of_the_specification() -> None:
    model = build_sam2(weights="random")
    size = {name: p.numel() for name, p in model.named_parameters()}
    affine, paper = trainable_names(model, "affine"), trainable_names(model, "paper")
    assert len(affine) == 63
    assert sum(size[name] for name in affine) == 15_144
    assert sum(size[name] for name in paper) == 11_232_896
    assert affine < paper
    parts = {"memory_attention": 6_656, "memory_encoder": 2_216, "sam_mask_decoder": 6_272}
    assert {part: sum(size[n] for n in affine if n.startswith(part)) for part in parts} == parts
    assert trainable_names(model, "none") == set()
    kinds = (nn.LayerNorm, LayerNorm2d, nn.Embedding)  # by kind of module instead of by name
    found = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, kinds) for p, _ in m.named_parameters()}
    found |= {name for name in size if name.endswith(".gamma")}
    assert affine == {name for name in found if name.startswith(tuple(parts))}


def after_a_step(trainable: Any, precision: str = "fp32") -> tuple[SAM2FSS, set[str], float]:
    """A method after one step, the names that changed, and how far a second forward pass moved."""
    method = small_method(trainable=trainable, precision=precision)
    parts = encoded(method)
    target = (torch.arange(SIDE) < 20).to(torch.uint8).expand(2, SIDE, SIDE)
    method.train()
    torch.manual_seed(0)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = torch.optim.AdamW(method.trained_parameters, lr=1e-2, weight_decay=0.0)
    first = method.segment(*parts)
    method.loss(first, target).backward()
    optimizer.step()
    torch.manual_seed(0)
    with torch.no_grad():
        moved = float((method.segment(*parts) - first).abs().max())
    changed = {n for n, value in method.state_dict().items() if not torch.equal(value, before[n])}
    return method, changed, moved


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_gives_the_same_bits_and_keeps_less(precision: str, naive: bool) -> None:
    def gradients(recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
        method = small_method(
            recompute=recompute, precision=precision, pseudo_prompts=not naive, trainable="paper"
        ).train()
        parts, kept = encoded(method, *episode(shot=2)), {}
        torch.manual_seed(0)  # of the dropout in memory attention

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits = method.segment(*parts)
        for tensor in [*method.state_dict().values(), *parts[0].values(), *parts[1].values()]:
            kept.pop(tensor.untyped_storage().data_ptr(), None)
        method.loss(logits, torch.ones(2, SIDE, SIDE, dtype=torch.uint8)).backward()
        found = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        return {**found, "logits": logits.detach()}, sum(storage.nbytes() for storage in kept.values())

    (plain, much), (again, little) = gradients(False), gradients(True)
    assert set(plain) == set(again)
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    assert any(value.abs().max() > 0 for name, value in plain.items() if "memory_encoder" in name)
    assert little < much / 3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("trainable", ["affine", "paper"])
def test_one_step_changes_exactly_what_is_trained_and_the_next_pass_uses_it(trainable: str, precision: str) -> None:
    method, changed, moved = after_a_step(trainable, precision)
    expected = {PREFIX + name for name in trainable_names(method.net.sam2.model, trainable)}
    unchosen = {n for n in expected - changed if ".output_hypernetworks_mlps." in n}  # of masks that were not chosen
    assert changed == expected - unchosen
    assert trainable == "paper" or not unchosen
    assert moved > 1e-3


def test_an_autocast_that_somebody_left_open_does_no_harm() -> None:
    """The release's fault: a warm-up without gradients inside an autocast that stays open freezes most weights."""
    method = small_method(trainable="paper", precision="bf16")
    parts = encoded(method)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            method.segment(*parts)
        first = method.segment(*parts)
        first.square().mean().backward()
        without = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
        assert all(".output_hypernetworks_mlps." in name for name in without)
        with torch.no_grad():
            for parameter in method.trained_parameters:
                parameter.add_(0.05 * torch.randn_like(parameter))
            moved = method.segment(*parts)
    assert not torch.allclose(moved, first, atol=1e-2)
    with torch.no_grad():
        assert torch.equal(method.segment(*parts), moved), "no stale copy was used"


def test_float32_means_float32_even_inside_an_autocast() -> None:
    method = small_method()
    parts = encoded(method)
    with torch.no_grad():
        expected = method.segment(*parts)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(method.segment(*parts), expected)


def test_polynomial_schedule() -> None:
    factor = poly(100)
    assert factor(0) == 1
    assert factor(50) == pytest.approx(0.5**0.9)
    assert factor(100) == factor(101) == 0


# -- runs ---------------------------------------------------------------------------------------------------------------


def data_of(method: SAM2FSS) -> Toy:
    return method.trainer.datamodule


def fitted(
    folder: Path, data: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None, **kw: Any
) -> SAM2FSS:
    method = small_method(**kw).train()
    saver = ModelCheckpoint(dirpath=folder, filename="last")
    made = make_trainer(
        folder, **{"max_epochs": 2, "enable_checkpointing": True, "callbacks": [saver], **(trainer or {})}
    )
    made.fit(method, datamodule=Toy(**{"batch_size": 2, "episodes_per_epoch": 4, **(data or {})}))
    return method


def test_a_run_keeps_what_it_trained_and_can_be_tested(tmp_path: Path) -> None:
    method = fitted(tmp_path)
    assert method.optimizers().param_groups[0]["initial_lr"] == 1e-3
    assert method.optimizers().param_groups[0]["lr"] == 0, "the schedule ends at zero"
    training = {name for name, module in method.named_modules() if module.training}
    assert f"{PREFIX}memory_attention.layers.0.dropout1" in training
    assert not any(name.startswith(("encoder", f"{PREFIX}image_encoder")) for name in training)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    names = {PREFIX + name for name in trainable_names(method.net.sam2.model, "affine")}
    assert set(checkpoint["state_dict"]) == names
    assert checkpoint["fssbench"]["settings"]["sam2_config"] == TINY_SAM2
    tested = small_method(scma_shot_mode="off")  # a choice at test time
    make_trainer(tmp_path).test(
        tested, datamodule=Toy(shot=2, episodes_per_class=1), ckpt_path=tmp_path / "last.ckpt", verbose=False
    )
    assert tested.complete
    state = method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in tested.state_dict().items() if name in state)
    with torch.no_grad():
        tested.net.sam2.model.no_mem_embed.add_(1)  # a frozen part of a module that is trained
    with pytest.raises(UserError, match=r"frozen encoder weights.*sam2_weights random"):
        make_trainer(tmp_path).test(tested, datamodule=Toy(), ckpt_path=tmp_path / "last.ckpt", verbose=False)


def test_learning_rates_follow_the_mode(tmp_path: Path) -> None:
    one_step = {"max_epochs": 1, "max_steps": 1, "enable_checkpointing": False, "callbacks": []}
    for kwargs, rate in (({"trainable": "paper"}, 1e-4), ({"trainable": "paper", "lr": 1e-3}, 1e-3)):
        group = fitted(tmp_path, trainer=one_step, **kwargs).optimizers().param_groups[0]
        assert (group["initial_lr"], group["weight_decay"]) == (rate, 0)
    with pytest.raises(UserError, match="nothing to fit"):
        fitted(tmp_path, trainer=one_step, trainable="none")
    with pytest.raises(UserError, match="needs an end"):
        fitted(tmp_path, trainer={**one_step, "max_steps": -1, "max_epochs": -1})


def test_untrained_weights_are_tested_as_they_are_only_when_asked_for(tmp_path: Path) -> None:
    data = {"episodes_per_class": 1}
    make_trainer(tmp_path).test(small_method(trainable="none"), datamodule=Toy(**data), verbose=False)
    with pytest.raises(UserError, match="--ckpt_path"):
        make_trainer(tmp_path).test(small_method(), datamodule=Toy(**data), verbose=False)


def test_each_number_of_supports_is_trained_for_itself(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.shot is 2, model\.train_shot is 1"):
        fitted(tmp_path, data={"shot": 2})
    one_step = {"max_epochs": 1, "max_steps": 1, "enable_checkpointing": False, "callbacks": []}
    method = fitted(tmp_path, data={"shot": 2}, trainer=one_step, train_shot=2)
    assert method.metadata()["kshot_mode"] == "separate-model"
    assert small_method().metadata()["kshot_mode"] == "joint"
    method.trainer.datamodule.shot = 1  # a model of two supports, tested with another number
    assert method.metadata()["kshot_mode"] == "joint"


@pytest.mark.parametrize(("selection", "data_selection"), [("base", "base"), ("best_on_test", "novel")])
def test_a_selection_must_agree_with_the_data(selection: str, data_selection: str, tmp_path: Path) -> None:
    few = {"episodes_per_class": 1, "val_episodes_per_class": 1}
    method = fitted(tmp_path, {"selection": data_selection, **few}, {"limit_val_batches": 2}, selection=selection)
    data = data_of(method)
    assert (data.val_manifest is data.test_manifest) == (selection == "best_on_test")
    with pytest.raises(UserError, match=f"Set data.selection: {data_selection}"):
        fitted(tmp_path / "wrong", {"selection": "last", **few}, selection=selection)
    with pytest.raises(UserError, match=r"model\.selection is last.*Set data.selection: last"):
        fitted(tmp_path / "wrong", {"selection": data_selection, **few})


def test_the_record_names_the_methods_own_precision() -> None:
    for precision, mixed, name in (("bf16", "32-true", "bf16-mixed"), ("fp32", "bf16-mixed", "float32")):
        method = small_method(precision=precision, pseudo_prompts=False)
        method.trainer = Trainer(accelerator="cpu", precision=mixed, logger=False)
        assert method.arithmetic == name
        assert FewShotMethod.arithmetic.fget(method) == {"32-true": "float32"}.get(mixed, mixed)


def test_facts_for_the_record() -> None:
    random = {"dino": "vit_tiny_patch16_224", "backbone_weights": "random"}
    facts = small_method(**random).metadata()
    assert facts["backbone"] == "vit_tiny_patch16_224 and SAM 2.0 Hiera small"
    assert facts["contamination"] == ("none",)
    assert facts["supervision"] == "none"
    assert small_method(trainable="none").metadata()["track"] == "training-free"
    assert small_method().metadata()["contamination"] == ("unknown",)
    naive = small_method(pseudo_prompts=False)
    for official in ("stock", "folder/sam2_hiera_small.pt"):
        naive.hparams["sam2_weights"] = official
        facts = naive.metadata()
        assert (facts["backbone"], facts["supervision"]) == ("SAM 2.0 Hiera small", "SA-1B and SA-V masks")
        assert facts["contamination"] == ("class-agnostic masks",)
