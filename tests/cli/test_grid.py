"""Runs over folds and shots: the words of the command line, and one real grid."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fssbench.cli import grid, main, progress
from fssbench.cli.grid import Axes, cell_arguments, option, take_axes
from fssbench.cli.launching import Cell, LocalLauncher, Outcome, Watcher
from fssbench.cli.progress import LiveProgress, duration
from fssbench.cli.suite import read_suite
from fssbench.errors import UserError
from fssbench.results.boards import load_board
from fssbench.results.failures import failures
from fssbench.results.store import ResultStore
from tests.cli.run import verb_cells

TOY = ["--model", "tests.toy.FreeMethod", "--data", "tests.toy.Toy", "--trainer.accelerator", "cpu",
       "--trainer.enable_progress_bar", "false", "--name", "free"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "rest", "axes"),
    [
        ("--a 1", "--a 1", Axes()),
        ("--folds all --a 1", "--a 1", Axes(folds=["all"])),
        ("--a 1 --folds 0 2 --shots 1 5 --b", "--a 1 --b", Axes(folds=["0", "2"], shots=["1", "5"])),
        ("--folds=0,2 --shots=1", "", Axes(folds=["0", "2"], shots=["1"])),
        ("--seeds 0 1 --folds 0,2 3 --data.fold=1", "--data.fold=1", Axes(folds=["0", "2", "3"], seeds=["0", "1"])),
        ("--folds 1 --config x 5 folds", "--config x 5 folds", Axes(folds=["1"])),
    ],
)
def test_folds_shots_and_seeds_are_taken_out(arguments: str, rest: str, axes: Axes) -> None:
    assert take_axes(arguments.split()) == (rest.split(), axes)


@pytest.mark.parametrize(
    "words", ["--folds", "--folds one", "--folds all 1", "--shots all", "--shots=a", "--folds=-1", "--seeds x"]
)
def test_other_values_are_refused(words: str) -> None:
    with pytest.raises(UserError, match=f"{words[:7]} needs "):
        take_axes(words.split())
    with pytest.raises(UserError, match="got 'one'"):
        take_axes(["--folds", "one", "--a"])


def test_placeholders_are_filled_in_everywhere() -> None:
    arguments = ["--ckpt_path", "runs/{method}/f{fold}_k{shot}_s{seed}/{fold}.ckpt"]
    given = {"method": "comp", "seed": "1", "fold": "2", "shot": "5"}
    assert cell_arguments(arguments, given) == [
        "--ckpt_path", "runs/comp/f2_k5_s1/2.ckpt", "--seed_everything", "1", "--data.fold", "2", "--data.shot", "5",
    ]  # fmt: skip
    assert cell_arguments(["x"], {"fold": None, "shot": "5"}) == ["x", "--data.shot", "5"]


@pytest.mark.parametrize("name", ["fold", "seed", "method"])
def test_a_placeholder_without_its_option_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"\{{{name}\}} is used, but --{name}s is not given"):
        cell_arguments(["--ckpt_path", f"x{{{name}}}"], {name: None, "shot": "1"})


def test_the_last_of_an_option_counts() -> None:
    assert option(["--results", "a", "--results=b"], "--results") == "b"
    assert option(["--results"], "--results") is None


@pytest.fixture
def cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Arguments of the cells, which are run in this process: imports take longer than the runs."""
    monkeypatch.chdir(tmp_path)
    commands: list[list[str]] = []

    def run_here(
        self: LocalLauncher, cells: Sequence[Cell], watcher: Watcher | None = None
    ) -> Iterator[tuple[Cell, Outcome]]:
        for cell in cells:
            commands.append(list(cell.arguments))
            err = io.StringIO()
            with redirect_stderr(err):
                status = main(list(cell.arguments))
            if status == 130:
                raise KeyboardInterrupt
            lines = err.getvalue().splitlines() or [""]
            yield cell, Outcome(status, lines[-1].removeprefix("fssbench: "), 1.0, "")

    monkeypatch.setattr(LocalLauncher, "run", run_here)
    return commands


