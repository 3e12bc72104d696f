"""Explaining a record, running it again, and comparing two methods from the command line."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from fssbench.cli import main, replay
from fssbench.results.record import config_hash
from fssbench.results.store import ResultStore
from fssbench.results.table import scores_from
from tests.cli.run import CHECKPOINT, FREE, LOADED, QUIET, error_line

Output = pytest.CaptureFixture[str]


def only_record() -> Path:
    (path,) = Path("results").rglob("fold*.json")
    return path


def test_a_replay_says_that_the_counts_are_identical(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED, "--data.eval_batch_size", "3"]) == 0
    path = only_record()
    before = path.read_bytes()
    capsys.readouterr()
    assert main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("identical: all counts of 16 episodes; mIoU ")
    assert "config " not in err, "the file of the replay is nothing to the user"
    assert path.read_bytes() == before
    assert only_record() == path, "nothing is added to the results"


def test_of_several_processes_the_first_compares(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several GPUs Lightning starts the same command for each of them, and only the first writes a record."""
    assert main(["test", *FREE]) == 0
    capsys.readouterr()
    monkeypatch.setattr(replay, "run_once", lambda verb, arguments: 0)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert main(["replay", str(only_record())]) == 0
    assert capsys.readouterr().out == ""


def test_a_trained_method_with_a_timm_encoder_is_replayed(here: Path, capsys: Output) -> None:
    """FS-DINO's compact model on the small ViT that ships."""
    common = ["--config", "demo.yaml", *QUIET, "--data.episodes_per_class", "1", "--run_dir", "runs/here"]
    short = ["--data.episodes_per_epoch", "2", "--data.batch_size", "2", "--data.val_episodes_per_class", "1"]
    assert main(["fit", *common, *short, "--trainer.max_epochs", "1"]) == 0
    assert main(["test", *common, "--ckpt_path", "runs/here/last.ckpt"]) == 0
    path = only_record()
    Path("runs/here").rename("runs/elsewhere")
    capsys.readouterr()
    assert main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert re.match(r"identical: all counts of \d+ episodes; mIoU ", out)
    assert "checkpoint: runs/elsewhere/last.ckpt, the recorded file by its SHA-256" in err
    assert main(["replay", str(path), "--model.backbone_weights", "gone.safetensors"]) == 2
    assert "gone.safetensors" in capsys.readouterr().err


def _changed(path: Path) -> None:
    """A record whose third episode was counted differently, as another library version might."""
    store = ResultStore("results")
    (record,) = store.read_all().records
    rows = store.rows(record)
    rows[2] = replace(rows[2], fg_intersection=rows[2].fg_intersection + 1, fg_target=None)
    names = {c: score.name for c, score in record.scores.class_iou.items()}
    libraries = {**record.provenance.libraries, "torch": "1.0"}
    changed = replace(
        record, scores=scores_from(rows, names), provenance=replace(record.provenance, libraries=libraries)
    )
    store.write(changed, rows, overwrite=True)


def test_a_replay_names_what_differs(here: Path, capsys: Output) -> None:
    assert main(["test", *FREE]) == 0
    _changed(only_record())
    capsys.readouterr()
    assert main(["replay", str(only_record())]) == 1
    out = capsys.readouterr().out
    assert out.startswith("different: 1 of 16 episodes, 1 counts; mIoU ")
    assert f"torch: 1.0 then, {torch.__version__.split('+')[0]}" in out
    assert "episode 2 (query " in out


def test_a_replay_with_other_settings_is_another_experiment(here: Path, capsys: Output) -> None:
    assert main(["test", *FREE]) == 0
    assert main(["replay", str(only_record()), "--model.bias", "9"]) == 1
    assert "the key differs in config_hash, weights_sha256" in capsys.readouterr().out


