"""COCO-20i made ready: images complete, both renderers' masks, lists compared with the published ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from datamodules.coco20i import COCO20iDataset
from datamodules.coco_index import load_index
from fssbench.dataset import Split
from fssbench.errors import UserError
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import Report
from fssbench.protocols.known import COCO_TRN_IMAGES, COCO_VAL_IMAGES, LISTS
from fssbench.protocols.lists import list_sha256

_SINGLE = ("images", "annotations/instances.json")
_ZIPS = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
_PAGE = "https://cocodataset.org/#download"


def _official(path: str, makes: str, md5: str) -> Source:
    return Source(
        path.rpartition("/")[2], (makes, *_SINGLE[:1]), tuple(f"{host}/{path}" for host in _ZIPS), ("md5", md5), _PAGE
    )


SOURCES = (
    _official("zips/val2014.zip", "val2014", "a3d79f5ed8d289b7a7554ce06a5782b3"),
    _official(
        "annotations/annotations_trainval2014.zip",
        "annotations/instances_val2014.json",
        "0a379cfc70b0e71301e0f377548639bd",
    ),
    _official("zips/train2014.zip", "train2014", "0da8c0bd3d6becc4dcb32757491aca88"),
)
EXTRAS = (
    Source(
        "val.txt",
        ("lists/hsnet-compat/val.txt",),
        ("https://raw.githubusercontent.com/mboudiaf/RePRI-for-Few-Shot-Segmentation/master/lists/coco/val.txt",),
        ("sha256", "9581a9be3eb085285c76f1f83ae95c912405750e1c6580a75f25518171a7fb24"),
        "https://github.com/mboudiaf/RePRI-for-Few-Shot-Segmentation",
    ),
    Source(
        "val.txt",
        ("lists/bam-compat/val.txt",),
        ("https://raw.githubusercontent.com/syp2ysy/VRP-SAM/main/data/splits/lists/coco/val.txt",),
        None,
        "https://github.com/syp2ysy/VRP-SAM",
    ),
)
_IMAGES = {"train2014": 82783, "val2014": 40504}


def _layout(root: Path, training: bool) -> list[tuple[str, str]]:
    """(image folder, instances JSON) of the splits: the official ones, or a single pair for everything."""
    if (root / _SINGLE[0]).is_dir() and (root / _SINGLE[1]).is_file():
        return [_SINGLE]
    splits = ("val2014", "train2014") if training else ("val2014",)
    return [(split, f"annotations/instances_{split}.json") for split in splits]


def _dataset(root: Path, protocol: str = "clean-v1", partition: str = "interleaved") -> COCO20iDataset:
    if _layout(root, True) == [_SINGLE]:
        return COCO20iDataset(root, *_SINGLE, *_SINGLE, partition=partition, protocol=protocol)  # type: ignore[arg-type]
    return COCO20iDataset(root, partition=partition, protocol=protocol)  # type: ignore[arg-type]


def convert(root: Path, training: bool) -> None:
    """Render the masks of every JSON with both renderers, once."""
    for _, instances in _layout(root, training):
        for renderer in ("clean", "legacy"):
            load_index(root / instances, renderer)


def check(root: Path, training: bool, complete: bool) -> Report:
    """Every listed image is there; lists of all protocols whose order is known, with the published ones beside."""
    report = Report()
    for folder, instances in _layout(root, training):
        listed = load_index(root / instances).names
        there = set(os.listdir(root / folder))
        absent = [name for name in listed if name not in there]
        if absent:
            raise UserError(
                f"{root / folder} lacks {len(absent)} of the {len(listed)} images in {instances}, the first is {absent[0]}. "
                f"Unpack {folder}.zip again."
            )
        if complete and len(listed) != _IMAGES.get(folder):
            raise UserError(
                f"{root / instances} lists {len(listed)} images, COCO 2014 has {_IMAGES.get(folder)}. Use the official "
                "file, or say --subset for a part of the data set."
            )
        report.counts[f"images {folder}"] = len(listed)
    for partition in ("interleaved", "contiguous"):
        data = _dataset(root, partition=partition)
        for fold in range(data.n_folds):
            _add(report, f"clean-v1 {partition} test fold{fold}", data.ordered_pairs(fold))
            report.notes += data.skipped if fold == 0 and partition == "interleaved" else []
    for protocol in ("hsnet-compat", "bam-compat"):
        if (root / "lists" / protocol).is_dir():
            data = _dataset(root, protocol)
            _compare(report, data, protocol, complete)
            if complete and protocol == "hsnet-compat":
                report.notes.append(by_class(data, "test", COCO_VAL_IMAGES))
                report.notes += [by_class(data, "train", COCO_TRN_IMAGES)] if training else []
        else:
            report.notes.append(
                f"{protocol}: the order of images is not here (lists/{protocol}/val.txt), so it cannot run."
            )
    return report


def _add(report: Report, name: str, pairs: list[tuple[int, str]], published: bool | None = None) -> None:
    report.lists[name] = {"entries": len(pairs), "sha256": list_sha256(pairs), "published": published}


def _compare(report: Report, data: COCO20iDataset, protocol: str, complete: bool) -> None:
    """Lists of renderer `legacy` against the published ones, which assume the PNG masks in circulation."""
    known = LISTS["coco-20i", "hsnet-val"]
    if complete and "list-" in data.image_filter:
        report.notes.append(f"{protocol}: the lists in lists/{protocol} are none of the published ones known here.")
    for fold in range(data.n_folds):
        try:
            pairs = data.ordered_pairs(fold)
        except UserError as error:  # lists of other folds alone: these can run
            report.notes.append(f"{protocol} fold {fold} cannot run: {error}")
            continue
        comparable = complete and protocol == "hsnet-compat"
        equal = list_sha256(pairs) == known[fold].sha256
        _add(report, f"{protocol} test fold{fold}", pairs, equal if comparable else None)
        if comparable and not equal:
            report.notes.append(
                f"{protocol} fold {fold}: {len(pairs)} pairs are built, the published list has {known[fold].entries}; it was "
                "made from PNG masks whose renderer is unknown. For its very episodes give the list itself (data.lists)."
            )


def by_class(data: COCO20iDataset, split: Split, published: Sequence[int]) -> str:
    """In which classes the lists of a split have more or fewer images than the published ones, in one line.

    published  images of each class, ascending
    """
    counts = (
        (data.class_names[c], len(data.candidates(c, split)), n)
        for c, n in zip(sorted(data.class_names), published, strict=True)
    )
    different = [f"{name} {found - n:+} of {n}" for name, found, n in counts if found != n]
    lists = f"hsnet-compat {split} lists, images per class"
    if not different:
        return f"{lists}: as many as in the published lists, in all {len(published)} classes."
    return (
        f"{lists}: {len(published) - len(different)} of {len(published)} classes as published; {', '.join(different)}."
    )
