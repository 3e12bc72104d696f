"""Encode each image once per run: which images to encode when, for episodes that are known beforehand.

Episodes of a manifest share images. Their order is known, so images are encoded in order of first use, many at a time.
Where not all of them fit into memory, the one whose next use is farthest away is forgotten first (Belady 1966), and is
encoded again, or read from disk, when its turn comes.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from fssbench.encoders.cache import FeatureCache, Features

NEVER = float("inf")


class Load(NamedTuple):
    """Images to be encoded together, and those to be forgotten before."""

    images: tuple[str, ...]
    drop: tuple[str, ...]


def plan(uses: Sequence[Sequence[str]], room: int, group: int, known: Iterable[str] = ()) -> Iterator[Load]:
    """What to encode and to forget so that the images of every batch of episodes are there when it is its turn.

    uses    distinct images of each batch, in the order of the batches
    room    images whose features fit into memory; exceeded only where a single batch needs more
    group   images encoded together, at most
    known   images that are in memory already

    A load belongs before the first batch that lacks one of its images. Time grows linearly with the number of uses (but
    for a logarithm), also where little fits into memory.
    """
    memory = _Memory(uses, room, known)
    ahead = 0
    while ahead < len(uses):
        now = ahead
        images: list[str] = []
        drop: list[str] = []
        while ahead < len(uses):
            new = memory.missing(uses[ahead])
            if images and len(images) + len(new) > group:
                break
            gone = memory.use(ahead, new, may_exceed=ahead == now)
            if gone is None:
                break
            drop += gone
            images += new
            ahead += 1
        memory.let_go()
        for start in range(0, len(images), group):
            yield Load(tuple(images[start : start + group]), tuple(drop) if start == 0 else ())


class _Memory:
    """Which images are kept while a plan is made, and when each of them is used next."""

    def __init__(self, uses: Sequence[Sequence[str]], room: int, known: Iterable[str]) -> None:
        self.uses, self.room = uses, room
        self._turns: dict[str, deque[int]] = defaultdict(deque)
        for number, keys in enumerate(uses):
            for key in keys:
                self._turns[key].append(number)
        self._next = {key: self._turns[key][0] if key in self._turns else NEVER for key in known}
        # (-next use, key); what is used in the present load is not in it, and entries that no longer hold are skipped
        self._farthest = [(-when, key) for key, when in self._next.items()]
        heapq.heapify(self._farthest)
        self._in_use: set[str] = set()

    def missing(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self._next]

    def use(self, number: int, new: list[str], may_exceed: bool) -> list[str] | None:
        """Take in what batch `number` lacks and hold on to all that it uses; returns what has to go for it, or None
        where there is no room beside what the present load holds. Nothing goes for a batch that lacks nothing, even
        where more is known than there is room for: only a load can say so."""
        gone = self._farthest_ones(len(self._next) + len(new) - self.room, number, may_exceed) if new else []
        if gone is None:
            return None
        for key in gone:
            del self._next[key]
        for key in self.uses[number]:
            turns = self._turns[key]
            turns.popleft()
            self._next[key] = turns[0] if turns else NEVER
            self._in_use.add(key)
        return gone

    def _farthest_ones(self, count: int, number: int, may_exceed: bool) -> list[str] | None:
        found: list[tuple[float, str]] = []
        while len(found) < count and self._farthest and -self._farthest[0][0] > number:
            when, key = heapq.heappop(self._farthest)
            if self._next.get(key) == -when:
                found.append((when, key))
        if len(found) < count and not may_exceed:
            for entry in found:
                heapq.heappush(self._farthest, entry)
            return None
        return [key for _, key in found]

    def let_go(self) -> None:
        """The load is complete: what it holds may be forgotten for the next one."""
        for key in self._in_use:
            heapq.heappush(self._farthest, (-self._next[key], key))
        self._in_use.clear()


class EncodeAhead:
    """Features of the images of a known sequence of batches, encoded in order of first use.

    Args:
        cache: where features are kept; bounds their memory, and brings its store on disk.
        uses: distinct images of each batch of episodes, in order.
        read: gives the images with these keys, in order: (H, W, 3) uint8 on the CPU.
        encode: the frozen encoder: (m, 3, H, W) float32 in [0, 1] -> tensors (m, ...).
        device: where the encoder is.
    """

    def __init__(
        self,
        cache: FeatureCache,
        uses: Sequence[Sequence[str]],
        read: Callable[[Sequence[str]], Iterator[Tensor]],
        encode: Callable[[Tensor], Features],
        device: torch.device,
    ) -> None:
        self.cache, self.uses = cache, uses
        self.read, self.encode, self.device = read, encode, device
        self._loads: deque[Load] | None = None
        self._images: Iterator[Tensor] = iter(())

    def features(self, keys: Sequence[str]) -> Features:
        """Features (len(keys), ...) of images that the next batches use, all on the encoder's device."""
        while not all(key in self.cache for key in keys):
            if self._loads is None:
                self._begin()
            else:
                self._run(self._loads.popleft())
        return self.cache.stacked(keys)

    def end(self) -> None:
        """Nothing more will be read: the processes that read images may end. What is in the cache is still to be had."""
        self._images = iter(())

    def _begin(self) -> None:
        """Make the plan; where nothing is known of a feature's size, encode the first image alone to learn it."""
        alone = self.cache.image_bytes == 0
        if alone:
            first = self.uses[0][0]
            self._images = self.read([first])
            self._run(Load((first,), ()))
        room = self.cache.limit // self.cache.image_bytes
        loads = list(plan(self.uses, room, self.cache.group_on(self.device), self.cache.keys()))
        keys = [key for load in loads for key in load.images]
        self._tell(len({key for batch in self.uses for key in batch}), len(keys) + alone)
        self._images = self.read(keys)
        self._loads = deque(loads)

    def _tell(self, distinct: int, encoded: int) -> None:
        """Say so where the memory is too small for each image to be encoded once."""
        if encoded > distinct:
            needed = -(-distinct * self.cache.image_bytes // 2**20)
            rank_zero_info(
                f"The features of {distinct} images take {needed} MiB, more than --feature_cache allows, so {encoded} "
                f"images are encoded. --feature_cache {needed} avoids that; --feature_disk reads them again instead."
            )

    def _run(self, load: Load) -> None:
        self.cache.drop(load.drop)
        pixels = [next(self._images) for _ in load.images]
        self.cache.hold(load.images, as_input(pixels, self.device), self.encode)


def as_input(pixels: Sequence[Tensor], device: torch.device) -> Tensor:
    """Images (H, W, 3) uint8 -> (M, 3, H, W) float32 in [0, 1] on `device`, each copied to CUDA without waiting for it."""
    images = torch.stack([image.to(device, non_blocking=device.type == "cuda") for image in pixels])
    # a tensor: dividing by a number multiplies by its reciprocal on a GPU, which rounds differently from the CPU
    return images.permute(0, 3, 1, 2).float() / torch.full((), 255.0, device=device)
