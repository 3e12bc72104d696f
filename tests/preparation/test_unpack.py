"""Archives that are damaged or hostile leave nothing, good ones everything."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fssbench.errors import UserError
from fssbench.preparation import unpack as module
from fssbench.preparation.unpack import unpack

FILES = {"set/a.txt": b"one" * 5000, "set/deep/b.txt": b"two" * 5000, "c.txt": b"three"}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES, member: tarfile.TarInfo | None = None) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if member:
            archive.addfile(member)
    return path


@pytest.mark.parametrize("make", [lambda p: make_zip(p / "x.zip"), lambda p: make_tar(p / "x.tar"),
                                  lambda p: make_tar(p / "x.tgz")])  # fmt: skip
def test_everything_arrives_beside_what_is_there(make: Callable[[Path], Path], tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "set").mkdir(parents=True)
    (target / "set" / "mine.txt").write_text("mine")
    (target / "set" / "a.txt").write_text("old")
    archive = make(tmp_path)
    unpack(archive, target)
    unpack(archive, target)
    found = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert found == {**FILES, "set/mine.txt": b"mine"}


@pytest.mark.parametrize("name", ["../evil.txt", "/tmp/evil.txt", "set/../../evil.txt", "C:\\evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_nothing_leaves_the_target(make: Callable[..., Path], name: str, tmp_path: Path) -> None:
    archive = make(tmp_path / ("x.zip" if make is make_zip else "x.tar"), {"good.txt": b"1", name: b"2"})
    with pytest.raises(UserError, match="outside its folder"):
        unpack(archive, tmp_path / "target")
    assert list((tmp_path / "target").iterdir()) == []
    assert not (tmp_path / "evil.txt").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    with pytest.raises(UserError, match="outside its folder"):
        unpack(make_tar(tmp_path / "x.tar", member=link), tmp_path / "target")
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc")
    with pytest.raises(UserError, match="is a link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "target")


def flip(content: bytes) -> bytes:
    middle = len(content) // 3
    return content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 40]) + content[middle + 40 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda b: b[: len(b) // 2],
    "flipped": flip,
    "empty": lambda b: b"",
    "text": lambda b: b"no archive at all",
}


@pytest.mark.parametrize(
    ("kind", "damage"),
    # a plain tar has no checksum of its content: that of the whole file is checked before it is unpacked
    [(k, d) for k in ("x.zip", "x.tgz", "x.tar") for d in DAMAGES if (k, d) != ("x.tar", "flipped")],
)
def test_damaged_archives_leave_nothing(kind: str, damage: str, tmp_path: Path) -> None:
    archive = (make_zip if kind == "x.zip" else make_tar)(tmp_path / kind)
    archive.write_bytes(DAMAGES[damage](archive.read_bytes()))
    with pytest.raises(UserError, match=rf"{kind} is (damaged|no zip)"):
        unpack(archive, tmp_path / "target")
    assert list((tmp_path / "target").glob("*")) == []


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 100

    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(UserError, match=r"needs .* GiB"):
        unpack(make_zip(tmp_path / "x.zip"), tmp_path / "target")
