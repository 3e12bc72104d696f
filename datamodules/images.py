"""Images: unlabelled images of any folder, for training stages that need no masks."""

from __future__ import annotations

import hashlib
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.image_files import ImageFiles
from datamodules.parallel import default_workers, pins_memory
from datamodules.places import data_root
from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.images import decode_image, resize_image
from fssbench.protocols.sampler import ShardedEpisodeSampler, next_epoch
from fssbench.unlabelled import ImageBatch, ImageCollection, Targets, join


class Images(LightningDataModule):
    """Images without masks: every image below a folder, at any depth, also inside uncompressed tar files (SA-1B's).

    Each is squashed to the square that the method asks for (`image_size`, which may change from epoch to epoch), in
    batches of the size that it asks for (`batch_size`). The method gives the `targets`, one feature map per image;
    images without one (unreadable files) are left out. What a batch holds depends on (seed, epoch, index) alone.

    Args:
        root: a folder of images or tar files, or one tar file; null: `images` in `FSSBENCH_DATA` (default `data`).
        max_images: use that many images only, chosen by a hash of their names; null: all.
        val_images: images held out for validation, chosen by a hash of their names; never more than a tenth of all.
        flip: mirror half of the training images, and their targets with them.
        interpolation: filter that resizes the images, `bicubic` or `bilinear` (that of the episodes).
        seed: seed of order and flips.
        num_workers: loader processes; null: 0 on machines with up to two cores, else up to eight.
    """

    gives: ClassVar[str] = "images"
    selection_label: ClassVar[str | None] = None
    """No checkpoint is selected: validation images have no labels, the last weights are kept."""

    def __init__(
        self,
        root: str | None = None,
        max_images: int | None = None,
        val_images: int = 1000,
        flip: bool = True,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        seed: int = 0,
        num_workers: int | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (("max_images", max_images, 2), ("val_images", val_images, 0)):
            if value is not None and value < least:
                raise UserError(f"data.{name} must be at least {least}, not {value}.")
        self.root, self.max_images, self.val_images = root, max_images, val_images
        self.flip, self.interpolation, self.seed = flip, interpolation, seed
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.targets: Targets | None = None
        """What is learned of each image; the method sets it before the loaders are made."""

    @cached_property
    def images(self) -> ImageCollection:
        """All images below `root`."""
        return ImageFiles(self._root)

    @property
    def _root(self) -> str | Path:
        return data_root(None, "images") if self.root is None else self.root

    @cached_property
    def splits(self) -> dict[str, list[int]]:
        """Rows of `images` for `train` and `val`; adding images elsewhere moves few of them."""
        keys = self.images.keys
        order = sorted(range(len(keys)), key=lambda row: hashlib.sha256(keys[row].encode()).digest())
        order = order[: self.max_images]
        count = min(self.val_images, max(1, len(order) // 10)) if len(order) > 1 else 0
        return {"train": sorted(order[count:]), "val": sorted(order[:count])}

    def setup(self, stage: str) -> None:
        """List the images."""
        sizes = {name: len(rows) for name, rows in self.splits.items()}
        rank_zero_info(f"{len(self.images.keys)} images: {sizes['train']} for training, {sizes['val']} for validation")

    def training_facts(self) -> dict[str, Any]:
        """How this module trains, for checkpoint and record."""
        names = "\n".join(self.images.keys[row] for row in sorted(self.splits["train"]))
        return {
            "dataset": "images",
            "images": len(self.splits["train"]),
            "image_names_sha256": sha256_text(names),
            "flip": self.flip,
            "interpolation": self.interpolation,
            "data_seed": self.seed,
        }

    def train_dataloader(self) -> DataLoader[ImageBatch]:
        """Shuffled batches, the same number on every process; a last smaller one is dropped where there are others."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[ImageBatch] | list[Any]:
        """Batches of the held-out images in order; none where none are held out."""
        return self._loader("val") if self._rows("val") else []

    def _rows(self, split: str) -> list[int]:
        if self.targets is None:
            raise UserError(
                "Images have no masks: only a method that brings targets for them (distillation) can use them."
            )
        return [row for row in self.splits[split] if row in self.targets.rows]

    def _loader(self, split: str) -> DataLoader[ImageBatch]:
        rows, training, trainer = self._rows(split), split == "train", self.trainer
        assert self.targets is not None
        assert trainer is not None, "the loaders' sizes come from the method that the trainer runs"
        method: Any = trainer.lightning_module
        if not rows:
            raise UserError(
                f"None of the images below {self._root} for training could be read. Give another data.root."
            )
        source = _Source(
            self.images, self.targets, rows, method.image_size, self.interpolation, self.seed, training, self.flip
        )
        share = trainer.global_rank, trainer.world_size
        sampler = ShardedEpisodeSampler(len(rows), *share, pad=True, epoch=next_epoch(trainer))
        return DataLoader(
            source,
            batch_size=method.batch_size,
            sampler=sampler,
            drop_last=training and len(sampler) > method.batch_size,
            num_workers=self.num_workers,
            collate_fn=join,
            pin_memory=pins_memory(trainer),
        )


class _Source(Dataset[ImageBatch]):
    """One image by (epoch, index): shuffled and perhaps flipped for training, in order for validation."""

    def __init__(
        self,
        images: ImageCollection,
        targets: Targets,
        rows: list[int],
        side: int,
        interpolation: Literal["bicubic", "bilinear"],
        seed: int,
        training: bool,
        flip: bool,
    ) -> None:
        self.images, self.targets, self.rows = images, targets, rows
        self.side, self.interpolation = side, interpolation
        self.seed, self.training, self.flip = seed, training, flip

    def __getitem__(self, position: tuple[int, int]) -> ImageBatch:
        epoch, index = position
        row = self.rows[index % len(self.rows)]  # more than there are: they only make processes equally long
        flip = False
        if self.training:
            row = self.rows[_order(self.seed, epoch, len(self.rows))[index % len(self.rows)]]
            flip = self.flip and bool(np.random.default_rng((self.seed, epoch, index, 1)).integers(2))
        image = decode_image(self.images.content(row), self.images.keys[row])
        image = resize_image(image, self.side, self.interpolation)
        target = self.targets.read(row)
        if flip:
            image, target = image[:, ::-1].copy(), target.flip(-1)
        tensor = torch.from_numpy(image).permute(2, 0, 1).float().div_(255)
        return ImageBatch(tensor[None], target[None], torch.tensor([index < len(self.rows)]))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The images of an epoch, shuffled."""
    return np.random.default_rng((seed, epoch)).permutation(count)
