"""A Python process of its own: for what forks, measures itself, or must not see what the tests have imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PATIENCE = 600
"""Seconds after which a process is taken to hang: many, as importing torch alone takes one on a busy machine."""


def python(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `python ARGUMENTS` says in `folder`, with this repository to import from; the test fails where it does.

    environment  variables besides those of the tests, of which Lightning's own are left out
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done
