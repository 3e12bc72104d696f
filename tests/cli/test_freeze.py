"""`fssbench episodes freeze` for every shipped data set, in its official layout, through its shipped config."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fssbench.cli import main
from fssbench.cli.configs import packaged_folder
from fssbench.protocols.manifest import load_manifest
from tests.data.coco import make_coco
from tests.data.davis import make_davis
from tests.data.folder import make_folder
from tests.data.fss1000 import CLASSES, make_fss1000, write_lists
from tests.data.isaid import make_isaid
from tests.data.lvis import make_lvis, make_paco
from tests.data.pascal import make_pascal
from tests.data.pascal_part import make_pascal_part
from tests.datamodules.test_cross_domain import make_chest, make_deepglobe, make_isic, make_suim


def fss1000(root: Path) -> None:
    make_fss1000(root)
    write_lists(root / "splits", CLASSES[:2], CLASSES[2:4], CLASSES[4:])


SETS: dict[str, tuple[Callable[[Path], object], int, int, list[str]]] = {
    "chestxray": (make_chest, 1, 1, []),
    "coco20i": (lambda root: make_coco(root, classes=8), 4, 8, ["--data.small_classes", "leave-out"]),
    "coco2pascal": (lambda root: make_pascal(root, val=3, train=1, sbd=1), 4, 20, []),
    "davis17": (make_davis, 1, 3, []),
    "deepglobe": (make_deepglobe, 1, 6, []),
    "folder": (make_folder, 1, 4, []),
    "fss1000": (fss1000, 1, 2, []),
    "isaid5i": (make_isaid, 3, 15, []),
    "isic2018": (make_isic, 1, 3, []),
    "lvis92i": (lambda root: make_lvis(root, dict.fromkeys(range(1, 13), 3)), 10, 10, []),
    "paco_part": (make_paco, 4, 7, []),
    "pascal5i": (lambda root: make_pascal(root, val=3, train=1, sbd=1), 4, 20, []),
    "pascal_part": (make_pascal_part, 4, 8, []),
    "shapes": (lambda root: root.mkdir(), 4, 0, []),
    "suim": (make_suim, 1, 7, []),
}
"""Config -> how to make a tiny tree, number of folds, number of tested classes (0: not counted), options."""


def test_no_data_set_is_forgotten() -> None:
    shipped = {path.stem for path in (packaged_folder() / "data").glob("*.yaml")}
    assert shipped == {*SETS, "images"}, "images has no episodes"


@pytest.mark.parametrize("name", SETS)
def test_all_folds_and_shots_by_one_command(name: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, folds, classes, options = SETS[name]
    make(here / "data")
    options = [*options, *([] if name == "shapes" else ["--data.root", "data"])]
    options += [] if name == "davis17" else ["--data.episodes_per_class", "2"]
    assert main(["episodes", "freeze", "--config", f"data/{name}.yaml", *options, "--shots", "1", "2", "5000"]) == 0
    assert "5000-shot left out" in capsys.readouterr().out
    (listing,) = (here / "episodes").glob("*.json")
    hashes = json.loads(listing.read_text())
    shots = {1} if name == "davis17" else {1, 2}
    assert {tuple(map(int, re.findall(r"_fold(\d+)_shot(\d+)", file)[0])) for file in hashes} == {
        (fold, shot) for fold in range(folds) for shot in shots
    }
    tested: set[int] = set()
    for file, entry in hashes.items():
        manifest = load_manifest(here / "episodes" / file)
        assert manifest.sha256 == entry["sha256"]
        assert manifest.header.protocol == ("one-shot-video" if name == "davis17" else "clean-v1")
        if manifest.header.shot == 1:
            tested |= set(manifest.class_ids)
    assert len(tested) == classes or not classes
