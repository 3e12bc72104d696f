"""fit, validate, test and predict as a user calls them: what a run leaves behind, and what it does when called again."""

from __future__ import annotations

import errno
import json
import os
from inspect import signature
from pathlib import Path
from typing import Any, Union, get_args

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from fssbench.cli import main
from fssbench.cli.trainer import integers_first
from fssbench.protocols.manifest import load_manifest
from fssbench.results.store import ResultStore
from tests.cli.run import CHECKPOINT, FREE, LOADED, QUIET, SHORT, TRAINED, error_line
from tests.toy import Toy

Output = pytest.CaptureFixture[str]
METRICS = ("metrics_1.csv", "metrics.csv")
RUN = Path(CHECKPOINT).parent

OWN = """
import os, signal
from pathlib import Path
from tests.toy import ColourMethod, FreeMethod

class Stopped(ColourMethod):
    neutral_settings = ("bias",)

    def on_train_epoch_start(self):
        if Path("stop").exists() and self.current_epoch == 2:
            raise KeyboardInterrupt

class Terminated(ColourMethod):
    def on_train_epoch_start(self):
        if Path("stop").exists() and self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)

class Cancelled(FreeMethod):
    def test_step(self, batch, batch_idx):
        raise KeyboardInterrupt
"""


def records(folder: Path = Path("results")) -> list[Any]:
    contents = ResultStore(folder).read_all()
    assert contents.damaged == []
    return contents.records


def weights(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value.item() for name, value in state.items()}


# -- fit ----------------------------------------------------------------------------------------------------------


