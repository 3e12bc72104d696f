"""Teacher features on disk: equal to computed ones, computed once, resumed after a kill, never mistaken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import methods.fsdino.teacher
from datamodules.image_files import ImageFiles
from fssbench.encoders.sam import SamEncoder
from fssbench.errors import UserError
from fssbench.images import decode_image, resize_image
from methods.fsdino.alignment import down_to
from methods.fsdino.teacher import Share, encode, teacher_features
from tests.data.images import make_images
from tests.methods.sam import small_sam


class Counting(SamEncoder):
    """Counts the images it encodes, and may be killed."""

    def __init__(self, weights: str) -> None:
        super().__init__("from_weights", weights)
        self.encoded, self.dies_after = 0, 10**9

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.encoded += len(images)
        if self.encoded > self.dies_after:
            raise KeyboardInterrupt
        return super().forward(images)


@pytest.fixture
def teacher(tmp_path: Path) -> Counting:
    return Counting(str(small_sam(tmp_path)))


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    return ImageFiles(make_images(tmp_path / "images", 6))


@pytest.fixture
def compute(teacher: Counting, images: ImageFiles, tmp_path: Path) -> Callable[..., Any]:
    """Features of all images in the test's own folder."""

    def run(**kwargs: Any) -> Any:
        return teacher_features(
            **{
                "teacher": teacher,
                "images": images,
                "rows": range(len(images.keys)),
                "folder": tmp_path / "kept",
                **kwargs,
            }
        )

    return run


def test_kept_features_equal_computed_ones(compute: Callable[..., Any], teacher: Counting, images: ImageFiles) -> None:
    features = compute()
    for row in range(6):
        square = torch.from_numpy(resize_image(decode_image(images.content(row), "x"), 64)).permute(2, 0, 1)
        online = teacher(square[None].float() / 255)[0]
        torch.testing.assert_close(features.read(row).float(), online, atol=1e-3, rtol=1e-3)
        assert features.read(row).dtype == torch.float16
        assert torch.equal(features.read(row), encode(teacher, square[None])[0])


def test_each_image_is_encoded_once(
    compute: Callable[..., Any], teacher: Counting, images: ImageFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        compute(rows=range(4))
        assert teacher.encoded == 4
        assert "features of 4 of 4 images, up to 0.0 GB" in caplog.text
        caplog.clear()
        assert compute(rows=range(4)).rows == set(range(4))
        assert caplog.text == ""
        compute()
        assert "features of 2 of 6 images" in caplog.text
    assert teacher.encoded == 6
    os.utime(images.root / images.keys[0], ns=(5, 5))
    compute()
    assert teacher.encoded == 6, "the same bytes at another time"


def test_a_killed_run_loses_its_last_file_only(
    compute: Callable[..., Any], teacher: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.fsdino.teacher, "FILE_BYTES", 2 * 2 * 8 * 16)  # two images
    teacher.dies_after = 5
    with pytest.raises(KeyboardInterrupt):
        compute(batch=1)
    teacher.encoded, teacher.dies_after = 0, 10**9
    resumed = compute(batch=1)
    assert teacher.encoded == 2
    whole = compute(folder=resumed.disk.folder.parent / "other")
    assert all(torch.equal(resumed.read(row), whole.read(row)) for row in range(6))


def test_what_is_known_by_its_content_is_read_once_more_and_never_again(
    compute: Callable[..., Any], teacher: Counting, images: ImageFiles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A moved folder, and copies of an image within it, need hardly any room and are known at the next start."""
    (images.root / "copy.png").write_bytes(images.content(0))
    before = compute(images=ImageFiles(images.root), rows=range(7))
    assert teacher.encoded == 6
    files = sorted(before.disk.folder.glob("*.safetensors"))
    moved = images.root.rename(tmp_path / "elsewhere")

    class Usage:
        free = 2 * 8 * 16  # for one more image: only reading it tells that the copy needs none

    def decoded(*args: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("methods.fsdino.teacher.shutil.disk_usage", lambda path: Usage)
    monkeypatch.setattr("methods.fsdino.teacher.decode_image", decoded)
    after = compute(images=ImageFiles(moved), rows=range(7))
    assert all(torch.equal(after.read(row), before.read(row)) for row in range(7))
    assert sorted(before.disk.folder.glob("*.safetensors")) == files

    monkeypatch.setattr(ImageFiles, "content", decoded)
    assert compute(images=ImageFiles(moved), rows=range(7)).rows == set(range(7))


def test_a_late_process_shares_out_the_same_images(
    compute: Callable[..., Any], teacher: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two processes looks at the disk after the first has written its half: it computes its own half, not
    half of what is left."""
    first = compute(rows=[0, 2])
    stamps = {row: "" for row in range(4)}
    of_first = iter([stamps, {row: first._digests[row] for row in (0, 2)}, {}])

    def gather(found: list[Any], own: Any) -> None:
        found[:] = [next(of_first), own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    teacher.encoded = 0
    assert compute(rows=range(4), share=Share(rank=1, processes=2)).rows == set(range(4))
    assert teacher.encoded == 2


def test_another_teacher_grid_or_image_is_not_mistaken(
    compute: Callable[..., Any], teacher: Counting, images: ImageFiles, tmp_path: Path
) -> None:
    plain = compute()
    other = Counting(str(small_sam(tmp_path, seed=1)))
    assert not torch.equal(compute(teacher=other).read(0), plain.read(0))
    assert other.encoded == 6
    small = compute(grid=2)
    assert small.read(0).shape == (8, 2, 2)
    torch.testing.assert_close(
        small.read(0).float(), down_to(plain.read(0)[None].float(), (2, 2))[0], atol=2e-3, rtol=2e-3
    )
    (images.root / images.keys[0]).write_bytes(images.content(3))
    changed = compute()
    assert torch.equal(changed.read(0), plain.read(3))


def test_unreadable_images_are_left_out_and_counted(
    compute: Callable[..., Any], images: ImageFiles, caplog: pytest.LogCaptureFixture
) -> None:
    (images.root / images.keys[2]).write_bytes(b"no image")
    with caplog.at_level("INFO"):
        features = compute()
    assert features.rows == {0, 1, 3, 4, 5}
    assert "1 of 6 images cannot be read and are left out, the first: a/005.png is not an image" in caplog.text
    for key in images.keys:
        (images.root / key).write_bytes(b"")
    with pytest.raises(UserError, match="None of the 6 images"):
        compute()


def test_a_full_disk_is_noticed_before_anything_is_computed(
    compute: Callable[..., Any], teacher: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("methods.fsdino.teacher.shutil.disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match=r"6 images need 0\.0 GB .* another model\.cache_dir"):
        compute()
    assert teacher.encoded == 0
