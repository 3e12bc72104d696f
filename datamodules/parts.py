"""Parts of objects: photographs cut at ground-truth boxes, one mask per part; what PASCAL-Part and PACO-Part share."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask as rle_tools

from datamodules.array_cache import cached_arrays
from datamodules.coco_index import (
    CocoIndex,
    Drawn,
    index_arrays,
    index_of,
    make_index,
    read_listed_image,
    run_lengths,
)
from datamodules.parallel import parallel_map
from fssbench.dataset import ObjectDataset, Split
from fssbench.errors import UserError

_VERSION = 1  # of the cache file: raise it whenever the drawing or the layout below changes


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of a photograph, as its annotation says.

    photograph  name of the photograph
    key         name of the object: `PHOTOGRAPH:NUMBER`
    kind        number of the object's class, e.g. of bird
    size        (H0, W0) of the photograph
    box         (left, top, right, bottom), the last two outside
    parts       (class id, segmentation) of each part: polygons, or a run-length code
    """

    photograph: str
    key: str
    kind: int
    size: tuple[int, int]
    box: tuple[int, int, int, int]
    parts: tuple[tuple[int, Any], ...]


@dataclass(frozen=True)
class PartIndex:
    """All parts of all objects of one split. Arrays, not objects, so that loader workers share the memory.

    masks   an index whose images are the objects, at the size of their boxes
    places  (N, 7) int32 of each object: kind, height and width of the photograph, and its box
    """

    masks: CocoIndex
    places: np.ndarray

    @cached_property
    def objects_of(self) -> dict[str, list[int]]:
        """Photograph -> positions of its objects, in the order of the annotation."""
        found: dict[str, list[int]] = {}
        for position, key in enumerate(self.masks.names):
            found.setdefault(key.rpartition(":")[0], []).append(position)
        return found

    @cached_property
    def shown(self) -> dict[int, dict[str, list[int]]]:
        """Class -> photograph, ascending -> positions of its objects that show the part."""
        found: dict[int, dict[str, list[int]]] = {}
        for position, class_id, pixels in self.masks.pairs():
            if pixels:
                photograph = self.masks.names[position].rpartition(":")[0]
                found.setdefault(class_id, {}).setdefault(photograph, []).append(position)
        return {c: dict(sorted(photographs.items())) for c, photographs in found.items()}


def load_parts(
    read: Callable[[], list[AnnotatedObject]], classes: dict[int, str], digest: str, source: Path
) -> PartIndex:
    """The parts of the objects that `read` gives: from the cache, or read, drawn on all cores and cached under `digest`, which
    is that of the files behind them.

    Raises `UserError`, naming `source`, where a part's segmentation does not fit its photograph.
    """

    def make() -> dict[str, np.ndarray]:
        objects = read()
        drawn = parallel_map(partial(_draw, source), objects, f"cutting out the parts of {source.name}", "object")
        places = np.array([(o.kind, *o.size, *_inside(o)) for o in objects], np.int32).reshape(-1, 7)
        sizes = places[:, [6, 5]] - places[:, [4, 3]]
        index = make_index(tuple(o.key for o in objects), classes, np.maximum(sizes, 0), drawn)
        return {**index_arrays(index), "places": places}

    arrays = cached_arrays(f"parts-v{_VERSION}-{digest}", make, f"Cutting out the parts of {source}")
    return PartIndex(index_of({name: a for name, a in arrays.items() if name != "places"}), arrays["places"])


