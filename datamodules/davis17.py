"""DAVIS-17 as one-shot video object segmentation (protocols.md 1.4): the first frame is the support of all later ones.

This is instance tracking, not few-shot segmentation of categories, and has a protocol of its own: `one-shot-video`. Frames
are independent of each other; methods with a memory belong to track `vos-memory`.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datamodules.episodic import EpisodicDataModule
from datamodules.places import data_root
from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError
from fssbench.images import read_image, read_index_mask
from fssbench.metrics.observers import Observer
from fssbench.metrics.video import VideoScores
from fssbench.protocols.profiles import ProtocolName


class DavisSequences:
    """Sequences of one official list, in `JPEGImages/480p/SEQ` and `Annotations/480p/SEQ` below `root` or `root/DAVIS`.

    Raises `UserError` where the list or a sequence is missing, a frame has no mask or a mask no photograph, or the first
    frame shows no object.
    """

    def __init__(self, root: Path, split: str = "val", year: str = "2017") -> None:
        self.home = self._home(root)
        path = self.home / "ImageSets" / year / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"The list {path} is missing. Unpack DAVIS-2017-trainval-480p.zip there, or set root.")
        self.names = tuple(path.read_text(encoding="utf-8").split())
        if not self.names or len(set(self.names)) < len(self.names):
            raise UserError(f"{path} is empty or lists a sequence twice. Unpack DAVIS again.")
        self._frames = {name: self._listing(name) for name in self.names}
        self._objects: dict[str, int] = {}

    @staticmethod
    def _home(root: Path) -> Path:
        home = next((place for place in (root, root / "DAVIS") if (place / "JPEGImages" / "480p").is_dir()), None)
        if home is None:
            raise UserError(f"{root} holds no DAVIS, expected JPEGImages/480p in it or in DAVIS. Correct root.")
        return home

    @classmethod
    def has_list(cls, root: Path, split: str) -> bool:
        """Whether the list of a split is there."""
        return (cls._home(root) / "ImageSets" / "2017" / f"{split}.txt").is_file()

    def frames(self, name: str) -> list[str]:
        """Names of a sequence's frames in order, e.g. `00000`."""
        return list(self._frames[name])

    def objects(self, name: str) -> int:
        """Number of objects: the highest id in the first frame."""
        if name not in self._objects:
            first = self.index_map(name, self._frames[name][0])
            count = int(first.max())
            if not count:
                raise UserError(
                    f"The first mask of sequence {name} in {self.home} shows no object. Unpack DAVIS again."
                )
            self._objects[name] = count
        return self._objects[name]

    def index_map(self, name: str, frame: str) -> np.ndarray:
        """(H0, W0) uint8 object ids; void (255) is background, as in the official scoring."""
        ids = read_index_mask(self.home / "Annotations" / "480p" / name / f"{frame}.png")
        return np.where(ids == 255, 0, ids).astype(np.uint8)

    def image_file(self, name: str, frame: str) -> Path:
        """The photograph of a frame."""
        return self.home / "JPEGImages" / "480p" / name / f"{frame}.jpg"

    def _listing(self, name: str) -> list[str]:
        folders = self.home / "JPEGImages" / "480p" / name, self.home / "Annotations" / "480p" / name
        images, masks = (
            {path.stem for path in folder.glob(f"*{end}")}
            for folder, end in zip(folders, (".jpg", ".png"), strict=True)
        )
        if not images or images != masks:
            odd = sorted(images ^ masks)
            detail = f"frame {odd[0]} is in one of them only" if odd else "there are no frames"
            raise UserError(f"{folders[0]} and {folders[1]} do not fit ({detail}). Unpack DAVIS again.")
        return sorted(images)


class DAVIS17Dataset(FewShotDataset):
    """Each object of each sequence is a class; a key is `SEQ/FRAME`, a label `SEQ:OBJECT`.

    There is one fold, and nothing is trained on. Masks are {0, 1}: void pixels are background, as in the official scoring.
    """

    name: ClassVar[str] = "davis-17"
    n_folds = 1
    episodes_per_class = 1
    mask_renderer = "davis-index"
    class_partition = "objects"
    protocols = ("one-shot-video",)

    def __init__(self, root: str | Path, split: str = "val") -> None:
        self.sequences = DavisSequences(Path(root).expanduser(), split)
        objects = [
            (name, number + 1) for name in self.sequences.names for number in range(self.sequences.objects(name))
        ]
        self._objects = dict(enumerate(objects, start=1))
        self.class_names = {class_id: f"{name}:{number}" for class_id, (name, number) in self._objects.items()}
        self.image_filter = f"sequences-{split}"

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """All objects."""
        return tuple(self.class_names)

    def label(self, class_id: int) -> str:
        """`SEQ:OBJECT`."""
        return self.class_names[class_id]

    def object_of(self, class_id: int) -> tuple[str, int]:
        """Sequence and object id of a class."""
        return self._objects[class_id]

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """All frames of the object's sequence, whether it is seen there or not; none for training."""
        name, _ = self._objects[class_id]
        return [f"{name}/{frame}" for frame in self.sequences.frames(name)] if split == "test" else []

    def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
        """(class id, key) of all frames but the first of each sequence: by sequence, frame, object."""
        pairs = []
        for name in self.sequences.names:
            classes = [c for c, (sequence, _) in self._objects.items() if sequence == name]
            pairs += [(c, f"{name}/{frame}") for frame in self.sequences.frames(name)[1:] for c in classes]
        return pairs

    def read_image(self, key: str) -> np.ndarray:
        """(H0, W0, 3) uint8 RGB."""
        return read_image(self.sequences.image_file(*self._parts(key)))

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1}: the object, all 0 where it is not seen."""
        name, number = self._objects[class_id]
        sequence, frame = self._parts(key)
        return (self.sequences.index_map(sequence, frame) == number).astype(np.uint8) * (sequence == name)

    def _parts(self, key: str) -> tuple[str, str]:
        name, _, frame = key.partition("/")
        if name not in self.sequences.names or frame not in self.sequences.frames(name):
            raise UserError(f"DAVIS-17 has no frame '{key}'. Build the episodes again from the same files.")
        return name, frame


class DAVIS17(EpisodicDataModule):
    """Episodes of DAVIS-17, for `test` and `predict`; see `DAVIS17Dataset`.

    Args:
        root: folder with JPEGImages, Annotations and ImageSets, or the one above; null: `$FSSBENCH_DATA/DAVIS`, else
            `data/DAVIS`.
        split: list of sequences, `val` or `train`.
        protocol: `one-shot-video`, the only one defined here.
        kwargs: what every data module takes.
    """

    def __init__(
        self, root: str | None = None, split: str = "val", protocol: ProtocolName = "one-shot-video", **kwargs: Any
    ) -> None:
        super().__init__(protocol=protocol, **kwargs)
        self.root, self.split = root, split

    def make_dataset(self) -> DAVIS17Dataset:
        """DAVIS-17 at the configured place."""
        return DAVIS17Dataset(data_root(self.root, "DAVIS"), self.split)

    def number_of_folds(self) -> int:
        """One, known without opening a file."""
        return DAVIS17Dataset.n_folds

    @cached_property
    def observers(self) -> tuple[Observer, ...]:
        """J, F and J&F of the test, from the objects of each frame merged into one map, and what was asked for."""
        return (self.video, *super().observers)

    @cached_property
    def video(self) -> VideoScores:
        """The scores of the last test."""
        dataset = self.dataset
        assert isinstance(dataset, DAVIS17Dataset)
        return VideoScores(dataset.object_of, {n: dataset.sequences.frames(n) for n in dataset.sequences.names})
