"""Unlabelled images: found at any depth and in tar files, split and flipped by their names alone."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import datamodules.image_files
from datamodules.image_files import ImageFiles
from datamodules.images import Images
from fssbench.errors import UserError
from fssbench.images import decode_image, resize_image
from fssbench.unlabelled import ImageBatch
from tests.data.images import encoded, make_images, make_tar
from tests.toy import on_process


class Columns:
    """Targets that say which column they are and which image they are of."""

    def __init__(self, rows: range) -> None:
        self.rows = set(rows)

    def read(self, row: int) -> Tensor:
        return torch.stack([torch.arange(4.0).expand(4, 4), torch.full((4, 4), float(row))]).half()


def loaded(data: Images, side: int = 16, batch: int = 4, rank: int = 0, processes: int = 1) -> Images:
    """The data module as a trainer leaves it after setup."""
    method = SimpleNamespace(image_size=side, batch_size=batch)
    data.trainer = on_process(rank, processes, method)  # type: ignore[assignment]
    data.setup("fit")
    data.targets = Columns(range(len(data.images.keys)))
    return data


def epoch(data: Images, number: int, split: str = "train") -> list[ImageBatch]:
    loader: Any = data.train_dataloader() if split == "train" else data.val_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def rows(batches: list[ImageBatch]) -> list[int]:
    return [int(target[1, 0, 0]) for batch in batches for target in batch.target]


# -- files ----------------------------------------------------------------------------------------------------------


def test_loose_images_and_tar_members_have_stable_keys(tmp_path: Path) -> None:
    make_images(tmp_path, 3)
    make_tar(tmp_path / "deep" / "sa_000000.tar", 2)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image")
    images = ImageFiles(tmp_path)
    assert images.keys == [
        "a/001.png", "a/b/000.png", "a/b/002.png", "deep/sa_000000.tar/sa_100.jpg", "deep/sa_000000.tar/sa_101.jpg"
    ]  # fmt: skip
    assert images.content(0) == encoded(1)
    assert images.content(4) == encoded(101, suffix="jpg")
    assert ImageFiles(tmp_path / "deep" / "sa_000000.tar").keys == [
        "sa_000000.tar/sa_100.jpg",
        "sa_000000.tar/sa_101.jpg",
    ]


def test_a_tar_file_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_tar(tmp_path / "x.tar", 3)
    first = ImageFiles(tmp_path)

    def closed(*args: Any) -> None:
        raise AssertionError("listed again")

    monkeypatch.setattr(datamodules.image_files.tarfile, "open", closed)
    again = ImageFiles(tmp_path)
    assert again.keys == first.keys
    assert again.content(2) == encoded(102, suffix="jpg")
    monkeypatch.undo()
    make_tar(path, 2)
    assert len(ImageFiles(tmp_path).keys) == 2, "a changed file is listed again"


def test_the_stamp_changes_with_the_file(tmp_path: Path) -> None:
    make_images(tmp_path, 2)
    images = ImageFiles(tmp_path)
    before = [images.stamp(row) for row in range(2)]
    assert [ImageFiles(tmp_path).stamp(row) for row in range(2)] == before
    os.utime(tmp_path / images.keys[0], ns=(1, 1))
    assert [images.stamp(row) == old for row, old in enumerate(before)] == [False, True]


def test_another_folder_has_other_stamps(tmp_path: Path) -> None:
    """Names, sizes and times may agree by chance: uncompressed images, unpacked by a tool that sets all times alike."""
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        for path in (*make_images(folder, 2).rglob("*.png"), make_tar(folder / "x.tar", 1)):
            os.utime(path, ns=(1, 1))
    one, other = (ImageFiles(folder) for folder in folders)
    assert one.keys == other.keys
    assert all(one.stamp(row) != other.stamp(row) for row in range(len(one.keys)))


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    make_images(tmp_path, 1)
    (tmp_path / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    images = ImageFiles(tmp_path)
    row = images.keys.index("a/gone.png")
    assert images.stamp(row)
    with pytest.raises(UserError, match="gone.png: No such file"):
        images.content(row)
    (tmp_path / "shard.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(UserError, match=r"shard\.tar"):
        ImageFiles(tmp_path)


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        ImageFiles(tmp_path / "none")
    with pytest.raises(UserError, match="holds no images"):
        ImageFiles(tmp_path)
    (tmp_path / "sa.tar.gz").touch()
    with pytest.raises(UserError, match="archives such as sa.tar.gz"):
        ImageFiles(tmp_path)
    path = make_tar(tmp_path / "cut.tar", 3)
    path.write_bytes(path.read_bytes()[:-12000])
    with pytest.raises(UserError, match="cut.tar is damaged, cut off"):
        ImageFiles(tmp_path)
    with pytest.raises(UserError, match=r"data.root|FSSBENCH_DATA"):
        _ = Images().images


# -- split and order --------------------------------------------------------------------------------------------------


def test_the_split_depends_on_names_alone(tmp_path: Path) -> None:
    make_images(tmp_path, 30)
    splits = Images(str(tmp_path)).splits
    assert (len(splits["train"]), len(splits["val"])) == (27, 3)
    assert set(splits["train"]) | set(splits["val"]) == set(range(30))
    assert Images(str(tmp_path)).splits == splits
    assert len(Images(str(tmp_path), val_images=1).splits["val"]) == 1
    assert Images(str(tmp_path), val_images=0).splits["val"] == []
    few = Images(str(tmp_path), max_images=10).splits
    assert (len(few["train"]), len(few["val"])) == (9, 1)
    for value in ({"max_images": 1}, {"val_images": -1}):
        with pytest.raises(UserError, match="must be at least"):
            Images(str(tmp_path), **value)  # type: ignore[arg-type]


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    data = loaded(Images(str(make_images(tmp_path, 21)), num_workers=0))
    epochs = [rows(epoch(data, number)) for number in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(set(epochs[0])) == len(epochs[0]) == 16, "19 images: the last, smaller batch is dropped"
    assert set(epochs[0]) < set(data.splits["train"])
    assert rows(epoch(data, 0, "val")) == data.splits["val"]


def test_image_and_target_are_flipped_together(tmp_path: Path) -> None:
    data = loaded(Images(str(make_images(tmp_path, 20)), num_workers=0))
    seen = set()
    for number in range(3):
        for batch in epoch(data, number):
            for image, target in zip(batch.image, batch.target, strict=True):
                key = int(target[1, 0, 0])
                flipped = bool(target[0, 0, 0] == 3)
                seen.add(flipped)
                plain = decode_image(data.images.content(key), "x")
                plain = resize_image(plain, 16, "bicubic")
                wanted = plain[:, ::-1] if flipped else plain
                assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), wanted)
    assert seen == {True, False}
    assert all(t[0, 0, 0] == 0 for b in epoch(data, 0, "val") for t in b.target), "never in validation"
    plain_data = loaded(Images(str(tmp_path), flip=False, num_workers=0))
    assert all(t[0, 0, 0] == 0 for b in epoch(plain_data, 0) for t in b.target)


def test_what_a_batch_holds_does_not_depend_on_the_workers(tmp_path: Path) -> None:
    make_images(tmp_path, 12)
    one, two = (epoch(loaded(Images(str(tmp_path), num_workers=n)), 1) for n in (0, 2))
    assert all(torch.equal(a.image, b.image) and torch.equal(a.target, b.target) for a, b in zip(one, two, strict=True))


def test_processes_share_the_images_and_padding_does_not_count(tmp_path: Path) -> None:
    make_images(tmp_path, 30)
    data = Images(str(tmp_path), num_workers=0)
    shares = [epoch(loaded(data, rank=rank, processes=2), 0, "val") for rank in (0, 1)]
    assert [sum(len(b.image) for b in share) for share in shares] == [2, 2]
    counted = [int(t[1, 0, 0]) for s in shares for b in s for t, c in zip(b.target, b.counts, strict=True) if c]
    assert sorted(counted) == data.splits["val"]


def test_images_without_targets_are_left_out(tmp_path: Path) -> None:
    data = loaded(Images(str(make_images(tmp_path, 20)), num_workers=0))
    gone = data.splits["train"][0]
    data.targets.rows.discard(gone)  # type: ignore[union-attr]
    assert gone not in rows(epoch(data, 0))
    data.targets = Columns(range(0))
    with pytest.raises(UserError, match="could be read"):
        data.train_dataloader()
    data.targets = None
    with pytest.raises(UserError, match="only a method that brings targets"):
        data.train_dataloader()


def test_fewer_images_than_a_batch_are_one_smaller_batch(tmp_path: Path) -> None:
    data = loaded(Images(str(make_images(tmp_path, 4)), num_workers=0), batch=8)
    assert [len(batch.image) for batch in epoch(data, 0)] == [3]


def test_order_and_flips_change_with_seed_and_epoch(tmp_path: Path) -> None:
    make_images(tmp_path, 21)

    def seen(seed: int, number: int) -> tuple[list[int], list[bool]]:
        batches = epoch(loaded(Images(str(tmp_path), seed=seed, num_workers=0)), number)
        return rows(batches), [bool(target[0, 0, 0] == 3) for batch in batches for target in batch.target]

    found = [seen(0, 0), seen(0, 1), seen(1, 0)]
    assert seen(0, 0) == found[0]
    orders, flips = zip(*found, strict=True)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert flips[0] != flips[1] != flips[2] != flips[0]


def test_a_training_that_goes_on_begins_with_the_next_epoch(tmp_path: Path) -> None:
    data = loaded(Images(str(make_images(tmp_path, 21)), num_workers=0))
    data.trainer.fit_loop.epoch_progress.current.processed = 3  # type: ignore[union-attr]
    loader: Any = data.train_dataloader()
    assert rows(list(loader)) == rows(epoch(data, 3)) != rows(epoch(data, 0))
