"""What a user gets wrong: each is one line on stderr that names the thing and the remedy, with exit status 2."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fssbench.cli import main
from tests.cli.run import CHECKPOINT, FREE, LOADED, QUIET, TRAINED, error_line
from tests.data.folder import make_folder
from tests.toy import ColourMethod

Output = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("extra", "wrong", "remedy"),
    [
        ("--model Prototyp", "no class 'Prototyp'", "Did you mean 'Prototype'?"),
        ("--model tests.toy.FreeMetod", "'FreeMetod'", "Did you mean 'tests.toy.FreeMethod'?"),
        ("--model nowhere.at.All", "nowhere.at.All is no usable class", ""),
        ("--data Shape", "no class 'Shape'", "Did you mean 'Shapes'?"),
        ("--model.lrr 1", "model.lrr", "Did you mean 'lr'?"),
        ("--model.lr abc", "model.lr: expected float, not 'abc'", ""),
        ("--data.shots 1", "data.shots", "Did you mean 'shot'?"),
        ("--data.fold x", "data.fold: expected int, not 'x'", ""),
        ("--data.episodes_per_epoch x", "data.episodes_per_epoch: expected int or null, not 'x'", ""),
        ("--data.augment flips", "data.augment: expected none or flip or standard", "Did you mean 'flip'?"),
        ("--data.fold 7", "folds 0 to 1, not data.fold=7", ""),
        ("--data.shot 0", "data.shot must be at least 1", ""),
        ("--data.num_workers -1", "data.num_workers must be at least 0, not -1", ""),
        ("--fold 0", "Unknown argument --fold", "Did you mean '--folds'?"),
        ("--shot 5", "Unknown argument --shot", "Did you mean '--shots'?"),
        ("--config prototype", "No config 'prototype'", "Did you mean 'methods/prototype.yaml'?"),
        (
            "--data.shot 6",
            "fewer images than the 7 that 6-shot episodes need: thing",
            "--data.small_classes leave-out",
        ),
        ("--dat.fold 1", "--dat.fold", "Did you mean '--data.fold'?"),
        ("--trainer.max_epoch 1", "--trainer.max_epoch", "Did you mean '--trainer.max_epochs'?"),
        ("--trainer.max_epochs x", "trainer.max_epochs: expected int or null, not 'x'", ""),
        ("--trainer.devices 0", "trainer: `Trainer(devices=", "Correct the trainer part"),
        ("--trainer.strategy dpp", "strategy='dpp'", "Correct the trainer part"),
        ("--trainer.precision bf16-true", "trainer.precision bf16-true changes the type of the weights", "bf16-mixed"),
        ("--trainer.precision 64", "trainer.precision 64", "Use 32-true"),
        ("--overwrite yes", "overwrite: expected only-missing or always or never", ""),
        ("--name a/b", "--name", "letters, digits"),
        ("stray", "stray", "--help"),
        ("--config methods/protype.yaml", "methods/protype.yaml", "Did you mean 'methods/prototype.yaml'?"),
        ("--ckpt_path nothere.ckpt", "nothere.ckpt does not exist", "fssbench fit"),
        ("--ckpt_path last", "last does not exist", "fssbench fit"),
    ],
)
def test_a_wrong_argument(extra: str, wrong: str, remedy: str, here: Path, capsys: Output) -> None:
    line = error_line(capsys, ["test", *FREE, *extra.split()])
    assert wrong in line
    assert remedy in line
    assert "NestedArg" not in line
    assert "<class" not in line


@pytest.mark.parametrize(
    ("text", "wrong", "remedy"),
    [
        ("model: {class_path: methods.Prototyp}", "methods.Prototyp", "Did you mean 'methods.Prototype'?"),
        ("model: {class_path: tests.toy.FreeMethod, init_args: {lrs: 1.0}}", "model.lrs", "Did you mean 'lr'?"),
        ("model: {class_path: tests.toy.FreeMethod, init_args: {lr: [1]}}", "model.lr: expected float, not '[1]'", ""),
        ("modle: {class_path: tests.toy.FreeMethod}", "modle", "Did you mean 'model"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch", "Did you mean 'trainer.max_epochs'?"),
        ("trainer: {max_epochs: many}", "trainer.max_epochs: expected int or null, not 'many'", ""),
        ("model: [", "own.yaml, line 2, column 1: no valid YAML", "Correct the file"),
        ("words", "own.yaml must hold keys", "model:"),
    ],
)
def test_a_wrong_config(text: str, wrong: str, remedy: str, here: Path, capsys: Output) -> None:
    Path("own.yaml").write_text(text + "\n")
    line = error_line(capsys, ["test", *FREE, "--config", "own.yaml"])
    assert wrong in line
    assert remedy in line


def test_options_beside_class_path_are_told_where_they_belong(here: Path, capsys: Output) -> None:
    Path("own.yaml").write_text("model: {class_path: tests.toy.FreeMethod, lr: 1.0}\n")
    line = error_line(capsys, ["test", "--config", "own.yaml", *FREE[2:]])
    assert line == (
        "fssbench: own.yaml: model: options of the class belong below init_args, and nothing else beside class_path."
    )


def test_the_author_of_a_class_is_quoted(here: Path, capsys: Output) -> None:
    """What a class says about its settings arrives as it is, though jsonargparse makes the class."""
    line = error_line(capsys, ["episodes", "build", "--data", "tests.toy.Toy", "--data.batch_size", "0"])
    assert line == "fssbench: data.batch_size must be at least 1, not 0."
    model = "--model FSDINO --model.preset comp --model.train_adapter false --model.sam_weights random"
    line = error_line(capsys, ["fit", *model.split(), *TRAINED[2:]])
    assert line.startswith("fssbench: train_adapter is false, but no adapter_weights are given")


def test_a_missing_model_or_data_set_says_how_to_name_one(here: Path, capsys: Output) -> None:
    assert "No model is configured. Add --config methods/" in error_line(capsys, ["fit"])
    line = error_line(capsys, ["fit", "--model", "tests.toy.FreeMethod"])
    assert "No data is configured. Add --config data/" in line
    assert "No data is configured" in error_line(capsys, ["episodes", "build"])
    line = error_line(capsys, ["episodes", "build", "--config", "data/shapes.yaml", "--shot", "5"])
    assert line == "fssbench: --shot belongs to --lists: say --data.shot instead."


def test_a_required_setting_is_named(here: Path, capsys: Output) -> None:
    for verb in (["test", *FREE[:2], *QUIET], ["episodes", "build"]):
        line = error_line(capsys, [*verb, "--config", "data/folder.yaml"])
        assert line == "fssbench: data.root must be given. Add --data.root VALUE."


def test_a_training_without_an_end_is_refused(here: Path, capsys: Output) -> None:
    assert "Add --trainer.max_epochs N" in error_line(capsys, ["fit", *TRAINED])
    assert main(["fit", *TRAINED, "--trainer.fast_dev_run", "true"]) == 0


def test_results_that_cannot_be_written_are_refused_before_the_test(here: Path, capsys: Output) -> None:
    Path("file").write_text("")
    line = error_line(capsys, ["test", *FREE, "--results", "file/results"])
    assert line.startswith("fssbench: Cannot write into file/results: Not a directory.")
    assert "--results" in line


def test_a_wrong_data_folder_is_told_before_weights_are_looked_for(here: Path, capsys: Output) -> None:
    model = ["--model", "Prototype", "--model.backbone_weights", "nowhere.pth"]
    line = error_line(capsys, ["test", *model, "--config", "data/coco20i.yaml", "--data.root", "nowhere"])
    assert "The data folder nowhere is missing" in line


def test_a_checkpoint_of_another_method_is_told_before_weights_are_looked_for(fitted: Path, capsys: Output) -> None:
    model = ["--model", "Prototype", "--model.backbone_weights", "nowhere.pth", *LOADED[2:]]
    assert "is of tests.toy.ColourMethod, the configuration asks for methods.prototype" in error_line(
        capsys, ["test", *model]
    )
    assert "gone.ckpt does not exist" in error_line(capsys, ["test", *model, "--ckpt_path", "gone.ckpt"])


def test_a_method_without_an_optimiser_is_not_fitted(here: Path, capsys: Output) -> None:
    Path("own.py").write_text(
        "from tests.toy import ColourMethod\nfrom fssbench.method import FewShotMethod\n\n\n"
        "class Own(ColourMethod):\n    configure_optimizers = FewShotMethod.configure_optimizers\n"
    )
    line = error_line(capsys, ["fit", "--model", "own.Own", *TRAINED[2:], "--trainer.max_epochs", "1"])
    assert line.startswith(
        "fssbench: own.Own has no configure_optimizers, so there is nothing to fit. Run `fssbench test`"
    )


def test_a_gpu_that_is_not_there(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = error_line(capsys, ["test", *FREE[:4], "--config", "trainer/gpu.yaml"])
    assert "fssbench doctor" in line
    assert "leave trainer/gpu.yaml out" in line


def test_a_trained_method_is_not_tested_without_a_checkpoint(here: Path, capsys: Output) -> None:
    for verb in ("test", "predict"):
        line = error_line(capsys, [verb, *TRAINED])
        assert "ColourMethod is a trained method" in line
        assert "--ckpt_path" in line
    assert not Path("results").exists()


def test_a_checkpoint_overrides_neither_the_method_nor_its_settings(fitted: Path, capsys: Output) -> None:
    line = error_line(capsys, ["test", *FREE, "--ckpt_path", CHECKPOINT])
    assert CHECKPOINT in line
    assert "of tests.toy.ColourMethod" in line
    assert "asks for tests.toy.FreeMethod" in line
    line = error_line(capsys, ["test", *LOADED, "--model.lr", "0.2"])
    assert "lr=0.1" in line
    assert "0.2" in line
    assert not Path("results").exists()


class Code:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("verb", ["test", "fit", "validate", "predict"])
def test_a_checkpoint_with_code_is_refused_and_not_run(verb: str, here: Path, capsys: Output) -> None:
    torch.save({"state_dict": {}, "fssbench": Code()}, "code.ckpt")
    line = error_line(capsys, [verb, *TRAINED, "--ckpt_path", "code.ckpt"])
    assert "code.ckpt is refused" in line
    assert not Path("executed").exists()


def test_a_damaged_or_foreign_checkpoint_is_refused(fitted: Path, capsys: Output) -> None:
    Path("cut.ckpt").write_bytes(Path(CHECKPOINT).read_bytes()[:900])
    assert "cut.ckpt is damaged" in error_line(capsys, ["test", *TRAINED, "--ckpt_path", "cut.ckpt"])
    torch.save({"state_dict": {}}, "foreign.ckpt")
    line = error_line(capsys, ["test", *TRAINED, "--ckpt_path", "foreign.ckpt"])
    assert "foreign.ckpt: The checkpoint was not made by fssbench" in line


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_damaged_image_is_named_wherever_it_is_read(workers: str, here: Path, capsys: Output) -> None:
    make_folder(here / "photos", images_per_class=4)
    for path in (here / "photos" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:-200])
    data = ["--data", "datamodules.Folder", "--data.root", "photos", "--data.num_workers", workers]
    line = error_line(capsys, ["test", *FREE[:2], *data, *QUIET])
    assert "photos/images/photo" in line
    assert "Traceback" not in line


def test_errors_of_forked_processes_are_one_line_too(here: Path, capsys: Output) -> None:
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
    assert "trained method" in error_line(capsys, ["test", *TRAINED, *two])


@pytest.mark.parametrize("processes", [[], ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]])
def test_too_little_memory(processes: list[str], fitted: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 7.92 GiB of which 1.2 GiB is free."
        )

    monkeypatch.setattr(ColourMethod, "segment", segment)
    line = error_line(capsys, ["test", *LOADED, *processes])
    assert "CUDA out of memory. Tried to allocate 2.50 GiB. Give --data.eval_batch_size 1" in line
    line = error_line(capsys, ["fit", *TRAINED, "--trainer.max_epochs", "1", "--run_dir", "other", *processes])
    assert "Give a smaller --data.batch_size" in line


def test_a_result_of_forked_processes_is_kept(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    two = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2"]
    assert main(["test", *FREE]) == 0
    with caplog.at_level("INFO"):
        assert main(["test", *FREE, *two]) == 0
    assert "kept: " in caplog.text


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        ("test", "1 of 4 classes of folder fold 0 have fewer images than the 2 that 1-shot episodes need: dog (1)."),
        ("fit", "All classes of folder are tested, none is trained on. With --data.n_folds 4"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_before_weights_are_looked_for(
    verb: str, message: str, here: Path, capsys: Output
) -> None:
    make_folder(here / "photos")
    for mask in sorted((here / "photos" / "masks" / "dog").iterdir())[1:]:
        mask.unlink()
    command = [verb, "--config", "methods/comp.yaml", "--model.backbone_weights", "none.pth", *QUIET]
    assert message in error_line(capsys, [*command, "--config", "data/folder.yaml", "--data.root", "photos"])
