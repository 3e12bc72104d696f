"""The same results in the same order with any number of processes, and errors that arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodules import coco_index, parallel
from datamodules.parallel import FEW, parallel_map
from fssbench.errors import UserError
from tests.data.coco import make_coco


def squared(number: int) -> int:
    if number < 0:
        raise UserError(f"{number} is negative, expected a number from 0.")
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_order_and_errors(workers: int) -> None:
    items = list(range(3 * FEW))
    assert parallel_map(squared, items, "squaring", workers=workers) == [n * n for n in items]
    with pytest.raises(UserError, match="-1 is negative"):
        parallel_map(squared, [*items, -1], "squaring", workers=workers)
    assert parallel_map(squared, [], "squaring", workers=workers) == []


def test_masks_do_not_depend_on_the_number_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_coco(tmp_path)
    path = tmp_path / "annotations/instances_val2014.json"
    monkeypatch.setattr(parallel, "FEW", 4)
    for renderer in ("clean", "legacy"):
        found = []
        for count in (1, 2):
            monkeypatch.setattr(parallel, "cores", lambda count=count: count)
            found.append(coco_index._render(path, renderer))  # type: ignore[arg-type]
        for name in ("codes", "pixels", "ends", "runs"):
            np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
