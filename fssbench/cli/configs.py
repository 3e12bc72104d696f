"""Finding configuration files by name from any directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fssbench.errors import UserError, nearest

_SUFFIXES = ("", ".yaml", ".yml")

told: set[Path] = set()
"""Files that this command has named on the terminal; a grid reads the same ones several times."""


def packaged_folder() -> Path:
    """The folder of the configs that ship with fssbench: inside the wheel, or at the root of a source tree."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def search_folders() -> list[Path]:
    """Folders searched after the working directory: those of `FSSBENCH_CONFIG_PATH`, then the packaged one."""
    given = [Path(p) for p in os.environ.get("FSSBENCH_CONFIG_PATH", "").split(os.pathsep) if p]
    return [*given, packaged_folder()]


def find_config(name: str) -> Path:
    """The file that `--config name` means: an existing path, else a name in the search folders, `.yaml` optional.

    Raises `UserError` with the nearest known names.
    """
    for folder in (Path(), *search_folders()):
        for suffix in _SUFFIXES:
            candidate = folder / f"{name}{suffix}"
            if candidate.is_file():
                return candidate
    alike = [known for known in known_configs() if Path(known).stem == Path(name).stem]
    raise UserError(
        f"No config '{name}': neither a file here nor a name in {', '.join(map(str, search_folders()))}."
        f"{nearest(alike[0] if alike else name, known_configs())}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a config file. Raises `UserError` with the place where it is no YAML mapping."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text file ({error.reason}). Give a YAML config.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "a forbidden character"
        raise UserError(f"{path}{line}: no valid YAML ({problem}). Correct the file.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys with values, such as `model:`, not {type(content).__name__}.")
    return content


def known_configs() -> dict[str, Path]:
    """Name (as given to --config) -> file of every config in the search folders; an earlier folder hides a later one."""
    found: dict[str, Path] = {}
    for folder in search_folders():
        for path in sorted(folder.rglob("*.y*ml")):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    return dict(sorted(found.items()))


def first_comment(path: Path) -> str:
    """The text of a config's first comment line: what it is."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return ""
