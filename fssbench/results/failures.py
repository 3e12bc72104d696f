"""Runs of a grid that failed, remembered beside the results until they succeed, so that the board can say what is missing.

One JSON file per run in `<results>/.failed/`, named by the hash of its arguments. They are notes, no results: deleting them
loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from fssbench.errors import UserError
from fssbench.files import sha256_text, write_text_whole
from fssbench.results.fields import Checked, from_json, to_json

FOLDER = ".failed"


@dataclass(frozen=True, kw_only=True)
class Failure(Checked):
    """A run that failed."""

    group: ClassVar[str] = "failure"
    name: str
    """What tells it from the other runs of its grid, e.g. `comp fold 1 shot 5`."""
    reason: str
    """Its last words."""
    when: str
    """ISO 8601 in UTC."""
    arguments: tuple[str, ...]
    """Of `fssbench`; they make it once more."""


def remember(root: Path, name: str, arguments: Sequence[str], reason: str) -> None:
    """Note a failed run. Raises `UserError` where the folder cannot be written."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    failure = Failure(name=name, reason=reason, when=when, arguments=tuple(arguments))
    write_text_whole(_file(root, arguments), json.dumps(to_json(failure), indent=2, ensure_ascii=False) + "\n")


def forget(root: Path, arguments: Sequence[str]) -> None:
    """Remove the note of a run that has succeeded."""
    with suppress(OSError):
        _file(root, arguments).unlink()


def failures(root: Path) -> list[Failure]:
    """All that is noted, by name; notes that cannot be read are left out."""
    found = []
    for path in (root / FOLDER).glob("*.json"):
        with suppress(OSError, ValueError, UserError):
            found.append(from_json(Failure, json.loads(path.read_text(encoding="utf-8")), "failure"))
    return sorted(found, key=lambda failure: (failure.name, failure.when))


def _file(root: Path, arguments: Sequence[str]) -> Path:
    return root / FOLDER / f"{sha256_text(json.dumps(list(arguments)))[:16]}.json"
