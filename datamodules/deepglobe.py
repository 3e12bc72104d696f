"""Deepglobe land cover as a cross-domain set (PATNet; protocols.md 1.5): six classes of 408x408 patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.class_folders import ClassFoldersDataset, paired
from datamodules.episodic import EpisodicDataModule
from datamodules.places import data_root

CLASS_NAMES = {1: "urban", 2: "agriculture", 3: "rangeland", 4: "forest", 5: "water", 6: "barren"}


class DeepglobeDataset(ClassFoldersDataset):
    """PATNet's patches: `root/CLASS/test/origin` and `root/CLASS/test/groundtruth`, CLASS from 1 to 6, files of the same
    names. A key is `CLASS/NAME`. Raises `UserError` where a folder or a mask is missing."""

    name: ClassVar[str] = "deepglobe"
    episodes_per_class = 100

    def __init__(self, root: str | Path) -> None:
        super().__init__(CLASS_NAMES)
        root = Path(root).expanduser()
        for class_id in self.class_names:
            folder = root / str(class_id) / "test"
            for image, mask in paired(folder / "origin", folder / "groundtruth", lambda stem: stem):
                self.add(class_id, f"{class_id}/{image.name}", image, mask)
        self.close(root)


class Deepglobe(EpisodicDataModule):
    """Episodes of Deepglobe, for `test` and `predict`; the layout is described at `DeepglobeDataset`.

    Args:
        root: folder with 1 to 6; null: `$FSSBENCH_DATA/Deepglobe`, else `data/Deepglobe`.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def make_dataset(self) -> DeepglobeDataset:
        """Deepglobe at the configured place."""
        return DeepglobeDataset(data_root(self.root, "Deepglobe"))

    def number_of_folds(self) -> int:
        """One."""
        return 1
