"""A tiny data set in memory: enough lists for manifests, and images that can be read."""

from __future__ import annotations

import numpy as np

from fssbench.dataset import FewShotDataset, Split


class ToyDataset(FewShotDataset):
    """`n_classes` classes over two interleaved folds; class c has `images[c]` images of differing sizes."""

    name = "toy"
    n_folds = 2
    episodes_per_class = 4
    class_partition = "interleaved"

    def __init__(self, images: dict[int, int] | None = None) -> None:
        self.images = images or dict.fromkeys(range(1, 9), 6)
        self.class_names = {c: f"thing {c}" for c in self.images}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return tuple(c for c in sorted(self.images) if c % 2 == fold)

    def candidates(self, class_id: int, split: Split) -> list[str]:
        return [f"img{class_id:02d}_{i}" for i in range(self.images[class_id])]

    def _size(self, key: str) -> tuple[int, int]:
        number = int(key.rsplit("_", 1)[1])
        return 20 + 4 * number, 36 - 2 * number

    def read_image(self, key: str) -> np.ndarray:
        generator = np.random.default_rng(list(key.encode()))
        return generator.integers(0, 256, (*self._size(key), 3), dtype=np.uint8)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        mask = np.zeros(self._size(key), np.uint8)
        mask[4:16, 5:17] = 1
        mask[:2] = 255
        return mask


class CompatToy(ToyDataset):
    """The same with every protocol defined."""

    protocols = ("clean-v1", "hsnet-compat", "bam-compat")
