"""What a run cost, and its numbers for trackers such as TensorBoard and Weights & Biases."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.loggers import Logger

from fssbench.method import FewShotMethod
from fssbench.results.fields import to_json
from fssbench.results.record import ResultRecord


def log_record(loggers: Sequence[Logger], record: ResultRecord, path: Path) -> None:
    """Send a record's scores to the run's trackers (TensorBoard, Weights & Biases, ...): the record's own numbers,
    unrounded, once, at step 0. The record stays the truth; its path goes along."""
    names = {c: score.name for c, score in record.scores.class_iou.items()}
    numbers: dict[str, float] = {
        "result/miou": record.scores.miou,
        "result/fb_iou": record.scores.fb_iou,
        **{f"result/class_iou/{names[c]}": score.iou for c, score in record.scores.class_iou.items()},
        **{f"result/{name}": value for name, value in to_json(record.cost).items() if value is not None},
    }
    for logger in loggers:
        logger.log_hyperparams({"record": str(path), **to_json(record.key)})
        logger.log_metrics(numbers, step=0)
        logger.save()


def trained_parameters(method: FewShotMethod) -> int:
    """Weights that training changes: those that ask for a gradient; none of a training-free method."""
    return sum(p.numel() for p in method.parameters() if p.requires_grad) if method.needs_checkpoint else 0


def peak_memory(device: torch.device) -> int:
    """Largest memory in bytes so far: allocated on a GPU, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
