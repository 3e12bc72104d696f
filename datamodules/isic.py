"""ISIC 2018 skin lesions as a cross-domain set (PATNet; protocols.md 1.5): three classes by a metadata file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, ClassVar

from datamodules.class_folders import ClassFoldersDataset, paired
from datamodules.episodic import EpisodicDataModule
from datamodules.places import data_root
from fssbench.errors import UserError, nearest

CLASS_NAMES = {1: "nevus", 2: "melanoma", 3: "seborrheic_keratosis"}
_IMAGES, _MASKS = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"


class ISICDataset(ClassFoldersDataset):
    """The official flat folders of task 1, and `class_id.csv` with the class of each image.

    `root/ISIC2018_Task1-2_Training_Input/NAME.jpg`, `root/ISIC2018_Task1_Training_GroundTruth/NAME_segmentation.png`, and a CSV
    whose rows hold an image name and a class, by name or by its number 1 to 3. A key is `NAME.jpg`. Raises `UserError` where
    a folder, a mask or the class of an image is missing.
    """

    name: ClassVar[str] = "isic-2018"
    episodes_per_class = 200

    def __init__(self, root: str | Path, classes: str | Path | None = None) -> None:
        super().__init__(CLASS_NAMES)
        root = Path(root).expanduser()
        of_image = read_classes(Path(classes).expanduser() if classes is not None else root / "class_id.csv")
        for image, mask in paired(root / _IMAGES, root / _MASKS, lambda stem: f"{stem}_segmentation"):
            if image.stem not in of_image:
                raise UserError(
                    f"The class of image {image.name} is not in the list of classes. Complete class_id.csv."
                )
            self.add(of_image[image.stem], image.name, image, mask)
        self.close(root)


def read_classes(path: Path) -> dict[str, int]:
    """Image name -> class id. Raises `UserError` for a missing file and an unknown class."""
    if not path.is_file():
        raise UserError(
            f"{path} does not exist, expected the class of each image. Take class_id.csv of PATNet or GF-SAM, or set classes."
        )
    names = {name: c for c, name in CLASS_NAMES.items()} | {str(c): c for c in CLASS_NAMES}
    found: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            cells = [cell.strip() for cell in row if cell.strip()]
            image = next((cell for cell in cells if cell.startswith("ISIC_")), None)
            if image is None:  # a heading or an empty line
                continue
            others = [cell for cell in cells if cell != image]
            class_id = next((names[cell] for cell in others if cell in names), None)
            if class_id is None:
                raise UserError(
                    f"{path}, line {number}: no class in '{','.join(row)}'.{nearest(others[-1] if others else '', names)}"
                )
            found[Path(image).stem.removesuffix("_segmentation")] = class_id
    return found


class ISIC(EpisodicDataModule):
    """Episodes of ISIC 2018, for `test` and `predict`; the layout is described at `ISICDataset`.

    Args:
        root: folder with the two official folders; null: `$FSSBENCH_DATA/ISIC2018`, else `data/ISIC2018`.
        classes: CSV file with the class of each image; null: `class_id.csv` in root.
        kwargs: what every data module takes.
    """

    def __init__(self, root: str | None = None, classes: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.classes = root, classes

    def make_dataset(self) -> ISICDataset:
        """ISIC at the configured place."""
        return ISICDataset(data_root(self.root, "ISIC2018"), self.classes)

    def number_of_folds(self) -> int:
        """One."""
        return 1
