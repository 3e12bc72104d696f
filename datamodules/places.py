"""Where a data set lies on this machine."""

from __future__ import annotations

from pathlib import Path

from fssbench.errors import UserError
from fssbench.files import data_folder
from fssbench.preparation.seal import refuse_unfinished


def data_root(root: str | None, name: str) -> Path:
    """The folder of a data set: as given, else `$FSSBENCH_DATA/NAME`, else `./data/NAME`.

    Raises `UserError` where it is missing, or half prepared.
    """
    path = data_folder() / name if root is None else Path(root).expanduser()
    if not path.is_dir():
        raise UserError(
            f"The data folder {path} is missing. Give data.root (--data.root FOLDER), or set FSSBENCH_DATA to the folder "
            f"that holds {name}/."
        )
    refuse_unfinished(path)
    return path
