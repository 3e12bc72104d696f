"""FSSAM's training augmentation: scaled and turned at original size, then a random crop at network size."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from fssbench.episode import IGNORE

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean colour, RGB: what lies outside the image."""
KEPT, RETRIES = 0.85, 31
"""Part of the foreground that a crop must keep, and how often another one is drawn (sam2fss.md 3.4)."""


class CropAugmentation:
    """Random scale, rotation by up to 10 degrees (p 0.5), blur of 5 x 5 (p 0.5), flip (p 0.5), and a square crop.

    Pixels from outside the image have the mean colour and mask 255. Unlike test images, the crop keeps the aspect ratio.

    Args:
        side: side of the crop in pixels.
        scale: range of the random scale.
    """

    original_size = True
    """Takes images at their original size instead of squares."""

    def __init__(self, side: int, scale: tuple[float, float]) -> None:
        import albumentations as A

        self.side = side
        linear: dict[str, Any] = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
        self._steps = A.Compose(
            [
                A.RandomScale(scale_limit=(scale[0] - 1, scale[1] - 1), p=1, **linear),
                A.Affine(rotate=(-10, 10), fill=MEAN_COLOUR, fill_mask=IGNORE, p=0.5, **linear),
                A.GaussianBlur(blur_limit=(5, 5), sigma_limit=(1.1, 1.1), p=0.5),  # 1.1: OpenCV's for 5 x 5
                A.HorizontalFlip(p=0.5),
            ]
        )
        self.set_random_seed(0)

    def set_random_seed(self, seed: int) -> None:
        """What comes next is a function of `seed`."""
        self._steps.set_random_seed(seed)
        self._generator = np.random.default_rng((seed, 1))

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        """Image (H0, W0, 3) uint8 and mask (H0, W0) uint8 to squares, as `image` and `mask`."""
        changed = self._steps(image=image, mask=mask)
        image, mask = padded(changed["image"], changed["mask"], self.side)
        enough = KEPT * np.count_nonzero(mask == 1)
        for _ in range(1 + RETRIES):
            top, left = (self._generator.integers(length - self.side + 1) for length in mask.shape)
            window = np.s_[top : top + self.side, left : left + self.side]
            if np.count_nonzero(mask[window] == 1) >= enough:
                break
        return {"image": np.ascontiguousarray(image[window]), "mask": np.ascontiguousarray(mask[window])}


def padded(image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask with borders of mean colour and 255 where they are smaller than `side`, the image in the middle."""
    missing = [max(0, side - length) for length in mask.shape]
    top, left = (length // 2 for length in missing)
    borders = (top, missing[0] - top, left, missing[1] - left, cv2.BORDER_CONSTANT)
    if any(missing):
        image = cv2.copyMakeBorder(image, *borders, value=MEAN_COLOUR)
        mask = cv2.copyMakeBorder(mask, *borders, value=(IGNORE,))
    return image, mask
