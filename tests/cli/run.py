"""The real command in this process, on the toy method and data set."""

from __future__ import annotations

import shutil
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from fssbench.cli import main
from fssbench.cli.launching import Cell

CHECKPOINT = "runs/colourmethod/toy/fold0/last.ckpt"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false"]  # fmt: skip
TRAINED = ["--model", "tests.toy.ColourMethod", "--data", "tests.toy.Toy", *QUIET]
FREE = ["--model", "tests.toy.FreeMethod", "--data", "tests.toy.Toy", *QUIET]
SHORT = ["--data.batch_size", "4", "--data.episodes_per_epoch", "8", "--trainer.max_epochs", "2"]
LOADED = [*TRAINED, "--ckpt_path", CHECKPOINT]


@pytest.fixture(scope="session")
def fitted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the toy method was fitted; to be copied, not to be used."""
    folder = tmp_path_factory.mktemp("fitted")
    with chdir(folder):
        assert main(["fit", *TRAINED, *SHORT]) == 0
    return folder


@pytest.fixture
def fitted(fitted_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of one's own with the fitted run."""
    shutil.copytree(fitted_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; what the user's own modules do to the imports is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a refused command leaves on stderr."""
    capsys.readouterr()
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("config ")]
    assert len(lines) == 1, lines
    assert lines[0].startswith("fssbench: ")
    return lines[0]


def verb_cells(*verbs: str) -> list[Cell]:
    """Cells of a grid, `cell 0`, `cell 1`, ..., that run these words."""
    return [Cell(f"cell {number}", tuple(verb.split())) for number, verb in enumerate(verbs)]