def test_a_missing_or_other_checkpoint_is_refused(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    path = only_record()
    moved = Path(CHECKPOINT).rename("moved.ckpt")
    message = error_line(capsys, ["replay", str(path)])
    assert f"The checkpoint {CHECKPOINT} is missing (SHA-256 " in message
    assert "no .ckpt file below runs/ is it: give that one with --ckpt_path FILE." in message
    assert main(["replay", str(path), "--ckpt_path", str(moved)]) == 0
    found = Path("runs/archive/epoch3.ckpt")
    found.parent.mkdir()
    shutil.copy(moved, found)
    assert main(["replay", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out.count("identical: ") == 2
    assert f"checkpoint: {found}, the recorded file by its SHA-256 (it was {CHECKPOINT})" in err
    state = torch.load(moved, weights_only=True)
    state["state_dict"]["bias"] += 1
    torch.save(state, "other.ckpt")
    assert "another checkpoint than the recorded one" in error_line(
        capsys, ["replay", str(path), "--ckpt_path", "other.ckpt"]
    )


def test_a_number_is_explained(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    record = json.loads(only_record().read_text())
    capsys.readouterr()
    assert main(["explain", str(only_record())]) == 0
    out = capsys.readouterr().out
    for fact in (
        record["key"]["manifest_sha256"],
        record["key"]["weights_sha256"],
        record["provenance"]["checkpoint_sha256"],
        record["provenance"]["device"],
        record["metadata"]["selection"],
        f"{100 * record['scores']['miou']:.2f}, the mean over",
        "same bits",
        f"fssbench replay {only_record()}",
        "training max_epochs",
        "training episodes_per_epoch ",
    ):
        assert fact in out
    assert config_hash(record["provenance"]["method_config"]) in out


def test_a_record_whose_table_is_of_another_run_is_not_explained(here: Path, capsys: Output) -> None:
    assert main(["test", *FREE]) == 0
    path = only_record()
    path.write_text(path.read_text().replace('"seconds_per_episode": 0', '"seconds_per_episode": 1'))
    assert "differ in seconds_per_episode" in error_line(capsys, ["explain", str(path)])


def test_two_methods_are_compared_by_name_record_or_folder(here: Path, capsys: Output) -> None:
    for name, bias in (("one", "0.5"), ("two", "0.02")):
        for fold in ("0", "1"):
            assert main(["test", *FREE, "--name", name, "--model.bias", bias, "--data.fold", fold]) == 0
    paths = {name: next(Path("results").rglob(f"{name}@*")) for name in ("one", "two")}
    capsys.readouterr()
    outs = []
    for a, b in (("one", "two"), (paths["one"].name, paths["two"].name), (str(paths["one"]), str(paths["two"]))):
        assert main(["compare", a, b]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1] == outs[2]
    for part in ("mIoU by number of shots", "by object size", "IoU by class", "episodes that differ most"):
        assert part in outs[0]
    assert "not shared" not in outs[0]
    assert main(["compare", *(str(path / "fold0_shot1_seed0.json") for path in paths.values()), "--format", "md"]) == 0
    assert "1 of 2 folds are not shared" in capsys.readouterr().out
    assert main(["compare", "one", "two", "--format", "json", "--top", "2"]) == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert len(content["most_different"]) == 2
    assert "--top is -1" in error_line(capsys, ["compare", "one", "two", "--top", "-1"])
    assert "Did you mean 'two'?" in error_line(capsys, ["compare", "one", "tow"])
    assert "has no results with the wanted" in error_line(capsys, ["compare", "one", "two", "--shots", "5"])
    damaged = next(paths["two"].glob("fold1*.json"))
    damaged.write_text("{")
    assert main(["compare", "one", "two"]) == 0
    out, err = capsys.readouterr()
    assert f"fssbench: left out {damaged}: " in err
    assert "1 of 2 folds are not shared" in out


ANY = ["--model", "tests.toy.FreeMethod", "--data", "tests.toy.AnyProtocol", *QUIET]


def test_a_run_that_counts_at_several_resolutions_is_replayed_at_each(here: Path, capsys: Output) -> None:
    assert main(["test", *ANY, "--data.protocol", "hsnet-compat", "--data.episodes", "8"]) == 0
    paths = sorted(Path("results").rglob("fold*.json"))
    assert len(paths) == 2
    for path in paths:
        capsys.readouterr()
        assert main(["replay", str(path)]) == 0
        assert capsys.readouterr().out.startswith("identical: all counts of 8 episodes; mIoU ")


def test_a_replay_that_makes_no_record_says_so(here: Path, capsys: Output) -> None:
    assert main(["test", *FREE]) == 0
    capsys.readouterr()
    assert main(["replay", str(only_record()), "--trainer.limit_test_batches", "2"]) == 2
    assert "the run made no record at resolution original (made: none)" in capsys.readouterr().err


def test_a_record_that_was_edited_is_not_identical(here: Path, capsys: Output) -> None:
    """Better counts in the record alone, consistent in themselves; and a track that the method does not have."""
    assert main(["test", *FREE]) == 0
    path = only_record()
    content = path.read_text()
    store = ResultStore("results")
    (record,) = store.read_all().records
    rows = store.rows(record)
    rows[2] = replace(rows[2], fg_intersection=rows[2].fg_union, fg_target=None)
    names = {c: score.name for c, score in record.scores.class_iou.items()}
    path.write_text(replace(record, scores=scores_from(rows, names)).to_text())
    assert "one is of another run" in error_line(capsys, ["replay", str(path)])
    path.write_text(content.replace('"track": "unknown"', '"track": "strict"'))
    assert main(["replay", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("different: 0 of 16 episodes, 0 counts")
    assert "metadata.track: strict then, unknown now" in out
