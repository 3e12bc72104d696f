"""Seconds of a piece of work, on the device that does it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Timer:
    """Seconds of a piece of work; on CUDA measured by events, read only when asked, so that nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._start.record()
        else:
            self._began = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        """A function that gives the seconds from construction until now."""
        if self._cuda:
            self._end.record()

            def seconds() -> float:
                self._end.synchronize()
                return float(self._start.elapsed_time(self._end)) / 1000

            return seconds
        passed = time.perf_counter() - self._began
        return lambda: passed
