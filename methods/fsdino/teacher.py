"""The teacher's features of every image, computed once and kept on disk (fsdino.md 3.1)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fssbench.encoders.disk import DiskFeatures
from fssbench.encoders.sam import SamEncoder
from fssbench.errors import UserError
from fssbench.files import cache_folder, sha256_text
from fssbench.images import IMAGE_INTERPOLATION, decode_image, resize_image
from fssbench.unlabelled import ImageCollection
from methods.fsdino.alignment import down_to

FILE_BYTES = 256 * 2**20
"""Size of one file of features: what is lost when the work is killed."""


class TeacherFeatures:
    """`fssbench.unlabelled.Targets`: rows of a collection -> the teacher's features of them, from disk."""

    def __init__(self, disk: DiskFeatures, digests: dict[int, str]) -> None:
        self.disk, self._digests = disk, digests

    @property
    def rows(self) -> set[int]:
        """Rows that have features."""
        return set(self._digests)

    def read(self, row: int) -> Tensor:
        """Features (C, g, g) float16."""
        return self.disk.read(self._digests[row])


class Share(NamedTuple):
    """Which part of the images this process computes, and on what."""

    rank: int = 0
    processes: int = 1
    device: torch.device = torch.device("cpu")
    workers: int = 0


def teacher_features(
    teacher: SamEncoder,
    images: ImageCollection,
    rows: Sequence[int],
    folder: Path | None = None,
    grid: int | None = None,
    batch: int = 4,
    share: Share | None = None,
) -> TeacherFeatures:
    """The features of the images in `rows`; those that are not on disk yet are computed and written.

    Images are squashed to the teacher's size with the filter of `fssbench.images`, features are stored as float16. They
    are found again by the teacher's weights, the grid, and the bytes of the image, so neither another teacher nor a
    changed image can be taken for this one. What it will take is logged before it starts.

    folder  parent of the folders of all teachers; None: `teacher` in the cache folder
    grid    shrink the features to this grid before they are stored; None: as they are
    batch   images per pass through the teacher

    Raises `UserError` where the disk is too small, and where no image can be read. Images that cannot be read are left
    out and counted in the log.
    """
    share = share or Share()
    side = teacher.grid if grid is None else grid
    facts = f"{teacher.sha256()}|{teacher.image_size}|{IMAGE_INTERPOLATION}|{side}|float16"
    parent = cache_folder() / "teacher" if folder is None else folder
    disk = DiskFeatures(parent / sha256_text(facts)[:16])
    stamps = {row: images.stamp(row) for row in rows}
    # agreed on before anybody writes: a process that looks later would share out a shorter list and leave images out
    wanted = _of_all({row: stamps[row] for row in rows if stamps[row] not in disk.digests}, share)
    missing = [row for row in rows if row in wanted]
    digests = {row: disk.digests[stamps[row]] for row in rows if stamps[row] in disk.digests}
    if missing:
        spare = len(disk) - len(set(digests.values()))
        _announce(disk, len(missing), len(rows), 2 * teacher.channels * side**2, spare)
        mine = missing[share.rank :: share.processes]
        found, failures = _compute(teacher, images, mine, stamps, disk, side, batch, share)
        found, failures = _of_all(found, share), _of_all(failures, share)
        disk.refresh()
        digests |= found
        known = sorted((digest, stamps[row]) for row, digest in found.items() if stamps[row] not in disk.digests)
        if known and share.rank == 0:
            disk.note(known)
        if failures:
            first = failures[min(failures)]
            rank_zero_info(f"{len(failures)} of {len(rows)} images cannot be read and are left out, the first: {first}")
    if not digests:
        raise UserError(f"None of the {len(rows)} images can be read as an image. Check data.root.")
    return TeacherFeatures(disk, digests)


