"""How classes are divided into folds, and the check of a fold number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from fssbench.errors import UserError, nearest

Partition = Literal["interleaved", "contiguous"]


def novel_classes(classes: Sequence[int], fold: int, n_folds: int, partition: Partition) -> tuple[int, ...]:
    """The classes tested in `fold` out of `n_folds`; over all folds each class is tested exactly once.

    `interleaved`: positions fold, fold + n_folds, ... (COCO-20i of FWB and HSNet, protocols.md 1.2).
    `contiguous`: blocks of len(classes) / n_folds neighbours (PASCAL-5i; COCO-20i of PANet).
    Raises `UserError` for a fold outside 0..n_folds-1 and for an unknown partition.
    """
    if partition not in get_args(Partition):
        raise UserError(f"Unknown class partition '{partition}'.{nearest(partition, get_args(Partition))}")
    if not 0 <= fold < n_folds:
        raise UserError(f"Fold {fold} does not exist: expected 0..{n_folds - 1}. Choose one of these folds.")
    if partition == "interleaved":
        return tuple(classes[fold::n_folds])
    start, end = (len(classes) * f // n_folds for f in (fold, fold + 1))
    return tuple(classes[start:end])
