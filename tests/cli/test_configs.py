"""Configs by name from any directory, and every shipped config read by the real parser."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path

import pytest

from fssbench.cli import main
from fssbench.cli.configs import find_config, first_comment, known_configs, packaged_folder, read_config
from fssbench.cli.running import number_of_folds
from fssbench.errors import UserError

METHODS = [name for name in known_configs() if name.startswith("methods/")]
DATA = [name for name in known_configs() if name.startswith("data/")]


def write(path: Path, text: str = "name: x\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("here", "first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("FSSBENCH_CONFIG_PATH", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    return tmp_path


def test_the_working_directory_comes_before_the_search_path_before_the_packaged_configs(folders: Path) -> None:
    name = "methods/prototype.yaml"
    assert find_config(name) == packaged_folder() / name
    second = write(folders / "second" / name)
    assert find_config(name) == second
    first = write(folders / "first" / name)
    assert find_config(name) == first
    assert known_configs()[name] == first
    write(folders / "here" / name)
    assert find_config(name) == Path(name)


def test_the_suffix_may_be_left_out_and_absolute_paths_are_taken(folders: Path) -> None:
    own = write(folders / "first" / "methods" / "own.yml")
    assert find_config("methods/own") == own
    assert find_config(str(own)) == own
    assert find_config("data/shapes") == packaged_folder() / "data/shapes.yaml"


def test_an_unknown_config_names_the_nearest_and_the_folders(folders: Path) -> None:
    with pytest.raises(UserError, match=r"'methods/protoype.yaml'.*first.*Did you mean 'methods/prototype.yaml'"):
        find_config("methods/protoype.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n  a: [\n", r"c.yaml, line 3, column 1: no valid YAML"),
        (b"a: 1\n\tb: 2\n", r"c.yaml, line 2"),
        (b"just words", "must hold keys with values.*not str"),
        (b"", "must hold keys with values.*not NoneType"),
        (b"\xff\xfe\x00", "is no text file"),
    ],
)
def test_files_that_are_no_config_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_config(tmp_path / "c.yaml")


def test_every_shipped_config_says_what_it_is() -> None:
    assert len(METHODS) >= 4
    assert len(DATA) >= 4
    for name, path in known_configs().items():
        assert len(first_comment(path)) > 10, name


@pytest.mark.parametrize(("method", "data"), [*product(METHODS, DATA)])
def test_every_shipped_method_parses_with_every_shipped_data_set(
    method: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    option = "--data.seed" if data == "data/images.yaml" else "--data.shot"  # images without masks have no shots
    assert main(["fit", "--config", method, "--config", data, option, "5", "--print_config"]) == 0
    text = capsys.readouterr().out
    for name in (method, data):
        content = read_config(known_configs()[name])
        assert f"class_path: {content.get('model', content.get('data'))['class_path']}" in text
    assert f"{option.partition('.')[2]}: 5" in text


@pytest.mark.parametrize("name", [name for name in known_configs() if name.startswith("trainer/")])
def test_shipped_trainer_configs_parse(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = ["--config", "methods/prototype", "--config", "data/shapes", "--config", name]
    assert main(["fit", *configs, "--print_config"]) == 0


def test_the_config_that_was_found_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        main(["test", "--config", "methods/prototype", "--config", "data/shapes", "--print_config"])
    assert f"config methods/prototype: {packaged_folder() / 'methods/prototype.yaml'}" in caplog.text


def test_a_config_is_said_once_in_a_command(caplog: pytest.LogCaptureFixture) -> None:
    words = ["--config", "methods/prototype", "--config", "data/shapes"]

    def lines() -> list[str]:
        return [record.getMessage().partition(":")[0] for record in caplog.records]

    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        assert main(["test", *words, "--print_config"]) == 0
        assert number_of_folds(words) == 4, "as a grid looks at its configuration before its runs"
        assert lines() == ["config methods/prototype", "config data/shapes"]
        assert main(["test", *words, "--print_config"]) == 0
        assert lines() == 2 * ["config methods/prototype", "config data/shapes"]
