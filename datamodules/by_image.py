"""The images of a manifest by themselves, for methods that encode each of them once (fssbench.encoders.ahead)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.squares import Squares

PIECE = 4
"""Images per item of the loader: few, so that the first come soon and little waits in memory."""


class ImagesByKey(Dataset[Tensor]):
    """Images as squares (S, S, 3) uint8, by (key, class); the class's mask is read to be compared in size."""

    def __init__(self, squares: Squares) -> None:
        self.squares = squares

    def __getitem__(self, position: tuple[str, int]) -> Tensor:
        image, _, _ = self.squares.read(*position)
        return torch.from_numpy(image)


def stream(
    squares: Squares, positions: Sequence[tuple[str, int]], workers: int, pinned: bool = False
) -> Iterator[Tensor]:
    """The images (S, S, 3) uint8 at these (key, class), one by one in order; read by other processes in advance where
    there are `workers`, and in page-locked memory where they are `pinned`."""
    loader = DataLoader(
        ImagesByKey(squares),
        batch_size=PIECE if workers else 1,
        sampler=positions,
        num_workers=workers,
        collate_fn=torch.stack,
        pin_memory=pinned,
        worker_init_fn=single_threaded,
        generator=torch.Generator(),  # its own, so that the caller's random state does not depend on the cache
    )
    for piece in loader:
        yield from piece


def single_threaded(worker_id: int) -> None:
    """Called in each loader process: OpenCV's own pool of threads would oversubscribe the machine."""
    cv2.setNumThreads(0)
