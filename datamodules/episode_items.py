"""Single episodes as a loader reads them: training episodes by (epoch, index), evaluation episodes by manifest number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.augment import Augmentation, augment, make_augmentation, variant
from datamodules.by_image import stream
from datamodules.squares import Squares
from fssbench.episode import IGNORE, EpisodeBatch
from fssbench.protocols.manifest import Episode, Manifest


class TrainingEpisodes(Dataset[EpisodeBatch]):
    """Training episodes by (epoch, index): a class, a query and K distinct supports, uniformly from the base classes."""

    def __init__(
        self,
        squares: Squares,
        classes: dict[int, list[str]],
        shot: int,
        seed: int,
        augmentation: Augmentation = "none",
        void_is_background: bool = False,
    ) -> None:
        self.void_is_background = void_is_background
        self.squares, self.classes, self.shot = squares, classes, shot
        self.seed, self.augmentation = seed, augmentation
        self.pipeline = make_augmentation(augmentation, squares.side)
        self._class_ids = sorted(classes)

    def draw(self, epoch: int, index: int) -> tuple[Episode, np.random.Generator]:
        """The episode of (seed, epoch, index), and the generator to go on with for its augmentation."""
        generator = np.random.default_rng((self.seed, epoch, index))
        class_id = self._class_ids[generator.integers(len(self._class_ids))]
        keys = self.classes[class_id]
        query, *supports = generator.choice(len(keys), self.shot + 1, replace=False)
        return Episode(class_id, keys[query], tuple(keys[s] for s in supports)), generator

    def __getitem__(self, position: tuple[int, int]) -> EpisodeBatch:
        epoch, index = position
        episode, generator = self.draw(epoch, index)
        seeds = generator.integers(2**31, size=self.shot + 1)
        pairs, keys = [], []
        for key, seed in zip((episode.query, *episode.supports), seeds.tolist(), strict=True):
            if getattr(self.pipeline, "original_size", False):
                image, mask = self.squares.original(key, episode.class_id)
            else:
                image, mask, _ = self.squares.read(key, episode.class_id)
            pairs.append(augment(self.pipeline, image, mask, seed))
            # an augmented image is another image: its key must not find the features of the plain one
            keys.append(key + variant(self.augmentation, image, pairs[-1][0], seed))
        batch = _batch_of_one(episode, index, pairs, None, self.void_is_background)
        return replace(batch, query_key=keys[:1], support_keys=[tuple(keys[1:])])


class ManifestEpisodes(Dataset[EpisodeBatch]):
    """Evaluation episodes by their number in a manifest.

    With `by_image` they come without images (0x0 pixels), which `stream` gives, read by `workers` processes, and in
    page-locked memory where they are `pinned`.
    """

    def __init__(
        self,
        squares: Squares,
        manifest: Manifest,
        void_is_background: bool = False,
        by_image: bool = False,
        workers: int = 0,
        pinned: bool = False,
    ) -> None:
        self.squares, self.manifest = squares, manifest
        self.void_is_background = void_is_background
        self.by_image, self.workers, self.pinned = by_image, workers, pinned

    def __getitem__(self, position: tuple[int, int]) -> EpisodeBatch:
        _, index = position
        episode = self.manifest.episodes[index]
        full: np.ndarray | None = None
        pairs = []
        for key in (episode.query, *episode.supports):
            if self.by_image:
                image = _NO_IMAGE
                mask, original = self.squares.mask(key, episode.class_id)
            else:
                image, mask, original = self.squares.read(key, episode.class_id)
            full = original if full is None else full
            pairs.append((image, mask))
        return _batch_of_one(episode, index, pairs, full, self.void_is_background)

    def keys(self, position: tuple[int, int]) -> tuple[str, ...]:
        """The images of an episode, the query first."""
        episode = self.manifest.episodes[position[1]]
        return (episode.query, *episode.supports)

    def stream(self, keys: Sequence[str]) -> Iterator[Tensor]:
        """Images (S, S, 3) uint8 by their keys, in order."""
        classes = {key: e.class_id for e in self.manifest.episodes for key in (e.query, *e.supports)}
        return stream(self.squares, [(key, classes[key]) for key in keys], self.workers, self.pinned)


_NO_IMAGE = np.empty((0, 0, 3), np.uint8)


def _batch_of_one(
    episode: Episode,
    index: int,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    full: np.ndarray | None,
    void_is_background: bool = False,
) -> EpisodeBatch:
    # contiguous HWC uint8 -> CHW float in [0, 1]; the query comes first
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2).float().div_(255)
    masks = torch.from_numpy(np.stack([mask for _, mask in pairs]))
    if void_is_background:  # in supports only: void pixels of the query are never counted
        masks[1:][masks[1:] == IGNORE] = 0
    return EpisodeBatch(
        query_image=images[:1],
        query_mask=masks[:1],
        support_images=images[None, 1:],
        support_masks=masks[None, 1:],
        query_mask_full=[] if full is None else [torch.from_numpy(np.ascontiguousarray(full))],
        class_id=torch.tensor([episode.class_id]),
        episode_id=torch.tensor([index]),
        query_key=[episode.query],
        support_keys=[episode.supports],
    )
