"""The formulas of mIoU and FB-IoU, on Python integers: the one place where a reported number is made.

The metric uses them on its summed states, the result record on its own counts and on its episode table, so all three
give the same bits. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from typing import TypedDict

from fssbench.errors import UserError

COUNTS = ("fg_intersection", "fg_union", "bg_intersection", "bg_union")
"""The four pixel counts of an episode, in the order used by every tensor, row and record."""


class IoUScores(TypedDict):
    """Scores of one run on one fold; every IoU is an unrounded fraction in [0, 1]."""

    miou: float
    """Mean of the class IoUs."""
    fb_iou: float
    """Mean of the foreground and the background IoU, each pooled over all classes."""
    class_iou: dict[int, float]
    """Class id -> summed foreground intersection / summed foreground union, ascending ids."""
    episodes_per_class: dict[int, int]
    """Class id -> number of episodes, of every class of the fold (0 for a class without any)."""
    counts: dict[int, tuple[int, ...]]
    """Class id -> summed pixel counts in the order of `COUNTS`."""
    missing_classes: list[int]
    """Classes of the fold without episodes, ascending; always empty where `strict` is set."""


def iou_scores(counts: Mapping[int, Sequence[int]], episodes: Mapping[int, int], strict: bool = True) -> IoUScores:
    """Scores from the pixel counts summed per class (protocols.md 3.1).

    Args:
        counts: class id -> pixel counts in the order of `COUNTS`, summed over the class's episodes.
        episodes: class id -> number of episodes; its keys are the fold's novel classes.
        strict: refuse a class without episodes. Released codes differ here: HSNet and PFENet count such a class as
            IoU 0, RePRI leaves it out; neither number is comparable with a full run. With `strict=False` it is left
            out and named in `missing_classes`.

    Raises:
        UserError: no episode at all, or a class without episodes where `strict` is set.
    """
    classes = sorted(episodes)
    present = [c for c in classes if episodes[c] > 0]
    missing = [c for c in classes if episodes[c] == 0]
    if not present:
        raise UserError("No episode was scored, so there is no mIoU: run the whole manifest, or a part of it.")
    if missing and strict:
        raise UserError(
            f"No episode of class {', '.join(map(str, missing))} was scored ({len(missing)} of {len(classes)} novel "
            "classes): an mIoU over the other classes is not comparable. Run the whole manifest, or set strict=False."
        )
    whole = {c: tuple(map(int, counts[c])) for c in classes}
    class_iou = {c: _iou(whole[c][0], whole[c][1]) for c in present}
    pooled = [sum(part) for part in zip(*(whole[c] for c in present), strict=True)]
    foreground, background = _iou(*pooled[:2]), _iou(*pooled[2:])
    return IoUScores(
        miou=mean(class_iou.values()),
        fb_iou=mean([foreground, background]),
        class_iou=class_iou,
        episodes_per_class={c: int(episodes[c]) for c in classes},
        counts=whole,
        missing_classes=missing,
    )


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean whose sum is correctly rounded (`math.fsum`), so that it does not depend on the order."""
    values = list(values)
    return fsum(values) / len(values)


def _iou(intersection: int, union: int) -> float:
    """I / max(U, 1): an empty union gives 0, as in the released codes."""
    return intersection / max(union, 1)
