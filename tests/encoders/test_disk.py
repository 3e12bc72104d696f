"""Features kept on disk: read back bit by bit, by several writers, after a kill, and from other processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from fssbench.encoders.disk import DiskFeatures
from fssbench.errors import UserError


def test_features_are_read_back_and_found_by_content_and_stamp(tmp_path: Path) -> None:
    features = torch.randn(3, 4, 2, 2)
    disk = DiskFeatures(tmp_path / "new" / "folder")
    assert len(disk) == 0
    disk.write([("aa", "a.jpg|1"), ("bb", "b.jpg|1")], features[:2])
    disk.write([("cc", "c.jpg|1")], features[2:])
    for again in (disk, DiskFeatures(disk.folder), pickle.loads(pickle.dumps(disk))):
        assert len(again) == 3
        assert again.digests == {"a.jpg|1": "aa", "b.jpg|1": "bb", "c.jpg|1": "cc"}
        assert "bb" in again
        assert "dd" not in again
        for row, digest in enumerate(("aa", "bb", "cc")):
            assert torch.equal(again.read(digest), features[row].half())


def test_an_image_may_have_further_stamps(tmp_path: Path) -> None:
    disk = DiskFeatures(tmp_path)
    disk.write([("aa", "a.jpg|1")], torch.ones(1, 1, 1, 1))
    disk.note([("aa", "moved/a.jpg|1")])
    for again in (disk, DiskFeatures(tmp_path)):
        assert again.digests == {"a.jpg|1": "aa", "moved/a.jpg|1": "aa"}
        assert len(again) == 1
    next(tmp_path.glob("*.safetensors")).unlink()
    assert DiskFeatures(tmp_path).digests == {}, "features that were deleted are not known by any stamp"
    next(tmp_path.glob("*.json")).write_text("[")
    with pytest.raises(UserError, match=r"stamps-.*\.json is damaged .*Delete it"):
        DiskFeatures(tmp_path)


def test_another_writers_files_are_seen_after_refresh(tmp_path: Path) -> None:
    one, other = DiskFeatures(tmp_path), DiskFeatures(tmp_path)
    one.write([("aa", "a")], torch.ones(1, 1, 1, 1))
    assert "aa" not in other
    other.refresh()
    assert "aa" in other


def test_a_file_that_was_not_finished_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: str, mode: int) -> None:
        raise KeyboardInterrupt

    disk = DiskFeatures(tmp_path)
    monkeypatch.setattr("fssbench.files.os.chmod", killed)
    with pytest.raises(KeyboardInterrupt):
        disk.write([("aa", "a")], torch.ones(1, 1, 1, 1))
    assert list(tmp_path.iterdir()) == []
    assert len(DiskFeatures(tmp_path)) == 0


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "features-x.safetensors").write_bytes(b"not one")
    with pytest.raises(UserError, match=r"features-x.safetensors is damaged .*Delete it"):
        DiskFeatures(tmp_path)
