"""Images at network size, read and resized once: a bounded memory in front of a data set."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from fssbench.dataset import FewShotDataset
from fssbench.errors import UserError
from fssbench.images import resize_image, resize_mask


class Squares:
    """Images and masks of a data set as squares of one side; decoded images are kept while `megabytes` last.

    Episodes share images: without a memory a photograph is decoded again for each episode that it is in. What is kept
    is the resized image, so a call gives the same with and without memory. Each loader process has its own.

    Args:
        dataset: where images and masks are read.
        side: side of the squares in pixels.
        megabytes: the least recently used images are dropped beyond this many MiB; 0 keeps nothing.
    """

    def __init__(self, dataset: FewShotDataset, side: int, megabytes: float) -> None:
        self.dataset, self.side = dataset, side
        self.limit = int(megabytes * 2**20)
        self.decoded = 0
        """Images read from the data set so far."""
        self._kept: OrderedDict[str, tuple[np.ndarray, tuple[int, int]]] = OrderedDict()

    def read(self, key: str, class_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image (S, S, 3) uint8, mask (S, S) uint8 {0, 1, 255}, and the mask (H0, W0) at original size.

        The image is shared with later calls: copy it before changing it. Raises `UserError` where image and mask differ
        in size, or as the data set does.
        """
        image, size = self._image(key)
        mask = self._mask(key, class_id, size)
        return image, resize_mask(mask, self.side), mask

    def mask(self, key: str, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask (S, S) and mask (H0, W0), as `read` gives them, without the image."""
        mask = self.dataset.read_mask(key, class_id)
        return resize_mask(mask, self.side), mask

    def original(self, key: str, class_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H0, W0, 3) uint8 and mask (H0, W0) uint8 {0, 1, 255} at original size, decoded anew each time."""
        image = self.dataset.read_image(key)
        self.decoded += 1
        return image, self._mask(key, class_id, (image.shape[0], image.shape[1]))

    def _mask(self, key: str, class_id: int, size: tuple[int, int]) -> np.ndarray:
        mask = self.dataset.read_mask(key, class_id)
        if mask.shape != size:
            raise UserError(
                f"{self.dataset.name}: image {key} is {size[1]}x{size[0]} pixels, its mask is "
                f"{mask.shape[1]}x{mask.shape[0]}. Make both the same size or remove the image."
            )
        return mask

    def _image(self, key: str) -> tuple[np.ndarray, tuple[int, int]]:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        image = self.dataset.read_image(key)
        self.decoded += 1
        entry = resize_image(image, self.side), (image.shape[0], image.shape[1])
        room = self.limit // entry[0].nbytes  # all squares have the same size
        if room:
            self._kept[key] = entry
            while len(self._kept) > room:
                self._kept.popitem(last=False)
        return entry
