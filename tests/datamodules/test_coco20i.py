"""COCO-20i from the official files: folds, candidates, images, and what is said about wrong files."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from datamodules.coco20i import CLASS_NAMES, OFFICIAL_IDS, COCO20iDataset
from fssbench.errors import UserError
from tests.data.coco import compressed, make_coco, object_mask, polygon, uncompressed
from tests.datamodules.coco import SINGLE, one_image
from tests.shared import SHARED, needs_shared

pytestmark = pytest.mark.usefixtures("own_cache")


# -- classes and folds ------------------------------------------------------------------------------------------------


def test_folds_of_both_partitions(official_coco: Path) -> None:
    interleaved, contiguous = COCO20iDataset(official_coco), COCO20iDataset(official_coco, partition="contiguous")
    assert interleaved.novel_classes(0)[:3] == (1, 5, 9)
    assert interleaved.novel_classes(3)[-1] == 80
    assert [interleaved.class_names[c] for c in interleaved.novel_classes(2)[-2:]] == ["clock", "hair drier"]
    assert contiguous.novel_classes(1) == tuple(range(21, 41))
    for dataset in (interleaved, contiguous):
        assert sorted(c for fold in range(4) for c in dataset.novel_classes(fold)) == list(range(1, 81))
        assert len(dataset.base_classes(1)) == 60
        assert not set(dataset.base_classes(1)) & set(dataset.novel_classes(1))
    assert (interleaved.class_partition, contiguous.class_partition) == ("interleaved", "contiguous")


def test_wrong_fold_and_partition(official_coco: Path) -> None:
    with pytest.raises(UserError, match=r"Fold 4 does not exist: expected 0\.\.3"):
        COCO20iDataset(official_coco).novel_classes(4)
    with pytest.raises(UserError, match="Did you mean 'interleaved'"):
        COCO20iDataset(official_coco, partition="interleave").novel_classes(0)  # type: ignore[arg-type]


def test_official_ids_are_sorted_with_gaps() -> None:
    ids = dict(zip(CLASS_NAMES, OFFICIAL_IDS, strict=True))
    assert (ids["person"], ids["stop sign"], ids["parking meter"], ids["toothbrush"]) == (1, 13, 14, 90)


def test_the_partitions_have_names_of_their_own(official_coco: Path) -> None:
    contiguous = COCO20iDataset(official_coco, partition="contiguous")
    assert (contiguous.name, contiguous.draw_name) == ("coco-20i-contiguous", "coco-20i")
    assert COCO20iDataset(official_coco).name == "coco-20i"


# -- candidates and reading -------------------------------------------------------------------------------------------


def test_candidates_are_large_enough_and_sorted_by_key(official_coco: Path) -> None:
    dataset = COCO20iDataset(official_coco)
    # ids fall as classes rise: class 1 has the three highest
    assert dataset.candidates(1, "test") == [f"val2014/COCO_val2014_00000000{n}.jpg" for n in (1122, 1123, 1124)]
    assert dataset.candidates(8, "train") == [f"train2014/COCO_train2014_00000000{n:04d}.jpg" for n in (101, 102, 103)]
    assert dataset.candidates(9, "test") == []
    everything = COCO20iDataset(official_coco, min_pixels=0)
    assert len(everything.candidates(2, "test")) == 6  # 3 large objects, 3 small ones in images of class 1
    assert len(COCO20iDataset(official_coco, min_pixels=56 * 64).candidates(2, "test")) == 3
    assert len(COCO20iDataset(official_coco, min_pixels=56 * 64 + 1).candidates(2, "test")) == 0
    assert (dataset.image_filter, everything.image_filter) == ("min-pixels-2048", "min-pixels-0")
    assert (dataset.name, dataset.mask_renderer, dataset.episodes_per_class, dataset.n_folds) == (
        "coco-20i",
        "clean",
        100,
        4,
    )
    assert dataset.skipped == []


def test_images_and_masks_fit(official_coco: Path) -> None:
    dataset = COCO20iDataset(official_coco)
    for split in ("train", "test"):
        for turn, key in enumerate(reversed(dataset.candidates(3, split))):
            image, mask = dataset.read_image(key), dataset.read_mask(key, 3)
            assert image.dtype == mask.dtype == np.uint8
            assert image.shape == (*mask.shape, 3)
            np.testing.assert_array_equal(mask == 1, object_mask(*mask.shape, turn))
            assert set(np.unique(mask)) == ({0, 1, 255} if turn == 0 else {0, 1})
    assert dataset.label(3) == "03"
    assert dataset.episode_name(key) == key


def test_one_file_for_both_splits(tmp_path: Path) -> None:
    make_coco(tmp_path, classes=2, layout="single")
    dataset = COCO20iDataset(tmp_path, **SINGLE)
    assert dataset.candidates(1, "train") == dataset.candidates(1, "test")
    assert dataset.candidates(1, "test")[0] == "images/000000000104.jpg"
    assert dataset.read_image("images/000000000104.jpg").shape == (104, 104, 3)


def test_testing_needs_no_training_files(tmp_path: Path) -> None:
    make_coco(tmp_path, classes=2)
    shutil.rmtree(tmp_path / "train2014")
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    dataset = COCO20iDataset(tmp_path)
    assert dataset.read_mask(dataset.candidates(1, "test")[0], 1).any()
    with pytest.raises(UserError, match=r"image folder .*train2014 does not exist.*train2014\.zip"):
        dataset.candidates(1, "train")


def test_workers_get_a_copy(official_coco: Path) -> None:
    dataset = COCO20iDataset(official_coco)
    key = dataset.candidates(1, "test")[0]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read_mask(key, 1), dataset.read_mask(key, 1))


@needs_shared
def test_coco328_counts_and_masks() -> None:
    root = SHARED / "data" / "coco328"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    dataset = COCO20iDataset(root, **SINGLE)
    counts = [[len(dataset.candidates(c, "test")) for c in dataset.novel_classes(fold)] for fold in range(4)]
    assert [sum(fold) for fold in counts] == [313, 138, 121, 115]
    assert [sum(n >= 2 for n in fold) for fold in counts] == [16, 20, 16, 18]
    assert [sum(n >= 6 for n in fold) for fold in counts] == [10, 9, 10, 13]
    assert dataset.skipped == []

    reference = COCO(str(root / SINGLE["test_annotations"]))
    ids = {image["file_name"]: image["id"] for image in reference.dataset["images"]}
    checked = crowds = 0
    for class_id in (1, 47, 57):  # person, banana, chair: most crowds
        for key in dataset.candidates(class_id, "test")[:40]:
            found = reference.getAnnIds([ids[key.partition("/")[2]]], [OFFICIAL_IDS[class_id - 1]])
            objects = reference.loadAnns(found)
            expected = np.zeros(dataset.read_image(key).shape[:2], np.uint8)
            for thing in sorted(objects, key=lambda a: -a["iscrowd"]):
                expected[reference.annToMask(thing) == 1] = 255 if thing["iscrowd"] else 1
            np.testing.assert_array_equal(dataset.read_mask(key, class_id), expected)
            checked, crowds = checked + 1, crowds + int((expected == 255).any())
    assert checked > 60
    assert crowds >= 1


# -- wrong files -------------------------------------------------------------------------------------------------------


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def _json(root: Path) -> Path:
    return root / "annotations" / "instances.json"


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: _json(root).unlink(), r"instances\.json does not exist.*annotations_trainval2014\.zip"),
    (lambda root: _json(root).write_text('{"images": ['), r"instances\.json is not valid JSON"),
    (lambda root: _json(root).write_text("[]"), r"instances\.json is not a COCO instances JSON"),
    (lambda root: change(_json(root), lambda c: c.pop("categories")), r"not a COCO instances JSON .*'categories'"),
    (lambda root: change(_json(root), lambda c: c["images"][0].pop("height")), r"not a COCO instances JSON .*'height'"),
    (
        lambda root: change(_json(root), lambda c: c["categories"][0].update(name="horse")),
        r"category 1 is 'horse', COCO's is 'person'.*folder data set",
    ),
    (
        lambda root: change(_json(root), lambda c: c["categories"].append({"id": 12, "name": "sign"})),
        r"category 12 is 'sign', COCO's is 'unused'",
    ),
    (
        lambda root: change(_json(root), lambda c: c["annotations"][0].update(image_id=77)),
        r"annotation 10 names image 77 and category 1",
    ),
    (
        lambda root: change(
            _json(root), lambda c: c["annotations"][0].update(segmentation=compressed(np.ones((30, 40), bool)))
        ),
        r"annotation 10 has no segmentation that fits its image of 80x60",
    ),
    (
        lambda root: change(_json(root), lambda c: c["annotations"][0].update(segmentation=[1, 2, 3, 4, 5, 6])),
        r"annotation 10 has no segmentation that fits",
    ),
    (
        lambda root: change(_json(root), lambda c: c["annotations"][0]["segmentation"].update(counts=[7, 8])),
        r"annotation 10 has no segmentation that fits",
    ),
    (lambda root: change(_json(root), lambda c: c["images"].append(c["images"][0])), r"lists the image a\.jpg twice"),
    (
        lambda root: change(_json(root), lambda c: c["images"].append({**c["images"][0], "file_name": "b.jpg"})),
        r"gives the same id to several images",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG)
def test_wrong_annotations_are_named(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    square = np.zeros((60, 80), bool)
    square[10:40, 10:40] = True
    dataset = one_image(tmp_path, [{"category_id": 1, "segmentation": uncompressed(square)}])
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        dataset.candidates(1, "test")
    assert str(_json(tmp_path)) in str(error.value)


def test_wrong_images_are_named(tmp_path: Path) -> None:
    square = np.zeros((60, 80), bool)
    square[10:40, 10:40] = True
    dataset = one_image(tmp_path, [{"category_id": 1, "segmentation": polygon(square)}])
    with pytest.raises(UserError, match=r"no image 'val2014/a\.jpg' \(keys here start with images/\)"):
        dataset.read_image("val2014/a.jpg")
    Image.new("RGB", (60, 80)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg is 60x80 pixels, .*instances\.json says 80x60.*original images"):
        dataset.read_image("images/a.jpg")
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"a\.jpg does not exist"):
        dataset.read_image("images/a.jpg")


def test_ambiguous_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same folder name"):
        COCO20iDataset(tmp_path, train_images="train/images", test_images="test/images")
    one_image(tmp_path, [])
    shutil.copy(_json(tmp_path), tmp_path / "annotations" / "train.json")
    dataset = COCO20iDataset(tmp_path, **{**SINGLE, "train_annotations": "annotations/train.json"})
    with pytest.raises(UserError, match=r"train\.json and .*instances\.json both list images/a\.jpg"):
        dataset.read_mask("images/a.jpg", 1)
