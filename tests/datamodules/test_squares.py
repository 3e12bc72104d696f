"""Squares: each image is decoded once while the memory lasts, and remembered images change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.squares import Squares
from fssbench.errors import UserError
from fssbench.images import resize_image, resize_mask
from tests.protocols.toy import ToyDataset

SIDE = 16
ONE = SIDE * SIDE * 3 / 2**20
"""MiB of one square."""


def read_all(squares: Squares, rounds: int = 2) -> list[tuple[np.ndarray, ...]]:
    keys = squares.dataset.candidates(1, "test")[:4]
    return [squares.read(key, 1) for _ in range(rounds) for key in keys]


def test_an_image_is_decoded_once() -> None:
    squares = Squares(ToyDataset(), SIDE, 4 * ONE)
    read_all(squares)
    assert squares.decoded == 4


@pytest.mark.parametrize("images", [0, 0.5, 1, 3])
def test_memory_is_bounded(images: float) -> None:
    squares = Squares(ToyDataset(), SIDE, images * ONE)
    read_all(squares)
    assert len(squares._kept) == int(images)
    assert squares.decoded == 8  # four in turn never find themselves again


@pytest.mark.parametrize("images", [0, 2, 4])
def test_what_is_read_does_not_depend_on_the_memory(images: float) -> None:
    data = ToyDataset()
    for (image, mask, original), key in zip(
        read_all(Squares(data, SIDE, images * ONE)), data.candidates(1, "test")[:4] * 2, strict=True
    ):
        np.testing.assert_array_equal(image, resize_image(data.read_image(key), SIDE))
        np.testing.assert_array_equal(original, data.read_mask(key, 1))
        np.testing.assert_array_equal(mask, resize_mask(original, SIDE))


def test_a_mask_of_another_size_is_named_also_when_the_image_is_known() -> None:
    class Wrong(ToyDataset):
        def read_mask(self, key: str, class_id: int) -> np.ndarray:
            return super().read_mask(key, class_id)[: 5 if class_id == 2 else None]

    data = Wrong()
    key = data.candidates(1, "test")[0]
    squares = Squares(data, SIDE, ONE)
    squares.read(key, 1)
    with pytest.raises(UserError, match=rf"image {key} is \d+x\d+ pixels, its mask is \d+x5\."):
        squares.read(key, 2)
