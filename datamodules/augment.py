"""Training augmentation of an image and its mask together, through albumentations."""

from __future__ import annotations

import os
from typing import Any, Literal

import cv2
import numpy as np

from datamodules.crops import CropAugmentation
from fssbench.episode import AUGMENTED, IGNORE

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer version on the network at import

Augmentation = Literal["none", "flip", "standard", "fssam-pascal", "fssam-coco"]
FSSAM_SCALES = {"fssam-pascal": (0.9, 1.1), "fssam-coco": (0.8, 1.25)}
"""Range of the random scale (sam2fss.md 3.4)."""


def make_augmentation(name: Augmentation, side: int) -> Any:
    """An albumentations pipeline (or one used like it) for images of `side` pixels, or None for `none`.

    flip      horizontal flip with probability 0.5
    standard  flip, scale 0.8-1.2 with shift and rotation up to 10 degrees, brightness/contrast/colour jitter, light blur;
              pixels that come from outside the image are black with mask 255 (ignore). The strengths are our choice.
    fssam-pascal, fssam-coco
              FSSAM's: crops of the scaled, turned and blurred image at original size (see `CropAugmentation`)
    """
    if name in FSSAM_SCALES:
        return CropAugmentation(side, FSSAM_SCALES[name])
    if name == "none":
        return None
    import albumentations as A

    steps: list[Any] = [A.HorizontalFlip(p=0.5)]
    if name == "standard":
        steps += [
            A.Affine(
                scale=(0.8, 1.2),
                translate_percent=(-0.1, 0.1),
                rotate=(-10, 10),
                interpolation=cv2.INTER_LINEAR,
                mask_interpolation=cv2.INTER_NEAREST,
                fill=0,
                fill_mask=IGNORE,
                p=0.8,
            ),
            A.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05, p=0.5),
            A.GaussianBlur(blur_limit=(3, 5), p=0.1),
        ]
    return A.Compose(steps)


def augment(pipeline: Any, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply `pipeline` (or nothing) to image (H, W, 3) uint8 and mask (H, W) uint8, as a function of `seed` alone."""
    if pipeline is None:
        return image, mask
    pipeline.set_random_seed(seed)
    changed = pipeline(image=image, mask=mask)
    return changed["image"], changed["mask"]


def variant(name: Augmentation, before: np.ndarray, after: np.ndarray, seed: int) -> str:
    """What sets an augmented image apart from the plain one in its key, so that equal keys mean equal images.

    A flip has two outcomes, whose frozen features are worth keeping; other changes are hardly seen twice.
    """
    if name == "none":
        return ""
    if name == "flip":
        return "" if np.array_equal(before, after) else "|flipped"
    return f"{AUGMENTED}{seed}"
