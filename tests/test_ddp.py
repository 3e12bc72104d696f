"""The real thing on 1, 2 and 3 processes (gloo on the CPU): identical scores, no hang, each episode once."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fssbench.errors import UserError
from tests.processes import python
from tests.toy import Toy

SCRIPT = """
import json
from lightning.pytorch import Trainer
from tests.toy import ColourMethod, FreeMethod, Toy

class Free(FreeMethod):
    def on_test_end(self):
        if self.trainer.is_global_zero:
            rows = [{k: v for k, v in row.items() if k != "seconds"} for row in self.episode_rows]
            left = {"scores": self.scores, "rows": rows, "complete": self.complete}
            json.dump(left, open(f"test{self.trainer.world_size}.json", "w"))

class Trained(ColourMethod):
    def on_fit_end(self):
        if self.trainer.is_global_zero:
            scores = dict(self.scores, scale=self.scale.item(), bias=self.bias.item())
            left = {"scores": scores, "steps": self.trainer.global_step}
            json.dump(left, open(f"fit{self.trainer.world_size}.json", "w"))

def trainer(processes):
    return Trainer(
        accelerator="cpu", devices=processes, strategy="ddp_fork" if processes > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, max_epochs=2,
        use_distributed_sampler=False, num_sanity_val_steps=0,
    )

for processes in (3, 2, 1):  # the processes are forked, before this one has computed anything
    # 4 classes x 5 episodes: 20 episodes are not divisible by 3, nor their batches by 2
    trainer(processes).test(Free(), datamodule=Toy(episodes_per_class=5, eval_batch_size=3), verbose=False)
for processes in (3, 1):
    # 4 base classes x 2 episodes: 3, 3 and 2 validation batches on three processes
    data = Toy(val_episodes_per_class=2, eval_batch_size=1, batch_size=2, episodes_per_epoch=7)
    trainer(processes).fit(Trained(), datamodule=data)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each run leaves, by verb and number of processes; one process imports torch for all of them."""
    if sys.platform != "linux":
        pytest.skip("ddp_fork needs fork")
    folder = tmp_path_factory.mktemp("ddp")
    python("-c", SCRIPT, folder=folder, HOME=str(folder))
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_the_same_scores_and_rows_on_any_number_of_processes(results: dict[str, Any]) -> None:
    alone = results["test1"]
    assert alone["complete"]
    assert len(alone["rows"]) == 20
    assert alone == results["test2"] == results["test3"]


def test_fit_with_uneven_validation_shards(results: dict[str, Any]) -> None:
    alone, three = results["fit1"], results["fit3"]
    assert alone["steps"] == 2 * 4, "7 episodes in batches of 2"
    assert three["steps"] == 2 * 2, "3 episodes a process in batches of 2"
    assert sum(three["scores"]["episodes_per_class"].values()) == 8


def test_fewer_episodes_than_processes_are_refused() -> None:
    data = Toy(n_classes=4, episodes_per_class=1, image_size=8)
    data.trainer = SimpleNamespace(global_rank=2, world_size=3, lightning_module=None)  # type: ignore[assignment]
    with pytest.raises(UserError, match="2 episode.* 3 processes"):
        data.test_dataloader()
