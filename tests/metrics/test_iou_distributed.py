"""The metric on real processes: uneven shards, the same bits on 1, 2 and 3 of them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fssbench.metrics import FewShotIoU

CLASS_IDS = (1, 5, 8)
EPISODES = 11  # prime, so that no number of processes divides it
LARGEST = 3


def _episodes() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    unions = torch.randint(2**24, 2**25, (EPISODES, 2), generator=generator)
    hits = (unions * torch.rand(EPISODES, 2, generator=generator, dtype=torch.float64)).long()
    counts = torch.stack([hits[:, 0], unions[:, 0], hits[:, 1], unions[:, 1]], dim=1)
    return counts, torch.tensor(CLASS_IDS)[torch.arange(EPISODES) % len(CLASS_IDS)]


def _process(rank: int, folder: str) -> None:
    """One of `LARGEST` processes; it takes part in the groups that are large enough to hold its rank."""
    torch.set_num_threads(1)  # a forked process cannot use the thread pool of its parent
    counts, class_id = _episodes()
    for world_size in range(1, LARGEST + 1):
        if rank >= world_size:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meet{world_size}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=60),
        )
        metric = FewShotIoU(CLASS_IDS)
        for episode in range(rank, EPISODES, world_size):
            metric.update(counts[episode : episode + 1], class_id[episode : episode + 1])
        scores = metric.compute()
        Path(folder, f"{world_size}_{rank}.json").write_text(json.dumps(scores))
        dist.destroy_process_group()


def test_same_bits_on_one_two_and_three_processes(tmp_path: Path) -> None:
    # a spawned process imports torchmetrics again, which costs many times more than the test; Windows has no fork
    method = "fork" if "fork" in mp.get_all_start_methods() else "spawn"
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=LARGEST, start_method=method)
    alone = FewShotIoU(CLASS_IDS)
    alone.update(*_episodes())
    expected = json.loads(json.dumps(alone.compute()))
    assert sum(expected["episodes_per_class"].values()) == EPISODES
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(found) == ["1_0", "2_0", "2_1", "3_0", "3_1", "3_2"]
    assert all(scores == expected for scores in found.values())
