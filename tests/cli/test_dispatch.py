"""The command line before any verb runs: help, versions, unknown words, and light verbs that stay light."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fssbench import __version__
from fssbench.cli import VERBS, guarded, main, one_line
from fssbench.errors import UserError
from fssbench.results.store import ResultStore
from tests.protocols.toy import ToyDataset
from tests.results.make import make_record, make_rows

Output = pytest.CaptureFixture[str]


def raising(error: BaseException) -> int:
    def function() -> int:
        raise error

    return guarded(function)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(arguments: list[str], capsys: Output) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)
    assert "runs/comp/coco20i/fold{fold}/last.ckpt" in text


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: Output) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"fssbench {__version__}\n"


def test_an_unknown_verb_names_the_nearest(capsys: Output) -> None:
    assert main(["tets"]) == 2
    assert capsys.readouterr().err == "fssbench: Unknown verb 'tets'. Did you mean 'test'? See fssbench --help.\n"


def test_light_verbs_import_neither_torch_nor_lightning(tmp_path: Path) -> None:
    from fssbench.protocols.manifest import build_manifest

    rows = make_rows()
    ResultStore(tmp_path / "results").write(make_record(rows), rows)
    build_manifest(ToyDataset(), 0, 1).save(tmp_path / "toy.jsonl")
    code = """
import sys
from fssbench.cli import main
for line in sys.argv[1:]:
    assert main(line.split()) == 0, line
    heavy = {"torch", "lightning", "timm", "jsonargparse"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    lines = [
        "--help", "--version", "list", "list methods", "list datasets", "leaderboard", "leaderboard results --format csv",
        "episodes show toy.jsonl", "episodes verify toy.jsonl",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, *lines], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "methods/prototype.yaml" in done.stdout
    assert "16 episodes" in done.stdout
    assert "prototype" in done.stdout


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("wrong\n  thing"), 2, "wrong thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "x.ckpt"), 2, "Cannot write x.ckpt: No space left on device"),
    ],
)
def test_errors_for_the_user_are_one_line(error: BaseException, status: int, line: str, capsys: Output) -> None:
    assert raising(error) == status
    text = capsys.readouterr().err
    assert text.startswith(f"fssbench: {line}")
    assert text.count("\n") == 1


def test_other_errors_keep_their_traceback() -> None:
    for error in (RuntimeError("bug"), ValueError("bug"), FileNotFoundError(errno.ENOENT, "No such file", "x")):
        with pytest.raises(type(error)):
            raising(error)


def test_an_error_of_a_loader_process_is_reduced_to_its_message() -> None:
    text = "Caught UserError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n  File ...\n"
    assert one_line(UserError(f"{text}fssbench.errors.UserError: a.jpg is damaged: remove it.\n")) == (
        "a.jpg is damaged: remove it."
    )


def test_a_missing_results_folder_is_named(tmp_path: Path, capsys: Output) -> None:
    assert main(["leaderboard", str(tmp_path / "nothing")]) == 2
    assert f"{tmp_path / 'nothing'} is missing" in capsys.readouterr().err


def test_damaged_records_are_left_out_of_the_board_and_named(tmp_path: Path, capsys: Output) -> None:
    rows = make_rows()
    path = ResultStore(tmp_path).write(make_record(rows), rows)
    ResultStore(tmp_path).write(make_record(rows, fold=1), rows)
    path.write_text("{")
    assert main(["leaderboard", str(tmp_path), "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    assert str(path) in err
    assert "prototype" in out
