"""The part of `fssbench doctor` about data sets: which are there, which are prepared and still as prepared, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from fssbench.errors import UserError
from fssbench.files import data_folder
from fssbench.preparation import seal

if TYPE_CHECKING:
    from datamodules.recipes import Recipe

COCO_ZIPS = "http://images.cocodataset.org/zips/"
COCO_IMAGES = {"train2014": 82783, "val2014": 40504}
COCO_JSONS = tuple(f"annotations/instances_{folder}.json" for folder in COCO_IMAGES)
COCO_JSON_ZIP = "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
FSS1000_PAGE = "https://github.com/HKUSTCV/FSS-1000"
OTHERS = {
    "LVIS-92i": "LVIS", "PASCAL-Part": "Pascal-Part", "PACO-Part": "PACO-Part", "iSAID-5i": "iSAID", "Deepglobe": "Deepglobe",
    "ISIC 2018": "ISIC2018", "Chest X-ray": "LungSegmentation", "SUIM": "SUIM",
}  # fmt: skip
"""Data sets that are read as they are and not prepared -> their folder."""


class Finding(NamedTuple):
    """One line of the report: `state` is `ok`, `missing` or `wrong`; `then` says what to do next where it is not ok."""

    state: str
    what: str
    then: str = ""


def datasets() -> list[Finding]:
    """The shipped data sets: prepared ones are checked against what was signed off, of others which pieces are there."""
    found = [Finding("ok", "Shapes: generated, nothing to download")]
    try:
        from datamodules.recipes import RECIPES
    except ImportError as error:
        return [*found, Finding("wrong", f"data sets cannot be read: {error}", "see versions above")]
    pieces: dict[str, Callable[[Path], list[Finding]]] = {
        "coco20i": coco, "fss1000": lambda root: [fss1000(root)], "pascal5i": pascal, "davis17": davis,
    }  # fmt: skip
    for name, recipe in RECIPES.items():
        root = data_folder() / recipe.folder
        found += prepared(name, recipe, root) or pieces[name](root)
    there = {name: data_folder() / folder for name, folder in OTHERS.items() if (data_folder() / folder).is_dir()}
    found += [Finding("ok", f"{name} {path}: there, read when it is used") for name, path in there.items()]
    absent = [name for name in OTHERS if name not in there]
    if absent:
        then = "nothing, unless you need them: docs/data.md says where they come from and how they are laid out"
        found.append(Finding("missing", f"{', '.join(absent)} in {data_folder()}", then))
    return found


def prepared(name: str, recipe: Recipe, root: Path) -> list[Finding]:
    """What was signed off for a data set and whether it still holds; empty where nothing was."""
    again = f"fssbench prepare {name} --root {quote(str(root))}"
    try:
        seal.refuse_unfinished(root)
        statement = seal.read_prepared(root)
        if statement is None:
            return []
        changed = seal.changes(statement, name, recipe.check(root, statement["training"], statement["complete"]))
    except UserError as error:
        return [Finding("wrong", f"{name} {root}: {error}", again)]
    if changed:
        return [Finding("wrong", f"{name} {root} changed since it was prepared: {', '.join(changed[:5])}", again)]
    extent = "complete" if statement["complete"] else "a part of the data set"
    extent += "" if statement["training"] else ", for testing only"
    lists = [found["published"] for found in statement["lists"].values()]
    equal = f"{lists.count(True)} of {len(lists)} lists are published ones" if any(lists) else f"{len(lists)} lists"
    return [Finding("ok", f"{name} {root}: as prepared on {statement['made']} ({extent}; {equal})")]


def coco(root: Path) -> list[Finding]:
    """The four pieces of COCO 2014; training images are needed for `fit` only."""
    found = []
    for folder, wanted in COCO_IMAGES.items():
        count = sum(name.endswith(".jpg") for name in os.listdir(root / folder)) if (root / folder).is_dir() else 0
        then = f"unpack {COCO_ZIPS}{folder}.zip in {root}, or `fssbench prepare coco20i --download`"
        state = "ok" if count == wanted else "wrong" if count else "missing"
        what = f"COCO {root / folder}: {count} of {wanted} images"
        found.append(Finding(state, what, "" if state == "ok" else then))
    for name in COCO_JSONS:
        state, then = ("ok", "") if (root / name).is_file() else ("missing", f"unpack {COCO_JSON_ZIP} in {root}")
        found.append(Finding(state, f"COCO {root / name}", then))
    return found


def fss1000(root: Path) -> Finding:
    """FSS-1000, as its own reader sees it."""
    if not root.is_dir():
        return Finding("missing", f"FSS-1000 {root}", f"unpack the data set of {FSS1000_PAGE} there")
    from datamodules.fss1000 import FSS1000Dataset

    try:
        dataset = FSS1000Dataset(root)
    except UserError as error:
        return Finding("wrong", f"FSS-1000 {root}", str(error))
    test, train = len(dataset.novel_classes(0)), len(dataset.base_classes(0))
    what = f"FSS-1000 {root}: {len(dataset.class_names)} classes, {test} for testing, {train} for training"
    return Finding("wrong", what, dataset.skipped[0]) if dataset.skipped else Finding("ok", what)


def pascal(root: Path) -> list[Finding]:
    """VOC 2012 and SBD; SBD is needed for `fit` only."""
    prepare = "fssbench prepare pascal5i --download"
    if not root.is_dir():
        return [Finding("missing", f"PASCAL-5i {root}", prepare)]
    from datamodules.voc_masks import VocFolders

    try:
        folders = VocFolders.below(root)
        names = {split: folders.names(split) for split in ("val", "train")}
    except UserError as error:
        return [Finding("wrong", f"PASCAL-5i {root}", str(error))]
    masks = (name for listed in names.values() for name in listed)
    absent = [name for name in masks if not (folders.mask_file(name).is_file() and folders.image_file(name).is_file())]
    counts = f"{len(names['val'])} images in val, {len(names['train'])} in train"
    if absent:
        voc = Finding(
            "wrong", f"PASCAL-5i {folders.voc}: {len(absent)} of {counts} lack image or mask ({absent[0]})", prepare
        )
    else:
        voc = Finding(
            "ok", f"PASCAL-5i {folders.voc}: {counts}, not prepared (`fssbench prepare pascal5i` checks the lists)"
        )
    sbd = (
        Finding("ok", f"PASCAL-5i {folders.sbd}")
        if folders.sbd
        else Finding("missing", f"PASCAL-5i: SBD in {root}", prepare)
    )
    return [voc, sbd]


def davis(root: Path) -> list[Finding]:
    """DAVIS-17, as its own reader sees it."""
    if not root.is_dir():
        return [Finding("missing", f"DAVIS-17 {root}", "fssbench prepare davis17 --download")]
    from datamodules.davis17 import DavisSequences

    try:
        data = DavisSequences(root)
        objects = sum(data.objects(name) for name in data.names)
    except UserError as error:
        return [Finding("wrong", f"DAVIS-17 {root}", str(error))]
    what = f"DAVIS-17 {data.home}: {len(data.names)} sequences and {objects} objects in val"
    return [Finding("ok", f"{what}, not prepared (`fssbench prepare davis17` checks them)")]
