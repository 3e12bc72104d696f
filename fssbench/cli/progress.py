"""What somebody who started a grid wants to see: what is done, failed, running and left, and for about how long.

In a terminal a few lines at its foot are kept up to date; elsewhere (a log file, a pipe) there is one line when a run ends.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fssbench.cli.launching import Cell, Outcome

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


class Progress:
    """Counts the runs of a grid and prints a line when one ends: what became of it, how many are left, and how long."""

    live = False
    """Whether the display is kept up to date; the runs must not write to the terminal themselves then."""

    def __init__(self, verb: str, total: int, jobs: int) -> None:
        self.verb, self.total, self.jobs = verb, total, jobs
        self.states: dict[str, int] = dict.fromkeys(("done", "kept", "elsewhere", "failed"), 0)
        self.worked: list[float] = []
        """Seconds of the runs that did something."""
        self.running: dict[Cell, float] = {}
        """Cell -> when it began."""

    def __enter__(self) -> Self:
        self.write(f"== {self.verb}: {self.total} runs, {self.jobs} at a time\n")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    @property
    def count(self) -> int:
        """Runs that have ended."""
        return sum(self.states.values())

    def started(self, cell: Cell) -> None:
        """A run began."""
        self.running[cell] = time.time()

    def said(self, cell: Cell, text: str) -> None:
        """A run wrote something on its stderr."""

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Show a run's output and print its line."""
        self.running.pop(cell, None)
        self.states[outcome.state] += 1
        if outcome.state == "done":
            self.worked.append(outcome.seconds)
        told = outcome.state in ("failed", "elsewhere")
        reason = f" ({outcome.message.removeprefix('elsewhere: ')})" if told else ""
        line = f"== {self.verb} {self.count}/{self.total}: {cell.name}: {outcome.state}{reason}, {duration(outcome.seconds)}"
        self.write(f"{outcome.output}{line}{self.left()}\n")

    def write(self, text: str) -> None:
        """Print text that stays."""
        print(text, end="", flush=True)

    def left(self) -> str:
        """How many runs have not ended, and the estimate from the mean of those that have."""
        remaining = self.total - self.count
        if not remaining:
            return ""
        if not self.worked:
            return f"; {remaining} left"
        mean = sum(self.worked) / len(self.worked)
        begun = sum(min(mean, time.time() - began) for began in self.running.values())
        seconds = (mean * remaining - begun) / min(self.jobs, remaining)
        ready = time.strftime("%H:%M", time.localtime(time.time() + seconds))
        return f"; {remaining} left, about {duration(seconds)}, until {ready}"


class LiveProgress(Progress):
    """The same with a display at the foot of the terminal: a bar, the counts, and each running cell with its last words."""

    live = True

    def __init__(self, verb: str, total: int, jobs: int, console: Console | None = None) -> None:
        super().__init__(verb, total, jobs)
        from rich.console import Console
        from rich.live import Live

        self.console = console or Console()
        self.words: dict[Cell, str] = {}
        self.display = Live(get_renderable=self.rendered, console=self.console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        super().__enter__()
        self.display.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.display.stop()

    def started(self, cell: Cell) -> None:
        """Show a run as soon as it began."""
        super().started(cell)
        self.display.refresh()

    def said(self, cell: Cell, text: str) -> None:
        """Keep the last line, which of a test is its progress bar."""
        lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
        self.words[cell] = lines[-1].strip() if lines else self.words.get(cell, "")

    def write(self, text: str) -> None:
        """Print text above the display."""
        self.console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    def rendered(self) -> RenderableType:
        """The display as it should be now."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        told = {**self.states, "running": len(self.running)}
        counts = ", ".join(f"{number} {state}" for state, number in told.items() if number)
        summary = f"{self.verb} {self.count}/{self.total}: {counts or 'nothing yet'}{self.left()}"
        cells = Table.grid(padding=(0, 2))
        cells.add_column(no_wrap=True)
        cells.add_column(no_wrap=True, justify="right")
        cells.add_column(no_wrap=True, overflow="ellipsis", style="dim")
        for cell, began in self.running.items():
            cells.add_row(Text(cell.name), duration(time.time() - began), Text(self.words.get(cell, "")))
        bar = Table.grid(expand=True)  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=self.total, completed=self.count))
        return Group(Text(summary), bar, cells)


def make_progress(verb: str, total: int, jobs: int) -> Progress:
    """The display that suits where stdout goes."""
    return LiveProgress(verb, total, jobs) if sys.stdout.isatty() else Progress(verb, total, jobs)


def duration(seconds: float) -> str:
    """Seconds in words: `34 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
