"""`prepared.json`: the statement that a data set is complete, checked, and which lists it gives.

While a preparation runs, `preparing.json` stands in its place; data modules refuse a folder that holds one, so nothing
half-prepared is taken for prepared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fssbench.errors import UserError
from fssbench.files import sha256_text, write_text_whole
from fssbench.version import __version__

PREPARED, PREPARING = "prepared.json", "preparing.json"
FORMAT_VERSION = 1


@dataclass
class Report:
    """What a preparation found.

    counts  what was counted -> number
    lists   name of an image list -> entries, SHA-256 of the canonical text, and whether it is the published one (None
            where there is no published one, or for a part of a data set)
    notes   differences from published lists and what else a reader must know, one line each
    """

    counts: dict[str, int] = field(default_factory=dict)
    lists: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def begin(root: Path, dataset: str) -> dict[str, Any]:
    """Mark a folder as being prepared; what an interrupted preparation has done is returned: archive -> hash.

    Raises `UserError` where the folder is being prepared as another data set.
    """
    root.mkdir(parents=True, exist_ok=True)
    done = _read(root / PREPARING) if (root / PREPARING).is_file() else {"dataset": dataset, "unpacked": {}}
    if done.get("dataset") != dataset or not isinstance(done.get("unpacked"), dict):
        raise UserError(
            f"{root / PREPARING} belongs to a preparation of {done.get('dataset')}. Choose another --root, or delete the file."
        )
    (root / PREPARED).unlink(missing_ok=True)
    note(root, done)
    return done


def unpacked(root: Path) -> dict[str, str]:
    """What an interrupted preparation of a folder has unpacked: archive -> hash; nothing where none was begun."""
    done = _read(root / PREPARING) if (root / PREPARING).is_file() else {}
    return dict(done.get("unpacked") or {})


def note(root: Path, done: dict[str, Any]) -> None:
    """Keep what is done so far."""
    write_text_whole(root / PREPARING, json.dumps(done, indent=2) + "\n")


def finish(root: Path, dataset: str, complete: bool, training: bool, sources: dict[str, str], report: Report) -> Path:
    """Sign off: write `prepared.json`, then remove the mark. Returns the file."""
    content = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset,
        "complete": complete,
        "training": training,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "fssbench": __version__,
        "sources": sources,
        **asdict(report),
    }
    content["sha256"] = _signature(content)
    path = root / PREPARED
    write_text_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (root / PREPARING).unlink(missing_ok=True)
    return path


def read_prepared(root: Path) -> dict[str, Any] | None:
    """The signed-off statement of a folder, None where there is none.

    Raises `UserError` where it was changed by hand, is damaged, or is of another version.
    """
    path = root / PREPARED
    if not path.is_file():
        return None
    content = _read(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{path} is of version {content.get('format_version')}, expected {FORMAT_VERSION}. Prepare again."
        )
    if content.get("sha256") != _signature(content):
        raise UserError(f"{path} was changed after it was signed off. Run `fssbench prepare` again.")
    return content


def changes(prepared: dict[str, Any], dataset: str, report: Report) -> list[str]:
    """Names of the counts and lists that are not as they were signed off.

    Raises `UserError` where the statement is about another data set.
    """
    if prepared["dataset"] != dataset:
        raise UserError(f"It was prepared as {prepared['dataset']}, not as {dataset}. Correct --root.")
    now = asdict(report)
    names = ((what, name) for what in ("counts", "lists") for name in sorted({*prepared[what], *now[what]}))
    return [name for what, name in names if prepared[what].get(name) != now[what].get(name)]


def refuse_unfinished(root: Path) -> None:
    """Raise `UserError` where a preparation of the folder was begun and not finished."""
    if (root / PREPARING).is_file():
        raise UserError(
            f"{root} is half prepared: a preparation was interrupted or is running. Run `fssbench prepare` again, it goes on "
            "where it stopped."
        )


def _signature(content: dict[str, Any]) -> str:
    signed = {name: value for name, value in content.items() if name != "sha256"}
    return sha256_text(json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). Delete it and run `fssbench prepare` again.") from None
