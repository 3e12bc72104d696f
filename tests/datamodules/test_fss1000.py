"""FSS-1000 from its official folders: the three roots, class lists, masks, and what is said about wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.fss1000 import FSS1000Dataset
from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.protocols import hsnet_compat
from fssbench.protocols.manifest import build_manifest
from tests.data.fss1000 import CLASSES, make_fss1000, soft_disc, write_lists
from tests.shared import SHARED, needs_shared

SORTED = (
    "Apple",
    "ab_wheel",
    "abe's_flyingfish",
    "pizza",
    "screw",
    "zebra",
)  # by code point: capitals, then b before e
NUMBERS = ("1", "10", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fss")
    make_fss1000(root)
    write_lists(root / "splits", train=CLASSES[:2], val=CLASSES[2:3], test=CLASSES[3:])
    return root


def names(dataset: FSS1000Dataset, ids: tuple[int, ...]) -> list[str]:
    return [dataset.class_names[c] for c in ids]


def test_classes_by_code_point_and_split_by_lists(whole: Path) -> None:
    dataset = FSS1000Dataset(whole)
    assert tuple(dataset.class_names.items()) == tuple(enumerate(SORTED, start=1))
    assert names(dataset, dataset.novel_classes(0)) == ["Apple", "pizza", "screw"]
    assert names(dataset, dataset.base_classes(0)) == ["ab_wheel", "abe's_flyingfish"]
    assert names(dataset, dataset.val_classes) == ["zebra"]
    assert dataset.label(3) == "abe's_flyingfish"
    assert (dataset.name, dataset.n_folds, dataset.episodes_per_class) == ("fss-1000", 1, 10)
    assert (dataset.mask_renderer, dataset.class_partition, dataset.skipped) == ("threshold-128", "class-lists", [])
    with pytest.raises(UserError, match=r"Fold 1 does not exist: expected 0\.\.0"):
        dataset.base_classes(1)


def test_candidates_in_string_order(whole: Path) -> None:
    dataset = FSS1000Dataset(whole)
    keys = dataset.candidates(3, "test")
    assert keys == [f"abe's_flyingfish/{n}.jpg" for n in NUMBERS]
    assert [dataset.episode_name(key) for key in keys] == [f"{n}.jpg" for n in NUMBERS]
    assert dataset.candidates(3, "train") == keys
    keys.clear()
    assert len(dataset.candidates(3, "train")) == 10


def test_masks_are_cut_at_128(whole: Path) -> None:
    dataset = FSS1000Dataset(whole)
    for n in (1, 2, 3):  # RGB, grey and RGBA files
        image, mask = dataset.read_image(f"pizza/{n}.jpg"), dataset.read_mask(f"pizza/{n}.jpg", 4)
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        soft = np.round(255 * soft_disc(64, n)[..., 0])
        assert ((soft > 0) & (soft < 255)).any()
        np.testing.assert_array_equal(mask, soft >= 128)
    other = dataset.read_mask("pizza/1.jpg", 5)
    assert (other.shape, other.dtype, other.any()) == ((64, 64), np.uint8, False)
    with pytest.raises(UserError, match=r"no image 'pizza/77\.jpg'"):
        dataset.read_mask("pizza/77.jpg", 4)


@pytest.mark.parametrize("layout", ["plain", "nested", "data"])
def test_all_roots_give_the_same_keys(tmp_path: Path, layout: str) -> None:
    make_fss1000(tmp_path, layout, CLASSES[:3], images=2, side=32)
    write_lists(tmp_path / "splits", train=CLASSES[:1], val=(), test=CLASSES[1:3])
    (tmp_path / ".cache").mkdir()
    dataset = FSS1000Dataset(str(tmp_path))
    assert names(dataset, dataset.novel_classes(0)) == ["ab_wheel", "zebra"]
    assert dataset.candidates(1, "test") == ["ab_wheel/1.jpg", "ab_wheel/2.jpg"]
    assert dataset.read_mask("ab_wheel/2.jpg", 1).any()


def test_without_lists_everything_is_tested_and_said_so(tmp_path: Path) -> None:
    make_fss1000(tmp_path / "fss", classes=CLASSES[:2], images=2, side=32)
    write_lists(tmp_path / "splits", train=(), val=(), test=CLASSES[:1])  # beside the data set: not its own
    dataset = FSS1000Dataset(tmp_path / "fss")
    assert (dataset.novel_classes(0), dataset.base_classes(0), dataset.val_classes) == ((1, 2), (), ())
    assert dataset.class_partition == "no-lists"
    assert len(dataset.skipped) == 1
    assert "all 2 classes are tested and none is for training" in dataset.skipped[0]
    assert str(tmp_path / "fss" / "splits") in dataset.skipped[0]


@pytest.mark.parametrize("name", ["fss_test_set.txt", "mine.txt"])
def test_a_list_of_test_classes_is_enough(tmp_path: Path, name: str) -> None:
    make_fss1000(tmp_path / "fss", classes=CLASSES[:3], images=2, side=32)
    (tmp_path / name).write_text(f"\n{CLASSES[2]} \n\n")
    for splits in (tmp_path / name, str(tmp_path)) if name == "fss_test_set.txt" else (tmp_path / name,):
        dataset = FSS1000Dataset(tmp_path / "fss", splits)
        assert names(dataset, dataset.novel_classes(0)) == [CLASSES[2]]
        assert names(dataset, dataset.base_classes(0)) == ["ab_wheel", "abe's_flyingfish"]


def test_without_a_training_list_the_rest_is_for_training(tmp_path: Path) -> None:
    make_fss1000(tmp_path, classes=CLASSES[:4], images=1, side=32)
    write_lists(tmp_path / "splits", train=(), val=CLASSES[:1], test=CLASSES[1:2])
    (tmp_path / "splits" / "trn.txt").unlink()
    dataset = FSS1000Dataset(tmp_path)
    assert names(dataset, dataset.base_classes(0)) == ["pizza", "zebra"]
    assert names(dataset, dataset.val_classes) == [CLASSES[0]]
    assert dataset.skipped == []


def test_listed_classes_that_are_not_on_disk_are_reported(tmp_path: Path) -> None:
    make_fss1000(tmp_path, classes=CLASSES[:2], images=2, side=32)
    write_lists(tmp_path / "splits", train=["ab_weel"], val=["x1", "x2"], test=CLASSES[:1])
    dataset = FSS1000Dataset(tmp_path)
    assert names(dataset, dataset.novel_classes(0)) == [CLASSES[0]]
    assert dataset.base_classes(0) == ()
    assert "1 classes in " in dataset.skipped[-1]
    assert "are in no list and not used: ab_wheel." in dataset.skipped[-1]
    assert [line.partition(": ")[2] for line in dataset.skipped[:-1]] == [
        "1 of 1 classes are not on disk: ab_weel. Did you mean 'ab_wheel'?",
        "2 of 2 classes are not on disk: x1, x2.",
    ]


def test_empty_masks_are_left_out_and_reported(tmp_path: Path) -> None:
    home = make_fss1000(tmp_path, classes=CLASSES[:1], images=3, side=32)
    Image.new("RGB", (32, 32), (127, 127, 127)).save(home / CLASSES[0] / "2.png")
    dataset = FSS1000Dataset(tmp_path)
    before = len(dataset.skipped)
    for _ in range(2):
        assert [dataset.episode_name(k) for k in dataset.candidates(1, "test")] == ["1.jpg", "3.jpg"]
    assert len(dataset.skipped) == before + 1
    assert "2.png is empty" in dataset.skipped[-1]


def test_images_without_mask_are_listed(tmp_path: Path) -> None:
    home = make_fss1000(tmp_path, classes=CLASSES[:2], images=3, side=32)
    (home / CLASSES[0] / "2.png").unlink()
    (home / CLASSES[1] / "3.jpg").unlink()
    with pytest.raises(
        UserError, match=r"2 files in .*: ab_wheel/3\.png, abe's_flyingfish/2\.jpg\. Every N\.jpg needs"
    ):
        FSS1000Dataset(tmp_path)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    home = make_fss1000(tmp_path, classes=CLASSES[:1], images=3, side=32)
    Image.new("L", (30, 28), 255).save(home / CLASSES[0] / "2.png")
    with pytest.raises(UserError, match=r"2\.png is 30x28 pixels, its image .*2\.jpg is 32x32\. Export the mask"):
        FSS1000Dataset(tmp_path).candidates(1, "test")


def test_wrong_folders_and_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*Unpack"):
        FSS1000Dataset(tmp_path / "nowhere")
    (tmp_path / "some" / "photos").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no FSS-1000 class folders, expected CLASS/1\.jpg"):
        FSS1000Dataset(tmp_path)
    make_fss1000(tmp_path, classes=CLASSES[:2], images=1, side=32)
    with pytest.raises(UserError, match=r"lists holds no test\.txt, expected a folder"):
        FSS1000Dataset(tmp_path, tmp_path / "lists")
    write_lists(tmp_path / "lists", train=CLASSES[:1], val=(), test=["unknown"])
    with pytest.raises(UserError, match=r"None of the classes in .*test\.txt is a folder"):
        FSS1000Dataset(tmp_path, tmp_path / "lists")
    write_lists(tmp_path / "lists", train=CLASSES[:2], val=(), test=CLASSES[:1])
    with pytest.raises(UserError, match=r"overlap: abe's_flyingfish"):
        FSS1000Dataset(tmp_path, tmp_path / "lists")


@needs_shared
def test_real_sample() -> None:
    root = SHARED / "data" / "fss1000_sample"
    lists = SHARED / "splits" / "gf-sam" / "fss"
    if not (root.is_dir() and lists.is_dir()):
        pytest.skip(f"{root} or {lists} is absent")
    dataset = FSS1000Dataset(root, lists)
    test = ["chicken", "guitar", "pizza", "screw", "sealion", "warplane"]
    assert names(dataset, dataset.novel_classes(0)) == test
    assert len(dataset.base_classes(0)) == 5
    assert "in no list and not used: eiffel_tower" in dataset.skipped[-1]
    assert "234 of 240 classes are not on disk" in dataset.skipped[0]
    counts = {name: len(dataset.candidates(c, "test")) for c, name in dataset.class_names.items()}
    assert {name for name, n in counts.items() if n == 5} == {"african_elephant", "eiffel_tower"}
    assert sum(counts.values()) == 110
    assert len(dataset.skipped) == 4  # the three lists and eiffel_tower; no empty mask

    screw = dataset.novel_classes(0)[3]
    assert dataset.read_image("screw/8.jpg").shape == (424, 562, 3)
    assert dataset.read_mask("screw/8.jpg", screw).shape == (424, 562)
    soft = 0
    for class_id in dataset.novel_classes(0):
        for key in dataset.candidates(class_id, "test"):
            with Image.open(root / key.replace(".jpg", ".png")) as file:
                grey = np.asarray(file.convert("L"))
            soft += int(file.mode == "RGBA" and bool(((grey > 0) & (grey < 255)).any()))
            np.testing.assert_array_equal(dataset.read_mask(key, class_id), grey >= 128)
    assert soft > 0


def test_hsnet_compat_asks_each_image_once_and_picks_supports_by_number(tmp_path: Path) -> None:
    make_fss1000(tmp_path)
    (tmp_path / "test.txt").write_text("zebra\nab_wheel\nabe's_flyingfish\n")
    data = FSS1000Dataset(tmp_path)
    manifest = build_manifest(data, 0, 5, protocol="hsnet-compat")
    labels = ["ab_wheel", "abe's_flyingfish", "zebra"]
    names = sorted(f"{n}.jpg" for n in range(1, 11))
    pools = {c: [f"{n}.jpg" for n in range(1, 11)] for c in range(3)}
    drawn = hsnet_compat.every_image([(c, name) for c in range(3) for name in names], pools, 5)
    text = "\n".join(" ".join([labels[c], query, *supports]) for c, query, supports in drawn)
    assert manifest.header.episodes_sha256 == sha256_text(text)
    assert len(manifest.episodes) == 30
    assert manifest.episodes[1].query == "ab_wheel/10.jpg"
    with pytest.raises(UserError, match="tests each image"):
        build_manifest(data, 0, 1, protocol="hsnet-compat", episodes=7)
    with pytest.raises(UserError, match="bam-compat is not defined for fss-1000"):
        build_manifest(data, 0, 1, protocol="bam-compat")


def test_validation_uses_the_validation_classes(tmp_path: Path) -> None:
    make_fss1000(tmp_path)
    for name, classes in (("test", "zebra"), ("trn", "Apple pizza"), ("val", "screw ab_wheel")):
        (tmp_path / f"{name}.txt").write_text(classes.replace(" ", "\n"))
    header = build_manifest(FSS1000Dataset(tmp_path), 0, 1, classes="base").header
    assert sorted(header.classes.values()) == ["ab_wheel", "screw"]