def test_all_folds_and_shots_of_a_data_set(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *TOY, "--folds", "all", "--shots", "1", "2", "--results", "out"]) == 0
    records = ResultStore("out").read_all().records
    assert [(r.key.fold, r.key.shot) for r in records] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert len({r.key.manifest_sha256 for r in records}) == 4
    text = capsys.readouterr().out
    assert "== test 4/4: fold 1 shot 2: done, 1 s\n" in text
    assert "== test 3/4: fold 1 shot 1: done, 1 s; 1 left, about 1 s, until " in text
    assert text.count("mIoU") >= 5, "a line for each run, and the board"
    # the same once more runs nothing
    assert main(["test", *TOY, "--folds=1", "--shots=2", "--results", "out"]) == 0
    assert ResultStore("out").read_all().records == records


def test_a_failed_run_does_not_stop_the_others(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", *TOY, "--folds", "0", "7", "1"]) == 1
    assert [r.key.fold for r in ResultStore("results").read_all().records] == [0, 1]
    out, err = capsys.readouterr()
    assert "1 of 3 runs failed: fold 7" in err
    assert "failed: fold 7: toy has folds 0 to 1, not data.fold=7." in err
    assert "fold 7: failed (toy has folds" in out


def test_seeds_and_several_methods_in_one_command(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    for name, bias in (("one", 0.5), ("two", 0.3)):
        Path(f"{name}.yaml").write_text(f"model: {{class_path: tests.toy.FreeMethod, init_args: {{bias: {bias}}}}}\n")
    common = ["--data", "tests.toy.Toy", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(["test", "--methods", "one.yaml", "two", *common, "--seeds", "0", "3", "--folds", "1"]) == 0
    records = ResultStore("results").read_all().records
    assert [(r.key.method, r.key.seed) for r in records] == [("one", 0), ("one", 3), ("two", 0), ("two", 3)]
    assert [" ".join(c).count("one.yaml") for c in cells] == [1, 1, 0, 0]


SUITE = """# Two biases of the toy method
methods:
  low: {model.bias: 0.3}
  high: {model.bias: 0.7}
model: tests.toy.FreeMethod
data: tests.toy.Toy
trainer.accelerator: cpu
trainer.enable_progress_bar: false
folds: all
shots: [1]
results: out
"""


def test_a_suite_runs_what_is_missing(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    Path("suite.yaml").write_text(SUITE)
    assert main(["test", "--suite", "suite.yaml", "--folds", "1"]) == 0
    assert [(r.key.method, r.key.fold) for r in ResultStore("out").read_all().records] == [("high", 1), ("low", 1)]
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("fold1*")}
    assert main(["test", "--suite", "suite.yaml"]) == 0
    assert len(cells) == 2 + 4
    assert len(ResultStore("out").read_all().records) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "low fold 0 shot 1: done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("shots: [1]\n", "`methods` must hold"),
        ("methods: {a: x}\n", "methods.a must hold options"),
        ("methods: {a: {}}\nshots: [[1]]\n", "`shots` must be a number"),
        ("methods: {a: {trainer: {devices: 1}}}\n", "Write deeper keys with dots"),
        ("methods: {a: {}}\nshot: [1, 5]\n", "`shot` must be one value. Did you mean 'shots'?"),
    ],
)
def test_a_file_that_is_no_suite_is_refused(here: Path, content: str, expected: str) -> None:
    Path("suite.yaml").write_text(content)
    with pytest.raises(UserError, match=expected):
        read_suite("suite.yaml")


def test_a_suites_own_axes_and_options(here: Path) -> None:
    Path("suite.yaml").write_text("methods: {a: {config: [x, y], lr: 1}}\nshots: 5\nfolds: all\nresults: out\n")
    methods, common, axes = read_suite("suite.yaml")
    assert methods == {"a": (["--config", "x", "--config", "y"], ["--lr", "1", "--name", "a"])}
    assert (common, axes) == (["--results", "out"], {"shots": ["5"], "folds": ["all"]})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--jobs 2 --data tests.toy.Toy", "--jobs belongs to several runs"),
        ("--folds 0 --jobs many", "--jobs needs a number; got 'many'"),
        ("--folds 0 --jobs", "--jobs needs a value"),
        ("--folds 0 --jobs 0", "--jobs is 0, expected at least 1"),
        ("--folds 0 --launcher slrum", "Did you mean 'slurm'?"),
        ("--folds 0 --slurm timeout_min=5", "--slurm belongs to --launcher slurm"),
        ("--folds 0 --slurm fast", "--slurm 'fast' is not KEY=VALUE"),
        ("--folds 0 --name x{seed}", "{seed} is used, but --seeds is not given"),
        ("--folds 0 --name {method}", "{method} is used, but --methods is not given"),
    ],
)
def test_mistakes_in_the_words_of_a_grid_are_refused(here: Path, words: str, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)):
        grid.run("test", words.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [("", ["0", "1"]), ("--trainer.devices 1", ["0", "1"]), ("--trainer.devices 2", ()), ("--config two.yaml", ()),
     ("--config two.yaml --trainer.devices 1", ["0", "1"]), ("--jobs 1", ()), ("--trainer.devices=2", ())],
)  # fmt: skip
def test_gpus_are_shared_out_unless_a_run_asks_for_several(
    words: str, expected: Sequence[str], cells: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Sequence[str]] = []

    class Made(Exception):
        pass

    def make(*args: Any, gpus: Sequence[str], **kwargs: Any) -> None:
        made.append(gpus)
        raise Made

    Path("two.yaml").write_text("trainer: {devices: 2}\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(grid, "make_launcher", make)
    with pytest.raises(Made):
        grid.run("test", [*TOY, "--folds", "0", "--jobs", "2", *words.split()])
    assert made == [expected]


# -- the display ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "words"), [(3.4, "3 s"), (89, "89 s"), (100, "2 min"), (12_000, "3 h 20 min")])
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def _outcome(status: int = 0, message: str = "", seconds: float = 60.0) -> Outcome:
    return Outcome(status, message, seconds, "")


def test_the_display_counts_and_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "time", lambda: clock[0])
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    cells = verb_cells("a", "b", "c", "d", "e", "f")
    shown = LiveProgress("test", 6, 2, console)
    shown.started(cells[0])
    shown.started(cells[1])
    shown.said(cells[1], "Testing  10%\rTesting  50% of 8 ep")
    clock[0] += 30

    def now() -> str:
        with console.capture() as capture:
            console.print(shown.rendered())
        return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())

    assert "test 0/6: 2 running; 6 left\n" in now()
    assert re.search(r"cell 1 +30 s +Testing  50% of 8 ep", now())
    shown.ended(cells[0], _outcome())
    shown.ended(cells[2], _outcome(1, "no data"))
    shown.ended(cells[3], _outcome(0, "kept: it is there", 1.0))
    # three left at 60 s each, half of one is over, two at a time
    assert "test 3/6: 1 done, 1 kept, 1 failed, 1 running; 3 left, about 75 s, until" in now()
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "== test 2/6: cell 2: failed (no data), 60 s; 4 left, about 2 min, until" in text.replace("\n", " ")
    for cell in (cells[1], cells[4]):
        shown.ended(cell, _outcome())
    shown.ended(cells[5], _outcome(0, "elsewhere: another process is at it"))
    assert "test 6/6: 3 done, 1 kept, 1 elsewhere, 1 failed\n" in now()
    assert "cell 5: elsewhere (another process is at it), 60 s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_in_a_terminal_a_grid_has_a_display_at_its_foot(cells: list[list[str]], tmp_path: Path) -> None:
    """The real command in a pseudo-terminal, with real processes."""
    pty = pytest.importorskip("pty", reason="needs a Unix terminal")
    parent, child = pty.openpty()
    code = (
        "from fssbench.cli.launching import Cell, LocalLauncher\n"
        "from fssbench.cli.progress import make_progress\n"
        "cells = [Cell('good', ('--version',)), Cell('bad', ('tets',))]\n"
        "with make_progress('test', 2, 1) as progress:\n"
        "    for cell, outcome in LocalLauncher(1, show=not progress.live).run(cells, progress):\n"
        "        progress.ended(cell, outcome)\n"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=child, stderr=child, env=environment) as process:
        os.close(child)
        parts = []
        try:
            while part := os.read(parent, 4096):
                parts.append(part)
        except OSError:  # the other end was closed
            pass
        assert process.wait() == 0
    text = b"".join(parts).decode()
    assert "\x1b[" in text
    assert "1 running" in text
    assert "== test 1/2: good: done" in text
    assert "== test 2/2: bad: failed (Unknown verb 'tets'." in text