def _announce(disk: DiskFeatures, missing: int, total: int, size: int, spare: int) -> None:
    """Say what will be written, and refuse where it does not fit.

    missing  images that no stamp is known of
    size     bytes per image
    spare    images on disk that none of the known stamps belongs to: as many of the missing ones may be among them
    """
    needed = missing * size
    existing = next(path for path in (disk.folder, *disk.folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    amount = f"{needed / 1e9:.1f} GB ({size / 2**20:.2f} MiB per image)"
    if needed - spare * size > free:
        raise UserError(
            f"The teacher's features of {missing} images need {amount}, and {disk.folder} has {free / 1e9:.1f} GB free. Give "
            "another model.cache_dir, fewer images (data.max_images), or a smaller model.distill.cache_grid."
        )
    rank_zero_info(
        f"teacher: computing features of {missing} of {total} images, up to {amount} in {disk.folder} "
        f"({free / 1e9:.1f} GB free); once only, and an interrupted run goes on where it was"
    )


class _Squares(Dataset[tuple[int, str, Tensor | str | None]]):
    """Row, SHA-256 and squashed image (3, S, S) uint8 of each wanted row; None instead of an image whose features are on
    disk (a copy, or a folder that was moved), a message instead of an unreadable one."""

    def __init__(self, images: ImageCollection, rows: Sequence[int], side: int, disk: DiskFeatures) -> None:
        self.images, self.rows, self.side, self.disk = images, rows, side, disk

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, str, Tensor | str | None]:
        row = self.rows[index]
        try:
            content = self.images.content(row)
            digest = hashlib.sha256(content).hexdigest()
            if digest in self.disk:
                return row, digest, None
            square = resize_image(decode_image(content, self.images.keys[row]), self.side)
        except UserError as error:
            return row, "", str(error)
        return row, digest, torch.from_numpy(np.moveaxis(square, 2, 0).copy())


def _compute(
    teacher: SamEncoder,
    images: ImageCollection,
    rows: Sequence[int],
    stamps: dict[int, str],
    disk: DiskFeatures,
    grid: int,
    batch: int,
    share: Share,
) -> tuple[dict[int, str], dict[int, str]]:
    """Write the features of `rows`; returns the SHA-256 of each image by row, and messages about unreadable ones."""
    found: dict[int, str] = {}
    failures: dict[int, str] = {}
    per_file = max(1, FILE_BYTES // (2 * teacher.channels * grid**2))
    waiting: list[tuple[tuple[str, str], Tensor]] = []
    teacher = teacher.to(share.device)
    loader = DataLoader(
        _Squares(images, rows, teacher.image_size, disk), batch_size=batch, num_workers=share.workers, collate_fn=list
    )
    with tqdm(total=len(rows), unit="image", desc="teacher", delay=2, disable=share.rank > 0 or None) as bar:
        for items in loader:
            bar.update(len(items))
            failures |= {row: image for row, _, image in items if isinstance(image, str)}
            found |= {row: digest for row, digest, _ in items if digest}
            kept = {digest for (digest, _), _ in waiting}
            read = [(row, digest, image) for row, digest, image in items if isinstance(image, Tensor)]
            new = {digest: (row, image) for row, digest, image in read if digest not in disk and digest not in kept}
            if new:
                features = encode(teacher, torch.stack([image for _, image in new.values()]).to(share.device), grid)
                names = [(digest, stamps[row]) for digest, (row, _) in new.items()]
                waiting += zip(names, features.cpu(), strict=True)
            while len(waiting) >= per_file:
                waiting = _write(disk, waiting, per_file)
        if waiting:
            _write(disk, waiting, per_file)
    return found, failures


def encode(teacher: SamEncoder, squares: Tensor, grid: int | None = None) -> Tensor:
    """Squares (M, 3, S, S) uint8 of the teacher's size to features (M, C, g, g) float16, as they are kept.

    Computed in float32, one image at a time on the CPU, where that costs nothing, so that they do not depend on how
    the images are grouped.
    """
    groups: Iterator[Tensor] = iter(squares.split(1 if squares.device.type == "cpu" else len(squares)))
    features = torch.cat([teacher(group.float() / 255) for group in groups])
    return (features if grid is None else down_to(features, (grid, grid))).half()


def _write(
    disk: DiskFeatures, waiting: list[tuple[tuple[str, str], Tensor]], count: int
) -> list[tuple[tuple[str, str], Tensor]]:
    """Write the first `count` and return the rest."""
    disk.write([name for name, _ in waiting[:count]], torch.stack([feature for _, feature in waiting[:count]]))
    return waiting[count:]


def _of_all(values: dict[int, str], share: Share) -> dict[int, str]:
    """The entries of all processes; also waits for them."""
    if share.processes == 1:
        return values
    gathered: list[dict[int, str]] = [{} for _ in range(share.processes)]
    torch.distributed.all_gather_object(gathered, values)
    return {row: value for part in gathered for row, value in part.items()}
