"""COCO-20i from the official files: folds, masks, candidates, cache and what is said about wrong files."""

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
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO

from datamodules import coco_index
from datamodules.coco20i import CLASS_NAMES, OFFICIAL_IDS, COCO20iDataset
from fssbench.errors import UserError
from tests.data.coco import compressed, make_coco, object_mask, polygon, uncompressed
from tests.shared import SHARED, needs_shared

SINGLE = {
    "train_images": "images",
    "test_images": "images",
    "train_annotations": "annotations/instances.json",
    "test_annotations": "annotations/instances.json",
}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    make_coco(root)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FSSBENCH_CACHE", str(folder))
    return folder


def one_image(root: Path, annotations: list[dict[str, Any]], height: int = 60, width: int = 80) -> COCO20iDataset:
    """A data set of one image with these annotations (category and segmentation)."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.new("RGB", (width, height)).save(root / "images" / "a.jpg")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [{"id": 10 + i, "image_id": 5, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    }
    (root / "annotations" / "instances.json").write_text(json.dumps(content))
    return COCO20iDataset(root, **SINGLE, min_pixels=1)


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# --- classes and folds ---


def test_folds_of_both_partitions(official: Path) -> None:
    interleaved, contiguous = COCO20iDataset(official), COCO20iDataset(official, partition="contiguous")
    assert interleaved.novel_classes(0)[:3] == (1, 5, 9)
    assert interleaved.novel_classes(3)[-1] == 80
    assert [interleaved.class_names[c] for c in interleaved.novel_classes(2)[-2:]] == ["clock", "hair drier"]
    assert contiguous.novel_classes(1) == tuple(range(21, 41))
    for dataset in (interleaved, contiguous):
        assert sorted(c for fold in range(4) for c in dataset.novel_classes(fold)) == list(range(1, 81))
        assert len(dataset.base_classes(1)) == 60
        assert not set(dataset.base_classes(1)) & set(dataset.novel_classes(1))
    assert (interleaved.class_partition, contiguous.class_partition) == ("interleaved", "contiguous")


def test_wrong_fold_and_partition(official: Path) -> None:
    with pytest.raises(UserError, match=r"Fold 4 does not exist: expected 0\.\.3"):
        COCO20iDataset(official).novel_classes(4)
    with pytest.raises(UserError, match="Did you mean 'interleaved'"):
        COCO20iDataset(official, partition="interleave").novel_classes(0)  # type: ignore[arg-type]


def test_official_ids_are_sorted_with_gaps() -> None:
    ids = dict(zip(CLASS_NAMES, OFFICIAL_IDS, strict=True))
    assert (ids["person"], ids["stop sign"], ids["parking meter"], ids["toothbrush"]) == (1, 13, 14, 90)


# --- candidates and reading ---


def test_candidates_are_large_enough_and_sorted_by_key(official: Path) -> None:
    dataset = COCO20iDataset(official)
    # ids fall as classes rise: class 1 has the three highest
    assert dataset.candidates(1, "test") == [f"val2014/COCO_val2014_00000000{n}.jpg" for n in (1122, 1123, 1124)]
    assert dataset.candidates(8, "train") == [f"train2014/COCO_train2014_00000000{n:04d}.jpg" for n in (101, 102, 103)]
    assert dataset.candidates(9, "test") == []
    everything = COCO20iDataset(official, min_pixels=0)
    assert len(everything.candidates(2, "test")) == 6  # 3 large objects, 3 small ones in images of class 1
    assert len(COCO20iDataset(official, min_pixels=56 * 64).candidates(2, "test")) == 3
    assert len(COCO20iDataset(official, min_pixels=56 * 64 + 1).candidates(2, "test")) == 0
    assert (dataset.image_filter, everything.image_filter) == ("min-pixels-2048", "min-pixels-0")
    assert (dataset.name, dataset.mask_renderer, dataset.episodes_per_class, dataset.n_folds) == (
        "coco-20i",
        "clean",
        100,
        4,
    )
    assert dataset.skipped == []


def test_images_and_masks_fit(official: Path) -> None:
    dataset = COCO20iDataset(official)
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


def test_workers_get_a_copy(official: Path) -> None:
    dataset = COCO20iDataset(official)
    key = dataset.candidates(1, "test")[0]
    copy = pickle.loads(pickle.dumps(dataset))
    np.testing.assert_array_equal(copy.read_mask(key, 1), dataset.read_mask(key, 1))


# --- renderer ---


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


# --- cache ---


def test_masks_are_rendered_once(official: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = COCO20iDataset(official)
    keys = first.candidates(1, "test")
    masks = [first.read_mask(key, 1) for key in keys]
    assert len(list(cache.iterdir())) == 1

    def fail(path: Path) -> None:
        raise AssertionError(f"{path} was parsed again")

    monkeypatch.setattr(coco_index, "_parse", fail)
    again = COCO20iDataset(official)
    assert again.candidates(1, "test") == keys
    for key, mask in zip(keys, masks, strict=True):
        np.testing.assert_array_equal(again.read_mask(key, 1), mask)


def test_a_changed_json_is_rendered_anew(tmp_path: Path) -> None:
    make_coco(tmp_path, classes=2)
    assert len(COCO20iDataset(tmp_path).candidates(1, "test")) == 3
    change(tmp_path / "annotations" / "instances_val2014.json", lambda content: content["annotations"].clear())
    assert COCO20iDataset(tmp_path).candidates(1, "test") == []


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda c: b"PK"])
def test_a_damaged_cache_is_replaced(official: Path, cache: Path, damage: Callable[[bytes], bytes]) -> None:
    keys = COCO20iDataset(official).candidates(1, "test")
    file = next(cache.iterdir())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert COCO20iDataset(official).candidates(1, "test") == keys
    assert len(file.read_bytes()) == len(whole)


def test_an_unwritable_cache_is_only_slower(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FSSBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"Cannot write .*Rendering the masks of .* is done again in every run"):
        assert len(COCO20iDataset(official).candidates(1, "test")) == 3


# --- wrong files ---


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


# --- real photographs ---


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


# -- renderer `legacy` and the compat protocols -----------------------------------------------------------------------


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


def official_order(root: Path, path: Path) -> list[str]:
    names = sorted(f"val2014/{p.name}" for p in (root / "val2014").iterdir())
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    path.write_text("".join(f"{name} {name.replace('jpg', 'png')}\n" for name in shuffled))
    return shuffled


def test_lists_are_built_in_the_published_order(official: Path, tmp_path: Path) -> None:
    order = official_order(official, tmp_path / "val.txt")
    data = COCO20iDataset(official, protocol="hsnet-compat", lists=tmp_path / "val.txt")
    clean = COCO20iDataset(official)
    for c in range(1, 9):
        assert data.candidates(c, "test") == sorted(clean.candidates(c, "test"), key=order.index)
    assert data.image_filter.startswith("min-pixels-2048-list-")
    images = data.ordered_images(0)
    assert images == [name for name in order if any(name in data.candidates(c, "test") for c in (1, 5))]


def test_published_lists_are_taken_as_they_are(official: Path, tmp_path: Path) -> None:
    clean = COCO20iDataset(official)
    lists = {c: clean.candidates(c, "test")[::-1] for c in (1, 5)}
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps({c - 1: names for c, names in lists.items()}))
    data = COCO20iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    assert {c: data.candidates(c, "test") for c in lists} == lists
    assert data.candidates(2, "test") == clean.candidates(2, "test")  # base classes are in no list
    (tmp_path / "fold1.pkl").write_bytes(pickle.dumps({0: lists[1]}))
    with pytest.raises(UserError, match="lists class 1, which fold 1"):
        COCO20iDataset(official, protocol="hsnet-compat", lists=tmp_path).candidates(1, "test")


def test_compat_protocols_need_lists(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists/hsnet-compat does not exist.*RePRI"):
        COCO20iDataset(official, protocol="hsnet-compat")
    with pytest.raises(UserError, match="clean-v1 makes its own lists"):
        COCO20iDataset(official, lists=tmp_path)
    (tmp_path / "fold0.txt").write_text("01 val2014/nowhere.jpg\n")
    with pytest.raises(UserError, match="bam-compat needs the order"):
        COCO20iDataset(official, protocol="bam-compat", lists=tmp_path)
    with pytest.raises(UserError, match=r"names val2014/nowhere\.jpg"):
        COCO20iDataset(official, protocol="hsnet-compat", lists=tmp_path).candidates(1, "test")
    (tmp_path / "val.txt").write_text("val2014/nowhere.jpg\n")
    with pytest.raises(UserError, match="has no image 'COCO_val2014"):
        COCO20iDataset(official, protocol="bam-compat", lists=tmp_path / "val.txt").candidates(1, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no lists"):
        COCO20iDataset(official, protocol="hsnet-compat", lists=tmp_path / "empty")


def test_the_partitions_have_names_of_their_own(official: Path) -> None:
    contiguous = COCO20iDataset(official, partition="contiguous")
    assert (contiguous.name, contiguous.draw_name) == ("coco-20i-contiguous", "coco-20i")
    assert COCO20iDataset(official).name == "coco-20i"
