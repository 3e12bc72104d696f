"""What must not pass for a number: checkpoints of another fold, other pixels under the same key, tests of half a training."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from datamodules.coco20i import COCO20iDataset
from datamodules.pascal5i import PASCAL5iDataset
from fssbench.cli import main
from fssbench.results.record import ResultRecord
from fssbench.results.store import ResultStore
from tests.cli.run import CHECKPOINT, FREE, LOADED, SHORT, TRAINED, error_line

Output = pytest.CaptureFixture[str]


def only_record() -> ResultRecord:
    (record,) = ResultStore("results").read_all().records
    return record


@pytest.mark.parametrize("verb", ["test", "predict", "validate"])
def test_a_checkpoint_of_another_fold_is_refused(fitted: Path, capsys: Output, verb: str) -> None:
    message = error_line(capsys, [verb, *LOADED, "--data.fold", "1"])
    assert "trained on toy fold 0 (1-shot), with masks of classes that are novel in toy fold 1" in message
    assert not Path("results").exists()


def test_a_method_that_may_have_seen_all_classes_says_so_by_its_track(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generalist is not refused; its track keeps it off the strict board."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    Path("own.py").write_text(
        "from tests.toy import ColourMethod\n"
        "class Generalist(ColourMethod):\n"
        "    def metadata(self):\n"
        "        return {'track': 'generalist'}\n"
    )
    state = torch.load(CHECKPOINT, weights_only=True)
    state["fssbench"]["method_class"] = "own.Generalist"
    torch.save(state, "own.ckpt")
    arguments = ["--model", "own.Generalist", *TRAINED[2:], "--ckpt_path", "own.ckpt", "--data.fold", "1"]
    assert main(["test", *arguments]) == 0
    assert only_record().metadata.track == "generalist"


def test_a_fit_does_not_go_on_from_another_fold(fitted: Path, capsys: Output) -> None:
    message = error_line(capsys, ["fit", *LOADED, *SHORT, "--data.fold", "1"])
    assert "trained on toy fold 0, the configuration says toy fold 1" in message


@pytest.mark.parametrize(
    ("trained_on", "trained_fold", "fold", "seen"),
    [("coco-20i", 2, 2, False), ("coco-20i", 1, 2, True), ("pascal-5i", 2, 2, True), ("elsewhere", 0, 2, False)],
)
def test_the_transfer_from_coco_needs_the_same_fold(trained_on: str, trained_fold: int, fold: int, seen: bool) -> None:
    data = object.__new__(PASCAL5iDataset)
    data.class_names, data.class_partition = dict.fromkeys(range(1, 21), ""), "coco-20i"
    assert data.saw_novel(fold, trained_on, trained_fold, 1) is seen


@pytest.mark.parametrize(("trained_on", "trained_fold", "seen"), [
    ("coco-20i", 1, False), ("coco-20i", 0, True), ("coco-20i-contiguous", 1, True), ("elsewhere", 0, False)
])  # fmt: skip
def test_the_partitions_of_coco_hold_out_other_classes(trained_on: str, trained_fold: int, seen: bool) -> None:
    data = object.__new__(COCO20iDataset)
    data.class_names, data.class_partition = dict.fromkeys(range(1, 81), ""), "interleaved"
    assert data.saw_novel(1, trained_on, trained_fold, 1) is seen


def test_another_input_size_is_another_experiment(here: Path) -> None:
    """It is a setting of the data, but the method has its own: results of the two have a row each."""
    assert main(["test", *FREE]) == 0
    same = ["test", *FREE, "--data.image_size", "16"]
    assert main(same) == 0
    first = only_record()
    assert main(["test", *FREE, "--data.image_size", "8"]) == 0
    found = ResultStore("results").read_all().records
    assert {record.provenance.network_input for record in found} == {(16, 16), (8, 8)}
    assert first in found
    assert len({record.key.config_hash for record in found}) == 2


def test_a_test_of_half_a_training_says_so(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    assert only_record().provenance.skipped == ()
    state = torch.load(CHECKPOINT, weights_only=True)
    state["epoch"], state["global_step"] = 0, 2
    torch.save(state, "half.ckpt")
    assert main(["test", *TRAINED, "--ckpt_path", "half.ckpt", "--results", "half"]) == 0
    (record,) = ResultStore("half").read_all().records
    assert record.provenance.skipped == ("the training of the checkpoint had not ended: 1 of 2 epochs",)
    state["fssbench"]["training"]["selection"] = "base-selected"
    torch.save(state, "best.ckpt")
    assert main(["test", *TRAINED, "--ckpt_path", "best.ckpt", "--results", "best"]) == 0
    (record,) = ResultStore("best").read_all().records
    assert record.provenance.skipped == ()


def test_numbers_beside_a_record_are_its_own(here: Path) -> None:
    """Asked for later they are made later, and they go with the result that is replaced."""
    assert main(["test", *FREE]) == 0
    path = ResultStore("results").path(only_record().key)
    before, outlines = path.read_bytes(), path.with_suffix(".boundary.csv")
    assert main(["test", *FREE, "--data.boundary", "true"]) == 0
    assert len(outlines.read_text().splitlines()) == 17
    assert path.read_bytes() == before
    assert main(["test", *FREE, "--overwrite", "always"]) == 0
    assert not outlines.exists()


def test_a_kept_result_with_other_counts_is_told(here: Path, capsys: Output) -> None:
    """The same weights and episodes, but somebody's data differ: what stands beside the record would not be its own."""
    assert main(["test", *FREE]) == 0
    store = ResultStore("results")
    record, rows = only_record(), store.rows(only_record())
    from tests.cli.test_replay import _changed

    _changed(store.path(record.key))
    assert "other counts than this run" in error_line(capsys, ["test", *FREE, "--data.boundary", "true"])
    assert not list(Path("results").rglob("*.csv"))
    shutil.rmtree("results")
    store.write(record, rows)
    assert main(["test", *FREE, "--data.boundary", "true"]) == 0
