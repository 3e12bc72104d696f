"""PASCAL-5i from the official folders: folds, masks of both sources, list rules, and what is said about wrong files."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.pascal5i import CLASS_NAMES, FROM_COCO, PASCAL5i, PASCAL5iDataset
from datamodules.policies import training_lists
from datamodules.voc_masks import oslsm_cells, read_sbd_mask
from fssbench.errors import UserError
from fssbench.protocols.known import LISTS
from fssbench.protocols.lists import hsnet_text, list_sha256
from fssbench.protocols.manifest import build_manifest
from tests.data.pascal import class_mask, make_pascal, save_mat, save_palette
from tests.shared import SHARED, needs_shared
from tests.test_method import make_trainer
from tests.toy import FreeMethod


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pascal")
    make_pascal(root)
    return root


@pytest.fixture
def own(official: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(official, tmp_path / "PASCAL")
    return tmp_path / "PASCAL"


def test_folds(official: Path) -> None:
    data = PASCAL5iDataset(official)
    assert [data.novel_classes(f) for f in range(4)] == [tuple(range(5 * f + 1, 5 * f + 6)) for f in range(4)]
    assert data.base_classes(2) == (*range(1, 11), *range(16, 21))
    with pytest.raises(UserError, match="Fold 4 does not exist"):
        data.novel_classes(4)


def test_masks_of_both_sources(official: Path) -> None:
    data = PASCAL5iDataset(official)
    val = data.read_mask("2007_003000", 3)
    np.testing.assert_array_equal(np.unique(val), [0, 1, 255])
    assert (val == 1).sum() == 64 * 64
    assert (val == 255).sum() == 68 * 68 - 64 * 64
    assert val[95, 8] == 0, "another class is background"
    sbd = data.read_mask("2008_003001", 3)
    np.testing.assert_array_equal(np.unique(sbd), [0, 1])
    assert data.read_image("2008_003001").shape[:2] == sbd.shape
    twice = data.read_mask("2009_003000", 3)  # in VOC train and in SBD: VOC's mask is the one that counts
    assert (twice == 255).any()


def test_no_image_of_voc_val_is_trained_on(official: Path) -> None:
    for protocol in ("clean-v1", "hsnet-compat", "bam-compat"):
        data = PASCAL5iDataset(official, protocol=protocol)
        trained = {key for c in range(1, 21) for key in data.candidates(c, "train")}
        assert trained
        assert not [key for key in trained if key.startswith("2007")]
        assert {key[:4] for c in range(1, 21) for key in data.candidates(c, "test")} == {"2007"}


def test_candidates_are_large_enough(official: Path) -> None:
    data = PASCAL5iDataset(official)
    assert data.candidates(4, "test") == ["2007_004000", "2007_004001"]  # class 4 is also small in images of class 3
    assert data.classes_in("2007_003000") == (3, 4)
    small = PASCAL5iDataset(official, min_pixels=1)
    assert small.candidates(4, "test") == ["2007_003000", "2007_003001", "2007_004000", "2007_004001"]
    assert small.candidates(4, "train") == sorted(small.candidates(4, "train"))


def test_the_source_list_is_sbd_then_voc(official: Path) -> None:
    names = PASCAL5iDataset(official, protocol="bam-compat").image_names("train")
    assert len(names) == len(set(names)) == 20 * 4
    assert names[: 20 * 3] == sorted(names[: 20 * 3])
    assert all(name.startswith("2009") and name.endswith("001") for name in names[20 * 3 :])


@pytest.mark.parametrize(
    ("rows", "columns", "cells"),
    [
        ((1, 66), (1, 66), 9),
        ((2, 66), (1, 66), 6),
        ((2, 33), (2, 33), 0),
        ((0, 104), (0, 136), 20),
        ((33, 34), (0, 97), 3),
    ],
)
def test_oslsm_looks_at_one_pixel_per_cell(rows: tuple[int, int], columns: tuple[int, int], cells: int) -> None:
    """Padded by 15 and cut into cells of 32, the pixel at each centre is number 1, 33, 65, ... of rows and columns."""
    mask = np.zeros((104, 136), np.uint8)
    mask[slice(*rows), slice(*columns)] = 7
    mask[0, 0] = 255
    padded = np.pad(mask, ((15, 32), (15, 32)))
    height, width = -(-(104 + 30) // 32), -(-(136 + 30) // 32)
    centres = padded[16::32, 16::32][:height, :width]
    assert oslsm_cells(mask)[7] == (centres == 7).sum() == cells


def test_hsnet_lists_by_name_then_class(official: Path) -> None:
    data = PASCAL5iDataset(official, protocol="hsnet-compat")
    pairs = data.ordered_pairs(0)
    assert pairs == sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    assert (1, "2007_001000") in pairs
    assert data.image_filter == "oslsm-32"
    manifest = build_manifest(data, 0, 1, protocol="hsnet-compat")
    assert [(e.class_id, e.query) for e in manifest.episodes[:3]] == [(c, q) for c, q in pairs[:3]]


def test_published_lists_are_taken_as_they_are(official: Path, tmp_path: Path) -> None:
    built = PASCAL5iDataset(official, protocol="hsnet-compat")
    (tmp_path / "val").mkdir()
    (tmp_path / "trn").mkdir()
    for fold in range(4):
        pairs = built.ordered_pairs(fold)[::-1]
        (tmp_path / "val" / f"fold{fold}.txt").write_text(hsnet_text(pairs))
        trained = [(c, key) for c in built.novel_classes(fold) for key in built.candidates(c, "train")][::2]
        (tmp_path / "trn" / f"fold{fold}.txt").write_text(hsnet_text(trained))
    data = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    assert data.ordered_pairs(1) == built.ordered_pairs(1)[::-1]
    assert data.image_filter.startswith("list-")
    assert len(data.candidates(9, "train")) == len(built.candidates(9, "train")) / 2
    (tmp_path / "trn" / "fold0.txt").write_text("2007_001000__01\n")
    data = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    with pytest.raises(UserError, match="2007_001000 for train, which is in VOC val"):
        data.candidates(1, "train")


def test_a_fold_that_the_published_lists_lack_is_not_made_up(official: Path, tmp_path: Path) -> None:
    built = PASCAL5iDataset(official, protocol="hsnet-compat")
    (tmp_path / "fold0.txt").write_text(hsnet_text(built.ordered_pairs(0)))
    data = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    assert build_manifest(data, 0, 1, protocol="hsnet-compat").episodes
    with pytest.raises(UserError, match=r"The lists hold folds \[0\], not fold 1"):
        build_manifest(data, 1, 1, protocol="hsnet-compat")
    transfer = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path, partition="coco-20i")
    with pytest.raises(UserError, match="lists no image of class 9"):
        build_manifest(transfer, 0, 1, protocol="hsnet-compat")
    (tmp_path / "fold0.txt").write_text(hsnet_text([*built.ordered_pairs(0), *built.ordered_pairs(1)]))
    data = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    with pytest.raises(UserError, match="lists class 6, which fold 0 of pascal-5i does not test"):
        build_manifest(data, 0, 1, protocol="hsnet-compat")
    (tmp_path / "trn").mkdir()
    (tmp_path / "trn" / "fold1.txt").write_text("2009_006000__06\n")
    data = PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    with pytest.raises(UserError, match="list no training image of class 1"):
        training_lists(data, 3, "keep-as-background")


def test_drop_image_leaves_out_every_novel_pixel(official: Path) -> None:
    data = PASCAL5iDataset(official, protocol="bam-compat")
    kept, dropped = (training_lists(data, 1, policy) for policy in ("keep-as-background", "drop-image"))
    assert set(kept[5]) - set(dropped[5]), "images of class 5 show a small object of class 6, novel in fold 1"
    assert kept[4] == dropped[4]


def test_coco_to_pascal_classes(official: Path) -> None:
    """protocols.md 1.2: car is tested in fold 2 and cat in fold 3; RePRI has them the other way round."""
    data = PASCAL5iDataset(official, partition="coco-20i")
    names = [{CLASS_NAMES[c - 1] for c in data.novel_classes(f)} for f in range(4)]
    assert names[0] == {"aeroplane", "boat", "chair", "diningtable", "dog", "person"}
    assert names[1] == {"bicycle", "bus", "horse", "sofa"}
    assert "car" in names[2]
    assert "cat" in names[3]
    assert sorted(c for classes in FROM_COCO for c in classes) == list(range(1, 21))
    assert (data.name, data.base_classes(0)) == ("coco-to-pascal", ())
    own = build_manifest(PASCAL5iDataset(official), 0, 1)
    moved = build_manifest(data, 0, 1)
    first = [e for e in moved.episodes if e.class_id == 1]
    assert first == [e for e in own.episodes if e.class_id == 1], "the same draw for the same class"


def test_from_coco_follows_the_coco_folds() -> None:
    from datamodules.coco20i import CLASS_NAMES as COCO
    from datamodules.folds import novel_classes

    same = {"aeroplane": "airplane", "diningtable": "dining table", "motorbike": "motorcycle", "pottedplant": "potted plant",
            "sofa": "couch", "tvmonitor": "tv"}  # fmt: skip
    for fold, classes in enumerate(FROM_COCO):
        novel = {COCO[c - 1] for c in novel_classes(range(1, 81), fold, 4, "interleaved")}
        assert {same.get(CLASS_NAMES[c - 1], CLASS_NAMES[c - 1]) for c in classes} <= novel


def test_testing_needs_no_sbd(own: Path) -> None:
    shutil.rmtree(own / "benchmark_RELEASE")
    data = PASCAL5iDataset(own)
    assert data.candidates(1, "test")
    with pytest.raises(UserError, match=r"needs SBD.*benchmark\.tgz"):
        data.candidates(1, "train")


def test_counts_are_cached_and_follow_the_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodules import voc_masks

    before = PASCAL5iDataset(own).candidates(1, "test")
    read: list[Path] = []
    monkeypatch.setattr(voc_masks, "_count", lambda path: read.append(path))
    assert PASCAL5iDataset(own).candidates(1, "test") == before
    assert read == []
    monkeypatch.undo()
    save_palette(own / "VOCdevkit/VOC2012/SegmentationClass/2007_001000.png", class_mask(2, 2, 0, void=True))
    assert PASCAL5iDataset(own).candidates(1, "test") == before[1:]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "VOCdevkit/VOC2012/SegmentationClass/2007_005000.png").unlink(),
            "2007_005000.* does not",
        ),
        (lambda root: shutil.rmtree(root / "VOCdevkit"), "holds no VOC 2012"),
        (lambda root: (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text(""), "is empty"),
        (
            lambda root: (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_text("a\na\n"),
            "lists a twice",
        ),
        (
            lambda root: save_palette(
                root / "VOCdevkit/VOC2012/SegmentationClass/2007_005000.png", np.full((9, 9), 33, np.uint8)
            ),
            "holds class 33",
        ),
    ],
)
def test_wrong_files_are_named(own: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(own)
    with pytest.raises(UserError, match=message):
        PASCAL5iDataset(own).candidates(5, "test")


@pytest.mark.parametrize("damage", [lambda b: b[:60], lambda b: b"", lambda b: b[:-40]])
def test_damaged_sbd_masks_are_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    save_mat(path, class_mask(3, 4, 0, void=False))
    np.testing.assert_array_equal(read_sbd_mask(path), class_mask(3, 4, 0, void=False))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.mat is no class mask of SBD"):
        read_sbd_mask(path)


def test_wrong_settings(official: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown class partition 'interleaved'"):
        PASCAL5iDataset(official, partition="interleaved")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="makes its lists from the masks"):
        PASCAL5iDataset(official, lists=tmp_path)
    (tmp_path / "val.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="holds no classes"):
        PASCAL5iDataset(official, protocol="hsnet-compat", lists=tmp_path)
    with pytest.raises(UserError, match="has no mask"):
        PASCAL5iDataset(official).read_mask("2007_999999", 1)


def test_fit_and_test(official: Path, tmp_path: Path) -> None:
    from tests.toy import ColourMethod

    shared = {"root": str(official), "batch_size": 4, "episodes_per_epoch": 8, "num_workers": 0, "shot": 1}
    data = PASCAL5i(fold=1, episodes_per_class=2, **shared)
    method = ColourMethod()
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(method, datamodule=data)
    assert method.training_facts["training_policy"] == "keep-as-background"
    make_trainer(tmp_path).test(
        FreeMethod(), datamodule=PASCAL5i(fold=3, episodes_per_class=1, **shared), verbose=False
    )
    assert pickle.loads(pickle.dumps(data.dataset)).candidates(1, "test") == data.dataset.candidates(1, "test")


@needs_shared
def test_the_published_lists_have_the_order_that_is_built() -> None:
    """Orders only, since VOC itself is not here: by name and class for val, by class and name for trn."""
    from fssbench.protocols.lists import read_list

    for fold in range(4):
        val = read_list(SHARED / f"splits/gf-sam/pascal/val/fold{fold}.txt").pairs
        assert list(val) == sorted(val, key=lambda pair: (pair[1], pair[0]))
        trn = read_list(SHARED / f"splits/gf-sam/pascal/trn/fold{fold}.txt").pairs
        assert list(trn) == sorted(trn)
        assert list_sha256(val) == LISTS["pascal-5i", "hsnet-val"][fold].sha256
    splits = SHARED / "splits/vrp-sam/pascal/source"
    source = [read_list(splits / name).names for name in ("sbd_data.txt.gz", "voc_original_train.txt.gz")]
    merged = [Path(name).stem for name in read_list(SHARED / "splits/repri/pascal/train.txt.gz").names]
    assert merged == list(dict.fromkeys((*source[0], *source[1])))
