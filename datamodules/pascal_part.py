"""PASCAL-Part as a few-shot set (Matcher; protocols.md 1.5): 56 parts of objects in four folds by kind of object."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from datamodules.episodic import EpisodicDataModule
from datamodules.parallel import parallel_map
from datamodules.parts import AnnotatedObject, PartIndex, PartsDataset, load_parts
from datamodules.places import data_root
from fssbench.dataset import Split
from fssbench.errors import UserError

FOLDS = ("animals", "indoor", "person", "vehicles")
"""The kinds of object that fold 0, 1, 2, 3 tests."""
LEFT_OUT = "aeroplane+TAIL"
"""A class that Matcher leaves out."""
MOST_EPISODES = 2500
_HOMES = ("", "VOC2010", "VOCdevkit/VOC2010")
_LISTS, _ANNOTATIONS = "all_obj_part_to_image.json", "Annotations_Part_json_merged_part_classes"
_SPLITS: dict[Split, str] = {"test": "val", "train": "train"}


class PASCALPartDataset(PartsDataset):
    """VOC 2010 with PASCAL-Part's annotations, its parts merged (left and right wing: wing), as they are in circulation.

    In `root`, `root/VOC2010` or `root/VOCdevkit/VOC2010`: `JPEGImages/NAME.jpg`, `all_obj_part_to_image.json` (kind ->
    object -> part -> images of train and val) and `Annotations_Part_json_merged_part_classes/NAME.json` (objects with
    boxes, parts with run-length codes). A class is a part of a kind of object, `bird+HEAD`, that has images in train and in
    val, without aeroplane+TAIL; its id is its place in the list file, from 1. Fold f tests the parts of one kind (`FOLDS`).

    `hsnet-compat` is Matcher's way: classes in turn, a photograph of the list and one of its objects of the kind, both
    again until it has the part, and distinct supports; as many episodes as the fold's lists have entries, at most 2500.
    """

    name: ClassVar[str] = "pascal-part"
    episodes_per_class = 80
    class_partition = "kinds-of-object"
    hsnet_queries = "object-cycle"

    def __init__(self, root: str | Path) -> None:
        super().__init__()
        root = Path(root).expanduser()
        self.home = next((root / home for home in _HOMES if (root / home / _LISTS).is_file()), root)
        self._kinds = _read_lists(self.home / _LISTS)
        self._objects: dict[int, tuple[str, str]] = {}
        self._fold_classes: list[tuple[int, ...]] = []
        for kind in FOLDS:
            first = len(self._objects) + 1
            for name, parts in self._kinds[kind].items():
                for part, lists in parts.items():
                    if lists["train"] and lists["val"] and f"{name}+{part}" != LEFT_OUT:
                        self._objects[len(self._objects) + 1] = name, part
            self._fold_classes.append(tuple(range(first, len(self._objects) + 1)))
            if len(self._objects) < first:
                raise UserError(
                    f"{self.home / _LISTS} has no part of kind '{kind}' with images in train and val. Get it again."
                )
        self.class_names = {c: "+".join(names) for c, names in self._objects.items()}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The parts of the fold's kind of object; raises `UserError` for a fold outside 0..3."""
        if not 0 <= fold < self.n_folds:
            raise UserError(f"Fold {fold} does not exist: expected 0..3. Choose one of these folds.")
        return self._fold_classes[fold]

    def hsnet_count(self, fold: int) -> int:
        """As many as the lists of the fold's kind have entries, classes that are left out counted too, at most 2500."""
        lists = (lists["val"] for parts in self._kinds[FOLDS[fold]].values() for lists in parts.values())
        return min(MOST_EPISODES, sum(map(len, lists)))

    def photographs(self, class_id: int) -> list[str]:
        """Names of the class's photographs in the order of the list file."""
        return self._listed(class_id, "test")

    def objects_in(self, class_id: int, photograph: str) -> list[tuple[str, bool]]:
        """(key, whether it shows the part) of each object of the class's kind in the photograph."""
        index, name = self.index("test"), self._objects[class_id][0]
        number, shows = _number(self._kinds, name), set(index.shown.get(class_id, {}).get(photograph, []))
        found = (i for i in index.objects_of.get(photograph, []) if index.places[i, 0] == number)
        return [(index.masks.names[i], i in shows) for i in found]

    def photograph_file(self, photograph: str) -> Path:
        """The photograph in VOC's JPEGImages."""
        return self.home / "JPEGImages" / f"{photograph}.jpg"

    def source(self, split: Split) -> Path:
        """The folder of annotations, the same for both splits."""
        return self.home / _ANNOTATIONS

    def _listed(self, class_id: int, split: Split) -> list[str]:
        name, part = self._objects[class_id]
        kind = next(kind for kind in FOLDS if class_id in self._fold_classes[FOLDS.index(kind)])
        return self._kinds[kind][name][part][_SPLITS[split]]

    def load(self, split: Split) -> PartIndex:
        """The objects of all photographs that a class of the split lists."""
        names = sorted({name for c in self.class_names for name in self._listed(c, split)})
        digest = hashlib.sha256(json.dumps(self._kinds).encode())
        files = [self.source(split) / f"{name}.json" for name in names]
        for path in files:
            if not path.is_file():
                raise UserError(
                    f"{path} does not exist, but {_LISTS} lists its image. Unpack PASCAL-Part's annotations again."
                )
            stat = path.stat()
            digest.update(f"{path.name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        classes = {names: c for c, names in self._objects.items()}
        kinds = {name: _number(self._kinds, name) for name, _ in classes}

        def read() -> list[AnnotatedObject]:
            found = parallel_map(partial(_read_objects, classes, kinds), files, "reading PASCAL-Part's annotations")
            return [one for several in found for one in several]

        return load_parts(read, self.class_names, digest.hexdigest(), self.source(split))


_Lists = dict[str, dict[str, dict[str, dict[str, list[str]]]]]
"""Kind -> object -> part -> `train` and `val` -> image names."""


def _number(kinds: _Lists, name: str) -> int:
    """The place of an object's name in the list file."""
    return [known for kind in FOLDS for known in kinds[kind]].index(name)


def _read_lists(path: Path) -> _Lists:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            kind: {
                name: {
                    part: {s: list(map(str, lists[s])) for s in ("train", "val")}
                    for part, lists in found["part"].items()
                }
                for name, found in content[kind]["object"].items()
            }
            for kind in FOLDS
        }
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist. Unpack VOC 2010 and PASCAL-Part's merged annotations there (docs/data.md), or set root."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not PASCAL-Part's list of parts ({type(error).__name__}: {error}), expected kind, object, part, train and "
            "val. Get it again."
        ) from None


