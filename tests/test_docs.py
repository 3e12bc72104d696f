"""The documentation says what the code does: commands, options, links, the example method; and the wheel holds its parts."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import datamodules
import methods
from fssbench.cli import VERBS, main
from fssbench.cli.configs import first_comment, known_configs
from fssbench.cli.grid import cell_arguments, config_names, option, take_axes
from fssbench.cli.running import number_of_folds
from fssbench.protocols.manifest import load_manifest
from tests.processes import python

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
}


def blocks(page: str, language: str) -> list[str]:
    """The contents of a page's fenced blocks."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.M | re.S)


def commands(page: str) -> list[list[str]]:
    """The words of every `fssbench ...` command in a page's bash blocks."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fssbench ")]


def marked(page: str, mark: str) -> str:
    """The content of the fenced block that follows `<!-- mark -->`."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w*\n(.*?)^```", PAGES[page], re.M | re.S)
    assert found, f"{page} has no block marked {mark}"
    return found[1]


EXAMPLES = {"CONTRIBUTING.md": ["nearest.yaml", "nearest/__init__.py"], "README.md": ["mine.py"]}
"""Page -> the files of the method that it shows."""


def environment(*folders: Path) -> dict[str, str]:
    """The environment of a process that imports from `folders`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}


# -- commands ---------------------------------------------------------------------------------------------------------

RUNS = [
    (page, words) for page in PAGES for words in commands(page) if words[0] in ("fit", "test", "validate", "predict")
]


@pytest.mark.parametrize(
    ("page", "words"), RUNS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_run_in_the_docs_is_a_valid_configuration(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_repository = any(word.startswith("benchmarks/") for word in words)  # configs that are not packaged
    monkeypatch.chdir(ROOT if of_repository else tmp_path)
    if page in EXAMPLES:
        write_example(tmp_path, page)
        monkeypatch.syspath_prepend(tmp_path)
    rest, axes = take_axes(words[1:])
    arguments = cell_arguments(rest, {"fold": "0" if axes.folds else None, "shot": "1" if axes.shots else None})
    assert number_of_folds(arguments) >= 1  # checks the whole configuration on the way
    checkpoint = option(rest, "--ckpt_path")
    if checkpoint:  # where the fit of the same configs leaves it
        method, data = config_names([value for name, value in pairwise(rest) if name == "--config"])
        assert checkpoint == f"runs/{method}/{data}/fold{{fold}}/last.ckpt"


def test_the_episode_commands_work_on_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = [words for words in commands("docs/episodes.md") if words[0] == "episodes"]
    assert {words[1] for words in found} == {"build", "show", "verify", "export"}
    for words in found:
        assert main([word.replace("coco20i", "shapes") for word in words]) == 0


def test_the_other_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    found = [words for page in PAGES for words in commands(page) if words[0] in ("leaderboard", "list")]
    assert found
    for words in found:
        assert main(words) == 0


def test_every_verb_is_documented_and_every_documented_verb_exists() -> None:
    named = {words[0] for page in PAGES for words in commands(page)}
    named |= {verb for text in PAGES.values() for verb in re.findall(r"[`/]fssbench ([a-z]+)\b", text)}
    assert named == set(VERBS)


def test_every_option_in_the_text_exists() -> None:
    owners = {
        "model": [getattr(methods, name) for name in methods.__all__],
        "data": [getattr(datamodules, name) for name in datamodules.__all__] + [datamodules.COCO20i.__mro__[1]],
        "trainer": [Trainer],
    }
    valid = {f"{key}.{p}" for key, classes in owners.items() for c in classes for p in inspect.signature(c).parameters}
    named = {name for text in PAGES.values() for name in re.findall(r"--((?:model|data|trainer)\.\w+)", text)}
    assert len(named) > 5
    assert named - valid <= {"model.help", "data.help"}


def test_the_reader_of_exported_episodes_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/board.md: build, export, read with the ten lines there."""
    monkeypatch.chdir(tmp_path)
    page = PAGES["docs/board.md"]
    lines = [shlex.split(line)[1:] for line in re.findall(r"^ +(fssbench episodes .*)$", page, re.M)]
    assert [words[1] for words in lines] == ["build", "export"]
    for words in lines:
        assert main(words) == 0
    code = re.search(r"```python\n(.*?)```", page, re.S)
    assert code
    names: dict[str, Any] = {}
    exec(textwrap.dedent(code[1]), names)
    read = list(names["episodes"]("fold0.csv"))
    expected = load_manifest("fold0.jsonl").episodes
    assert read == [(i, e.class_id, e.query, list(e.supports)) for i, e in enumerate(expected)]


