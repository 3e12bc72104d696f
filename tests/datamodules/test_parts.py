"""PASCAL-Part and PACO-Part: objects cut at their boxes, the classes of a fold, Matcher's draws, and wrong files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.paco_part import PACOPart, PACOPartDataset
from datamodules.parts import PartsDataset
from datamodules.pascal_part import PASCALPart, PASCALPartDataset
from fssbench.errors import UserError
from fssbench.protocols.manifest import build_manifest, verify_manifest
from tests.data.lvis import make_paco
from tests.data.pascal_part import make_pascal_part


@pytest.fixture(scope="module")
def pascal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pascal-part")
    make_pascal_part(folder)
    return folder


@pytest.fixture(scope="module")
def paco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paco-part")
    make_paco(folder)
    return folder


def test_classes_of_pascal_part(pascal: Path) -> None:
    data = PASCALPartDataset(pascal)
    assert list(data.class_names.values()) == [
        "bird+HEAD", "bird+WING", "cat+TAIL", "bottle+CAP", "person+ARM", "person+LEG", "aeroplane+BODY", "car+WHEEL",
    ]  # fmt: skip
    assert [data.novel_classes(f) for f in range(4)] == [(1, 2, 3), (4,), (5, 6), (7, 8)]
    assert data.base_classes(1) == (1, 2, 3, 5, 6, 7, 8)
    assert [data.hsnet_count(f) for f in range(4)] == [12, 4, 8, 12], "aeroplane+TAIL counts among the images"


def test_an_object_is_cut_at_its_box(pascal: Path, paco: Path) -> None:
    data = PASCALPartDataset(pascal)
    key = next(k for k in data.candidates(1, "test") if k.endswith(":0"))
    whole = np.asarray(Image.open(pascal / f"VOCdevkit/VOC2010/JPEGImages/{key[:-2]}.jpg"))
    np.testing.assert_array_equal(data.read_image(key), whole[4:24, 6:30])
    assert data.read_mask(key, 1).shape == (20, 24)
    assert data.read_mask(key, 1).sum() == 4 * 5, "one row and column of the part lie outside"
    assert data.read_mask(key, 1)[:4, :5].all()
    assert data.classes_in(key) == (1, 2)
    other = PACOPartDataset(paco)
    key = other.candidates(100, "test")[1]  # only its first object has the part
    whole = np.asarray(Image.open(paco / "coco" / key.rpartition(":")[0]))
    np.testing.assert_array_equal(other.read_image(key), whole[2:22, 4:28])
    assert other.read_mask(key, 100).sum() == 6 * 6


@pytest.mark.parametrize("kind", [PASCALPartDataset, PACOPartDataset])
def test_query_and_supports_are_of_different_photographs(kind: type[PartsDataset], pascal: Path, paco: Path) -> None:
    data = kind(pascal if kind is PASCALPartDataset else paco)
    fold = 0
    for protocol in ("clean-v1", "hsnet-compat"):
        episodes = 300 if protocol == "hsnet-compat" else None
        manifest = build_manifest(data, fold, 2, protocol=protocol, episodes=episodes)
        seen = set()
        for e in manifest.episodes:
            photographs = [key.rpartition(":")[0] for key in (e.query, *e.supports)]
            assert photographs[0] not in photographs[1:]
            if protocol == "clean-v1" or kind is PASCALPartDataset:
                assert len(set(photographs)) == 3
            seen.add(e.query)
            for key in (e.query, *e.supports):
                assert data.read_mask(key, e.class_id).any()
        keys = {k for c in manifest.class_ids for k in data.candidates(c, "test")}
        assert seen <= keys if protocol == "clean-v1" else seen > keys, "compat draws other objects, too"
        assert verify_manifest(manifest, data) == []


def test_pascal_part_draws_as_matcher_does(pascal: Path) -> None:
    """Written out once more from the description: choice without replacement, photograph, then object."""
    data, random = PASCALPartDataset(pascal), np.random.RandomState(0)
    home = pascal / "VOCdevkit/VOC2010"
    lists = json.loads((home / "all_obj_part_to_image.json").read_text())["animals"]["object"]

    def choice(items: list) -> object:
        return items[int(random.choice(len(items), 1, replace=False)[0])]

    def draw(name: str, part: str, taken: list[str]) -> str:
        while True:
            photograph = choice(lists[name]["part"][part]["val"])
            if photograph in taken:
                continue
            annotation = json.loads((home / f"Annotations_Part_json_merged_part_classes/{photograph}.json").read_text())
            number = choice([i for i, o in enumerate(annotation["object"]) if o["name"] == name])
            if any(p["name"] == part for p in annotation["object"][number]["parts"]):
                taken.append(str(photograph))
                return f"{photograph}:{number}"

    for number, episode in enumerate(build_manifest(data, 0, 2, protocol="hsnet-compat", episodes=40).episodes):
        name, part = data.class_names[number % 3 + 1].split("+")
        taken: list[str] = []
        assert [draw(name, part, taken) for _ in range(3)] == [episode.query, *episode.supports]


def test_classes_of_paco_part_depend_on_the_number_of_supports(paco: Path) -> None:
    data = PACOPartDataset(paco)
    assert list(data.class_names) == list(range(100, 108)), "108 has no annotation, 1 is no part"
    assert [data.novel_classes(f) for f in range(4)] == [(100, 104), (101, 105), (102, 106), (103,)]
    assert data.base_classes(3) == (100, 101, 102, 104, 105, 106), "107 belongs to fold 3, which does not test it"
    with pytest.raises(UserError, match="No part of fold 0 has more than 4 photographs"):
        data.for_shot(4).novel_classes(0)
    compat = build_manifest(data, 0, 1, protocol="hsnet-compat", episodes=60)
    assert {e.class_id for e in compat.episodes} == {100, 104}
    assert [e.class_id for e in compat.episodes] != [100, 104] * 30, "at random, not in turn"
    five = build_manifest(data, 0, 3, protocol="hsnet-compat", episodes=60)
    assert any(len(set(e.supports)) < 3 for e in five.episodes)


def test_modules_make_their_own(pascal: Path, paco: Path) -> None:
    assert PASCALPart(root=str(pascal), fold=3, shot=1).test_manifest.header.dataset == "pascal-part"
    manifest = PACOPart(root=str(paco), fold=1, shot=2, protocol="hsnet-compat").test_manifest
    assert len(manifest.episodes) == 2500
    assert manifest.header.image_filter == "ground-truth-object-boxes"


def _spoil(path: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        content = json.loads((root / path).read_text())
        change(content)
        (root / path).write_text(json.dumps(content))

    return spoil


ANNOTATION = "VOCdevkit/VOC2010/Annotations_Part_json_merged_part_classes/2008_001000.json"
LISTS = "VOCdevkit/VOC2010/all_obj_part_to_image.json"
VAL, TRAIN = (f"paco/paco_lvis_v1_{split}.json" for split in ("val", "train"))


@pytest.mark.parametrize(
    ("path", "spoil", "message"),
    [
        (LISTS, lambda r: (r / LISTS).unlink(), "all_obj_part_to_image.json does not exist"),
        (LISTS, _spoil(LISTS, lambda c: c.pop("person")), "KeyError: 'person'"),
        (LISTS, _spoil(LISTS, lambda c: c["person"]["object"].clear()), "no part of kind 'person'"),
        (ANNOTATION, lambda r: (r / ANNOTATION).unlink(), "2008_001000.json does not exist, but"),
        (ANNOTATION, lambda r: (r / ANNOTATION).write_text("[]"), "is no annotation of PASCAL-Part"),
        (ANNOTATION, _spoil(ANNOTATION, lambda c: c["object"][0].pop("bndbox")), "KeyError: 'bndbox'"),
        (VAL, lambda r: (r / VAL).unlink(), "paco_lvis_v1_val.json does not exist"),
        (TRAIN, lambda r: (r / TRAIN).unlink(), "paco_lvis_v1_train.json does not exist"),
        (TRAIN, lambda r: (r / TRAIN).write_text("[1]"), "is not a JSON of PACO-LVIS"),
        (VAL, _spoil(VAL, lambda c: c["annotations"][0].pop("obj_ann_id")), "KeyError: 'obj_ann_id'"),
        (VAL, _spoil(VAL, lambda c: c["annotations"].pop(0)), "object 1, which are not both in the file"),
        (VAL, _spoil(VAL, lambda c: c["annotations"][1].update(segmentation={"size": [9, 9], "counts": "x"})), "fits its image"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(path: str, spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    kind = PACOPartDataset if path.startswith("paco") else PASCALPartDataset
    (make_paco if kind is PACOPartDataset else make_pascal_part)(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        kind(tmp_path).novel_classes(0) and kind(tmp_path).candidates(1, "test")


def test_a_class_without_enough_photographs_is_an_error(tmp_path: Path) -> None:
    make_pascal_part(tmp_path, images=2)
    data = PASCALPartDataset(tmp_path)
    for protocol, message in (("clean-v1", r"need: .* \(2\)"), ("hsnet-compat", "has 2 candidate image")):
        with pytest.raises(UserError, match=message):
            build_manifest(data, 0, 2, protocol=protocol)
    with pytest.raises(UserError, match="pascal-part has no object 'x:1'"):
        data.read_image("x:1")
