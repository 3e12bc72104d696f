"""Chest X-ray lungs as a cross-domain set (PATNet; protocols.md 1.5): one class, so its mIoU is a single IoU."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.class_folders import ClassFoldersDataset, paired
from datamodules.episodic import EpisodicDataModule
from datamodules.pairs import listing
from datamodules.places import data_root


class ChestXrayDataset(ClassFoldersDataset):
    """`root/CXR_png` and `root/masks`; a mask is called as its image, for one of the sources with `_mask` added. A key is
    the image's file name. Images without a mask are left out and listed: the official folders hold some."""

    name: ClassVar[str] = "chest-xray"
    episodes_per_class = 600

    def __init__(self, root: str | Path) -> None:
        super().__init__({1: "lung"})
        root = Path(root).expanduser()
        paired(root / "masks", root / "masks", lambda stem: stem)  # both folders are there
        masks = {path.stem: path for path in listing(root / "masks")}
        alone = []
        for image, _ in paired(root / "CXR_png", root / "CXR_png", lambda stem: stem):
            mask = masks.get(image.stem) or masks.get(f"{image.stem}_mask")
            if mask is None:
                alone.append(image.name)
            else:
                self.add(1, image.name, image, mask)
        if alone:
            self.skipped.append(f"{len(alone)} images without a mask left out, the first is {alone[0]}.")
        self.close(root)


class ChestXray(EpisodicDataModule):
    """Episodes of Chest X-ray, for `test` and `predict`; the layout is described at `ChestXrayDataset`.

    Args:
        root: folder with CXR_png and masks; null: `$FSSBENCH_DATA/LungSegmentation`, else `data/LungSegmentation`.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def make_dataset(self) -> ChestXrayDataset:
        """Chest X-ray at the configured place."""
        return ChestXrayDataset(data_root(self.root, "LungSegmentation"))

    def number_of_folds(self) -> int:
        """One."""
        return 1
