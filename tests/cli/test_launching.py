"""Where the runs of a grid are executed: launchers, with real processes of light verbs."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fssbench.cli import launching
from fssbench.cli.launching import LocalLauncher, Outcome, SubmititLauncher
from fssbench.errors import UserError
from tests.cli.run import verb_cells


@pytest.mark.parametrize("jobs", [1, 2])
def test_cells_run_in_processes_of_their_own(jobs: int, capfd: pytest.CaptureFixture[str]) -> None:
    ended = LocalLauncher(jobs).run(verb_cells("--version", "tets", "--version"))
    found = {cell.name: outcome for cell, outcome in ended}
    assert sorted((name, outcome.state) for name, outcome in found.items()) == [
        ("cell 0", "done"),
        ("cell 1", "failed"),
        ("cell 2", "done"),
    ]
    failed = next(outcome for outcome in found.values() if outcome.status)
    assert failed.message == "Unknown verb 'tets'. Did you mean 'test'? See fssbench --help."
    shown = capfd.readouterr().out + "".join(outcome.output for outcome in found.values())
    assert shown.count("fssbench ") == 2


def test_ctrl_c_in_a_run_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def interrupted(arguments: tuple[str, ...], live: bool, heard: None, gpu: None) -> Outcome:
        calls.append(arguments)
        return Outcome(130, "interrupted", 0.0, "")

    monkeypatch.setattr(launching, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(LocalLauncher().run(verb_cells("--version", "--version")))
    assert len(calls) == 1


def test_runs_at_a_time_see_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    both, seen = threading.Barrier(2, timeout=60), list[str | None]()

    def run_cell(arguments: tuple[str, ...], live: bool, heard: None, gpu: str | None) -> Outcome:
        seen.append(gpu)
        both.wait()
        return Outcome(0, "", 0.0, "")

    monkeypatch.setattr(launching, "run_cell", run_cell)
    for jobs, gpus in ((2, ["0", "3", "5"]), (2, ["7"]), (2, [])):
        seen.clear()
        assert len(list(LocalLauncher(jobs, gpus=gpus).run(verb_cells("a", "b")))) == 2
        assert sorted(map(str, seen)) == sorted(map(str, [*gpus, *gpus, None, None][:2]))


def test_a_run_sees_the_gpu_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str | None] = []
    start = subprocess.Popen

    def started(command: list[str], env: dict[str, str], **kwargs: Any) -> Any:
        given.append(env.get("CUDA_VISIBLE_DEVICES"))
        return start([sys.executable, "-c", ""], env=env, **kwargs)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 2")
    monkeypatch.setattr(subprocess, "Popen", started)
    assert launching.visible_gpus() == ["0", "2"]
    assert [launching.run_cell(["x"], gpu=gpu).status for gpu in ("2", None)] == [0, 0]
    assert given == ["2", "0, 2"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert launching.visible_gpus() == ["0", "1"]


def test_a_character_may_be_cut_in_two_while_it_is_read() -> None:
    said, heard = "Datensätze → größer\n" * 1000, list[str]()
    launching._watch(io.BytesIO(said.encode()), [heard.append])
    assert len(heard) > 1
    assert "".join(heard) == said


def test_submitit_runs_cells_and_reports_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="needs the extra slurm: pip install 'fssbench[slurm]'")
    launcher = SubmititLauncher("local", 2, {"timeout_min": 2}, tmp_path / "jobs")
    found = {cell.name: outcome for cell, outcome in launcher.run(verb_cells("--version", "tets"))}
    assert {name: outcome.state for name, outcome in found.items()} == {"cell 0": "done", "cell 1": "failed"}
    assert found["cell 0"].output.startswith("fssbench ")
    assert "Unknown verb 'tets'" in found["cell 1"].message
    with pytest.raises(UserError, match="--slurm: .*speed"):
        SubmititLauncher("local", 1, {"speed": 5}, tmp_path / "jobs")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--launcher slurm: .*srun.*Start it on a login node"):
        SubmititLauncher("slurm", 1, {}, tmp_path / "jobs")
