"""The image lists of COCO-20i's compat protocols: published ones, or built in the published order."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from datamodules.coco20i import COCO20iDataset
from fssbench.errors import UserError
from fssbench.protocols.manifest import build_manifest

pytestmark = pytest.mark.usefixtures("own_cache")


def official_order(root: Path, path: Path) -> list[str]:
    names = sorted(f"val2014/{p.name}" for p in (root / "val2014").iterdir())
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    path.write_text("".join(f"{name} {name.replace('jpg', 'png')}\n" for name in shuffled))
    return shuffled


def test_lists_are_built_in_the_published_order(official_coco: Path, tmp_path: Path) -> None:
    order = official_order(official_coco, tmp_path / "val.txt")
    data = COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path / "val.txt")
    clean = COCO20iDataset(official_coco)
    for c in range(1, 9):
        assert data.candidates(c, "test") == sorted(clean.candidates(c, "test"), key=order.index)
    assert data.image_filter.startswith("min-pixels-2048-list-")
    images = data.ordered_images(0)
    assert images == [name for name in order if any(name in data.candidates(c, "test") for c in (1, 5))]


def test_published_lists_are_taken_as_they_are(official_coco: Path, tmp_path: Path) -> None:
    clean = COCO20iDataset(official_coco)
    lists = {c: clean.candidates(c, "test")[::-1] for c in (1, 5)}
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps({c - 1: names for c, names in lists.items()}))
    data = COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path)
    assert {c: data.candidates(c, "test") for c in lists} == lists
    assert data.candidates(2, "test") == clean.candidates(2, "test")  # base classes are in no list
    (tmp_path / "fold1.pkl").write_bytes(pickle.dumps({0: lists[1]}))
    with pytest.raises(UserError, match="lists class 1, which fold 1"):
        COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path).candidates(1, "test")


def test_compat_protocols_need_lists(official_coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lists/hsnet-compat does not exist.*RePRI"):
        COCO20iDataset(official_coco, protocol="hsnet-compat")
    with pytest.raises(UserError, match="clean-v1 makes its own lists"):
        COCO20iDataset(official_coco, lists=tmp_path)
    (tmp_path / "fold0.txt").write_text("01 val2014/nowhere.jpg\n")
    with pytest.raises(UserError, match="bam-compat needs the order"):
        COCO20iDataset(official_coco, protocol="bam-compat", lists=tmp_path)
    with pytest.raises(UserError, match=r"names val2014/nowhere\.jpg"):
        COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path).candidates(1, "test")
    (tmp_path / "val.txt").write_text("val2014/nowhere.jpg\n")
    with pytest.raises(UserError, match="has no image 'COCO_val2014"):
        COCO20iDataset(official_coco, protocol="bam-compat", lists=tmp_path / "val.txt").candidates(1, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no lists"):
        COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path / "empty")


def test_a_fold_that_the_published_lists_lack_is_not_made_up(official_coco: Path, tmp_path: Path) -> None:
    """The images of another fold would be chosen by size and by name: no episode of `hsnet-compat`."""
    clean = COCO20iDataset(official_coco)
    lists = {c - 1: clean.candidates(c, "test") for c in (1, 5)}
    (tmp_path / "fold0.pkl").write_bytes(pickle.dumps(lists))
    data = COCO20iDataset(official_coco, protocol="hsnet-compat", lists=tmp_path)
    assert data.ordered_pairs(0)
    with pytest.raises(UserError, match=r"The lists hold folds \[0\], not fold 1"):
        build_manifest(data, 1, 1, protocol="hsnet-compat")
