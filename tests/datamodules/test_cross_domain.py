"""The cross-domain sets in their official layouts: pairs, classes, episodes, and what is said about wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.chestxray import ChestXrayDataset
from datamodules.class_folders import ClassFoldersDataset
from datamodules.deepglobe import DeepglobeDataset
from datamodules.isic import CLASS_NAMES as LESIONS
from datamodules.isic import ISICDataset
from datamodules.suim import CLASS_NAMES as SEA
from datamodules.suim import SUIMDataset
from fssbench.errors import UserError
from fssbench.protocols import hsnet_compat
from fssbench.protocols.manifest import build_manifest


def save(path: Path, value: int | None, size: tuple[int, int] = (40, 48)) -> None:
    """A photograph, or a mask with a square of `value` (0: empty)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(size if value is not None else (*size, 3), np.uint8)
    pixels[5:25, 5:25] = 200 if value is None else value
    Image.fromarray(pixels).save(path)


def make_deepglobe(root: Path) -> None:
    for c in range(1, 7):
        for i in range(3):
            save(root / f"{c}/test/origin/{i}.jpg", None)
            save(root / f"{c}/test/groundtruth/{i}.png", 255)


def make_isic(root: Path) -> None:
    rows = ["image,class"]
    for i in range(9):
        name = f"ISIC_{i:07d}"
        save(root / f"ISIC2018_Task1-2_Training_Input/{name}.jpg", None)
        save(root / f"ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png", 255)
        rows.append(f"{name},{LESIONS[i % 3 + 1] if i % 2 else i % 3 + 1}")
    (root / "class_id.csv").write_text("\n".join(rows))


def make_chest(root: Path) -> None:
    for i in range(4):
        save(root / f"CXR_png/MCUCXR_{i}.png", None)
        save(root / f"masks/MCUCXR_{i}.png", 255)
        save(root / f"CXR_png/CHNCXR_{i}.png", None)
        if i:
            save(root / f"masks/CHNCXR_{i}_mask.png", 255)


def make_suim(root: Path) -> None:
    for i in range(4):
        save(root / f"images/d_{i}.jpg", None)
        for name in SEA.values():
            save(root / f"masks/{name}/d_{i}.png", 255 if i else 0)


SETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], ClassFoldersDataset], int, int]] = {
    "deepglobe": (make_deepglobe, DeepglobeDataset, 6, 18),
    "isic-2018": (make_isic, ISICDataset, 3, 9),
    "chest-xray": (make_chest, ChestXrayDataset, 1, 7),
    "suim": (make_suim, SUIMDataset, 7, 21),
}


@pytest.mark.parametrize("name", SETS)
def test_pairs_and_episodes(name: str, tmp_path: Path) -> None:
    make, kind, classes, pairs = SETS[name]
    make(tmp_path)
    data = kind(tmp_path)
    assert data.name == name
    assert (len(data.class_names), len(data.ordered_pairs(0))) == (classes, pairs)
    assert data.base_classes(0) == ()
    for class_id, key in data.ordered_pairs(0):
        assert data.read_mask(key, class_id).sum() == 400
        assert data.read_image(key).shape == (40, 48, 3)
    clean = build_manifest(data, 0, 1, episodes_per_class=2)
    assert len(clean.episodes) == 2 * classes
    compat = build_manifest(data, 0, 2, protocol="hsnet-compat")
    assert len(compat.episodes) == (21 if name == "suim" else 600)
    assert [e.class_id for e in compat.episodes[: classes + 1]] == [*data.class_names, 1]


def test_the_classes_take_turns_and_the_generator_is_hsnets() -> None:
    lists = {1: ["a", "b", "c"], 2: ["d", "e"]}
    random = np.random.RandomState(0)
    for number, (class_id, query, (support,)) in enumerate(hsnet_compat.class_cycle(lists, 7, 1)):
        assert class_id == number % 2 + 1
        assert query == random.choice(lists[class_id], 1, replace=False)[0]
        expected = query
        while expected == query:
            expected = random.choice(lists[class_id], 1, replace=False)[0]
        assert support == expected


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    make_chest(tmp_path / "chest")
    assert "CHNCXR_0.png" in ChestXrayDataset(tmp_path / "chest").skipped[0]
    make_suim(tmp_path / "suim")
    assert "7 empty masks" in SUIMDataset(tmp_path / "suim").skipped[0]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("deepglobe", lambda r: (r / "3/test/groundtruth/1.png").unlink(), r"1 images in .* have no mask"),
        ("deepglobe", lambda r: save(r / "3/test/groundtruth/1.png", 255, (9, 9)), "9x9"),
        ("isic-2018", lambda r: (r / "class_id.csv").unlink(), "class_id.csv does not exist"),
        ("isic-2018", lambda r: (r / "class_id.csv").write_text("ISIC_0000001,nevous\n"), "Did you mean 'nevus'"),
        ("isic-2018", lambda r: (r / "class_id.csv").write_text("ISIC_0000001,nevus\n"), "ISIC_0000000.jpg is not in"),
        ("chest-xray", lambda r: (r / "masks").rename(r / "other"), "masks does not exist"),
        ("suim", lambda r: save(r / "masks/RO/x.png", 255), "x.png has no image"),
        ("suim", lambda r: (r / "masks/RO").rename(r / "masks/other"), "RO does not exist"),
        ("suim", lambda r: [save(p, 0) for p in (r / "masks/RI").iterdir()], "no image with an object of class RI"),
    ],
)
def test_wrong_files_are_named(name: str, spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make, kind, _, _ = SETS[name]
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        kind(tmp_path)
