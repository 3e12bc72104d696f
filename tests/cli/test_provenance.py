"""What a record says about a run besides its numbers."""

from __future__ import annotations

import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from fssbench.cli import provenance
from fssbench.cli.provenance import device_name, git_commit, unknown_facts
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


def test_a_new_file_is_a_change_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that git does not know yet is in no commit; results and data beside the code are no code."""
    (tmp_path / "fssbench" / "cli").mkdir(parents=True)
    (tmp_path / "methods").mkdir()
    file = tmp_path / "fssbench" / "cli" / "provenance.py"
    file.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert git_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)
    clean = git_commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "x.json").write_text("{}")
    assert git_commit() == clean
    (tmp_path / "methods" / "mine.py").write_text("")
    assert git_commit() == f"{clean}+changes"
