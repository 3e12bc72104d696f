"""DAVIS-17 made ready: every frame has its photograph and mask, every sequence its objects."""

from __future__ import annotations

from pathlib import Path

from datamodules.davis17 import DavisSequences
from fssbench.errors import UserError
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import Report
from fssbench.protocols.lists import names_sha256

SOURCES = (
    Source(
        "DAVIS-2017-trainval-480p.zip",
        ("DAVIS/JPEGImages", "JPEGImages"),
        ("https://data.vision.ee.ethz.ch/csergi/share/davis/DAVIS-2017-trainval-480p.zip",),
        page="https://davischallenge.org/davis2017/code.html",
    ),
)
_VAL = {"sequences val": 30, "objects val": 61, "frames val": 1999}


def convert(root: Path, training: bool) -> None:
    """Nothing: the official files are read as they are."""


def check(root: Path, training: bool, complete: bool) -> Report:
    """Sequences, objects and frames of the official lists; raises `UserError` for what is missing."""
    report = Report()
    for split in ("val", "train") if training else ("val",):
        if split == "train" and not complete and not DavisSequences.has_list(root, split):
            continue
        data = DavisSequences(root, split)
        report.counts |= {
            f"sequences {split}": len(data.names),
            f"objects {split}": sum(data.objects(name) for name in data.names),
            f"frames {split}": sum(len(data.frames(name)) for name in data.names),
        }
        report.lists[f"sequences {split}"] = {
            "entries": len(data.names), "sha256": names_sha256(data.names), "published": None,
        }  # fmt: skip
    wrong = [f"{what} {report.counts[what]}, expected {n}" for what, n in _VAL.items() if report.counts[what] != n]
    if complete and wrong:
        raise UserError(
            f"{root} is not DAVIS-17: {'; '.join(wrong)}. Unpack it again, or say --subset for a part of it."
        )
    return report
