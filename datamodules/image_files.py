"""ImageFiles: every image below a folder, loose or inside tar files, read without unpacking."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import NamedTuple

from fssbench.errors import UserError
from fssbench.files import cache_folder, sha256_text, write_text_whole
from fssbench.images import IMAGE_SUFFIXES
from fssbench.unlabelled import ImageCollection

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class Place(NamedTuple):
    """Where an image is: a file, and the bytes in it (a `size` of -1: all of them)."""

    path: Path
    offset: int = 0
    size: int = -1


class ImageFiles(ImageCollection):
    """All images below `root` (a folder, or one tar file), whatever their depth; hidden files are left out.

    A key is the path below `root`; that of an image in a tar file is the tar's path, then its name inside
    (`sa_000000.tar/sa_1.jpg`; SA-1B's shards also hold a .json per image, which is passed over). A tar file's members are
    listed once and remembered in the cache folder.

    Raises `UserError` where `root` is missing or holds no image, and for damaged or compressed archives.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist. Give data.root: a folder of images, or of SA-1B's tar files.")
        self._folder = self.root.resolve()
        self._places: dict[str, Place] = {}
        self._times: dict[Path, int] = {}
        names = [self.root] if self.root.is_file() else _below(self.root)
        for path in names:
            key = path.name if path == self.root else path.relative_to(self.root).as_posix()
            if path.suffix.lower() in IMAGE_SUFFIXES and path != self.root:
                self._places[key] = Place(path)
            elif path.suffix.lower() == ".tar":
                self._places |= {f"{key}/{name}": Place(path, *part) for name, part in _members(path).items()}
        self.keys = sorted(self._places)
        if not self.keys:
            raise UserError(_empty(self.root, names))

    def stamp(self, row: int) -> str:
        """Folder, key, bytes, and the time of the file (of the tar file, for an image inside one)."""
        key = self.keys[row]
        place = self._places[key]
        name = f"{self._folder}|{key}"
        if place.size >= 0:
            if place.path not in self._times:
                self._times[place.path] = place.path.stat().st_mtime_ns
            return f"{name}|{place.size}|{self._times[place.path]}"
        try:
            facts = place.path.stat()
        except OSError:  # a link to nothing, a file that is gone: `content` says so
            return f"{name}|unreadable"
        return f"{name}|{facts.st_size}|{facts.st_mtime_ns}"

    def content(self, row: int) -> bytes:
        """The encoded image. Raises `UserError` where its file cannot be read."""
        place = self._places[self.keys[row]]
        try:
            with open(place.path, "rb") as file:
                file.seek(place.offset)
                return file.read(place.size)
        except OSError as error:
            raise UserError(f"Cannot read {place.path}: {error.strerror}. Check the file and data.root.") from error


def _below(root: Path) -> list[Path]:
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return found


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, bytes) of the images in a tar file: from the cache, or from a walk over its headers."""
    try:
        facts = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Check the file and data.root.") from error
    cached = (
        cache_folder() / "tar" / f"{sha256_text(f'{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}')[:32]}.json"
    )
    if cached.is_file():
        return {name: (offset, size) for name, (offset, size) in json.loads(cached.read_text()).items()}
    try:
        with tarfile.open(path, "r:") as archive:
            found = {
                member.name.removeprefix("./"): (member.offset_data, member.size)
                for member in archive
                if member.isreg() and member.name.lower().endswith(IMAGE_SUFFIXES)
            }
        if archive.offset > facts.st_size:  # the last image is cut off; tarfile notices only when it reads it
            raise tarfile.ReadError("unexpected end")
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is damaged, cut off or compressed ({error}). Download or unpack it again.") from error
    write_text_whole(cached, json.dumps(found))
    return found


def _empty(root: Path, names: list[Path]) -> str:
    packed = [path.name for path in names if path.name.lower().endswith(PACKED)]
    if packed:
        return f"{root} holds no images, but archives such as {packed[0]}, which cannot be read in place. Unpack them."
    return (
        f"{root} holds no images (expected {', '.join(IMAGE_SUFFIXES)} or .tar at any depth). Give another data.root."
    )
