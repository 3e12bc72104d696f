"""Numbers that others published, as they printed them: shown beside measured rows, never ranked with them.

The table (`fssbench/assets/published.csv`) holds one line per method, backbone, data set and shot, with the protocol it was
measured under, where the number was read, and how far it can be trusted:

- `verified`: read in the method's own repository or paper;
- `secondary`: read in a later paper, repository or web page;
- `unverified`: from the literature, not looked up again.

Protocols (episodes, image lists, scoring resolution) differ between papers and from ours by more than most claimed gains,
so a reported number next to a measured one is orientation, not a comparison.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from fssbench.results.fields import Checked

FILE = Path(__file__).resolve().parents[1] / "assets" / "published.csv"
CONFIDENCE = ("verified", "secondary", "unverified")


@dataclass(frozen=True, kw_only=True)
class Published(Checked):
    """One published result. Scores are text in per cent with the digits that were printed, empty where none were."""

    group: ClassVar[str] = "published"
    dataset: str
    shot: int
    track: str
    method: str
    backbone: str
    fold_miou: tuple[str, ...]
    """Of folds 0 to 3."""
    miou: str
    """Empty where another measure was printed, which is in the remark then."""
    fb_iou: str
    protocol: str
    """Family of the evaluation code; `unknown` where nothing is said."""
    episodes: str
    """Per fold; `1000 x 5` are five runs of 1000."""
    resolution: str
    contamination: tuple[str, ...]
    paper: str
    read_in: str
    """Where this number was read."""
    confidence: str
    remark: str

    def _check(self) -> None:
        self.require(self.confidence in CONFIDENCE, "confidence", " or ".join(CONFIDENCE))


@cache
def all_published() -> tuple[Published, ...]:
    """Every published result we know of, by data set, shot and track, best first."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_published(row) for row in csv.DictReader(file))


def published(dataset: str, shot: int, track: str) -> tuple[Published, ...]:
    """The published results for a table of the board."""
    return tuple(p for p in all_published() if (p.dataset, p.shot, p.track) == (dataset, shot, track))


def _published(row: dict[str, str]) -> Published:
    values: dict[str, Any] = {name: value for name, value in row.items() if not name.startswith("fold")}
    values["fold_miou"] = tuple(row[f"fold{fold}"] for fold in range(4))
    values["contamination"] = tuple(row["contamination"].split("; "))
    return Published(**{**values, "shot": int(row["shot"])})