def _inside(found: AnnotatedObject) -> tuple[int, int, int, int]:
    (height, width), (left, top, right, bottom) = found.size, found.box
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _draw(source: Path, found: AnnotatedObject) -> Drawn:
    """The parts of one object inside its box: unions by class."""
    left, top, right, bottom = _inside(found)
    if left >= right or top >= bottom:
        return []
    pieces: dict[int, list[dict[str, Any]]] = {}
    for class_id, segmentation in found.parts:
        codes, _ = run_lengths({"id": found.key, "segmentation": segmentation}, *found.size, source)
        pieces.setdefault(class_id, []).extend(codes)
    drawn: Drawn = []
    for class_id, codes in sorted(pieces.items()):
        if codes:
            mask = rle_tools.decode(rle_tools.merge(codes))[top:bottom, left:right]
            code = rle_tools.encode(np.asfortranarray(mask))
            drawn.append((class_id, False, code["counts"], int(rle_tools.area(code))))
    return drawn


class PartsDataset(ObjectDataset):
    """Base of the part sets: images are objects cut out at their **ground-truth** boxes, one at a time, as in Matcher.

    A key is `PHOTOGRAPH:NUMBER`. Where several objects of a photograph show a part, `candidates` (and so `clean-v1`) has the
    one whose key comes first by the SHA-256 of `DATASET|LABEL|o|KEY`: as good as at random, and the same everywhere.
    """

    n_folds = 4
    mask_renderer = "part-union"
    image_filter = "ground-truth-object-boxes"
    protocols: ClassVar[tuple[str, ...]] = ("clean-v1", "hsnet-compat")

    def __init__(self) -> None:
        self._indices: dict[Split, PartIndex] = {}
        self._positions: dict[Split, dict[str, int]] = {}
        self._chosen: dict[tuple[int, Split], list[str]] = {}

    @abstractmethod
    def load(self, split: Split) -> PartIndex:
        """The parts of a split."""

    @abstractmethod
    def photograph_file(self, photograph: str) -> Path:
        """Where a photograph lies."""

    @abstractmethod
    def source(self, split: Split) -> Path:
        """The annotation file or folder of a split."""

    def index(self, split: Split) -> PartIndex:
        """The parts of a split, loaded when first asked for."""
        if split not in self._indices:
            self._indices[split] = self.load(split)
            self._positions[split] = {key: i for i, key in enumerate(self._indices[split].masks.names)}
        return self._indices[split]

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """One object for each photograph with the part, by the photographs' names."""
        if (class_id, split) not in self._chosen:
            index, start = self.index(split), f"{self.name}|{self.label(class_id)}|o|"
            self._chosen[class_id, split] = [
                min(
                    (index.masks.names[i] for i in positions),
                    key=lambda key: hashlib.sha256((start + key).encode()).digest(),
                )
                for positions in index.shown.get(class_id, {}).values()
            ]
        return list(self._chosen[class_id, split])

    def photographs(self, class_id: int) -> list[str]:
        """Names of the test photographs with the part, ascending."""
        return list(self.index("test").shown.get(class_id, {}))

    def objects_in(self, class_id: int, photograph: str) -> list[tuple[str, bool]]:
        """(key, True) of each object of the photograph that shows the part."""
        index = self.index("test")
        return [(index.masks.names[i], True) for i in index.shown.get(class_id, {}).get(photograph, [])]

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids of all parts that an object shows."""
        split, position = self._find(key)
        return tuple(int(c) for c in self.index(split).masks.categories_of(position))

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB: the photograph inside the object's box. Raises `UserError` for a photograph of another size."""
        split, position = self._find(key)
        _, height, width, left, top, right, bottom = self.index(split).places[position].tolist()
        image = read_listed_image(self.photograph_file(key.rpartition(":")[0]), (height, width), self.source(split))
        return np.ascontiguousarray(image[top:bottom, left:right])

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1} inside the object's box."""
        split, position = self._find(key)
        return self.index(split).masks.mask(position, class_id)

    def _find(self, key: str) -> tuple[Split, int]:
        splits: tuple[Split, ...] = ("test", "train")
        for split in splits:
            if split in self._indices or self.source(split).exists():
                self.index(split)
                if key in self._positions[split]:
                    return split, self._positions[split][key]
        raise UserError(f"{self.name} has no object '{key}'. Build the episodes again from these files.")
