"""FSS-1000 made ready: 1000 classes of ten pairs, and the official test classes."""

from __future__ import annotations

from pathlib import Path

from datamodules.fss1000 import FSS1000Dataset
from fssbench.errors import UserError
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import Report
from fssbench.protocols.lists import names_sha256

_PAGE = "https://github.com/HKUSTCV/FSS-1000"
SOURCES = (Source("fewshot_data.zip", ("fewshot_data", "FSS-1000", "data", "*/1.jpg"), page=_PAGE),)
EXTRAS = (
    Source(
        "fss_test_set.txt",
        ("splits/fss_test_set.txt", "splits/test.txt"),
        ("https://raw.githubusercontent.com/HKUSTCV/FSS-1000/master/fss_test_set.txt",),
        page=_PAGE,
    ),
)
_TEST_CLASSES = (240, "0efbe526c0dd445b580de07cae179df51fffc91255599e96b13d8b16e7e04c0c")
"""Number of the official test classes, and SHA-256 of their names, sorted, one per line."""


def convert(root: Path, training: bool) -> None:
    """Nothing: the official files are read as they are."""


def check(root: Path, training: bool, complete: bool) -> Report:
    """Every image with its mask, classes and lists disjoint and complete, the test classes the official ones."""
    data = FSS1000Dataset(root)
    test, train = data.novel_classes(0), data.base_classes(0)
    images = sum(len(data.candidates(c, "test")) for c in data.class_names)
    report = Report(
        counts={"classes": len(data.class_names), "images": images, "test": len(test), "training": len(train),
                "validation": len(data.val_classes)},
        notes=list(data.skipped),
    )  # fmt: skip
    names = sorted(data.class_names[c] for c in test)
    found = len(names), names_sha256(names)
    report.lists["test classes"] = {
        "entries": found[0], "sha256": found[1], "published": found == _TEST_CLASSES if complete else None,
    }  # fmt: skip
    if not complete:
        return report
    if (len(data.class_names), images) != (1000, 10000):
        raise UserError(
            f"{root} holds {len(data.class_names)} classes with {images} usable images, FSS-1000 has 1000 with 10000. Unpack "
            "it again, or say --subset for a part of it."
        )
    if found != _TEST_CLASSES:
        raise UserError(
            f"The test classes of {root} are not the official 240 (there are {found[0]}). Put fss_test_set.txt of {_PAGE} "
            f"into {root / 'splits'}."
        )
    return report
