"""`--help` of fit, test, validate and predict: one light screen that agrees with the parser behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fssbench.cli import main
from fssbench.cli.grid import config_names
from fssbench.cli.run_help import EXAMPLES, GRID_OPTIONS, RUN_OPTIONS, asks_for_help, short_help
from tests.cli.run import error_line

Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize("verb", ["fit", "test", "validate", "predict"])
def test_one_screen_without_heavy_imports(verb: str) -> None:
    code = f"""
import sys
from fssbench.cli import main
assert main([{verb!r}, "--config", "methods/prototype.yaml", "--help"]) == 0
assert not {{"torch", "lightning", "jsonargparse"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"usage: fssbench {verb} ")
    assert len(lines) < 50
    assert max(map(len, lines)) <= 120


def test_it_names_the_options_that_the_parser_has(here: Path, capsys: Output) -> None:
    assert main(["test", "--help", "all"]) == 0
    everything = capsys.readouterr().out
    own = everything.partition("where the run goes:")[2].partition("several runs")[0]
    assert re.findall(r"^  --(\w+)", own, re.M) == [option.split()[0] for option in RUN_OPTIONS]
    several = everything.partition("several runs")[2].partition("Customize")[0]
    assert all(f"--{option.split()[0]} " in several for option in GRID_OPTIONS)
    assert "--trainer.max_epochs" in everything


def test_the_examples_name_configs_that_exist() -> None:
    for verb, example in EXAMPLES.items():
        method, data = config_names(re.findall(r"--config (\S+)", example))
        assert method
        assert data
        assert example in short_help(verb, "what it does")


def test_words_that_ask_for_help() -> None:
    assert asks_for_help(["--config", "a.yaml", "-h"]) == "short"
    assert asks_for_help(["--help", "all"]) == "all"
    assert asks_for_help(["--model.help", "FSDINO"]) is None


def test_settings_of_the_configured_class(here: Path, capsys: Output) -> None:
    assert main(["test", "--model.help", "--config", "methods/prototype.yaml"]) == 0
    assert "--model.threshold" in capsys.readouterr().out
    assert main(["test", "--config", "data/folder.yaml", "--data.help"]) == 0
    assert "--data.n_folds" in capsys.readouterr().out
    assert main(["fit", "--data.help", "Shapes", "--config", "methods/prototype.yaml"]) == 0
    assert "--data.episodes_per_class" in capsys.readouterr().out
    assert "--model.help Distillation|FSDINO|" in error_line(capsys, ["test", "--model.help"])
    assert "no class 'FSDIN' is known. Did you mean 'FSDINO'?" in error_line(capsys, ["test", "--model.help", "FSDIN"])
