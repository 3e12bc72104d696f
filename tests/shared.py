"""Where the optional ground-truth folder is: `FSSBENCH_SHARED`, or `../shared` beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("FSSBENCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason=f"ground-truth folder {SHARED} is absent (set FSSBENCH_SHARED to its path); not part of the repository",
)
