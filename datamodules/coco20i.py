"""COCO-20i (FWB, ICCV 2019; protocols.md 1.2): COCO 2014 in four folds of 20 novel classes, from the official files."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.coco_index import CocoIndex, Renderer, load_index, read_listed_image
from datamodules.episodic import EpisodicDataModule
from datamodules.folds import Partition, novel_classes
from datamodules.places import data_root
from datamodules.published import FoldLists, find_lists
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError
from fssbench.protocols.profiles import ProtocolName, profile_of

CLASS_NAMES = (  # noqa: SIM905 - eighty names in a list literal would take a screen
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush"
).split(", ")
"""Names of the classes 1..80, as in the official files."""
_UNUSED_OFFICIAL_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
OFFICIAL_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_OFFICIAL_IDS)
"""Official category ids: position c - 1 holds the official id of class c."""
_PARTITIONS: dict[str, Partition] = {"coco-20i": "interleaved", "coco-20i-contiguous": "contiguous"}


class COCO20iDataset(FewShotDataset):
    """COCO-20i straight from the instances JSON files and the image folders; nothing has to be prepared.

    Class ids 1..80 are COCO's categories sorted by official id. `partition`: `interleaved` (the usual one: fold f tests
    f + 1, f + 5, ...) or `contiguous` (PANet: 20 f + 1 .. 20 f + 20; the data set is then `coco-20i-contiguous`, since the
    two are not comparable). Candidates of a class are the images with at least `min_pixels` pixels of it at original
    size, crowds not counted. A key is `<folder name>/<file name>`, e.g. `val2014/COCO_val2014_000000507081.jpg`.

    `protocol` decides on masks and order. `clean-v1`: renderer `clean` (see `coco_index`), ascending keys. The compat
    protocols: renderer `legacy`, and an order that follows from no annotation, so `lists` must bring it: for both
    `val.txt` with the order of all images (RePRI's for `hsnet-compat`, PFENet's for `bam-compat`; the lists are then built
    in this order), or for `hsnet-compat` the published lists themselves (`fold0` to `fold3`, HSNet's pickles or text).

    The four paths are relative to `root`; their defaults are the official layout. Training and test may share an image
    folder, or both folder and JSON: base and novel classes are disjoint in every fold. Only what a split needs is
    opened, so testing works without the training images.

    skipped  lines about annotations that could not be used; of a split once its candidates were asked for
    """

    name: ClassVar[str] = "coco-20i"
    n_folds = 4
    episodes_per_class = 100
    protocols = ("clean-v1", "hsnet-compat", "bam-compat")
    hsnet_queries = "class-uniform"
    class_partition: Partition

    def __init__(
        self,
        root: str | Path,
        train_images: str = "train2014",
        train_annotations: str = "annotations/instances_train2014.json",
        test_images: str = "val2014",
        test_annotations: str = "annotations/instances_val2014.json",
        partition: Partition = "interleaved",
        min_pixels: int = 2048,
        protocol: ProtocolName = "clean-v1",
        lists: str | Path | None = None,
    ) -> None:
        root = Path(root).expanduser()
        self.skipped: list[str] = []
        self.mask_renderer: Renderer = profile_of(protocol).masks
        train = _Source(root / train_images, root / train_annotations, self.mask_renderer, self.skipped)
        test = _Source(root / test_images, root / test_annotations, self.mask_renderer, self.skipped)
        if train.folder.name == test.folder.name and train.folder != test.folder:
            raise UserError(
                f"Training images {train.folder} and test images {test.folder} have the same folder name, so their "
                "keys cannot be told apart. Rename one folder."
            )
        self._sources: dict[Split, _Source] = {"train": train, "test": train if train == test else test}
        self.class_partition = partition
        self.min_pixels = min_pixels
        self.image_filter = f"min-pixels-{min_pixels}"
        self.class_names = dict(enumerate(CLASS_NAMES, start=1))
        if partition == "contiguous":
            self.name = "coco-20i-contiguous"  # type: ignore[misc]
        self._lists = FoldLists()
        if protocol != "clean-v1":
            self._lists = _protocol_lists(root, protocol, lists)
            self.image_filter = (
                self._lists.identity if self._lists.folds else f"{self.image_filter}-{self._lists.identity}"
            )
        elif lists is not None:
            raise UserError("clean-v1 makes its own lists: leave data.lists out, or choose the protocol of the lists.")

    @property
    def draw_name(self) -> str:
        """`coco-20i` for both partitions: they share pictures, classes and so the draw."""
        return "coco-20i"

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The 20 classes tested in `fold`; raises `UserError` for a fold outside 0..3."""
        return novel_classes(sorted(self.class_names), fold, self.n_folds, self.class_partition)

    def saw_novel(self, fold: int, trained_on: str, trained_fold: int, trained_shot: int) -> bool:
        """Also of a training on the other partition, whose folds hold out other classes."""
        partition = _PARTITIONS.get(trained_on)
        if partition is None:
            return False
        held_out = novel_classes(sorted(self.class_names), trained_fold, self.n_folds, partition)
        return not set(self.novel_classes(fold)).issubset(held_out)

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """Keys of the images of a split with enough of the class: of a published list in its order, else those with at
        least `min_pixels` valid pixels, ascending or in the order of `lists`."""
        source = self._sources[split]
        if split == "test":
            published = self._published.get(class_id)
            if published is not None:
                return [self._listed_key(name) for name in published]
        positions = source.index.images_of(OFFICIAL_IDS[class_id - 1], max(1, self.min_pixels))
        keys = [f"{source.folder.name}/{source.index.names[i]}" for i in positions]
        return sorted(keys, key=self._rank) if split == "test" and self._lists.order else keys

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """(class id, key) of the fold, class after class. Raises `UserError` where published lists are given and lack the
        fold: images chosen here in its place would be other episodes under the lists' name."""
        if self._lists.folds:
            self._lists.pairs(fold)
        return super().ordered_pairs(fold)

    def ordered_images(self, fold: int) -> list[str]:
        """The fold's images in the order of `lists`, class after class where there is no such order."""
        keys = super().ordered_images(fold)
        return sorted(keys, key=self._rank) if self._lists.order else keys

    def classes_in(self, key: str) -> tuple[int, ...]:
        """Ids of all classes with a pixel in an image; a crowd of the class counts."""
        source, position = self._find(key)
        return tuple(OFFICIAL_IDS.index(int(c)) + 1 for c in source.index.categories_of(position))

    @cached_property
    def _published(self) -> dict[int, list[str]]:
        """Class -> names of its published list, checked for the classes that its fold tests."""
        for fold, found in self._lists.folds.items():
            wrong = sorted({c for c, _ in found.pairs} - set(self.novel_classes(fold)))
            if wrong:
                raise UserError(
                    f"{found.path} lists class {wrong[0]}, which fold {fold} of {self.name} does not test. Use lists of "
                    "the same partition, named by their fold."
                )
        return self._lists.by_class()

    @cached_property
    def _order(self) -> dict[str, int]:
        return {Path(name).name: rank for rank, name in enumerate(self._lists.order)}

    def _rank(self, key: str) -> int:
        name = key.rpartition("/")[2]
        if name not in self._order:
            raise UserError(f"The order in data.lists has no image '{name}'. Use the val.txt of COCO 2014.")
        return self._order[name]

    def _listed_key(self, name: str) -> str:
        source, file = self._sources["test"], Path(name).name
        if file not in source.positions:
            raise UserError(f"The published list names {name}, which {source.annotations} lacks. Use COCO 2014.")
        return f"{source.folder.name}/{file}"

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB; raises `UserError` where the size is not the one the JSON states."""
        source, position = self._find(key)
        height, width = source.index.sizes[position]
        path = source.folder / source.index.names[position]
        return read_listed_image(path, (int(height), int(width)), source.annotations)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8: 1 where an object of the class is, 255 where only a crowd of the class is, else 0."""
        source, position = self._find(key)
        return source.index.mask(position, OFFICIAL_IDS[class_id - 1])

    def _find(self, key: str) -> tuple[_Source, int]:
        folder, _, name = key.partition("/")
        sources = list(dict.fromkeys(self._sources.values()))
        found = [source for source in sources if source.folder.name == folder and name in source.positions]
        if not found:
            known = " or ".join(dict.fromkeys(f"{source.folder.name}/" for source in sources))
            raise UserError(
                f"COCO-20i has no image '{key}' (keys here start with {known}). Build the episodes again from these "
                "files."
            )
        if len(found) > 1:
            raise UserError(
                f"{found[0].annotations} and {found[1].annotations} both list {key}, so its masks are ambiguous. Use "
                "one file for training and test, or remove the image from one of them."
            )
        return found[0], found[0].positions[name]


@dataclass(frozen=True)
class _Source:
    """An image folder with its instances JSON, opened when first used."""

    folder: Path
    annotations: Path
    renderer: Renderer
    skipped: list[str] = field(compare=False, repr=False)

    @cached_property
    def index(self) -> CocoIndex:
        if not self.folder.is_dir():
            raise UserError(
                f"The image folder {self.folder} does not exist. Unpack COCO's {self.folder.name}.zip there, or set "
                "the path of the images."
            )
        index = load_index(self.annotations, self.renderer)
        for official, name in index.categories.items():
            expected = CLASS_NAMES[OFFICIAL_IDS.index(official)] if official in OFFICIAL_IDS else "unused"
            if name != expected:
                raise UserError(
                    f"{self.annotations}: category {official} is '{name}', COCO's is '{expected}'. Use a file with "
                    "COCO's 80 categories, or the folder data set for your own classes."
                )
        if index.dropped:
            self.skipped.append(f"{self.annotations}: {index.dropped} polygons with fewer than three points left out.")
        return index

    @cached_property
    def positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.index.names)}


