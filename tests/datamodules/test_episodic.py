"""Episodes do not depend on workers, processes or order; batches keep the contract."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback

from datamodules.augment import augment, make_augmentation
from datamodules.by_image import stream
from fssbench.dataset import FewShotDataset
from fssbench.episode import EpisodeBatch
from fssbench.errors import UserError
from fssbench.protocols.manifest import build_manifest
from tests.protocols.toy import ToyDataset
from tests.test_method import make_trainer
from tests.toy import ColourMethod, Toy


def fingerprint(batch: EpisodeBatch) -> str:
    """One hash per batch over everything in it."""
    digest = hashlib.sha256(repr((batch.query_key, batch.support_keys)).encode())
    for tensor in (batch.query_image, batch.query_mask, batch.support_images, batch.support_masks, batch.class_id):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def training_epochs(workers: int, epochs: int = 2, **kwargs: Any) -> list[list[str]]:
    data = Toy(image_size=16, batch_size=3, episodes_per_epoch=10, num_workers=workers, **kwargs)
    data.setup("fit")
    loader, seen = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        seen.append([fingerprint(batch) for batch in loader])
    return seen


@pytest.mark.parametrize("augment", ["none", "standard"])
def test_training_episodes_are_the_same_with_any_number_of_workers(augment: str) -> None:
    reference = training_epochs(0, shot=2, augment=augment)
    assert len({f for epoch in reference for f in epoch}) == 8, "two epochs of four different batches"
    for workers in (1, 2, 4):
        assert training_epochs(workers, shot=2, augment=augment) == reference


def test_training_episodes_change_with_the_seed() -> None:
    assert training_epochs(0, 1) != training_epochs(0, 1, seed=1)


def test_the_trainer_advances_the_epoch(tmp_path: Path) -> None:
    class Keep(Callback):
        def __init__(self) -> None:
            self.epochs: dict[int, list[str]] = {}

        def on_train_batch_start(self, trainer: Any, module: Any, batch: EpisodeBatch, batch_idx: int) -> None:
            self.epochs.setdefault(trainer.current_epoch, []).append(fingerprint(batch))

    keep = Keep()
    data = Toy(batch_size=3, episodes_per_epoch=10, num_workers=2)
    make_trainer(tmp_path, max_epochs=2, callbacks=[keep]).fit(ColourMethod(), datamodule=data)
    assert list(keep.epochs.values()) == training_epochs(0)


@pytest.mark.parametrize("shot", [1, 3, 5])
def test_batches_keep_the_contract(shot: int) -> None:
    data = Toy(image_size=20, shot=shot, eval_batch_size=5)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert sum(batch.size for batch in batches) == 16
    batch = batches[0]
    assert (batch.size, batch.shot) == (5, shot)
    assert batch.query_image.shape == (5, 3, 20, 20)
    assert batch.query_image.dtype == torch.float32
    assert 0 <= batch.query_image.min() < batch.query_image.max() <= 1
    assert batch.support_images.shape == (5, shot, 3, 20, 20)
    assert batch.support_masks.shape == (5, shot, 20, 20)
    assert batch.query_mask.dtype == batch.support_masks.dtype == batch.query_mask_full[0].dtype == torch.uint8
    assert set(batch.query_mask.unique().tolist()) == {0, 1, 255}
    assert len({tuple(mask.shape) for mask in batch.query_mask_full}) > 1
    assert all(len(keys) == shot for keys in batch.support_keys)


def test_training_never_shows_a_novel_class_or_the_query_as_support() -> None:
    data = Toy(fold=0, shot=3, image_size=8, batch_size=8, episodes_per_epoch=64)
    data.setup("fit")
    for batch in data.train_dataloader():
        assert set(batch.class_id.tolist()) <= {1, 3, 5, 7}
        for query, supports in zip(batch.query_key, batch.support_keys, strict=True):
            assert query not in supports
            assert len(set(supports)) == 3


def test_moving_a_batch_keeps_everything() -> None:
    data = Toy(image_size=8)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    moved = batch.to("meta")
    assert moved.query_image.is_meta
    assert all(mask.is_meta for mask in moved.query_mask_full)
    assert moved.query_key == batch.query_key
    assert fingerprint(batch.to("cpu")) == fingerprint(batch)


def test_a_manifest_file_is_used_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    build_manifest(ToyDataset(), 1, 2, seed=3).save(path)
    data = Toy(fold=1, shot=2, manifest=str(path), image_size=8)
    assert data.test_manifest.header.seed == 3
    with pytest.raises(UserError, match="2-shot; the configuration says fold 1, 1-shot"):
        _ = Toy(fold=1, shot=1, manifest=str(path)).test_manifest
    with pytest.raises(UserError, match="does not fit the data"):
        _ = Toy(fold=1, shot=2, manifest=str(path), images_per_class=7).test_manifest


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fold": 7}, "folds 0 to 1"),
        ({"shot": 0}, "shot must be at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"episodes_per_epoch": 0}, "episodes_per_epoch"),
        ({"shot": 6}, "7 that 6-shot episodes need: thing"),
    ],
)
def test_bad_values_are_refused(kwargs: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Toy(image_size=8, **kwargs).setup("test")


def test_too_many_shots_to_train(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training images"):
        Toy(image_size=8, shot=6).setup("fit")


def test_every_image_of_an_augmented_episode_is_changed_in_its_own_way() -> None:
    data = Toy(image_size=16, shot=3, batch_size=8, episodes_per_epoch=8, augment="standard")
    data.setup("fit")
    (batch,) = data.train_dataloader()
    for query, supports in zip(batch.query_key, batch.support_keys, strict=True):
        assert len({key.partition("#")[2] for key in (query, *supports)}) == 4


def test_augmentation_ignores_what_comes_from_outside_and_invents_no_label() -> None:
    pipeline, image = make_augmentation("standard", 32), np.full((32, 32, 3), 200, np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    outside = 0
    for seed in range(30):
        _, changed = augment(pipeline, image, mask, seed)
        assert set(np.unique(changed)) <= {0, 1, 255}
        outside += int((changed == 255).any())
    assert outside > 10


def test_an_epoch_has_as_many_episodes_as_there_are_base_images() -> None:
    class Shared(Toy):
        def make_dataset(self) -> FewShotDataset:
            dataset = ToyDataset()
            dataset.candidates = lambda class_id, split: [f"img01_{i}" for i in range(6)]  # type: ignore[method-assign]
            return dataset

    data = Shared(image_size=8, batch_size=1)
    data.setup("fit")
    assert len(data.train_dataloader()) == 6, "an image of several classes is one image"


def test_base_classes_with_few_images_are_not_validated() -> None:
    class Uneven(Toy):
        def make_dataset(self) -> FewShotDataset:
            return ToyDataset({1: 1, 2: 6, 3: 6, 4: 6})

    data = Uneven(image_size=8, small_classes="error")
    assert data.val_manifest.class_ids == (3,)
    assert data.val_manifest.header.left_out == {"1": "thing 1"}


def test_reading_episodes_leaves_the_random_state_alone() -> None:
    """So that what a method draws does not depend on whether its features are cached."""
    data = Toy(image_size=8)
    data.setup("test")
    squares = data._squares()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(stream(squares, [("img02_0", 2), ("img02_1", 2)], 0))) == 2
    assert torch.equal(torch.get_rng_state(), before)
