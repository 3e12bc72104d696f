"""The real thing on 1, 2 and 3 processes (gloo on the CPU): identical scores, no hang, each episode once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fssbench.errors import UserError
from tests.toy import Toy

REPOSITORY = Path(__file__).resolve().parents[1]

SCRIPT = """
import json, sys
from lightning.pytorch import Trainer
from tests.toy import ColourMethod, FreeMethod, Toy

if __name__ == "__main__":
    what, processes, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )
    if what == "test":  # 4 classes x 5 episodes: 20 episodes are not divisible by 3, nor their batches by 2
        data = Toy(episodes_per_class=5, eval_batch_size=3)
    else:  # 4 base classes x 2 episodes: 3, 3 and 2 validation batches on three processes
        data = Toy(val_episodes_per_class=2, eval_batch_size=1, batch_size=2, episodes_per_epoch=7)

    class Free(FreeMethod):
        def on_test_end(self):
            if self.trainer.is_global_zero:
                rows = [{k: v for k, v in row.items() if k != "seconds"} for row in self.episode_rows]
                json.dump({"scores": self.scores, "rows": rows, "complete": self.complete}, open(out, "w"))

    class Trained(ColourMethod):
        def on_fit_end(self):
            if self.trainer.is_global_zero:
                scores = dict(self.scores, scale=self.scale.item(), bias=self.bias.item())
                json.dump({"scores": scores, "steps": self.trainer.global_step}, open(out, "w"))

    if what == "test":
        trainer.test(Free(), datamodule=data, verbose=False)
    else:
        trainer.fit(Trained(), datamodule=data)
"""


def run(what: str, processes: int, folder: Path) -> dict[str, Any]:
    script, out = folder / "script.py", folder / f"{what}{processes}.json"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), what, str(processes), str(out)]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.skipif(sys.platform != "linux", reason="ddp_fork needs fork")
def test_the_same_scores_and_rows_on_any_number_of_processes(tmp_path: Path) -> None:
    results = [run("test", processes, tmp_path) for processes in (1, 2, 3)]
    assert results[0]["complete"]
    assert len(results[0]["rows"]) == 20
    assert results[0] == results[1] == results[2]


@pytest.mark.skipif(sys.platform != "linux", reason="ddp_fork needs fork")
def test_fit_with_uneven_validation_shards(tmp_path: Path) -> None:
    alone, three = (run("fit", processes, tmp_path) for processes in (1, 3))
    assert alone["steps"] == 2 * 4, "7 episodes in batches of 2"
    assert three["steps"] == 2 * 2, "3 episodes a process in batches of 2"
    assert sum(three["scores"]["episodes_per_class"].values()) == 8


def test_fewer_episodes_than_processes_are_refused() -> None:
    data = Toy(n_classes=4, episodes_per_class=1, image_size=8)
    data.trainer = SimpleNamespace(global_rank=2, world_size=3, lightning_module=None)  # type: ignore[assignment]
    with pytest.raises(UserError, match="2 episode.* 3 processes"):
        data.test_dataloader()
