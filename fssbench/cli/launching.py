"""Running the cells of a grid: one process each, here or on a Slurm cluster, and what became of them."""

from __future__ import annotations

import codecs
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from fssbench.errors import UserError, nearest

LAUNCHERS = ("local", "slurm")
INTERRUPTED = 130
POLL_SECONDS = 0.5


class Cell(NamedTuple):
    """One run of a grid."""

    name: str
    """What tells it from the others, e.g. `comp fold 1 shot 5`."""
    arguments: tuple[str, ...]
    """Verb and options."""


class Outcome(NamedTuple):
    """What became of a cell."""

    status: int
    """Exit status of its process."""
    message: str
    """Last line of its stderr: the reason of a failure, or that a result was kept."""
    seconds: float
    output: str
    """Its stdout where that was not shown already."""

    @property
    def state(self) -> str:
        """`done`, `kept` (the result was there), `elsewhere` (another process is at it) or `failed`."""
        if self.status:
            return "failed"
        return next((state for state in ("kept", "elsewhere") if f"{state}: " in self.message), "done")


class Watcher(Protocol):
    """Is told what cells do; from several threads."""

    def started(self, cell: Cell) -> None:
        """A cell began to run."""
        ...

    def said(self, cell: Cell, text: str) -> None:
        """A cell wrote on its stderr."""
        ...


class Launcher(Protocol):
    """Runs cells and yields each with its outcome when it ends, in any order."""

    def run(self, cells: Sequence[Cell], watcher: Watcher | None = None) -> Iterator[tuple[Cell, Outcome]]:
        """Raises `KeyboardInterrupt` where a run was interrupted; no further run is started then."""
        ...


class LocalLauncher:
    """Processes on this machine, `jobs` at a time; `show` passes on the output of a single one as it comes.

    gpus   GPUs as CUDA_VISIBLE_DEVICES names them: those that run at a time see one each, in turn; none: all see all
    """

    def __init__(self, jobs: int = 1, show: bool = True, gpus: Sequence[str] = ()) -> None:
        if jobs < 1:
            raise UserError(f"--jobs is {jobs}, expected at least 1.")
        self.jobs, self.live = jobs, show and jobs == 1
        self.gpus = [gpus[number % len(gpus)] for number in range(jobs)] if gpus else [None] * jobs
        """What a place sees; None: what this process sees."""

    def run(self, cells: Sequence[Cell], watcher: Watcher | None = None) -> Iterator[tuple[Cell, Outcome]]:
        """Run the cells in order; output that is not shown as it comes is in the outcome."""
        waiting = list(cells)
        running: dict[Future[Outcome], tuple[Cell, str | None]] = {}
        free = list(self.gpus)
        with ThreadPoolExecutor(self.jobs) as pool:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    cell, gpu = waiting.pop(0), free.pop(0)
                    heard = partial(watcher.said, cell) if watcher else None
                    running[pool.submit(run_cell, cell.arguments, self.live, heard, gpu)] = cell, gpu
                    if watcher:
                        watcher.started(cell)
                ended: set[Future[Outcome]] = wait(running, return_when=FIRST_COMPLETED).done
                for future in ended:
                    outcome = future.result()
                    if outcome.status == INTERRUPTED:
                        wait(running)
                        raise KeyboardInterrupt
                    cell, gpu = running.pop(future)
                    free.append(gpu)
                    yield cell, outcome


class SubmititLauncher:
    """Jobs of a cluster through submitit, `jobs` at a time; `local` as the cluster runs them here, for a trial.

    parameters   submitit's, e.g. `slurm_partition`, `timeout_min`, `gpus_per_node`
    """

    def __init__(self, cluster: str, jobs: int, parameters: dict[str, Any], folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError("--launcher slurm needs submitit: pip install 'fssbench[slurm]'.") from error
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        except RuntimeError as error:
            raise UserError(
                f"--launcher {cluster}: {error} Start it on a login node, or leave --launcher out."
            ) from error
        try:
            self.executor.update_parameters(**parameters)
            if cluster == "slurm":
                self.executor.update_parameters(slurm_array_parallelism=jobs)
        except (NameError, TypeError, ValueError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error

    def run(self, cells: Sequence[Cell], watcher: Watcher | None = None) -> Iterator[tuple[Cell, Outcome]]:
        """Submit all cells as one array and yield them as they end; Ctrl-C cancels what is left."""
        jobs = self.executor.map_array(run_cell, [cell.arguments for cell in cells])
        pending = dict(zip(jobs, cells, strict=True))
        waiting = set(pending)
        try:
            while pending:
                for job in [job for job in waiting if job.state == "RUNNING" or job.done()]:
                    waiting.remove(job)
                    if watcher:
                        watcher.started(pending[job])
                for job in [job for job in pending if job.done()]:
                    yield pending.pop(job), _outcome(job)
                time.sleep(POLL_SECONDS)
        finally:
            for job in pending:
                job.cancel()


def _outcome(job: Any) -> Outcome:
    """The outcome of a submitit job, also of one that was killed (time limit, memory, node)."""
    error = job.exception()
    if error is None:
        found: Outcome = job.result()
        return found
    reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    return Outcome(1, f"{reason} (log: {job.paths.stderr})", 0.0, "")


def run_cell(
    arguments: Sequence[str],
    live: bool = False,
    heard: Callable[[str], None] | None = None,
    gpu: str | None = None,
) -> Outcome:
    """Run `fssbench` with these arguments in a process of its own, which frees its memory and survives its crash.

    live    show its output as it comes; else it is in the outcome
    heard   is given what it writes on its stderr, as it comes
    gpu     the only one that it sees; None: as this process
    """
    environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    began = time.monotonic()
    command = [sys.executable, "-m", "fssbench", *arguments]
    with subprocess.Popen(
        command, stdout=None if live else subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        lines: list[str] = []
        hear = [lines.append, *([heard] if heard else []), *([_show] if live else [])]
        watcher = threading.Thread(target=_watch, args=(process.stderr, hear))
        watcher.start()
        try:
            output = b"" if process.stdout is None else process.stdout.read()
            status = process.wait()
        finally:
            watcher.join()
    said = [line for line in "".join(lines).replace("\r", "\n").splitlines() if line.strip()]
    message = said[-1].strip().removeprefix("fssbench: ") if said else f"exit status {status}"
    return Outcome(status, message, time.monotonic() - began, output.decode(errors="replace"))


def _watch(stream: IO[bytes] | None, hear: Sequence[Callable[[str], object]]) -> None:
    """Read a process's stderr to its end and pass it on."""
    assert stream is not None
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a part may end in the middle of a character
    for part in iter(lambda: stream.read1(4096), b""):  # type: ignore[attr-defined]
        text = decoder.decode(part)
        for listener in hear:
            listener(text)


def _show(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def visible_gpus() -> list[str]:
    """The GPUs that this process sees, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def make_launcher(
    name: str,
    jobs: int,
    parameters: dict[str, Any],
    folder: Path,
    show: bool = True,
    gpus: Sequence[str] = (),
) -> Launcher:
    """The launcher of that name; `show` allows a single local run to write to the terminal as it likes, of several runs
    at a time each sees one of the `gpus`.

    Raises `UserError` for another name, or where it cannot be used here.
    """
    if name not in LAUNCHERS:
        raise UserError(f"--launcher '{name}' is not known.{nearest(name, LAUNCHERS)}")
    if name == "slurm":
        return SubmititLauncher("slurm", jobs, parameters, folder)
    if parameters:
        raise UserError("--slurm belongs to --launcher slurm: add that, or leave --slurm out.")
    return LocalLauncher(jobs, show, gpus)