def _read_objects(classes: dict[tuple[str, str], int], kinds: dict[str, int], path: Path) -> list[AnnotatedObject]:
    """The objects of one annotation file whose parts are classes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["object"]
        return [
            _object(path.stem, number, each, classes, kinds)
            for number, each in enumerate(found)
            if each["name"] in kinds
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no annotation of PASCAL-Part ({type(error).__name__}: {error}), expected objects with name, bndbox and "
            "parts. Unpack the annotations again."
        ) from None


def _object(
    photograph: str, number: int, content: dict[str, Any], classes: dict[tuple[str, str], int], kinds: dict[str, int]
) -> AnnotatedObject:
    name, box = content["name"], content["bndbox"]
    parts = [
        (classes[name, part["name"]], code)
        for part in content["parts"]
        if (name, part["name"]) in classes
        for code in part["mask"]
    ]
    height, width = parts[0][1]["size"] if parts else (0, 0)
    left, top, right, bottom = (int(box[side]) for side in ("xmin", "ymin", "xmax", "ymax"))
    size = int(height), int(width)
    return AnnotatedObject(
        photograph, f"{photograph}:{number}", kinds[name], size, (left, top, right, bottom), tuple(parts)
    )


class PASCALPart(EpisodicDataModule):
    """Episodes of PASCAL-Part; classes and layout are described at `PASCALPartDataset`.

    Args:
        root: folder with VOC 2010 and the parts; null: `$FSSBENCH_DATA/Pascal-Part`, else `data/Pascal-Part`.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def make_dataset(self) -> PASCALPartDataset:
        """PASCAL-Part at the configured place."""
        return PASCALPartDataset(data_root(self.root, "Pascal-Part"))

    def number_of_folds(self) -> int:
        """Four, known without opening a file."""
        return PASCALPartDataset.n_folds
