"""Files written whole or not at all, the hashes that identify them, and the folders in which they are looked for."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fssbench.errors import UserError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure nothing is left.

    Use it for every file a user keeps: a crash, a full disk or Ctrl-C never leaves half a file.
    Raises `UserError` where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        # mkstemp makes private files; a result is as readable as any other new file
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise UserError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder; nothing was left behind."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def require_writable(folder: str | Path, option: str) -> None:
    """Raise `UserError` where files cannot be made in `folder` (which is made if need be): before hours of work, not after.

    `option` names another folder, e.g. `--results`.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Cannot write into {folder}: {error.strerror or error}. Correct its permissions, or give another folder with "
            f"{option}."
        ) from error


def write_text_whole(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def sha256_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """SHA-256 (hex) of the UTF-8 bytes of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()


def cache_folder() -> Path:
    """Where computed files are kept that can be made again: `FSSBENCH_CACHE`, else `~/.cache/fssbench`."""
    return _folder("FSSBENCH_CACHE", Path("~/.cache/fssbench"))


def features_folder() -> Path:
    """Where frozen features are kept (`--feature_disk`): `FSSBENCH_FEATURES`, else `features` in the cache."""
    return _folder("FSSBENCH_FEATURES", cache_folder() / "features")


def weights_folder() -> Path:
    """Where weight files are looked for by name: `FSSBENCH_WEIGHTS`, else `~/.cache/fssbench/weights`."""
    return _folder("FSSBENCH_WEIGHTS", Path("~/.cache/fssbench/weights"))


def data_folder() -> Path:
    """Where data sets are looked for by name: `FSSBENCH_DATA`, else `data` where you are."""
    return _folder("FSSBENCH_DATA", Path("data"))


def _folder(variable: str, default: Path) -> Path:
    """The folder that an environment variable names; one that is set to nothing counts as not set.

    Raises `UserError` where it lies in the home folder of a user without one, as in some containers.
    """
    path = Path(os.environ.get(variable) or default)
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UserError(
            f"There is no home folder for {path}. Set HOME to a folder that you may write, or {variable}."
        ) from error
