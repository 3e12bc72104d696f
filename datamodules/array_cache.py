"""Arrays that take long to make, kept in one compressed file each."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from zipfile import BadZipFile

import numpy as np

from fssbench.errors import UserError
from fssbench.files import cache_folder, written_whole


def cached_arrays(name: str, make: Callable[[], dict[str, np.ndarray]], what: str) -> dict[str, np.ndarray]:
    """What `make` gives: from `NAME.npz` in the cache folder, else made and kept there.

    A damaged file is made anew. Where it cannot be written a warning says that `what` is done again in every run.
    """
    path = cache_folder() / f"{name}.npz"
    if path.is_file():
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            pass  # damaged: made anew and replaced below
    arrays = make()
    try:
        with written_whole(path) as temporary, open(temporary, "wb") as out:
            np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    except UserError as error:
        warnings.warn(f"{error} {what} is done again in every run.", stacklevel=3)
    return arrays
