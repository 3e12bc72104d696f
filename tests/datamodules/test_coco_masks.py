"""The masks of COCO-20i: the clean renderer, the legacy one, and the cache of what they made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from datamodules import coco_index
from datamodules.coco20i import COCO20iDataset
from fssbench.errors import UserError
from tests.data.coco import compressed, make_coco, polygon, uncompressed
from tests.datamodules.coco import SINGLE, one_image

pytestmark = pytest.mark.usefixtures("own_cache")


# -- renderer `clean` ------------------------------------------------------------------------------------------------


def test_mask_is_the_union_of_all_kinds_of_segmentation(tmp_path: Path) -> None:
    parts = np.zeros((5, 60, 80), bool)
    for i, part in enumerate(parts):
        part[5 * i : 5 * i + 8, 10 * i : 10 * i + 15] = True
    dataset = one_image(
        tmp_path,
        [
            {"category_id": 1, "segmentation": polygon(parts[0]) + polygon(parts[1])},  # an object in two pieces
            {"category_id": 1, "segmentation": compressed(parts[2])},
            {"category_id": 1, "segmentation": uncompressed(parts[3])},
            {"category_id": 13, "segmentation": polygon(parts[4])},  # overlaps part 3: both classes keep the pixels
        ],
    )
    np.testing.assert_array_equal(dataset.read_mask("images/a.jpg", 1), parts[:4].any(0))
    np.testing.assert_array_equal(dataset.read_mask("images/a.jpg", 12), parts[4])
    assert not dataset.read_mask("images/a.jpg", 2).any()
    assert dataset.read_mask("images/a.jpg", 2).shape == (60, 80)


def test_crowds_of_the_class_are_ignored_where_no_object_is(tmp_path: Path) -> None:
    thing, crowd = np.zeros((2, 60, 80), bool)
    thing[10:20, 10:30] = True
    crowd[15:40, :] = True
    dataset = one_image(
        tmp_path,
        [
            {"category_id": 1, "segmentation": polygon(thing)},
            {"category_id": 1, "segmentation": uncompressed(crowd), "iscrowd": 1},
            {"category_id": 13, "segmentation": compressed(crowd), "iscrowd": 1},
        ],
    )
    expected = np.where(thing, 1, np.where(crowd, 255, 0))
    np.testing.assert_array_equal(dataset.read_mask("images/a.jpg", 1), expected)
    np.testing.assert_array_equal(dataset.read_mask("images/a.jpg", 12), 255 * crowd)
    assert dataset.candidates(1, "test") == ["images/a.jpg"]
    assert dataset.candidates(12, "test") == []  # crowds alone are no candidate
    dataset = COCO20iDataset(tmp_path, **SINGLE, min_pixels=201)
    assert dataset.candidates(1, "test") == []  # 200 pixels: those of the crowd do not count


def test_an_object_without_pixels_is_no_candidate(tmp_path: Path) -> None:
    speck = [[10.1, 10.1, 10.2, 10.1, 10.2, 10.2]]
    one_image(tmp_path, [{"category_id": 1, "segmentation": speck}])
    assert COCO20iDataset(tmp_path, **SINGLE, min_pixels=0).candidates(1, "test") == []


def test_polygons_without_area_are_left_out_and_reported(tmp_path: Path) -> None:
    line = [[10.0, 10.0, 30.0, 30.0]]  # pycocotools would draw a box
    dataset = one_image(tmp_path, [{"category_id": 1, "segmentation": line}, {"category_id": 13, "segmentation": []}])
    assert dataset.candidates(1, "test") == []
    assert not dataset.read_mask("images/a.jpg", 1).any()
    assert len(dataset.skipped) == 1
    assert "1 polygons with fewer than three points left out" in dataset.skipped[0]


# -- renderer `legacy` -----------------------------------------------------------------------------------------------


def legacy_image(root: Path, annotations: list[dict[str, Any]]) -> COCO20iDataset:
    one_image(root, annotations)
    (root / "val.txt").write_text("images/a.jpg\n")
    return COCO20iDataset(root, **SINGLE, min_pixels=1, protocol="bam-compat", lists=root / "val.txt")


def rectangle(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def test_legacy_masks_hold_one_label_per_pixel(tmp_path: Path) -> None:
    """Later objects cover earlier ones, only the first polygon counts, corners are cut, crowds are background."""
    crowd = np.zeros((60, 80), bool)
    crowd[50:] = True
    data = legacy_image(
        tmp_path,
        [
            {"category_id": 1, "segmentation": [rectangle(10.9, 10.9, 29.9, 29.9), rectangle(40, 40, 45, 45)]},
            {"category_id": 13, "segmentation": [rectangle(20, 20, 35, 35)]},
            {"category_id": 1, "segmentation": uncompressed(crowd), "iscrowd": 1},
        ],
    )
    assert data.mask_renderer == "legacy"
    person, sign = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    person[10:30, 10:30] = 1  # corners of a filled polygon belong to it
    sign[20:36, 20:36] = 1
    person[sign == 1] = 0
    np.testing.assert_array_equal(data.read_mask("images/a.jpg", 1), person)
    np.testing.assert_array_equal(data.read_mask("images/a.jpg", 12), sign)
    assert data.classes_in("images/a.jpg") == (1, 12)


def test_run_length_codes_of_labels_are_those_of_their_masks() -> None:
    random = np.random.default_rng(0)
    for shape in ((1, 1), (1, 9), (7, 1), (13, 17)):
        for highest in (1, 2, 4):
            labels = random.integers(0, highest, shape).astype(np.int16)
            codes = coco_index._codes_of(labels)
            assert set(codes) == set(np.unique(labels).tolist()) - {0}
            for label, code in codes.items():
                assert code == rle_tools.encode(np.asfortranarray(labels == label, np.uint8))


@pytest.mark.parametrize("segmentation", [[["a"] * 6], None, {"size": [3, 3], "counts": [9]}])
def test_legacy_masks_of_wrong_segmentations(segmentation: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="annotation 10 has no segmentation that fits"):
        legacy_image(tmp_path, [{"category_id": 1, "segmentation": segmentation}]).candidates(1, "test")


def test_legacy_masks_leave_out_a_class_that_is_covered(tmp_path: Path) -> None:
    hidden = [{"category_id": c, "segmentation": [rectangle(5, 5, 20, 20)]} for c in (13, 1)]
    data = legacy_image(tmp_path, hidden)
    assert data.classes_in("images/a.jpg") == (1,)
    assert data.candidates(12, "test") == []


# -- cache -----------------------------------------------------------------------------------------------------------


def test_masks_are_rendered_once(official_coco: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = COCO20iDataset(official_coco)
    keys = first.candidates(1, "test")
    masks = [first.read_mask(key, 1) for key in keys]
    assert len(list(own_cache.iterdir())) == 1

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was parsed again")

    monkeypatch.setattr(coco_index, "_parse", fail)
    again = COCO20iDataset(official_coco)
    assert again.candidates(1, "test") == keys
    for key, mask in zip(keys, masks, strict=True):
        np.testing.assert_array_equal(again.read_mask(key, 1), mask)


def test_a_changed_json_is_rendered_anew(tmp_path: Path) -> None:
    make_coco(tmp_path, classes=2)
    assert len(COCO20iDataset(tmp_path).candidates(1, "test")) == 3
    path = tmp_path / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    assert COCO20iDataset(tmp_path).candidates(1, "test") == []


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda c: b"PK"])
def test_a_damaged_cache_is_replaced(official_coco: Path, own_cache: Path, damage: Callable[[bytes], bytes]) -> None:
    keys = COCO20iDataset(official_coco).candidates(1, "test")
    file = next(own_cache.iterdir())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert COCO20iDataset(official_coco).candidates(1, "test") == keys
    assert len(file.read_bytes()) == len(whole)


def test_an_unwritable_cache_is_only_slower(
    official_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSSBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"Cannot write .*Rendering the masks of .* is done again in every run"):
        assert len(COCO20iDataset(official_coco).candidates(1, "test")) == 3
