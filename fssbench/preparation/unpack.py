"""Unpacking archives of unknown origin: nothing leaves the target, and nothing half-unpacked is left in it."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm import tqdm

from fssbench.errors import UserError


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip or (compressed) tar into `target`, beside what is there; files of the same name are replaced.

    It is unpacked into a hidden folder first and moved when it is complete. Raises `UserError` where the archive is
    damaged or cut off, is of another kind, wants to write outside the target, or does not fit on the disk.
    """
    refuse_no_archive(archive)
    target.mkdir(parents=True, exist_ok=True)
    hidden = target / f".unpacking-{archive.name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir()
    try:
        if zipfile.is_zipfile(archive):
            _unzip(archive, hidden)
        else:
            _untar(archive, hidden)
        _move(hidden, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive} is damaged or cut off ({error}). Get it again.") from None
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise UserError(f"{archive} is damaged or cut off ({error}). Get it again.") from None
        raise UserError(f"Cannot unpack {archive} into {target}: {error.strerror}. Nothing of it was kept.") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def refuse_no_archive(archive: Path) -> None:
    """Raise `UserError` for a file that is neither zip nor (compressed) tar, or a zip that is cut off; reads little of it."""
    try:
        known = zipfile.is_zipfile(archive) or tarfile.is_tarfile(archive)
    except (EOFError, zlib.error):
        known = False
    except OSError as error:
        raise UserError(f"Cannot read {archive}: {error.strerror}. Check the path and permissions.") from None
    if not known:
        raise UserError(f"{archive} is no zip or tar archive, or it is damaged or cut off. Get it again.")


def _unzip(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            _refuse_outside(archive, member.filename)
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise UserError(
                    f"{archive} holds {member.filename}, which is a link or device. Get the official archive."
                )
        _refuse_too_large(archive, target, (member.file_size for member in members))
        for member in _progress(archive, members):
            file.extract(member, target)  # checks the CRC of each file


def _untar(archive: Path, target: Path) -> None:
    with tarfile.open(archive) as file:
        members = file.getmembers()  # reads to the end: a cut archive fails before anything is written
        for member in members:
            _refuse_outside(archive, member.name)
        _refuse_too_large(archive, target, (member.size for member in members))
        try:
            for member in _progress(archive, members):
                file.extract(member, target, filter="data")
        except tarfile.FilterError as error:
            raise UserError(
                f"{archive} wants to write outside its folder ({error}). Get the official archive."
            ) from None


def _refuse_outside(archive: Path, name: str) -> None:
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(name)
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise UserError(f"{archive} wants to write outside its folder ({name}). Get the official archive.")


def _refuse_too_large(archive: Path, target: Path, sizes: Iterable[int]) -> None:
    need, free = sum(sizes), shutil.disk_usage(target).free
    if need > free:
        raise UserError(
            f"{archive} needs {need / 2**30:.1f} GiB in {target}, {free / 2**30:.1f} GiB are free. Free some space, or "
            "choose another folder."
        )


def _progress(archive: Path, members: list[zipfile.ZipInfo] | list[tarfile.TarInfo]) -> Iterable:
    return tqdm(members, f"unpacking {archive.name}", unit="file", delay=3, mininterval=1)


def _move(source: Path, target: Path) -> None:
    """Move a whole tree into another, folder by folder; renames only, since both are on one disk."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move(entry, place)
        else:
            os.replace(entry, place)
