"""PACO-Part (Matcher; protocols.md 1.5): parts of LVIS objects in four folds, from PACO's official JSON files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.array_cache import cached_arrays
from datamodules.episodic import EpisodicDataModule
from datamodules.folds import novel_classes
from datamodules.parts import AnnotatedObject, PartIndex, PartsDataset, load_parts
from datamodules.places import data_root
from fssbench.dataset import Split
from fssbench.errors import TooFewImages, UserError
from fssbench.files import sha256_file, sha256_text


class PACOPartDataset(PartsDataset):
    """PACO-LVIS from `paco_lvis_v1_train.json` and `paco_lvis_v1_val.json`, on the images of COCO 2017.

    Classes are the part categories (`mug:handle`) with an annotation in the training file (448), by official id; they are
    dealt in turn to four folds of 112. Of a fold those with **more than K** test photographs are tested, so the classes
    depend on the number of supports; those with fewer are neither tested nor trained on in their fold.

    `hsnet-compat` is Matcher's way: 2500 episodes per fold, a class at random, a photograph of it, and one of its objects
    with the part; a support may come twice. Its own lists are a file of unstated order without a licence; here photographs
    are in the order of their names, so its numbers are to be compared as numbers of another draw.
    """

    name: ClassVar[str] = "paco-part"
    episodes_per_class = 25
    hsnet_queries = "object-uniform"
    hsnet_episodes = 2500

    def __init__(
        self,
        root: str | Path,
        images: str = "coco",
        train_annotations: str = "paco/paco_lvis_v1_train.json",
        test_annotations: str = "paco/paco_lvis_v1_val.json",
        shot: int = 1,
    ) -> None:
        super().__init__()
        root = Path(root).expanduser()
        self._images = root / images
        self._files: dict[Split, Path] = {"test": root / test_annotations, "train": root / train_annotations}
        self.class_names = _part_classes(self._files["train"])
        self._set_shot(shot)

    def _set_shot(self, shot: int) -> None:
        self.shot = shot
        self.class_partition = f"interleaved, classes with more than {shot} images"

    def for_shot(self, shot: int) -> PACOPartDataset:
        """The same files with the classes of `shot` supports."""
        other = copy.copy(self)
        other._set_shot(shot)
        return other

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """The classes tested in `fold`; raises `UserError` for a fold outside 0..3, and where no class has enough images."""
        shown = self.index("test").shown
        kept = tuple(c for c in self._of_fold(fold) if len(shown.get(c, ())) > self.shot)
        if not kept:
            raise TooFewImages(
                f"No part of fold {fold} has more than {self.shot} photographs in {self._files['test']}. Use fewer supports, or the "
                "official file."
            )
        return kept

    def base_classes(self, fold: int) -> tuple[int, ...]:
        """All classes of the other folds."""
        own = set(self._of_fold(fold))
        return tuple(c for c in self.class_names if c not in own)

    def _of_fold(self, fold: int) -> tuple[int, ...]:
        return novel_classes(sorted(self.class_names), fold, self.n_folds, "interleaved")

    def photograph_file(self, photograph: str) -> Path:
        """A photograph below the image folder, e.g. `val2017/000000397133.jpg`."""
        return self._images / photograph

    def source(self, split: Split) -> Path:
        """The JSON file of a split."""
        return self._files[split]

    def load(self, split: Split) -> PartIndex:
        """The objects of a split that have parts."""
        if not self._images.is_dir():
            raise UserError(f"The image folder {self._images} does not exist. Put COCO's train2017 and val2017 there.")
        path = self._files[split]
        classes = set(self.class_names)
        digest = sha256_text(f"{_sha256(path)} {sorted(classes)}")  # the training file says which are classes
        return load_parts(lambda: _objects(path, classes), self.class_names, digest, path)


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} does not exist. Unpack paco_lvis_v1.zip there, or set the path of the annotations.")
    return sha256_file(path)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: list(content[name]) for name in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _wrong(path, error) from None


def _wrong(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not a JSON of PACO-LVIS ({type(error).__name__}: {error}), expected images, categories, and annotations with "
        "obj_ann_id. Unpack it again."
    )


def _part_classes(path: Path) -> dict[int, str]:
    """Official id -> name of the categories with a part annotation, ascending; kept in the cache, since the file is large."""

    def make() -> dict[str, np.ndarray]:
        content = _read(path)
        try:
            used = {a["category_id"] for a in content["annotations"] if a["id"] != a["obj_ann_id"]}
            names = {int(c["id"]): str(c["name"]) for c in content["categories"] if c["id"] in used}
        except (KeyError, TypeError, ValueError) as error:
            raise _wrong(path, error) from None
        if len(names) < PACOPartDataset.n_folds:
            raise UserError(
                f"{path} has {len(names)} part categories with annotations, expected 448. Use the official file."
            )
        return {"names": np.frombuffer(json.dumps(sorted(names.items())).encode(), np.uint8)}

    arrays = cached_arrays(f"paco-classes-{_sha256(path)}", make, f"Reading {path}")
    return dict(json.loads(arrays["names"].tobytes()))


def _objects(path: Path, classes: set[int]) -> list[AnnotatedObject]:
    """The objects with parts, by photograph, then in the order of the file."""
    content = _read(path)
    try:
        images = {image["id"]: image for image in content["images"]}
        boxes = {a["id"]: a["bbox"] for a in content["annotations"] if a["id"] == a["obj_ann_id"]}
        parts: dict[tuple[int, int], list[tuple[int, Any]]] = {}
        for a in content["annotations"]:
            if a["id"] != a["obj_ann_id"] and a["category_id"] in classes:
                parts.setdefault((a["image_id"], a["obj_ann_id"]), []).append((a["category_id"], a["segmentation"]))
        objects = []
        for (image, number), found in parts.items():
            if image not in images or number not in boxes:
                raise UserError(
                    f"{path}: a part is of image {image} and object {number}, which are not both in the file. Unpack it again."
                )
            name, (left, top, width, height) = _name(images[image]), boxes[number]
            size = int(images[image]["height"]), int(images[image]["width"])
            box = int(left), int(top), int(left + width), int(top + height)
            objects.append(AnnotatedObject(name, f"{name}:{number}", 0, size, box, tuple(found)))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise _wrong(path, error) from None
    return sorted(objects, key=lambda found: found.photograph)


def _name(image: dict[str, Any]) -> str:
    """`FOLDER/FILE` of a photograph, as PACO or COCO states it."""
    name = str(image.get("file_name", ""))
    return name if "/" in name else "/".join(str(image["coco_url"]).split("/")[-2:])


class PACOPart(EpisodicDataModule):
    """Episodes of PACO-Part; classes and layout are described at `PACOPartDataset`.

    Args:
        root: folder with the JSON files and the images; null: `$FSSBENCH_DATA/PACO-Part`, else `data/PACO-Part`.
        images: folder with COCO's train2017 and val2017, below root.
        train_annotations: JSON of the training images, below root; also needed for testing: it names the classes.
        test_annotations: JSON of the test images, below root.
        kwargs: what every data module takes.
    """

    def __init__(
        self,
        root: str | None = None,
        images: str = "coco",
        train_annotations: str = "paco/paco_lvis_v1_train.json",
        test_annotations: str = "paco/paco_lvis_v1_val.json",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.files = (images, train_annotations, test_annotations)

    def make_dataset(self) -> PACOPartDataset:
        """PACO-Part at the configured place, with the classes of `shot` supports."""
        return PACOPartDataset(data_root(self.root, "PACO-Part"), *self.files, self.shot)

    def number_of_folds(self) -> int:
        """Four, known without opening a file."""
        return PACOPartDataset.n_folds
