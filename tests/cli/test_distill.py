"""Distillation from the command line: one command, what it leaves behind, a kill in between, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fssbench.cli import main
from tests.cli.run import QUIET, TRAINED, error_line
from tests.data.images import make_images, make_tar
from tests.methods.sam import small_sam

OWN = """
import os, signal
from pathlib import Path
from methods.fsdino import Distillation

class Stopped(Distillation):
    def on_train_batch_start(self, batch, batch_idx):
        if Path("stop").exists() and self.trainer.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""
SMALL = [
    "--model.backbone", "vit_tiny_patch16_224", "--model.backbone_weights", "random", "--model.width", "8",
    "--model.teacher", "from_weights", "--model.teacher_weights", "small_sam_0.pth", "--model.cache_dir", "kept",
    "--model.adapter.hidden", "16", "--model.adapter.width", "16", "--model.adapter.heads", "2",
    "--model.distill.resolutions", "[32, 64]", "--model.distill.epochs", "[2, 1]", "--model.distill.batch", "[4, 4]",
    "--data.root", "photos", "--data.num_workers", "0", *QUIET,
]  # fmt: skip
CONFIGS = ["--config", "methods/fsdino_distill.yaml", "--config", "data/images.yaml"]
RUN = Path("runs/fsdino_distill/images")


@pytest.fixture
def photos(here: Path) -> Path:
    """A working directory with images, a shard, and a small teacher."""
    make_images(here / "photos", 8)
    make_tar(here / "photos" / "sa_000000.tar", 4)
    small_sam(here)
    return here


def test_one_command_leaves_the_adapter(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert main(["fit", *CONFIGS, *SMALL]) == 0
    assert {"adapter.safetensors", "adapter_32px.safetensors", "distillation.json", "last.ckpt", "config.yaml",
            "run.json", "metrics.csv"} <= {path.name for path in RUN.iterdir()}  # fmt: skip
    for text in ("12 images: 11 for training", "features of 12 of 12 images", "stage 2 of 2: 64 px", "stage 2 done: "):
        assert text in caplog.text
    assert json.loads((RUN / "run.json").read_text())["epochs"] == 3
    header = (RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val_r2", "val_cosine", "val_mse", "stage", "train_loss"} <= set(header) | {"train_loss"}
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main(["fit", *CONFIGS, *SMALL]) == 0
    assert "kept: " in caplog.text
    before = (RUN / "adapter.safetensors").read_bytes()
    (RUN / "run.json").unlink()  # killed after the last step, before it was noted; and nothing of this changes a number
    other = ["--data.num_workers", "1", "--model.cache_dir", "kept2", "--model.teacher_batch", "2"]
    assert main(["fit", *CONFIGS, *SMALL, *other]) == 0
    assert json.loads((RUN / "run.json").read_text())["epochs"] == 3
    assert (RUN / "adapter.safetensors").read_bytes() == before


def test_a_terminated_run_goes_on_to_the_same_adapter(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "own.py").write_text(OWN)
    (photos / "stop").touch()
    fit = ["fit", *CONFIGS, "--model", "own.Stopped", *SMALL, "--run_dir"]
    assert main([*fit, "broken"]) == 143
    assert not Path("broken/run.json").exists()
    assert not Path("broken/adapter.safetensors").exists()
    (photos / "stop").unlink()
    assert main([*fit, "broken"]) == 0
    assert main([*fit, "whole"]) == 0
    assert Path("broken/adapter.safetensors").read_bytes() == Path("whole/adapter.safetensors").read_bytes()
    one, other = (torch.load(f"{name}/last.ckpt", weights_only=True)["state_dict"] for name in ("broken", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_stage_2_starts_from_it_on_the_command_line(photos: Path) -> None:
    assert main(["fit", *CONFIGS, *SMALL]) == 0
    stage2 = ["--model", "methods.fsdino.FSDINO", *SMALL[:4], "--model.image_size", "64", "--model.sam_weights", "random",
              *SMALL[12:18], "--model.decoder.width", "8", "--model.decoder.heads", "1", "--model.prototype.block", "3",
              "--model.adapter_weights", str(RUN / "adapter.safetensors"), "--data", "tests.toy.Toy", *QUIET,
              "--data.batch_size", "2", "--data.episodes_per_epoch", "2", "--trainer.max_epochs", "1"]  # fmt: skip
    assert main(["fit", *stage2]) == 0
    (RUN / "adapter.safetensors").unlink()  # as on another machine: the checkpoint holds it
    elsewhere = [word.removeprefix(f"{RUN}/") for word in stage2]
    assert main(["test", *elsewhere, "--ckpt_path", "runs/fsdino/toy/fold0/last.ckpt"]) == 0
    assert "adapter.safetensors" in elsewhere


def test_what_does_not_fit_is_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", *CONFIGS, *SMALL]
    assert "trainer.max_epochs is 9" in error_line(capsys, [*fit, "--trainer.max_epochs", "9"])
    assert "trainer.max_steps is 9" in error_line(capsys, [*fit, "--trainer.max_steps", "9"])
    assert "can only be run with fit" in error_line(capsys, ["test", *CONFIGS, *SMALL])
    assert "is trained on images" in error_line(capsys, ["fit", *CONFIGS[:2], *SMALL[:-10], "--data", "tests.toy.Toy"])
    assert "is trained on episodes" in error_line(capsys, ["fit", *TRAINED[:2], *CONFIGS[2:], "--data.root", "photos"])
    for one_or_both in (CONFIGS, CONFIGS[:2]):  # the method's config names the data module too
        assert "nowhere does not exist" in error_line(capsys, ["fit", *one_or_both, *SMALL, "--data.root", "nowhere"])
    assert "no multiple of the encoder's patch size 16" in error_line(
        capsys, [*fit, "--model.distill.resolutions", "[30, 64]"]
    )
    assert "Download https://" in error_line(
        capsys, [*fit, "--model.teacher", "vit_b", "--model.teacher_weights", "b.pth"]
    )
    assert "model.teachr" in error_line(capsys, [*fit, "--model.teachr", "vit_b"])
