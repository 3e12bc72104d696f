"""How well outlines fit: boundary IoU and the 95th-percentile Hausdorff distance of one episode.

Both are additional numbers: they are means over episodes, and no substitute for the accumulated IoU.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

BOUNDARY_IOU_SHARE = 0.02
"""Width of the boundary region as a share of the image's diagonal (Cheng et al., Boundary IoU, CVPR 2021)."""


def boundary_iou(predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """IoU of the pixels of each mask within d of its own outline, d = 2 % of the diagonal (at least one pixel).

    Masks (H, W) bool; the image's border is an outline, too. Pixels where `ignore` is set are not counted. 1 where both
    regions are empty.
    """
    distance = max(1, round(BOUNDARY_IOU_SHARE * math.hypot(*truth.shape)))
    own, theirs = (_near_outline(mask, distance) for mask in _masks(predicted, truth, ignore))
    union = np.count_nonzero(own | theirs)
    return np.count_nonzero(own & theirs) / union if union else 1.0


def hausdorff95(predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """95th-percentile Hausdorff distance in pixels: the larger of the two directed 95th percentiles of the distances from
    one mask's outline to the other's.

    Masks (H, W) bool; the outline of a mask are its pixels with a neighbour (of four) outside. 0 where both masks are empty,
    infinite where one is.
    """
    own, theirs = (_near_outline(mask, 1, cross=True) for mask in _masks(predicted, truth, ignore))
    if not own.any() or not theirs.any():
        return 0.0 if own.any() == theirs.any() else math.inf
    return max(_directed95(own, theirs), _directed95(theirs, own))


def _masks(predicted: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} differ in shape")
    keep = np.ones(truth.shape, bool) if ignore is None else ~ignore.astype(bool)
    return predicted.astype(bool) & keep, truth.astype(bool) & keep


def _near_outline(mask: np.ndarray, distance: int, cross: bool = False) -> np.ndarray:
    kernel = cv2.getStructuringElement(cv2.MORPH_CROSS if cross else cv2.MORPH_RECT, (3, 3))
    padded = np.pad(mask.astype(np.uint8), 1)
    return mask & ~cv2.erode(padded, kernel, iterations=distance)[1:-1, 1:-1].astype(bool)


def _directed95(source: np.ndarray, target: np.ndarray) -> float:
    from scipy.ndimage import distance_transform_edt

    return float(np.percentile(distance_transform_edt(~target)[source], 95))
