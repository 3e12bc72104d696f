"""Data sets, one file each. Classes are imported when first asked for."""

from importlib import import_module
from typing import Any

_WHERE = {
    "COCO20i": "datamodules.coco20i",
    "ChestXray": "datamodules.chestxray",
    "DAVIS17": "datamodules.davis17",
    "Deepglobe": "datamodules.deepglobe",
    "FSS1000": "datamodules.fss1000",
    "Folder": "datamodules.folder",
    "ISAID5i": "datamodules.isaid5i",
    "ISIC": "datamodules.isic",
    "Images": "datamodules.images",
    "LVIS92i": "datamodules.lvis92i",
    "PACOPart": "datamodules.paco_part",
    "PASCAL5i": "datamodules.pascal5i",
    "PASCALPart": "datamodules.pascal_part",
    "SUIM": "datamodules.suim",
    "Shapes": "datamodules.shapes",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'datamodules' has no attribute '{name}'")
