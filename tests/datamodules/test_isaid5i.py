"""iSAID-5i: lists from masks and published ones, void, training, and what is said about wrong files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.isaid5i import ISAID5i, ISAID5iDataset
from fssbench.errors import UserError
from fssbench.protocols.list_dataset import ListDataset
from fssbench.protocols.manifest import build_manifest
from tests.data.isaid import make_isaid
from tests.shared import SHARED, needs_shared


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isaid")
    make_isaid(folder)
    return folder


def test_lists_come_from_the_masks(root: Path) -> None:
    data = ISAID5iDataset(root)
    assert [data.novel_classes(f)[0] for f in range(3)] == [1, 6, 11]
    assert data.candidates(7, "test") == sorted(f"P1007_0_64_{64 * i}_{64 * i + 64}" for i in range(3))
    assert data.candidates(7, "train") == sorted(f"P0007_0_64_{64 * i}_{64 * i + 64}" for i in range(3))
    assert len(ISAID5iDataset(root, min_pixels=1).candidates(7, "test")) == 6, "the small object of class 6's patches"
    key = data.candidates(7, "test")[0]
    mask = data.read_mask(key, 7)
    assert [int((mask == v).sum()) for v in (0, 1, 255)] == [64 * 63 - 2304, 2304, 64]
    assert data.classes_in(key) == (7, 8)
    np.testing.assert_array_equal(data.read_image(key).any(-1), mask == 1)
    manifest = build_manifest(data, 1, 2, episodes_per_class=4)
    assert manifest.header.image_filter == "min-pixels-2048"
    assert len(manifest.episodes) == 20


def test_hsnet_compat_is_every_entry_of_the_published_list(root: Path) -> None:
    data = ISAID5iDataset(root, "hsnet-compat")
    manifest = build_manifest(data, 2, 1, protocol="hsnet-compat")
    pairs = [tuple(reversed(line.split("__"))) for line in (root / "splits/val/fold2.txt").read_text().split()]
    assert [(f"{e.class_id:02d}", e.query) for e in manifest.episodes] == pairs
    lists = ListDataset.read("isaid-5i", root / "splits/val/fold2.txt")
    assert (
        build_manifest(lists, 0, 1, protocol="hsnet-compat").header.episodes_sha256 == manifest.header.episodes_sha256
    )
    assert data.candidates(1, "train")[0].startswith("P0001")


@pytest.mark.parametrize(
    ("spoil", "protocol", "message"),
    [
        (lambda r: (r / "val").rename(r / "other"), "clean-v1", "expected val/images"),
        (lambda r: next((r / "val/semantic_png").iterdir()).unlink(), "clean-v1", "does not exist"),
        (lambda r: (r / "splits").rename(r / "lists"), "hsnet-compat", "needs the published lists of iSAID-5i"),
        (lambda r: (r / "splits/val/fold1.txt").write_text("P9_0_64_0_64__06\n"), "hsnet-compat", "absent: P9_0_64_0_64"),
        (lambda r: (r / "splits/val/fold1.txt").write_text("P1001_0_64_0_64__01\n"), "hsnet-compat", "class 1, which is"),
    ],
)  # fmt: skip
def test_wrong_files_are_named(spoil: Callable[[Path], object], protocol: str, message: str, tmp_path: Path) -> None:
    make_isaid(tmp_path, patches=1)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        ISAID5iDataset(tmp_path, protocol).ordered_pairs(1)  # type: ignore[arg-type]


def test_unknown_patches_folds_and_lists(root: Path) -> None:
    with pytest.raises(UserError, match="no patch 'P1'"):
        ISAID5iDataset(root).read_mask("P1", 1)
    with pytest.raises(UserError, match="Fold 3 does not exist"):
        ISAID5iDataset(root).novel_classes(3)
    with pytest.raises(UserError, match="leave data.lists out"):
        ISAID5i(root=str(root), lists=str(root / "splits")).make_dataset()


@needs_shared
def test_the_published_lists_are_known() -> None:
    for fold in range(3):
        lists = ListDataset.read("isaid-5i", SHARED / f"splits/gf-sam/isaid/val/fold{fold}.txt.gz")
        assert lists.image_filter == "gfsam-val"
        manifest = build_manifest(lists, 0, 1, protocol="hsnet-compat")
        assert len(manifest.episodes) == (3108, 3657, 3298)[fold]
