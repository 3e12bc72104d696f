"""The ablations: what the table says, that every row of the suites is a valid run, and that only what is missing is run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fssbench.cli.running import ParseOnly, checked_config
from fssbench.cli.suite import read_suite
from fssbench.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "benchmarks" / "ablations"
SUITES = ("shapes", "coco", "distilled", "sam2fss")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablations", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table(script: ModuleType) -> None:
    scores = {
        ("comp", 1): {(0, 0): 30.0, (0, 1): 34.0, (1, 0): 32.0, (1, 1): 38.0, (2, 0): 99.0},  # seed 2 is under way
        ("full", 1): {(0, 0): 31.0, (0, 1): 37.0},
        ("comp", 5): {(0, 0): 40.0},
    }
    lines = script.table(scores, ["comp", "full", "none"], [1, 5], "comp").splitlines()
    assert lines[0] == "| row | folds x seeds | 1-shot | minus comp | 5-shot | minus comp |"
    assert lines[2:] == [
        "| comp | 2 x 3 - 1 | 33.5 ± 2.1 |  | 40.0 |  |",
        "| full | 2 x 1 | 34.0 | +2.0 ± 1.0 | - | - |",
        "| none | 0 x 0 | - | - | - | - |",
    ]


def test_every_row_of_the_suites_is_a_valid_run(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> None:
    monkeypatch.chdir(REPOSITORY)
    parser = ParseOnly(["--config", "benchmarks/ablations/distill.yaml"]).parser
    trained = {}
    for suite in SUITES:
        if suite == "sam2fss":
            pytest.importorskip("sam2")
        rows, common, axes = read_suite(str(FOLDER / f"{suite}.yaml"))
        assert axes == {"folds": ["all"], "shots": ["1", "5"], "seeds": ["0", "1", "2"]}
        for row, own in rows.items():
            config = parser.parse_args([*own.before, *common, *own.after])
            assert config.name == row
            trained[suite, row] = script.is_trained(config)
    assert [row for row, learns in trained.items() if not learns] == [("shapes", "prototype"), ("coco", "prototype")]


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        (["--model.trainable", "affine", "--model.trainable", "none"], False),
        (["--model.trainable", "none", "--model.trainable", "affine"], True),
        (["--data.augment", "none"], True),
    ],
)
def test_training_is_switched_off_by_an_option(script: ModuleType, options: list[str], trained: bool) -> None:
    pytest.importorskip("sam2")
    config = checked_config(["--config", "methods/sam2fss.yaml", "--config", "data/shapes.yaml", *options])
    assert script.is_trained(config) == trained


SMALL = """
methods:
  prototype: {config: [methods/prototype.yaml, data/shapes.yaml], model.backbone: from_weights,
              model.backbone_weights: shapes_vit.safetensors, model.image_size: 56}
  comp: {config: demo.yaml, model.image_size: 56}
folds: 1
shots: [1, 2]
data.episodes_per_class: 1
data.episodes_per_epoch: 4
data.batch_size: 2
trainer.max_epochs: 1
trainer.limit_val_batches: 0
trainer.accelerator: cpu
trainer.enable_progress_bar: false
"""


def test_only_what_is_missing_is_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("suite.yaml").write_text(SMALL)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["run.py", "suite.yaml", "--out", "out", *arguments])
        status: int = script.main()
        return status

    assert run() == 0
    files = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.suffix in (".ckpt", ".json")}
    assert {path.name for path in files} == {
        *("last.ckpt", "run.json", "fold1_shot1_seed0.json", "fold1_shot2_seed0.json"),
    }
    assert run() == 0
    assert files == {path: path.stat().st_mtime_ns for path in files}
    table = Path("out/table.md").read_text()
    assert "| comp | 1 x 1 |" in table
    assert table in capsys.readouterr().out

    assert run("--data.batch_size", "1", "--rows", "comp") == 1, "other settings are another run"
    assert "failed: comp, fold 1, seed 0: out/runs/comp/fold1_seed0 holds a run with other settings" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="has no row cmp, only prototype, comp"):
        run("--rows", "cmp")
    with pytest.raises(UserError, match="has no option 'colour'"):  # before any row runs
        run("--model.colour", "red", "--seeds", "1")
    assert not list(Path("out/runs").glob("*/*seed1"))
