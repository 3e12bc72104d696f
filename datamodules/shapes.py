"""Shapes: the embedded benchmark of generated pictures; needs no download."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import numpy as np

from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.shapes_render import SHAPES, TEXTURES, Draw, Layout, World, draw_layer, draw_picture, lay_out
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError

IMAGES: dict[Split, int] = {"train": 800, "test": 400}
"""Pictures per split; picture i has at least one object of class 1 + i mod 20."""
SEED = 2504
"""Of the published pictures; other seeds would be another data set under the same name."""


def _ring() -> tuple[tuple[int, int], ...]:
    """(shape, texture) of classes 1, 2, ...: each shares its shape with one neighbour, its texture with the other.

    Interleaved folds never hold both of two neighbours (class 20 is a neighbour of class 1), so in every fold the shape
    of a novel class is that of a base class, its texture that of another, and only their combination is new.
    """
    count = len(SHAPES)
    return tuple(((i // 2) % count, ((i + 1) // 2) % count) for i in range(2 * count))


WORLD = World(tuple(SHAPES.values()), tuple(TEXTURES.values()), _ring())


class ShapesDataset(FewShotDataset):
    """20 classes of textured objects, e.g. `ring-bricks`, in four folds: 800 training and 400 test pictures.

    Every picture is a pure function of its key (`train/000123`), the same bytes on every machine. A class is a shape
    *and* a texture; colours are random, and each picture holds distractors with the same shape or the same texture.
    An image is a candidate of a class that covers at least 1 % of it.
    """

    name: ClassVar[str] = "shapes"
    n_folds = 4
    episodes_per_class = 20
    mask_renderer = "shapes-v1"
    image_filter = "min-share-1pct"
    class_partition = "interleaved"

    def __init__(self) -> None:
        shapes, textures = list(SHAPES), list(TEXTURES)
        self.class_names = {
            number: f"{shapes[shape]}-{textures[texture]}" for number, (shape, texture) in enumerate(WORLD.classes, 1)
        }

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """Class ids tested in `fold`: every fourth, from fold + 1."""
        return novel_classes(sorted(self.class_names), fold, self.n_folds, "interleaved")

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the split's pictures at least 1 % of whose pixels show the class, ascending."""
        return list(_candidates(split)[class_id])

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB. Raises `UserError` for a key that does not exist."""
        return _picture(*_parsed(key)).copy()

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1}: the visible pixels of all objects of the class. Raises `UserError` as `read_image`."""
        layout, layer = _scene(*_parsed(key))
        return _of_class(layout, class_id)[layer]


def _parsed(key: str) -> tuple[Split, int]:
    split, _, number = key.partition("/")
    if split in IMAGES and len(number) == 6 and number.isdecimal() and int(number) < IMAGES[split]:
        return split, int(number)
    raise UserError(
        f"shapes has no image '{key}': expected train/000000 to train/{IMAGES['train'] - 1:06d} or test/000000 to "
        f"test/{IMAGES['test'] - 1:06d}. Check the manifest."
    )


def _draw(split: Split, index: int, purpose: int) -> Draw:
    """Numbers for the layout (purpose 0) or the looks (purpose 1) of a picture."""
    return Draw(SEED, list(IMAGES).index(split), index, purpose)


def _layout(split: Split, index: int) -> Layout:
    return lay_out(WORLD, WORLD.classes[index % len(WORLD.classes)], _draw(split, index, 0))


def _of_class(layout: Layout, class_id: int) -> np.ndarray:
    """(number of pieces + 1,) uint8: 1 for the indices in the layer that belong to the class."""
    wanted = WORLD.classes[class_id - 1]
    return np.array([0, *((piece.shape, piece.texture) == wanted for piece in layout.pieces)], np.uint8)


# All pictures take 75 MB, their layers 25 MB; drawing one again takes as long as reading a photograph from disk.
@cache
def _picture(split: Split, index: int) -> np.ndarray:
    return draw_picture(WORLD, _layout(split, index), _draw(split, index, 1))


@cache
def _scene(split: Split, index: int) -> tuple[Layout, np.ndarray]:
    layout = _layout(split, index)
    return layout, draw_layer(WORLD, layout)


@cache
def _candidates(split: Split) -> dict[int, tuple[str, ...]]:
    """Class id -> keys, from the layers alone, which are drawn ten times faster than the pictures."""
    found: dict[int, list[str]] = {class_id: [] for class_id in range(1, len(WORLD.classes) + 1)}
    for index in range(IMAGES[split]):
        layout, layer = _scene(split, index)
        areas = np.bincount(layer.ravel(), minlength=len(layout.pieces) + 1)
        kinds = {(piece.shape, piece.texture) for piece in layout.pieces}
        for class_id in [number for number, kind in enumerate(WORLD.classes, 1) if kind in kinds]:
            if 100 * int(areas @ _of_class(layout, class_id)) >= layer.size:
                found[class_id].append(f"{split}/{index:06d}")
    return {class_id: tuple(keys) for class_id, keys in found.items()}


class Shapes(EpisodicDataModule):
    """Episodes of the embedded example; the pictures are described at `ShapesDataset`.

    Args:
        kwargs: what every data module takes.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def make_dataset(self) -> ShapesDataset:
        """The generated data set."""
        return ShapesDataset()

    def number_of_folds(self) -> int:
        """Four."""
        return ShapesDataset.n_folds
