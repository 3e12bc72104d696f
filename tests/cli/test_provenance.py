"""What a record says about a run besides its numbers."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from fssbench.cli.provenance import device_name, unknown_facts
from fssbench.results.record import Metadata


@pytest.mark.parametrize(("number", "text"), [(1, "1 thread of "), (4, "4 threads of ")])
def test_the_cores_that_are_used_are_counted(number: int, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    assert device_name(torch.device("cpu")).rpartition(", ")[2].startswith(text)


def test_what_no_author_has_said_is_unknown() -> None:
    metadata = Metadata(n_folds=4, class_partition="interleaved", method_class="external", **unknown_facts())
    said = {"n_folds", "class_partition", "method_class"}
    values = [getattr(metadata, field.name) for field in fields(Metadata) if field.name not in said]
    assert set(values) == {"unknown", ("unknown",)}
