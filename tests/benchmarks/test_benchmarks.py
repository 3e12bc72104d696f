"""Each benchmark runs with its smallest settings and prints its table; no time is judged here."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import REPOSITORY, python
from tests.test_method import make_trainer
from tests.toy import FreeMethod

BENCHMARKS = REPOSITORY / "benchmarks"
NETWORK = ["--model.backbone", "vit_tiny_patch16_224", "--model.backbone_weights", "random", "--model.image_size", "32"]
TWO_PROCESSES = ("--one", "2")
"""What `processes.py` tells itself to run on two processes."""

Here = Callable[..., list[list[str]]]
"""(script, *arguments) -> the cells of its table."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Runs a script in this process, which has imported torch already, and gives the cells of its table."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # where `measuring` is
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    measuring = import_module("measuring")
    really_of_own_process = measuring.of_own_process

    def printed(script: str | Path, *arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as output:
            patch.syspath_prepend(str(Path(script).parent))
            patch.setattr(sys, "argv", [str(script), *arguments])
            runpy.run_path(str(script), run_name="__main__")
        return output.getvalue()

    def of_own_process(script: str, *more: str, environment: Mapping[str, str] | None = None) -> Any:
        if more == TWO_PROCESSES:  # forked, which is not safe from here, where torch has threads
            environment = {**(environment or {}), "PYTHONPATH": str(REPOSITORY)}
            return really_of_own_process(script, *more, environment=environment)
        return json.loads(printed(script, *sys.argv[1:], *more).strip().splitlines()[-1])

    monkeypatch.setattr(measuring, "of_own_process", of_own_process)
    yield lambda name, *arguments: cells(printed(BENCHMARKS / name, *arguments))
    torch.set_num_threads(threads)


def run(name: str, folder: Path, *arguments: str) -> list[list[str]]:
    """The same in a process of its own, for scripts that start processes themselves."""
    return cells(python(BENCHMARKS / name, *arguments, folder=folder).stdout)


def cells(output: str) -> list[list[str]]:
    """The cells of the printed table's rows, without the head."""
    rows = [line.strip("|").split("|") for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_bare_encoder_has_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    encoder_alone = runpy.run_path(str(BENCHMARKS / "test_run.py"))["encoder_alone"]
    used: list[bool] = []

    class Watched(FreeMethod):
        def encode(self, images: torch.Tensor) -> Any:
            used.append(torch.is_autocast_enabled("cpu"))
            return super().encode(images)

    for precision in ("32-true", "bf16-mixed"):
        method, trainer = Watched(), make_trainer(tmp_path, precision=precision)
        method.trainer = trainer
        encoder_alone(method, torch.rand(2, 3, 16, 16), torch.device("cpu"), 2, lambda: 0.0)
    assert used == [False, True]


def test_startup(tmp_path: Path) -> None:
    rows = run("startup.py", tmp_path, "--rounds", "1")
    assert rows[0][0] == "python -c pass"
    assert {"fssbench list", "fssbench leaderboard"} <= {row[0] for row in rows}
    assert all(float(row[1]) > 0 for row in rows)


def test_board(tmp_path: Path) -> None:
    rows = run("board.py", tmp_path, "--records", "40", "--episodes", "20")
    assert [row[0] for row in rows][3:] == ["large, first", "large, changed", "large, unchanged"]
    assert all(float(row[-1]) > 10 for row in rows), "MiB of a Python process"


def test_data_pipeline(here: Here) -> None:
    rows = here(
        "data_pipeline.py",
        *["--rounds", "1", "--images", "8", "--episodes-per-class", "1", "--sizes", "32", "48"],
    )
    assert [row[:2] for row in rows] == [["32", "4"], ["48", "4"]]
    assert all(float(cell) > 0 for row in rows for cell in row[2:])


def test_coco_lists(tmp_path: Path) -> None:
    rows = run("coco_lists.py", tmp_path, "--images", "40", "--objects", "300")
    assert [row[0] for row in rows] == ["parse", "clean", "clean, again", "legacy", "legacy, again"]
    assert rows[1][2] == rows[2][2] != "0"
    assert rows[1][4] == rows[2][4]


def test_whole_run(here: Here) -> None:
    rows = here("test_run.py", "--rounds", "1", "--images", "8", "--", *NETWORK, "--data.episodes_per_class", "1")
    seconds = {row[0]: float(row[1]) for row in rows}
    assert 0 < seconds["test run, loop"] <= seconds["test run, whole"]  # the loop is a part of the same run


def test_memory_attention(here: Here) -> None:
    pytest.importorskip("sam2")
    rows = here("memory_attention.py", "--rounds", "1", "--image-size", "64", "--shots", "1", "2")
    assert [row[:2] for row in rows] == [[shot, what] for shot in "12" for what in ("forward", "forward and backward")]
    assert all(float(cell) > 0 for row in rows for cell in row[2:5])


def test_training_a_small_sam2(tmp_path: Path, here: Here) -> None:
    pytest.importorskip("sam2")
    sizes = ["--steps", "2", "--pictures", "2", "--groups", "2", "--shapes", "4", "--textures", "4", "--report", "1"]
    here("encoders/train_shapes_sam2.py", *sizes)
    log = (tmp_path / "shapes_sam2.log").read_text()
    assert "2 steps; IoU on pairs of kinds never seen: " in log
    from fssbench.encoders.sam2 import build_sam2

    config = str(BENCHMARKS / "encoders" / "shapes_sam2.yaml")
    build_sam2(weights=str(tmp_path / "shapes_sam2.pt"), image_size=128, config=config)


@pytest.mark.parametrize(("preset", "name"), [([], "fsdino"), (["--preset", "comp"], "comp")])
def test_warm_cache(preset: list[str], name: str, here: Here) -> None:
    smallest = ["--size", "tiny", "--episodes", "2", "--images", "3", "--shots", "1", "--rounds", "1"]
    rows = here("warm_cache.py", "--methods", "fsdino", *smallest, *preset)
    assert [row[:2] for row in rows] == [[name, "1"]]
    assert all(float(cell) > 0 for cell in rows[0][2:7])


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_growth(here: Here) -> None:
    rows = here("growth.py", "--size", "tiny", "--episodes", "1", "--rounds", "1", "--only", "shots")
    assert [row[:2] for row in rows] == [["shots", "1, 2, 4"]]
    assert all(float(peak) > 0 for peak in rows[0][4].split(","))


@pytest.mark.skipif(sys.platform != "linux", reason="ddp_fork needs fork")
def test_processes(here: Here) -> None:
    smallest = ["--size", "tiny", "--episodes", "2", "--classes", "2", "--images", "3", "--rounds", "1"]
    rows = here("processes.py", "--processes", "1", "2", "--cores", "2", *smallest)
    assert [row[0] for row in rows] == ["1 x 2", "2 x 1"]
    trained = here("processes.py", "--method", "fsdino", "--processes", "1", *smallest, "--rounds", "2")
    assert [row[0] for row in trained] == [f"1 x {len(os.sched_getaffinity(0))}"], "both rounds have the same weights"


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_training(here: Here) -> None:
    smallest = ["--size", "tiny", "--steps", "2", "--batch", "2", "--images", "4", "--features", "disk"]
    rows = here("training.py", "--methods", "fsdino", *smallest)
    assert [row[:2] for row in rows] == [["fsdino", "plain"], ["fsdino", "ours"]]
    plain, ours = (row[-1].split(", ") for row in rows)
    assert float(plain[0]) == pytest.approx(float(ours[0]), abs=0.02), "the same weights, episodes and images"
    pytest.importorskip("sam2")
    plain, ours = (row[-1].split(", ") for row in here("training.py", "--methods", "sam2fss", "--recompute", *smallest))
    assert float(plain[0]) == pytest.approx(float(ours[0]), abs=0.02)


def test_contrast(here: Here) -> None:
    rows = here("ablations/contrast.py", "--episodes", "16")
    assert [row[0].split(" ")[0] for row in rows] == ["all", "small", "middle", "large"]
    assert all(0 < float(cell) <= 100 for row in rows for cell in row[1:])
    everything, *thirds = ([float(cell) for cell in row[1:]] for row in rows)
    assert all(min(part) <= mean <= max(part) for mean, *part in zip(everything, *thirds, strict=True))


CORRELATION = ["--grid", "6", "--blocks", "2", "--channels", "8"]


@pytest.mark.parametrize("contrast", [[], ["--object", "0.3"]])
def test_correlation_sides_agree_and_are_timed(contrast: list[str], here: Here) -> None:
    rows = here("correlation.py", "--rounds", "1", "--no-memory", *CORRELATION, *contrast)
    assert [row[1] for row in rows] == ["plain", "ours", "recomputing", "plain", "ours"]
    assert all(float(row[2]) > 0 for row in rows)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_peak_memory_grows_with_the_grid(tmp_path: Path) -> None:
    done = python(BENCHMARKS / "correlation.py", *CORRELATION, "--grid", "25", "--peak", "plain", folder=tmp_path)
    assert json.loads(done.stdout)["peak"] > 2 * 25**4 * 4 * 2, "the plain side holds the correlation more than twice"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.name)
def test_each_script_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    if "__main__" in text:
        assert re.search(rf"^    python benchmarks/{path.name} ", text, re.M)
        assert f"benchmarks/{path.name}" in (BENCHMARKS / "README.md").read_text()
