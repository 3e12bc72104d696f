"""The same function over many files, on all cores, in order, with progress."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

A = TypeVar("A")
R = TypeVar("R")
FEW = 256
"""Up to so many items are done in this process: starting others would take longer."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers() -> int:
    """Loader processes for this machine: none on one or two cores, where they only take turns with the network."""
    available = cores()
    return 0 if available <= 2 else min(8, available - 1)


def pins_memory(trainer: Any) -> bool:
    """Whether a loader should leave batches in page-locked memory: where the trainer's network is on a GPU of CUDA. Elsewhere
    it would take memory of a GPU that is not used, and fail where another program has filled it."""
    device = getattr(getattr(trainer, "lightning_module", None), "device", None)
    return device is not None and device.type == "cuda"


def parallel_map(
    function: Callable[[A], R], items: Sequence[A], what: str, unit: str = "file", workers: int | None = None
) -> list[R]:
    """`[function(item) for item in items]`, in order, shared by processes where that is worth it.

    `function` and what it takes and gives must be picklable; an exception of one item ends the work and is raised here.
    Work that takes less than three seconds shows no progress bar.
    """
    workers = min(cores() if workers is None else workers, len(items) // FEW + 1)
    bar = {"desc": what, "total": len(items), "delay": 3, "mininterval": 1, "unit": unit}
    if workers <= 1:
        return list(tqdm(map(function, items), **bar))
    pool = ProcessPoolExecutor(workers, mp_context=_context(), initializer=_leave_interrupts)
    try:
        results: Iterable[R] = pool.map(function, items, chunksize=max(1, min(64, len(items) // (4 * workers))))
        return list(tqdm(results, **bar))
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _context() -> multiprocessing.context.BaseContext:
    """Forked processes on Linux, as torch's data loader uses there: they start at once and ask nothing of the caller's
    script. What runs in them is NumPy, Pillow and C code without threads of its own."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else None)
