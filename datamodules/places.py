"""Where a data set lies on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from fssbench.errors import UserError
from fssbench.preparation.seal import refuse_unfinished


def data_root(root: str | None, name: str) -> Path:
    """The folder of a data set: as given, else `$FSSBENCH_DATA/NAME`, else `./data/NAME`.

    Raises `UserError` where it is missing, or half prepared.
    """
    path = Path(root) if root is not None else Path(os.environ.get("FSSBENCH_DATA", "data")) / name
    if not path.is_dir():
        raise UserError(
            f"The data folder {path} is missing. Give data.root (--data.root FOLDER), or set FSSBENCH_DATA to the folder "
            f"that holds {name}/."
        )
    refuse_unfinished(path)
    return path
