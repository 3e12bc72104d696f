"""LVIS-92i: classes and folds that depend on K, masks of all objects, and what is said about wrong files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from datamodules.lvis92i import LVIS92i, LVIS92iDataset
from fssbench.errors import UserError
from fssbench.protocols.manifest import build_manifest, verify_manifest
from tests.data.lvis import make_lvis

COUNTS = {c: 1 if c in (3, 9) else 2 if c % 2 else 3 for c in range(1, 28)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lvis")
    make_lvis(folder, COUNTS)
    return folder


def test_classes_depend_on_the_number_of_supports(root: Path) -> None:
    one = LVIS92iDataset(root)
    kept = [c for c in COUNTS if c not in (3, 9)]  # 25, so two per fold
    assert [one.novel_classes(f) for f in range(10)] == [(kept[f], kept[10 + f]) for f in range(10)]
    two = one.for_shot(2)
    assert [two.novel_classes(f) for f in range(10)] == [(c,) for c in range(2, 21, 2)]
    assert one.novel_classes(0) == (1, 13), "the other is as it was"
    assert set(two.base_classes(0)) == set(COUNTS) - {2}
    assert (one.class_partition, two.class_partition) == tuple(
        f"interleaved, classes with more than {k} images" for k in (1, 2)
    )
    with pytest.raises(UserError, match="0 categories with more than 3 images"):
        one.for_shot(3).novel_classes(0)


def test_a_mask_holds_all_objects_of_the_class(root: Path) -> None:
    data = LVIS92iDataset(root)
    assert data.candidates(12, "test") == [f"val2017/{12000 + i:012d}.jpg" for i in range(3)]
    key = data.candidates(12, "test")[0]
    assert data.read_mask(key, 12).sum() == 10 * 12 + 6 * 8
    assert data.read_mask(key, 11).sum() == 0
    assert data.read_image(key).shape == (48, 64, 3)
    assert data.classes_in(key) == (12,)
    train = data.candidates(12, "train")
    assert train == [f"train2017/{12500 + i:012d}.jpg" for i in range(2)]
    assert data.read_mask(train[0], 12).any()
    assert LVIS92iDataset(root, min_pixels=500).candidates(12, "test") == []


def test_episodes_of_both_protocols_follow_the_shot(root: Path) -> None:
    module = LVIS92i(root=str(root), shot=1)
    clean = module.manifest(0, 1)
    assert (len(clean.episodes), set(clean.header.classes)) == (50, {"1", "13"})
    assert set(module.manifest(0, 2).header.classes) == {"2"}
    assert verify_manifest(clean, module.dataset) == []
    assert verify_manifest(clean, LVIS92i(root=str(root), shot=2).dataset) == []
    compat = build_manifest(module.dataset, 0, 1, protocol="hsnet-compat")
    assert len(compat.episodes) == 2300
    assert [e.class_id for e in compat.episodes[:4]] == [1, 13, 1, 13]


def test_testing_needs_no_training_file(tmp_path: Path) -> None:
    make_lvis(tmp_path, dict.fromkeys(range(1, 11), 2))
    (tmp_path / "lvis_v1_train.json").unlink()
    data = LVIS92iDataset(tmp_path)
    assert len(build_manifest(data, 3, 1).episodes) == 25
    assert data.read_image(data.candidates(4, "test")[0]).any()
    with pytest.raises(UserError, match=r"lvis_v1_train.json does not exist. Unpack lvis_v1_train.json.zip"):
        data.candidates(4, "train")
    with pytest.raises(UserError, match="no image 'val2017/1.jpg'"):
        data.read_image("val2017/1.jpg")


def _without(name: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        path = root / "lvis_v1_val.json"
        content = json.loads(path.read_text())
        for image in content["images"]:
            del image[name]
        path.write_text(json.dumps(content))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "lvis_v1_val.json").unlink(), "lvis_v1_val.json does not exist"),
        (lambda r: (r / "lvis_v1_val.json").write_text("{"), "is not valid JSON"),
        (lambda r: (r / "lvis_v1_val.json").write_text('{"images": []}'), "is not a COCO instances JSON"),
        (lambda r: (r / "coco").rename(r / "images"), "The image folder .* does not exist"),
        (_without("coco_url"), "KeyError: 'coco_url'"),
        (_without("height"), "KeyError: 'height'"),
    ],
)
def test_wrong_files_are_named(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make_lvis(tmp_path, dict.fromkeys(range(1, 11), 1))
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        LVIS92iDataset(tmp_path)


def test_a_photograph_of_another_size_is_refused(tmp_path: Path) -> None:
    make_lvis(tmp_path, dict.fromkeys(range(1, 11), 2))
    data = LVIS92iDataset(tmp_path)
    first, other = data.candidates(1, "test")[0], tmp_path / "other"
    other.mkdir()
    path = tmp_path / "coco" / first
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(UserError, match="is 9x9 pixels, .* says 64x48"):
        data.read_image(first)
