"""Records of older schema versions, brought up to the present one step by step when they are read.

The files themselves are not changed: what was published stays as it was. A step knows only the version it starts from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def migrated(data: Any) -> Any:
    """The JSON content of a record in the present schema version; anything that is no record is returned as it is, for
    the schema check to refuse."""
    data = _plain_copy(data)
    while isinstance(data, dict) and (step := STEPS.get(_version(data))):
        step(data)
    return data


def _version(data: dict[str, Any]) -> int | None:
    version = data.get("schema_version")
    return version if isinstance(version, int) and not isinstance(version, bool) else None


def _plain_copy(data: Any) -> Any:
    """A copy as deep as the steps change it: the record and its groups."""
    if not isinstance(data, dict):
        return data
    return {name: dict(group) if isinstance(group, dict) else group for name, group in data.items()}


def _to_2(data: dict[str, Any]) -> None:
    """Version 2 added the group `cost` and `provenance.origin`; version 1 was written by test runs only."""
    data["schema_version"] = 2
    data["cost"] = dict.fromkeys(("parameters", "trained_parameters", "seconds_per_episode", "peak_memory"))
    if isinstance(data.get("provenance"), dict):
        data["provenance"]["origin"] = "fssbench"


STEPS: dict[int | None, Callable[[dict[str, Any]], None]] = {1: _to_2}
"""Version -> the step to the next one."""
