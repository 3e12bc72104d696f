"""Distillation on two processes: each computes its share of the features once, and validation counts each image once."""

from __future__ import annotations

import json
import runpy
from contextlib import chdir
from pathlib import Path

from safetensors.torch import load_file

from tests.data.images import make_images
from tests.methods.sam import small_sam
from tests.processes import python

SCRIPT = """
import sys, torch
from lightning.pytorch import Trainer
from datamodules.images import Images
from methods.fsdino import Distillation
from methods.fsdino.adapter import AdapterConfig
from methods.fsdino.stages import DistillConfig

class Counting(Distillation):
    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        tokens = self.stage.resolution // 16
        with self.metric.sync_context():
            assert float(self.metric.positions) == 3 * tokens**2  # three held-out images

def main(processes, out):
    torch.manual_seed(0)
    module = Counting(
        backbone="vit_tiny_patch16_224", backbone_weights="random", teacher="from_weights",
        teacher_weights="small_sam_0.pth", width=8, cache_dir=f"kept{processes}",
        adapter=AdapterConfig(hidden=16, width=16, depth=1, heads=2, norm="ln2d"),
        distill=DistillConfig(resolutions=(32, 64), epochs=(1, 1), batch=(8 // processes,) * 2),
    )
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, default_root_dir=out,
        use_distributed_sampler=False, num_sanity_val_steps=0, **module.trainer_settings(),
    )
    trainer.fit(module, datamodule=Images("images", num_workers=0))

if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
"""


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 31)
    small_sam(tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)
    reports, features = [], []
    with chdir(tmp_path):
        runpy.run_path("script.py")["main"](1, "out1")
    python("script.py", "2", "out2", folder=tmp_path, HOME=str(tmp_path))
    for processes in (1, 2):
        reports.append(json.loads((tmp_path / f"out{processes}" / "distillation.json").read_text())["stages"])
        files = [load_file(path)["features"] for path in (tmp_path / f"kept{processes}").rglob("*.safetensors")]
        assert len(files) == processes, "each process writes its own"
        features.append(sorted(row.sum().item() for file in files for row in file))
    assert features[0] == features[1]
    assert len(features[0]) == 31
    for one, two in zip(*reports, strict=True):  # equal batches, shared out; the loss of a batch is a mean of two means
        assert one["batches"] == two["batches"] == 3
        assert abs(one["r2"] - two["r2"]) < 1e-3
        assert abs(one["loss"] - two["loss"]) < 1e-3
