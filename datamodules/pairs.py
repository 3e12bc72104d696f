"""Image files with mask files beside them: what FSS-1000 and a user's own folder have in common."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fssbench.errors import UserError
from fssbench.images import IMAGE_SUFFIXES, read_binary_mask, read_image, read_index_mask, size_of


@dataclass(frozen=True)
class MaskFiles:
    """Images by key, and the files that hold their masks.

    images  key -> image file
    masks   key -> class id -> mask file (`read_binary_mask`); or key -> 0 -> index mask, where `index` is set
    index   mask values are class ids and 255 ignore (`read_index_mask`)
    """

    images: dict[str, Path]
    masks: dict[str, dict[int, Path]]
    index: bool

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB; raises `UserError` for an unknown key or an unreadable file."""
        return read_image(self._image(key))

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1, 255}; all 0 where the image has no mask of the class.

        Raises `UserError` for an unknown key or an unreadable file.
        """
        image = self._image(key)
        mask = self.masks[key].get(0 if self.index else class_id)
        if mask is None:
            return np.zeros(size_of(image), np.uint8)
        if not self.index:
            return read_binary_mask(mask)
        ids = read_index_mask(mask)
        return np.where(ids == 255, 255, ids == class_id).astype(np.uint8)

    def _image(self, key: str) -> Path:
        if key not in self.images:
            raise UserError(
                f"There is no image '{key}' in this data set. Build the episodes again from the same files."
            )
        return self.images[key]


def count_pixels(image: Path, mask: Path, index: bool) -> np.ndarray:
    """(256,) number of pixels of each value of a mask that must have the size of its image.

    Values are {0, 1} unless `index`. Raises `UserError` naming both files where the sizes differ.
    """
    values = read_index_mask(mask) if index else read_binary_mask(mask)
    size = size_of(image)
    if values.shape != size:
        turned = " One of them seems to be rotated (EXIF)." if values.shape == size[::-1] else ""
        raise UserError(
            f"{mask} is {values.shape[1]}x{values.shape[0]} pixels, its image {image} is {size[1]}x{size[0]}.{turned} "
            "Export the mask at the size of its image."
        )
    return np.bincount(values.reshape(-1), minlength=256)


def listing(folder: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[Path]:
    """The image files of a folder that are not hidden, sorted by name as strings (10.jpg before 2.jpg)."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes)
    return sorted((path for path in files if not path.name.startswith(".")), key=lambda path: path.name)