def _protocol_lists(root: Path, protocol: str, lists: str | Path | None) -> FoldLists:
    """The lists or the order that a compat protocol needs; raises `UserError` where they are missing or of no use."""
    place = Path(lists).expanduser() if lists is not None else root / "lists" / protocol
    source = {"hsnet-compat": "RePRI's lists/coco/val.txt", "bam-compat": "PFENet's val.txt"}[protocol]
    if not place.exists():
        raise UserError(
            f"{protocol} needs the published order of COCO's images, which no annotation gives: {place} does not exist. "
            f"Put {source} there (`fssbench prepare coco20i` can fetch it), or name it with data.lists."
        )
    found = find_lists(place, COCO20iDataset.n_folds)
    if protocol == "bam-compat" and not found.order:
        raise UserError(f"bam-compat needs the order of all images, but {place} holds lists per fold. Give {source}.")
    return found


class COCO20i(EpisodicDataModule):
    """Episodes of COCO-20i; the folds and how masks are made are described at `COCO20iDataset`.

    Args:
        root: folder with the official images and annotations; null: `$FSSBENCH_DATA/COCO2014`, else `data/COCO2014`.
        train_images: folder of the training images, below root.
        train_annotations: instances JSON of the training images, below root.
        test_images: folder of the test images, below root.
        test_annotations: instances JSON of the test images, below root.
        partition: how the 80 classes are dealt to the four folds: `interleaved` is usual, `contiguous` is PANet's.
        min_pixels: an image counts for a class that has at least this many pixels in it.
        lists: published lists of a compat protocol, or val.txt with their order; null: `lists/PROTOCOL` below root.
        kwargs: what every data module takes.
    """

    def __init__(
        self,
        root: str | None = None,
        train_images: str = "train2014",
        train_annotations: str = "annotations/instances_train2014.json",
        test_images: str = "val2014",
        test_annotations: str = "annotations/instances_val2014.json",
        partition: Partition = "interleaved",
        min_pixels: int = 2048,
        lists: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.lists = root, lists
        self.files = (train_images, train_annotations, test_images, test_annotations)
        self.partition: Partition = partition
        self.min_pixels = min_pixels

    def make_dataset(self) -> COCO20iDataset:
        """COCO-20i at the configured place."""
        root = data_root(self.root, "COCO2014")
        return COCO20iDataset(root, *self.files, self.partition, self.min_pixels, self.protocol, self.lists)

    def number_of_folds(self) -> int:
        """Four, known without opening a file."""
        return COCO20iDataset.n_folds
