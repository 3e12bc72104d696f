"""What a run costs, in counts instead of seconds: encoder passes, images read, bytes written, waits for the device."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.store import FeatureStore
from fssbench.episode import EpisodeBatch
from fssbench.method import FewShotMethod
from fssbench.metrics.at_size import bilinear, predicted_counts
from fssbench.metrics.iou import FewShotIoU
from fssbench.metrics.square import square_target
from fssbench.protocols.voting import vote_logits
from tests.test_method import make_trainer
from tests.toy import FreeMethod, Toy, on_process

WAITS = ("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero")
"""Tensor methods that make the processor wait until a GPU has computed the tensor."""
FEATURE_BYTES = 4 * 8 * 8 * 4  # four channels of 8x8 float32
HEADER_BYTES = 512


class Counting(FreeMethod):
    """Counts the sizes of what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []

    def encode(self, images: Tensor) -> Any:
        self.passes.append(len(images))
        return super().encode(images)


class Counted(Toy):
    """Counts the images that are read."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(num_workers=0, **kwargs)
        self.images_read: Counter[str] = Counter()

    def make_dataset(self) -> Any:
        dataset = super().make_dataset()
        read = dataset.read_image

        def counting(key: str) -> Any:
            self.images_read[key] += 1
            return read(key)

        dataset.read_image = counting  # type: ignore[method-assign]
        return dataset


def run_test(folder: Path, method: FewShotMethod, **kwargs: Any) -> Counted:
    data = Counted(**kwargs)
    make_trainer(folder).test(method, datamodule=data, verbose=False)
    return data


@pytest.mark.parametrize("shot", [1, 2])
@pytest.mark.parametrize("eval_batch_size", [1, 5])
def test_a_test_reads_and_encodes_each_image_once(tmp_path: Path, shot: int, eval_batch_size: int) -> None:
    method = Counting()
    data = run_test(tmp_path, method, shot=shot, eval_batch_size=eval_batch_size)
    images = data.test_manifest.images()
    assert method.passes == [1] * len(images), "one at a time on the CPU"
    assert data.images_read == dict.fromkeys(images, 1)


def test_groups_of_images_need_few_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, "group_on", lambda self, device: 8)
    method = Counting()
    data = run_test(tmp_path, method, eval_batch_size=1)
    images = len(data.test_manifest.images())
    assert sum(method.passes) == images
    assert method.passes[0] == 1
    assert len(method.passes) <= 1 + -(-(images - 1) // 7)
    alone = FreeMethod()
    run_test(tmp_path, alone, eval_batch_size=1)
    assert method.scores == alone.scores


def test_without_a_cache_every_episode_encodes_its_images(tmp_path: Path) -> None:
    method = Counting()
    method.cache = FeatureCache(0)
    data = run_test(tmp_path, method, shot=2)
    assert sum(method.passes) == 3 * len(data.test_manifest.episodes)


def test_validation_of_a_fit_encodes_each_image_once_over_all_epochs(tmp_path: Path) -> None:
    class Fitted(Counting):
        needs_checkpoint = True

    method = Fitted()
    data = Counted(episodes_per_epoch=4, batch_size=2)
    make_trainer(tmp_path, max_epochs=3).fit(method, datamodule=data)
    training = {key for keys in data.training_classes.values() for key in keys}
    seen = training | set(data.val_manifest.images())
    assert len(method.passes) <= len(seen), "training and validation share what they encode"
    assert len(method.passes) >= len(data.val_manifest.images())


def test_features_are_written_once_and_read_by_later_runs(tmp_path: Path) -> None:
    def run() -> tuple[Counting, FeatureStore, int]:
        method, store = Counting(), FeatureStore(tmp_path / "features", 1)
        method.cache = FeatureCache(store=store)
        data = run_test(tmp_path, method, shot=2)
        return method, store, len(data.test_manifest.images())

    method, store, images = run()
    assert (store.written, store.read, len(method.passes)) == (images, 0, images)
    size = store.size()
    assert images * FEATURE_BYTES < size <= images * (FEATURE_BYTES + HEADER_BYTES)
    again, store, _ = run()
    assert (store.written, store.read, len(again.passes)) == (0, images, 0)
    assert store.size() == size
    assert again.scores == method.scores


class Waiting(FreeMethod):
    """Counts what would wait for a GPU within a test step, the transfer of the batch aside."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.within = False
        for name in WAITS:
            patch.setattr(Tensor, name, self.counting(name, getattr(Tensor, name)))

    def counting(self, name: str, original: Any) -> Any:
        def method(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.waits[name] += self.within
            return original(tensor, *args, **kwargs)

        return method

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        self.within = batch_idx > 0  # the first one starts the loader of images
        super().test_step(batch, batch_idx)
        self.within = False


def test_no_test_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = Waiting(monkeypatch)
    run_test(tmp_path, method, shot=2, eval_batch_size=3)
    assert method.complete
    assert method.waits.total() == 0
    method.within = True
    torch.tensor(1).item()
    assert method.waits["item"] == 1, "the counting works"


def test_scoring_on_another_device_needs_no_value_of_it() -> None:
    """Tensors on `meta` have no values: to ask for one is an error, also where only a GPU would be asked."""
    targets = [torch.zeros(size, dtype=torch.uint8, device="meta") for size in ((20, 30), (17, 9), (20, 30))]
    metric = FewShotIoU((1, 2)).to("meta")
    for square in (None, 16, "16-pad"):
        at = targets if square is None else [square_target(target, square) for target in targets]
        counts = predicted_counts(torch.zeros(3, 8, 8, device="meta"), at, bilinear)
        metric.update(counts[:, :4], torch.zeros(3, dtype=torch.int64, device="meta"))
        assert counts.is_meta
        assert counts.shape == (3, 5)
    assert vote_logits(torch.zeros(2, 3, 8, 8, dtype=torch.bool, device="meta")).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        metric.compute()


def test_what_is_kept_of_an_episode_keeps_no_shared_memory(tmp_path: Path) -> None:
    """A tensor from a loader process is an open file: one for each batch would end at the limit of open files."""
    kept: list[Tensor] = []

    class Kept(FreeMethod):
        def on_test_epoch_end(self) -> None:
            kept.extend(t for ref, counts, *_ in self._pending for t in (ref.episode_id, ref.class_id, counts))
            super().on_test_epoch_end()

    make_trainer(tmp_path).test(Kept(), datamodule=Toy(num_workers=2), verbose=False)
    assert len(kept) == 3 * 16
    assert not any(tensor.is_shared() for tensor in kept)


def test_the_processes_that_read_images_end_with_the_stage(tmp_path: Path) -> None:
    running: list[int] = []

    class Trained(FreeMethod):
        needs_checkpoint = True

        def on_train_epoch_start(self) -> None:
            running.append(len(multiprocessing.active_children()))

    data = Toy(num_workers=2, batch_size=2, episodes_per_epoch=4)
    make_trainer(tmp_path, max_epochs=3).fit(Trained(), datamodule=data)
    assert running[0] == 2, "those of the training loader, which stay"
    assert max(running) <= 3, "and the one that reads validation episodes, which Lightning keeps"


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_few_images(processes: int) -> None:
    shares = []
    for rank in range(processes):
        data = Toy(image_size=8, episodes_per_class=8, n_classes=16)
        here = on_process(rank, processes, FreeMethod())
        data.trainer = here  # type: ignore[assignment]
        loader = data.test_dataloader()
        positions = list(loader.sampler)
        shares.append({key for position in positions for key in loader.dataset.keys(position)})  # type: ignore[attr-defined]
        assert len(positions) == len(data.test_manifest.episodes) // processes
    assert set().union(*shares) == set(data.test_manifest.images())
    assert sum(map(len, shares)) <= 1.25 * len(data.test_manifest.images())


def test_an_interrupted_look_ahead_leaves_a_whole_test(tmp_path: Path) -> None:
    """A test of a few batches, then a whole one with the same method and cache."""
    method = Counting()
    data = Counted()
    trainer = Trainer(
        accelerator="cpu", logger=False, limit_test_batches=2, enable_progress_bar=False, enable_checkpointing=False,
        use_distributed_sampler=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.test(method, datamodule=data, verbose=False)
    assert not method.complete
    fresh = FreeMethod()
    run_test(tmp_path, method)
    run_test(tmp_path, fresh)
    assert method.complete
    assert method.scores == fresh.scores
