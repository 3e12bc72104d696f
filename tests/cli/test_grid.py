"""Runs over folds and shots: the words of the command line, and one real grid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fssbench.cli import grid, main
from fssbench.cli.grid import cell_arguments, option, split_grid
from fssbench.errors import UserError
from fssbench.results.store import ResultStore

TOY = ["--model", "tests.toy.FreeMethod", "--data", "tests.toy.Toy", "--trainer.accelerator", "cpu",
       "--trainer.enable_progress_bar", "false", "--name", "free"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "rest", "folds", "shots"),
    [
        ("--a 1", "--a 1", None, None),
        ("--folds all --a 1", "--a 1", ["all"], None),
        ("--a 1 --folds 0 2 --shots 1 5 --b", "--a 1 --b", ["0", "2"], ["1", "5"]),
        ("--folds=0,2 --shots=1", "", ["0", "2"], ["1"]),
        ("--folds 0,2 3 --data.fold=1", "--data.fold=1", ["0", "2", "3"], None),
        ("--folds 1 --config x 5", "--config x 5", ["1"], None),
    ],
)
def test_folds_and_shots_are_taken_out(
    arguments: str, rest: str, folds: list[str] | None, shots: list[str] | None
) -> None:
    assert split_grid(arguments.split()) == (rest.split(), folds, shots)


@pytest.mark.parametrize("words", ["--folds", "--folds one", "--folds all 1", "--shots all", "--shots=a", "--folds=-1"])
def test_other_values_are_refused(words: str) -> None:
    with pytest.raises(UserError, match=f"{words[:7]} needs "):
        split_grid(words.split())


def test_fold_and_shot_are_filled_in_everywhere() -> None:
    arguments = ["--ckpt_path", "runs/f{fold}_k{shot}/{fold}.ckpt"]
    assert cell_arguments(arguments, "2", "5") == [
        "--ckpt_path", "runs/f2_k5/2.ckpt", "--data.fold", "2", "--data.shot", "5",
    ]  # fmt: skip
    assert cell_arguments(["x"], None, "5") == ["x", "--data.shot", "5"]


def test_a_placeholder_without_its_option_is_refused() -> None:
    with pytest.raises(UserError, match=r"\{fold\} is used, but --folds is not given"):
        cell_arguments(["--ckpt_path", "f{fold}"], None, "1")


def test_the_last_of_an_option_counts() -> None:
    assert option(["--results", "a", "--results=b"], "--results") == "b"
    assert option(["--results"], "--results") is None


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands of the cells, which are run in this process: imports take longer than the runs."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def call(command: list[str], **kwargs: Any) -> int:
        commands.append(command)
        assert command[:3] == [sys.executable, "-m", "fssbench"]
        return main(command[3:])

    monkeypatch.setattr(grid.subprocess, "call", call)
    return commands


def test_all_folds_and_shots_of_a_data_set(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *TOY, "--folds", "all", "--shots", "1", "2", "--results", "out"]) == 0
    records = ResultStore("out").read_all().records
    assert [(r.key.fold, r.key.shot) for r in records] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len({r.key.manifest_sha256 for r in records}) == 4
    text = capsys.readouterr().out
    assert "== test 4/4: fold 1 shot 2" in text
    assert text.count("mIoU") >= 5, "a line for each run, and the board"
    # the same once more runs nothing
    assert main(["test", *TOY, "--folds=1", "--shots=2", "--results", "out"]) == 0
    assert ResultStore("out").read_all().records == records


def test_a_failed_run_does_not_stop_the_others(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *TOY, "--folds", "0", "7", "1"]) == 1
    assert [r.key.fold for r in ResultStore("results").read_all().records] == [0, 1]
    assert "1 of 3 runs failed: fold 7" in capsys.readouterr().err


def test_ctrl_c_in_a_run_stops_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid.subprocess, "call", lambda command: calls.append(command) or 130)
    assert main(["fit", *TOY, "--folds", "0", "1"]) == 130
    assert len(calls) == 1


def test_a_wrong_configuration_is_refused_before_any_run(
    cells: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", *TOY, "--folds", "all", "--model.lrr", "1"]) == 2
    assert "Did you mean 'lr'?" in capsys.readouterr().err
    assert cells == []


def test_two_processes_write_one_record(tmp_path: Path) -> None:
    """The real command, with a process for the cell, which forks two for its devices."""
    root = Path(__file__).parents[2]
    ddp = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--folds", "1"]
    command = [sys.executable, "-m", "fssbench", "test", *TOY, *ddp]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    store = ResultStore(tmp_path / "results")
    (record,) = store.read_all().records
    store.verify(record)
    assert record.provenance.processes == 2
    assert record.scores.episodes == 16
    assert done.stdout.count("toy fold 1, 1-shot, 16 episodes: mIoU") == 1
    assert done.stdout.count("record: ") == 1
    assert done.stderr == ""