def test_a_fit_leaves_checkpoint_config_note_and_logs(fitted: Path) -> None:
    names = {path.name for path in RUN.iterdir()}
    assert {"last.ckpt", "config.yaml", "run.json", "metrics.csv"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr"] == 0.1
    assert config["data"]["init_args"]["episodes_per_epoch"] == 8
    assert config["seed_everything"] == 0, "Lightning's own default would be a random seed"
    assert config["trainer"]["use_distributed_sampler"] is False, "Lightning's sampler would count episodes twice"
    note = json.loads((RUN / "run.json").read_text())
    assert (note["epochs"], note["steps"]) == (2, 4)
    assert "train_loss" in (RUN / "metrics.csv").read_text() or "val_miou" in (RUN / "metrics.csv").read_text()


def test_a_finished_fit_is_kept(fitted: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (RUN / "last.ckpt").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert main(["fit", *TRAINED, *SHORT]) == 0
    assert "kept: " in caplog.text
    assert (RUN / "last.ckpt").stat().st_mtime_ns == before
    assert main(["fit", *TRAINED, *SHORT, "--overwrite", "always"]) == 0
    assert (RUN / "last.ckpt").stat().st_mtime_ns > before


def test_a_fit_is_kept_whatever_the_cache_and_before_an_option_existed(
    fitted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (RUN / "config.yaml").read_text()
    older = text.replace("compile_encoder: 'no'\n", "").replace("    bias: 0.5\n", "")
    assert len(text.splitlines()) == len(older.splitlines()) + 2
    (RUN / "config.yaml").write_text(older)
    with caplog.at_level("INFO"):
        assert main(["fit", *TRAINED, *SHORT, "--feature_cache", "10"]) == 0
    assert "kept: " in caplog.text
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    del checkpoint["fssbench"]["settings"]["bias"]
    torch.save(checkpoint, CHECKPOINT)
    assert main(["test", *LOADED]) == 0
    (RUN / "config.yaml").write_text(older.replace("    lr: 0.1\n", "    lr: 0.2\n"))
    assert main(["fit", *TRAINED, *SHORT]) == 2


def test_a_fit_with_other_settings_is_refused_in_the_same_folder(fitted: Path, capsys: Output) -> None:
    line = error_line(capsys, ["fit", *TRAINED, *SHORT, "--model.lr", "0.2"])
    assert "other settings (model.lr)" in line
    assert "--run_dir" in line
    assert "holds a run already" in error_line(capsys, ["fit", *TRAINED, *SHORT, "--overwrite", "never"])


def test_an_interrupted_fit_goes_on_to_the_same_weights(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "own.py").write_text(OWN)
    (here / "stop").touch()
    fit = ["fit", "--model", "own.Stopped", *TRAINED[2:], *SHORT, "--trainer.max_epochs", "4", "--run_dir"]
    assert main([*fit, "broken"]) == 130
    assert torch.load("broken/last.ckpt", weights_only=True)["epoch"] == 1
    assert not Path("broken/run.json").exists()
    Path("stop").unlink()
    with caplog.at_level("INFO"):
        # of these settings the toy's bias is declared to change no number
        assert main([*fit, "broken", "--model.bias", "0.7", "--data.num_workers", "1", "--data.image_memory", "9"]) == 0
    assert "going on with the unfinished run" in caplog.text
    assert main([*fit, "whole"]) == 0
    assert weights(Path("broken/last.ckpt")) == weights(Path("whole/last.ckpt"))
    assert weights(Path("whole/last.ckpt"))["seen"] == 8
    assert json.loads(Path("broken/run.json").read_text())["epochs"] == 4
    epochs = [{line.split(",")[0] for line in Path("broken", name).read_text().splitlines()[1:]} for name in METRICS]
    assert epochs == [{"0", "1"}, {"2", "3"}], "the first metrics are still there"


def test_a_terminated_fit_is_no_success_and_goes_on(here: Path, capsys: Output) -> None:
    (here / "own.py").write_text(OWN)
    (here / "stop").touch()
    fit = ["fit", "--model", "own.Terminated", *TRAINED[2:], *SHORT, "--trainer.max_epochs", "3", "--run_dir", "run"]
    assert main(fit) == 143
    assert "terminated" in capsys.readouterr().err
    assert not Path("run/run.json").exists()
    Path("stop").unlink()
    assert main(fit) == 0
    assert json.loads(Path("run/run.json").read_text())["steps"] == 6


def test_a_result_carries_the_seed_of_the_training(here: Path) -> None:
    assert main(["fit", *TRAINED, *SHORT, "--seed_everything", "3", "--run_dir", "seeded"]) == 0
    assert main(["test", *TRAINED, "--ckpt_path", "seeded/last.ckpt"]) == 0
    (record,) = records()
    assert record.key.seed == 3


def test_wandb_logs_beside_the_run_folder(here: Path) -> None:
    import wandb

    assert main(["fit", *TRAINED, *SHORT, "--config", "trainer/wandb.yaml"]) == 0
    wandb.finish()
    assert list(Path("runs/wandb").glob("offline-run-*/*.wandb"))
    assert (RUN / "metrics.csv").exists()


def test_a_training_free_method_says_that_there_is_nothing_to_fit(here: Path, capsys: Output) -> None:
    model = ["--model", "methods.prototype.Prototype", "--model.backbone", "vit_tiny_patch16_224"]
    model += ["--model.backbone_weights", "random", "--model.image_size", "32"]
    assert "training-free" in error_line(capsys, ["fit", *model, *TRAINED[2:], *SHORT])


# -- test ---------------------------------------------------------------------------------------------------------


def test_a_test_writes_one_record_that_can_be_recomputed(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    out, err = capsys.readouterr()
    assert out.count("mIoU") == 1
    assert "Test metric" not in out
    assert err == ""
    (record,) = records()
    store = ResultStore("results")
    store.verify(record)
    assert len(store.rows(record)) == 16
    assert record.key.method == "colourmethod"
    assert record.provenance.checkpoint == CHECKPOINT
    assert record.provenance.config["model"]["init_args"]["lr"] == 0.1
    assert record.metadata.selection == "last"
    assert main(["leaderboard"]) == 0
    assert "colourmethod" in capsys.readouterr().out


def test_trackers_get_the_numbers_of_the_record(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = ["--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "tracked"]
    assert main(["test", *FREE, *logger]) == 0
    (record,) = records()
    (events,) = Path("tracked").rglob("events.out.tfevents*")
    content = EventAccumulator(str(events)).Reload()
    (miou,) = content.Scalars("result/miou")
    assert miou.value == pytest.approx(record.scores.miou, rel=1e-6)  # TensorBoard keeps float32
    for score in record.scores.class_iou.values():
        assert content.Scalars(f"result/class_iou/{score.name}")[0].value == pytest.approx(score.iou, rel=1e-6)


def test_wandb_gets_the_numbers_of_the_record(here: Path) -> None:
    import wandb

    assert main(["test", *FREE, "--config", "trainer/wandb.yaml"]) == 0
    (record,) = records()
    assert wandb.run is not None
    told = dict(wandb.run.summary)
    config = dict(wandb.run.config)
    wandb.finish()
    assert told["result/miou"] == record.scores.miou
    assert told["result/fb_iou"] == record.scores.fb_iou
    assert told["result/seconds_per_episode"] == record.cost.seconds_per_episode
    for score in record.scores.class_iou.values():
        assert told[f"result/class_iou/{score.name}"] == score.iou
    assert config["manifest_sha256"] == record.key.manifest_sha256
    assert Path(config["record"]).is_file()


def test_a_record_says_what_the_run_cost(fitted: Path) -> None:
    assert main(["test", *LOADED]) == 0
    cost = records()[0].cost
    assert (cost.parameters, cost.trained_parameters) == (12 + 4 + 2, 2)
    assert cost.seconds_per_episode is not None
    assert 0 < cost.seconds_per_episode < 60
    assert cost.peak_memory is not None
    assert cost.peak_memory > 2**20
    rows = ResultStore("results").rows(records()[0])
    data = Toy().dataset
    assert [row.fg_target for row in rows] == [int((data.read_mask(r.query_key, r.class_id) == 1).sum()) for r in rows]


def test_a_result_is_kept_replaced_or_an_error(fitted: Path, capsys: Output, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["test", *LOADED]) == 0
    path = ResultStore("results").path(records()[0].key)
    before = path.stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert main(["test", *LOADED]) == 0
    assert f"kept: {path}" in caplog.text
    assert path.stat().st_mtime_ns == before
    assert str(path) in error_line(capsys, ["test", *LOADED, "--overwrite", "never"])
    assert main(["test", *LOADED, "--overwrite", "always"]) == 0
    assert path.stat().st_mtime_ns > before
    assert len(records()) == 1


def test_a_result_of_other_weights_is_not_replaced_unasked(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    state = torch.load(CHECKPOINT, weights_only=True)
    state["state_dict"]["bias"] += 1
    torch.save(state, "other.ckpt")
    line = error_line(capsys, ["test", *TRAINED, "--ckpt_path", "other.ckpt"])
    assert "other weights, episodes or precision" in line
    assert "--overwrite always" in line


def test_a_number_of_batches_is_not_read_as_a_share_of_them() -> None:
    hints: dict[str, Any] = {"limit": Union[float, int, None], "text": str, "share": float}  # noqa: UP007
    integers_first(hints)
    assert get_args(hints.pop("limit")) == (int, float, type(None))
    assert hints == {"text": str, "share": float}
    limits = [p for name, p in signature(Trainer.__init__).parameters.items() if name.startswith("limit_")]
    assert len(limits) == 4
    assert all(get_args(limit.annotation)[0] is int for limit in limits)


def test_part_of_the_episodes_writes_no_record(here: Path, capsys: Output) -> None:
    assert main(["test", *FREE, "--trainer.limit_test_batches", "1"]) == 0
    assert "not all episodes were run" in capsys.readouterr().err
    assert records() == []


def test_ctrl_c_leaves_no_record(here: Path, capsys: Output) -> None:
    (here / "own.py").write_text(OWN)
    assert main(["test", "--model", "own.Cancelled", *FREE[2:]]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert records() == []


def no_space(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_no_half_record(here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fssbench.files.os.fsync", no_space)
    line = error_line(capsys, ["test", *FREE])
    assert "No space left" in line
    assert "results/toy" in line
    monkeypatch.undo()
    assert [path for path in (here / "results").rglob("*") if path.is_file() and path.name != ".lock"] == []


def test_a_full_disk_keeps_the_checkpoint_before(fitted: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Path(CHECKPOINT).read_bytes()
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", no_space)
    assert "No space left" in error_line(capsys, ["fit", *TRAINED, *SHORT, "--overwrite", "always"])
    assert Path(CHECKPOINT).read_bytes() == before


# -- validate and predict -----------------------------------------------------------------------------------------


def test_validate_scores_base_classes_and_writes_nothing(fitted: Path, capsys: Output) -> None:
    assert main(["validate", *LOADED]) == 0
    out = capsys.readouterr().out
    assert out.startswith("toy base classes of fold 0, 1-shot: mIoU ")
    assert out.count("\n") == 1
    assert not Path("results").exists()


def test_predict_writes_masks_of_original_size_and_their_manifest(fitted: Path) -> None:
    assert main(["predict", *LOADED, "--data.eval_batch_size", "3"]) == 0
    folder = RUN / "predictions"
    manifest = load_manifest(folder / "episodes.jsonl")
    data = Toy()
    assert manifest.sha256 == data.test_manifest.sha256
    assert len(list(folder.glob("*.png"))) == len(manifest.episodes) == 16
    values = set()
    for number, episode in enumerate(manifest.episodes):
        mask = np.asarray(Image.open(folder / f"{number:06d}.png"))
        assert mask.shape == data.dataset.read_mask(episode.query, episode.class_id).shape
        values |= set(np.unique(mask).tolist())
    assert values == {0, 255}


def test_runs_of_other_shots_and_seeds_get_folders_of_their_own(here: Path) -> None:
    for extra in (["--data.shot", "2"], ["--seed_everything", "3"]):
        assert main(["fit", *TRAINED, *SHORT, "--trainer.max_epochs", "1", *extra]) == 0
    assert {path.parent.name for path in Path("runs").rglob("last.ckpt")} == {"fold0_shot2", "fold0_seed3"}


def test_names_come_from_the_configs(here: Path) -> None:
    Path("mine.yaml").write_text("model: {class_path: tests.toy.FreeMethod}\n")
    Path("tiny.yaml").write_text("data: {class_path: tests.toy.Toy}\n")
    assert main(["predict", "--config", "mine", "--config", "tiny.yaml", *QUIET]) == 0
    assert Path("runs/mine/tiny/fold0/predictions/000000.png").exists()


def test_float32_is_float32_on_a_gpu(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default there rounds the factors of convolutions to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert main(["test", *FREE]) == 0
    assert not torch.backends.cudnn.allow_tf32
    assert records()[0].provenance.dtype == "float32"
