"""FSSAM's augmentation: what is kept, what is outside, and that it follows the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodules.augment import FSSAM_SCALES, augment, make_augmentation
from datamodules.crops import MEAN_COLOUR, CropAugmentation, padded
from tests.toy import Toy


def picture(height: int = 90, width: int = 120) -> tuple[np.ndarray, np.ndarray]:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[30:50, 60:80] = 1
    return image, mask


@pytest.mark.parametrize("name", FSSAM_SCALES)
def test_squares_that_keep_most_of_the_object(name: str) -> None:
    pipeline = make_augmentation(name, 80)  # smaller than the picture: a crop can lose the object
    for seed in range(30):
        image, mask = augment(pipeline, *picture(), seed)
        assert image.shape == (80, 80, 3)
        assert mask.shape == (80, 80)
        assert set(np.unique(mask)) <= {0, 1, 255}
        low, high = FSSAM_SCALES[name]
        assert 0.8 * 400 * low**2 < (mask == 1).sum() < 1.1 * 400 * high**2


def test_results_follow_the_seed() -> None:
    pipeline = make_augmentation("fssam-coco", 100)
    first = augment(pipeline, *picture(), 5)
    other = augment(pipeline, *picture(), 6)
    again = augment(pipeline, *picture(), 5)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_what_lies_outside_has_the_mean_colour_and_is_ignored() -> None:
    image, mask = padded(*picture(), 150)
    assert image.shape == (150, 150, 3)
    assert np.array_equal(image[30:120, 15:135], picture()[0])
    assert (mask[:30] == 255).all()
    assert (image[:30] == MEAN_COLOUR).all()
    assert (mask == 255).sum() == 150 * 150 - 90 * 120
    assert padded(*picture(), 50)[0].shape == (90, 120, 3), "larger pictures stay as they are"


def test_a_crop_is_found_even_where_the_object_cannot_be_kept() -> None:
    image, mask = picture(200, 300)
    mask[:] = 1  # no crop of 64 pixels keeps 85 % of it
    assert augment(CropAugmentation(64, (1.0, 1.0)), image, mask, 0)[1].shape == (64, 64)


def test_training_episodes_are_crops_of_the_original() -> None:
    data = Toy(image_size=40, batch_size=2, episodes_per_epoch=2, augment="fssam-pascal", shot=2)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.query_image.shape == (2, 3, 40, 40)
    assert batch.support_masks.shape == (2, 2, 40, 40)
    side = min(data.dataset.read_image(batch.query_key[0].partition("#")[0]).shape[:2])
    assert side < 36, "the toy's pictures are smaller, so there is a border"
    assert (batch.query_mask == 255).any()


@pytest.mark.parametrize(("name", "low", "high"), [("fssam-pascal", 0.9, 1.1), ("fssam-coco", 0.8, 1.25)])
def test_the_whole_range_of_scales_is_drawn(name: Any, low: float, high: float) -> None:
    """sam2fss.md 3.4; seen at a crop larger than the picture, where the object is always whole."""
    pipeline = make_augmentation(name, 170)
    sides = [(augment(pipeline, *picture(), seed)[1] == 1).sum() ** 0.5 / 20 for seed in range(60)]
    assert low - 0.05 < min(sides) < low + 0.1 * (high - low) + 0.05
    assert high - 0.1 * (high - low) - 0.05 < max(sides) < high + 0.05
    assert max(sides) - min(sides) > 0.7 * (high - low)


def test_what_is_turned_into_the_picture_is_ignored() -> None:
    """At its own size there is no border: 255 can only come from the rotation."""
    pipeline = CropAugmentation(60, (1.0, 1.0))
    ignored = [(augment(pipeline, *picture(60, 60), seed)[1] == 255).sum() for seed in range(20)]
    assert min(ignored) == 0, "not turned"
    assert sum(count > 0 for count in ignored) > 4