def test_ci_finds_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    function = next(line for line in script.splitlines() if line.startswith("block()"))
    for mark, beginning in (("setup-and-demo", "python3 -m venv .venv && "), ("tests", ".venv/bin/python -m pytest ")):
        done = subprocess.run(
            ["bash", "-c", f"{function}\nblock {mark}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith(beginning)
        assert all(line.endswith("&&") for line in done.stdout.splitlines()[:-1]), "one command"


# -- pages and configs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page])
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_every_config_says_what_it_is_and_is_in_the_readme() -> None:
    for name, path in known_configs().items():
        assert path.read_text(encoding="utf-8").startswith("# "), name
        assert len(first_comment(path)) > 10, name
    named = {name for text in PAGES.values() for name in re.findall(r"\b(?:methods|data|trainer)/\w+\.yaml", text)}
    assert named <= set(known_configs())
    shipped = {name for name in known_configs() if name.startswith(("methods/", "data/"))}
    assert shipped <= named


# -- the example method -----------------------------------------------------------------------------------------------


def write_example(folder: Path, page: str = "CONTRIBUTING.md") -> None:
    """Write the files of a page's example into `folder`."""
    names = re.findall(r"<!-- file: (\S+) -->", PAGES[page])
    assert sorted(names) == EXAMPLES[page]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(marked(page, f"file: {name}"), encoding="utf-8")


def test_the_example_method_leaves_a_record(tmp_path: Path) -> None:
    write_example(tmp_path)
    words = shlex.split(marked("CONTRIBUTING.md", "command").replace("\\\n", " "))
    assert words[0] == "fssbench"
    python("-m", *words, folder=tmp_path)
    (path,) = (tmp_path / "results").rglob("fold0_shot1_seed0.json")
    record = json.loads(path.read_text())
    assert record["key"]["method"] == "nearest"
    assert record["metadata"]["method_class"] == "nearest.NearestNeighbour"
    assert record["metadata"]["track"] == "training-free"
    assert 0 < record["scores"]["miou"] < 1


def test_the_readmes_method_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path, "README.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = shlex.split(marked("README.md", "command").replace("coco20i", "shapes").replace("--folds all", ""))
    small = "--model.backbone vit_tiny_patch16_224 --model.weights random --model.image_size 112"
    small += " --data.episodes_per_class 1 --trainer.accelerator cpu --trainer.enable_progress_bar false"
    assert main([*words[1:], *small.split()]) == 0
    (path,) = (tmp_path / "results").rglob("fold0_shot1_seed0.json")
    assert json.loads(path.read_text())["key"]["method"] == "mine"


def test_the_example_method_finds_the_object_in_its_own_support(tmp_path: Path) -> None:
    write_example(tmp_path)
    spec = importlib.util.spec_from_file_location("nearest_example", tmp_path / "nearest" / "__init__.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    method = module.NearestNeighbour("vit_tiny_patch16_224", "random", 64)
    tokens = method.encode(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)))["tokens"]
    masks = torch.zeros(2, 1, 64, 64, dtype=torch.uint8)
    masks[:, :, :32, 16:48] = 1
    logits = method.segment({"tokens": tokens}, {"tokens": tokens[:, None]}, masks)
    assert torch.equal(logits > 0, masks[:, 0, ::16, ::16] == 1)


def test_a_folder_of_configs_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_example(tmp_path)
    monkeypatch.setenv("FSSBENCH_CONFIG_PATH", str(tmp_path))
    assert first_comment(known_configs()["nearest.yaml"]).startswith("Training-free")


# -- imports and packaging --------------------------------------------------------------------------------------------


def test_imports_only_go_down() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_import_contract_names_every_module_of_the_core() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contract = next(c for c in settings["contracts"] if c["type"] == "layers")
    top, middle, core = (set(re.findall(r"[\w.]+", layer)) for layer in contract["layers"])
    found = {
        f"fssbench.{path.stem}"
        for path in (ROOT / "fssbench").iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("__")) or (path / "__init__.py").exists()
    }
    assert top == {"fssbench.cli"}
    assert middle == {"methods", "datamodules"}
    assert core == found - top


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_code_configs_and_assets_but_no_tests(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for package in ("fssbench", "methods", "datamodules")
        for path in (ROOT / package).rglob("*.py")
    }
    configs = {
        f"fssbench/configs/{p.relative_to(ROOT / 'configs').as_posix()}" for p in (ROOT / "configs").rglob("*.yaml")
    }
    assets = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fssbench" / "assets").rglob("*") if p.is_file()}
    assert len(configs) > 5
    assert modules | configs | {a for a in assets if "__pycache__" not in a} <= names
    packages = {name.split("/")[0] for name in names}
    assert {p for p in packages if not p.endswith(".dist-info")} == {"fssbench", "methods", "datamodules"}


def test_the_unpacked_wheel_works_from_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    wheel.extractall(unpacked)
    elsewhere.mkdir()

    def python(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=elsewhere,
            env=environment(unpacked),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    listed = {line.split()[0] for line in python("-m", "fssbench", "list").splitlines()}
    assert listed == {p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.yaml")}
    folder = python("-c", "from fssbench.cli.configs import packaged_folder; print(packaged_folder())").strip()
    assert Path(folder) == unpacked / "fssbench" / "configs"
