"""One sampler for every stage: it pads for training and never pads for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import Sampler

from fssbench.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def next_epoch(trainer: Trainer) -> int:
    """The training epoch (from 0) that a trainer begins next, after it has read its checkpoint."""
    progress: Any = trainer.fit_loop.epoch_progress.current
    return int(progress.processed)


class ShardedEpisodeSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) for this process's share of `episodes`: index = rank, rank + world_size, ...

    For training (`pad=True`) every process gets the same number of episodes; the few that are added have indices at or
    above `episodes`, so they are new episodes and not repeats. For evaluation nothing is added: each episode is counted
    exactly once however many processes there are (Lightning's own sampler would count some twice).

    With `order` (evaluation only: a permutation of the episodes) each process gets a block of it instead, as long as its
    share would be: episodes that are neighbours in `order` share images.

    Since the epoch travels with the index, a training episode depends on (seed, epoch, index) alone: not on workers.
    `epoch` is the first one. Lightning calls `set_epoch` too late for it: loader processes have asked for batches by then.
    """

    def __init__(
        self,
        episodes: int,
        rank: int = 0,
        world_size: int = 1,
        *,
        pad: bool = False,
        order: Sequence[int] | None = None,
        epoch: int = 0,
    ) -> None:
        if not 0 <= rank < world_size:
            raise UserError(f"rank {rank} is not below world_size {world_size}.")
        self.episodes, self.rank, self.world_size, self.pad = episodes, rank, world_size, pad
        self.order = order
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self.order is None:
            return ((self.epoch, index) for index in range(self.rank, self._stop, self.world_size))
        start = sum(len(range(rank, self.episodes, self.world_size)) for rank in range(self.rank))
        return ((self.epoch, index) for index in self.order[start : start + len(self)])

    def __len__(self) -> int:
        return len(range(self.rank, self._stop, self.world_size))

    @property
    def _stop(self) -> int:
        return -(-self.episodes // self.world_size) * self.world_size if self.pad else self.episodes
