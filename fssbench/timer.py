"""Seconds of a piece of work, on the device that does it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Timer:
    """Seconds of a piece of work; on CUDA measured by events, read only when asked, so that nothing waits. Other devices than
    the CPU are waited for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._start.record()
        else:
            self._wait()
            self._began = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        """A function that gives the seconds from construction until now."""
        if self._device.type == "cuda":
            self._end.record()

            def seconds() -> float:
                self._end.synchronize()
                return float(self._start.elapsed_time(self._end)) / 1000

            return seconds
        self._wait()
        passed = time.perf_counter() - self._began
        return lambda: passed

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.get_device_module(self._device).synchronize()
