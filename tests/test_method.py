"""What every method gets for free: steps, scores, rows, checkpoints."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fssbench.checkpoint import checkpoint_mismatch, class_path, code_sha256
from fssbench.encoders.cache import FeatureCache
from fssbench.errors import UserError
from fssbench.losses import bce_dice_loss
from fssbench.method import FewShotMethod
from fssbench.metrics.at_size import bilinear
from fssbench.metrics.observers import BoundaryScores
from tests.toy import ColourMethod, FreeMethod, Toy


def make_trainer(folder: Path, **kwargs: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=str(folder),
        **{"enable_checkpointing": False, **kwargs},
    )  # fmt: skip


def fitted(folder: Path, method: FewShotMethod | None = None, **kwargs: Any) -> Path:
    saver = ModelCheckpoint(dirpath=folder, filename="last")
    trainer = make_trainer(folder, max_epochs=2, enable_checkpointing=True, callbacks=[saver])
    trainer.fit(method or ColourMethod(**kwargs), datamodule=Toy(batch_size=4, episodes_per_epoch=8))
    return folder / "last.ckpt"


def scored(method: FewShotMethod, folder: Path, ckpt: Path | None = None, **kwargs: Any) -> FewShotMethod:
    make_trainer(folder).test(method, datamodule=Toy(**kwargs), ckpt_path=ckpt, verbose=False)
    return method


def test_scores_do_not_depend_on_the_batch_size_or_workers(tmp_path: Path) -> None:
    runs = [
        scored(FreeMethod(), tmp_path, shot=2, **kwargs)
        for kwargs in ({"eval_batch_size": 1}, {"eval_batch_size": 5}, {"eval_batch_size": 3, "num_workers": 2})
    ]
    assert runs[0].scores == runs[1].scores == runs[2].scores
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.episode_rows] for run in runs]
    assert rows[0] == rows[1] == rows[2]
    assert runs[0].complete
    assert [row["episode_id"] for row in rows[0]] == list(range(16))
    assert 0 < runs[0].scores["miou"] < 1


def test_the_time_of_a_batch_is_shared_by_its_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoSeconds:
        def __init__(self, device: torch.device) -> None:
            self.stop = lambda: lambda: 2.0

    monkeypatch.setattr("fssbench.method.Timer", TwoSeconds)
    method = scored(FreeMethod(), tmp_path, eval_batch_size=5)
    assert [row["seconds"] for row in method.episode_rows].count(0.4) == 15
    assert sum(row["seconds"] for row in method.episode_rows) == pytest.approx(4 * 2.0), "16 episodes in 4 batches"


def test_a_test_begins_with_nothing_of_the_one_before(tmp_path: Path) -> None:
    """Neither the counts, nor what observers saw, nor features of an encoder that has changed since."""
    method, data = FreeMethod(), Toy(boundary=True)
    for turn in range(2):
        with torch.no_grad():
            method.encoder.weight += turn
        make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    again = FreeMethod()
    with torch.no_grad():
        again.encoder.weight += 1
    assert scored(again, tmp_path).scores == method.scores != scored(FreeMethod(), tmp_path).scores
    assert len(data.observers[0].rows) == 16  # type: ignore[attr-defined]


def test_scores_that_need_one_process_are_refused_on_several() -> None:
    method = FreeMethod()
    data = SimpleNamespace(observers=(BoundaryScores(),))
    method.trainer = SimpleNamespace(world_size=2, datamodule=data)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"The boundary scores are made in one process: use --trainer\.devices 1"):
        method.on_test_start()


def test_the_training_loss_is_that_of_logits_at_network_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data, method, recorded = Toy(batch_size=4, image_size=16), ColourMethod(), []
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    monkeypatch.setattr(method, "log", lambda *args, **kwargs: recorded.append(args))
    logits = method(batch)
    assert logits.shape == (4, 8, 8)
    loss = method.training_step(batch, 0)
    assert loss == bce_dice_loss(bilinear(logits, (16, 16)), batch.query_mask)
    assert recorded == [("train_loss", loss)]


def test_frozen_features_are_made_without_gradients() -> None:
    class Careless(ColourMethod):
        def encode(self, images: torch.Tensor) -> Any:
            return {name: value * self.scale for name, value in super().encode(images).items()}

    data, method = Toy(batch_size=4, image_size=16), Careless()
    data.setup("fit")
    query, support = method._features(next(iter(data.train_dataloader())))
    assert not query["colour"].requires_grad
    assert not support["colour"].requires_grad


def test_masks_have_the_original_size(tmp_path: Path) -> None:
    data = Toy(eval_batch_size=4)
    batches = make_trainer(tmp_path).predict(FreeMethod(), datamodule=data)
    sizes = [tuple(mask.shape) for masks in batches for mask in masks]
    expected = [data.dataset.read_mask(e.query, e.class_id).shape for e in data.test_manifest.episodes]
    assert sizes == expected
    assert len(set(sizes)) > 1, "the toy set must mix sizes"


def test_every_pixel_of_the_original_mask_is_counted(tmp_path: Path) -> None:
    """The ground truth is never resized for the headline number (protocols.md 5, item 7)."""
    data = Toy(eval_batch_size=4)
    method = FreeMethod()
    make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    masks = [data.dataset.read_mask(e.query, e.class_id) for e in data.test_manifest.episodes]
    assert {mask.shape for mask in masks} != {(16, 16)}
    rows = method.episode_rows
    assert [row["fg_target"] for row in rows] == [(mask == 1).sum() for mask in masks]
    assert [row["fg_union"] + row["bg_intersection"] for row in rows] == [(mask != 255).sum() for mask in masks]


def test_a_trained_method_refuses_to_test_without_a_checkpoint(tmp_path: Path) -> None:
    for verb in ("test", "predict"):
        with pytest.raises(UserError, match="--ckpt_path"):
            getattr(make_trainer(tmp_path), verb)(ColourMethod(), datamodule=Toy())


def test_checkpoint_holds_only_what_was_trained(tmp_path: Path) -> None:
    checkpoint = torch.load(fitted(tmp_path), weights_only=True)
    assert set(checkpoint["state_dict"]) == {"scale", "bias", "seen"}
    assert "hyper_parameters" not in checkpoint
    assert checkpoint["fssbench"]["settings"] == {"image_size": 16, "lr": 0.1, "bias": 0.5}
    assert checkpoint["fssbench"]["training"]["dataset"] == "toy"
    assert checkpoint["state_dict"]["seen"] == 4, "two epochs of two batches"


def test_checkpoint_restores_the_trained_method(tmp_path: Path) -> None:
    path = fitted(tmp_path)
    method = scored(ColourMethod(), tmp_path, path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert method.scale.item() == saved["scale"].item() != -4.0
    assert method.training_facts["max_epochs"] == 2


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = fitted(tmp_path)
    with pytest.raises(UserError, match=r"lr=0\.1.*0\.2"):
        scored(ColourMethod(lr=0.2), tmp_path, path)


def test_a_checkpoint_made_before_a_setting_existed_has_its_default() -> None:
    made = {"method_class": "m", "settings": {"lr": 1, "parts": {"depth": 2}, "own": {"a": 1}}}
    defaults = {"lr": 1, "parts": {"depth": 3, "wide": False}, "new": None, "own": None}
    ours = {"lr": 1, "parts": {"depth": 2, "wide": False}, "new": None, "own": {"a": 1}}
    assert checkpoint_mismatch(made, "m", ours, defaults=defaults) is None
    assert "new=None" in str(checkpoint_mismatch(made, "m", {**ours, "new": 1}, defaults=defaults))
    wide = {**ours, "parts": {"depth": 2, "wide": True}}
    assert "differing: parts)" in str(checkpoint_mismatch(made, "m", wide, defaults=defaults))
    deep = {**ours, "parts": {"depth": 3, "wide": False}}
    assert "differing: parts)" in str(checkpoint_mismatch(made, "m", deep, defaults=defaults)), "its own depth counts"
    assert "differing: own)" in str(
        checkpoint_mismatch(made, "m", {**ours, "own": {"a": 1, "b": 2}}, defaults=defaults)
    )
    less = {name: value for name, value in ours.items() if name != "lr"}
    assert "differing: lr)" in str(checkpoint_mismatch(made, "m", less, defaults=defaults)), "a setting that is gone"


def test_settings_that_change_no_number_are_unknown_to_checkpoints_and_identities(tmp_path: Path) -> None:
    class Careful(ColourMethod):
        neutral_settings = ("bias", "parts.lean")

        def __init__(self, bias: float = 0.5, parts: Any = None) -> None:
            super().__init__(bias=bias)

    plain, lean = Careful(), Careful(0.1, {"lean": True, "kind": 1})
    assert plain.settings() == {"image_size": 16, "lr": 0.1, "parts": None}
    assert lean.settings() == {**plain.settings(), "parts": {"kind": 1}}
    older = {
        "method_class": class_path(Careful),
        "settings": {**plain.settings(), "bias": 0.3, "parts": {"lean": False, "kind": 1}},
    }
    assert lean.checkpoint_problem(older) is None
    assert "parts" in (plain.checkpoint_problem(older) or "")
    path = fitted(tmp_path, Careful(0.2, {"lean": False}))
    assert torch.load(path, weights_only=True)["fssbench"]["settings"]["parts"] == {}
    scored(Careful(0.3, {"lean": True}), tmp_path, path)


def test_checkpoint_of_another_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ColourMethod.*FreeMethod"):
        scored(FreeMethod(), tmp_path, fitted(tmp_path))


def test_checkpoint_of_another_encoder_is_refused(tmp_path: Path) -> None:
    path, method = fitted(tmp_path), ColourMethod()
    with torch.no_grad():
        method.encoder.weight[0, 0] += 1
    with pytest.raises(UserError, match="frozen encoder weights"):
        scored(method, tmp_path, path)


def test_frozen_parts_stay_in_eval_mode_and_unchanged(tmp_path: Path) -> None:
    method = ColourMethod()
    before = method.encoder.weight.clone()
    make_trainer(tmp_path, max_steps=2).fit(method, datamodule=Toy(batch_size=2, episodes_per_epoch=4))
    method.train()
    assert method.training
    assert not method.encoder.training
    assert torch.equal(method.encoder.weight, before)


def test_validation_looks_at_base_classes_only(tmp_path: Path) -> None:
    data = Toy(fold=1)
    method = ColourMethod()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(method, datamodule=data)
    assert set(method.scores["episodes_per_class"]) == {2, 4, 6, 8}
    assert float(trainer.callback_metrics["val_miou"]) == pytest.approx(method.scores["miou"])


def test_part_of_the_episodes_is_not_complete(tmp_path: Path) -> None:
    method = FreeMethod()
    Trainer(
        accelerator="cpu", logger=False, limit_test_batches=1, enable_progress_bar=False, use_distributed_sampler=False,
        enable_checkpointing=False, default_root_dir=str(tmp_path),
    ).test(method, datamodule=Toy(eval_batch_size=3), verbose=False)  # fmt: skip
    assert not method.complete
    assert len(method.episode_rows) == 3
    assert method.scores["missing_classes"]


class Counting(FreeMethod):
    """Counts the images that are encoded."""

    encoded = 0

    def encode(self, images: torch.Tensor) -> Any:
        self.encoded += len(images)
        return super().encode(images)


@pytest.mark.parametrize("megabytes", [100, 0, 0.005])
def test_each_distinct_image_is_encoded_once_and_no_score_depends_on_it(tmp_path: Path, megabytes: float) -> None:
    method = Counting()
    method.cache = FeatureCache(megabytes)
    scored(method, tmp_path, eval_batch_size=1)
    images = len(Toy().test_manifest.images())
    assert images < 32, "16 episodes of two images each must repeat some"
    least, most = {100: (images, images), 0: (32, 32)}.get(megabytes, (images, 32))
    assert least <= method.encoded <= most
    assert method.scores == scored(FreeMethod(), tmp_path).scores


@pytest.mark.parametrize("augment", ["none", "flip", "standard"])
def test_equal_keys_of_training_images_mean_equal_images(augment: str) -> None:
    data = Toy(image_size=8, batch_size=8, episodes_per_epoch=32, augment=augment)
    data.prepare_data()
    data.setup("fit")
    images: dict[str, list[torch.Tensor]] = {}
    for batch in data.train_dataloader():
        for key, image in zip(batch.query_key, batch.query_image, strict=True):
            images.setdefault(key, []).append(image)
        for keys, supports in zip(batch.support_keys, batch.support_images, strict=True):
            for key, image in zip(keys, supports, strict=True):
                images.setdefault(key, []).append(image)
    assert all(torch.equal(image, same[0]) for same in images.values() for image in same)
    plain = [key for key in images if "|" not in key and "#" not in key]
    flipped = [key for key in images if key.endswith("|flipped")]
    assert bool(plain) == (augment != "standard")
    assert bool(flipped) == (augment == "flip")
    if augment == "flip":  # two outcomes each, so that their features are found again
        assert max(map(len, images.values())) > 1
        pairs = [(images[key][0], images[f"{key}|flipped"][0]) for key in plain if f"{key}|flipped" in images]
        assert pairs
        assert all(torch.equal(one.flip(-1), other) for one, other in pairs)


def test_stored_features_belong_to_the_code_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method's author changes `encode` and runs again: no setting and no weight says so."""
    monkeypatch.syspath_prepend(tmp_path)
    kinds = []
    for number in (1, 2, 2):
        (tmp_path / "own_method.py").write_text(
            "from tests.toy import FreeMethod\n\n\nclass Own(FreeMethod):\n    def encode(self, images):\n"
            f"        return {{'colour': {number} * super().encode(images)['colour']}}\n"
        )
        sys.modules.pop("own_method", None)
        importlib.invalidate_caches()
        kinds.append(importlib.import_module("own_method").Own().feature_kinds())
    assert kinds[0] != kinds[1] == kinds[2]


