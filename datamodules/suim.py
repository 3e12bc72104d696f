"""SUIM underwater images as a cross-domain set (ABCDFSS, INSID3; protocols.md 1.5): seven classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from datamodules.class_folders import ClassFoldersDataset, files_of
from datamodules.episodic import EpisodicDataModule
from datamodules.places import data_root
from fssbench.errors import UserError

CLASS_NAMES = dict(enumerate(("FV", "HD", "PF", "RI", "RO", "SR", "WR"), start=1))
"""Fish and vertebrates, human divers, plants, robots, reefs, sea floor and rocks, wrecks."""


class SUIMDataset(ClassFoldersDataset):
    """`root/images` and `root/masks/CLASS`, files of the same names; empty masks are dropped. A key is the image's file name.

    `hsnet-compat` has as many episodes as there are (image, class) pairs. Raises `UserError` where a folder is missing, or a
    mask has no image.
    """

    name: ClassVar[str] = "suim"
    episodes_per_class = 100
    hsnet_episodes = None

    def __init__(self, root: str | Path) -> None:
        super().__init__(CLASS_NAMES)
        root = Path(root).expanduser()
        images = {image.stem: image for image in files_of(root / "images")}
        for class_id, name in self.class_names.items():
            for mask in files_of(root / "masks" / name):
                if mask.stem not in images:
                    raise UserError(f"The mask {mask} has no image in {root / 'images'}. Unpack the data set again.")
                self.add(class_id, images[mask.stem].name, images[mask.stem], mask)
        self.close(root)


class SUIM(EpisodicDataModule):
    """Episodes of SUIM, for `test` and `predict`; the layout is described at `SUIMDataset`.

    Args:
        root: folder with images and masks; null: `$FSSBENCH_DATA/SUIM`, else `data/SUIM`.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root

    def make_dataset(self) -> SUIMDataset:
        """SUIM at the configured place."""
        return SUIMDataset(data_root(self.root, "SUIM"))

    def number_of_folds(self) -> int:
        """One."""
        return 1