# -- two grids at once ------------------------------------------------------------------------------------------------


HOLD = """
import sys
from fssbench.results.record import Key
from fssbench.results.store import ResultStore
claim = ResultStore("results").claim(Key(**eval(sys.argv[1])))
print("claimed" if claim else "refused", flush=True)
sys.stdin.read()
"""


def test_a_cell_that_another_process_runs_is_left_alone(
    cells: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["test", *TOY, "--folds", "0", "1"]
    assert main(arguments) == 0
    (key, _) = (record.key for record in ResultStore("results").read_all().records)
    shutil.rmtree("results/toy")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    hold = [sys.executable, "-c", HOLD, repr(vars(key))]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with caplog.at_level("INFO"):
            assert main(arguments) == 0
        assert [r.key.fold for r in ResultStore("results").read_all().records] == [1]
        assert "elsewhere: another process is computing results/toy" in caplog.text
        holder.kill()  # its claim goes with it
    assert main(arguments) == 0
    assert [r.key.fold for r in ResultStore("results").read_all().records] == [0, 1]
    assert ResultStore("results").claim(key) is not None, "given up after the run"


def test_a_failed_run_is_on_the_board_until_it_succeeds(
    cells: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["test", *TOY, "--model.bias", "0.4", "--folds", "0", "1"]
    Path("config.yaml").write_text("data: {init_args: {manifest: gone.jsonl}}\n")
    assert main([*arguments, "--config", "config.yaml"]) == 1
    capsys.readouterr()
    (one, two) = load_board("results").failed
    assert (one.name, two.name) == ("fold 0", "fold 1")
    assert "Cannot read the episode manifest gone.jsonl" in one.reason
    assert main(["leaderboard"]) == 0
    assert f"fssbench: failed: fold 0, fold 1: {one.reason}" in capsys.readouterr().err
    assert main(["leaderboard", "--format", "html"]) == 0
    assert "Failed runs" in Path("board.html").read_text()
    Path("config.yaml").write_text("data: {init_args: {manifest: null}}\n")
    assert main([*arguments, "--config", "config.yaml"]) == 0
    assert load_board("results").failed == []


def test_a_wrong_configuration_is_refused_before_any_run(
    cells: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", *TOY, "--folds", "all", "--model.lrr", "1"]) == 2
    assert "Did you mean 'lr'?" in capsys.readouterr().err
    assert cells == []


def test_a_missing_data_folder_is_told_once(cells: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--data", "FSS1000", "--data.root", "nowhere", "--trainer.accelerator", "cpu"]
    assert main(["test", "--model", "tests.toy.FreeMethod", *missing, "--shots", "1", "5"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("The data folder nowhere is missing") == 1
    assert cells == []
    assert load_board("results").failed == []


def test_folds_that_the_data_do_not_have_are_refused_before_any_run(
    cells: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test", *TOY, "--folds", "7"]) == 2
    assert "folds 0 to 1, not data.fold=7" in capsys.readouterr().err
    assert cells == []
    assert load_board("results").failed == []


def test_one_method_that_can_run_is_enough_to_begin(cells: list[list[str]]) -> None:
    suite = SUITE.replace("low: {model.bias: 0.3}", "low: {data: FSS1000, data.root: nowhere}")
    Path("suite.yaml").write_text(suite)
    assert main(["test", "--suite", "suite.yaml", "--folds", "1"]) == 1
    assert [record.key.method for record in ResultStore("out").read_all().records] == ["high"]


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


@pytest.mark.parametrize(("message", "left"), [("", 0), ("kept: results/x.json", 0), ("elsewhere: another process", 1)])
def test_a_failed_test_is_remembered_until_its_result_is_there(tmp_path: Path, message: str, left: int) -> None:
    fold, other = (Cell(f"fold {number}", ("test", "--data.fold", str(number))) for number in (0, 1))
    for cell in (fold, other):
        grid._note(tmp_path, cell, Outcome(1, "out of memory", 1.0, ""))
    assert [(f.name, f.reason, f.arguments) for f in failures(tmp_path)] == [
        (cell.name, "out of memory", cell.arguments) for cell in (fold, other)
    ]
    grid._note(tmp_path, fold, Outcome(0, message, 1.0, ""))
    assert [f.name for f in failures(tmp_path)] == ["fold 0"] * left + ["fold 1"]