def test_the_code_of_a_base_is_part_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_child.py").write_text("from own_base import Base\n\n\nclass Child(Base):\n    pass\n")
    hashes = []
    for number in (1, 2, 2):
        (tmp_path / "own_base.py").write_text(
            f"from tests.toy import FreeMethod\n\n\nclass Base(FreeMethod):\n    number = {number}\n"
        )
        for name in ("own_base", "own_child"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        hashes.append(code_sha256(importlib.import_module("own_child").Child, FreeMethod))
    assert hashes[0] != hashes[1] == hashes[2]


def test_code_without_a_file_is_told_apart() -> None:
    def typed(number: int) -> type:
        values: dict[str, Any] = {"FreeMethod": FreeMethod, "__name__": "typed"}
        exec(f"class Typed(FreeMethod):\n    def encode(self, images):\n        return {number}\n", values)
        found: type = values["Typed"]
        return found

    assert code_sha256(typed(1), FreeMethod) == code_sha256(typed(1), FreeMethod) != code_sha256(typed(2), FreeMethod)


def test_the_hash_of_the_weights_sees_every_value() -> None:
    method = ColourMethod()
    before = method.weights_sha256()
    assert before == ColourMethod().weights_sha256()
    with torch.no_grad():
        method.bias += 1e-6
    assert method.weights_sha256() != before
    assert method.weights_sha256(("encoder",)) == ColourMethod().weights_sha256(("encoder",))
