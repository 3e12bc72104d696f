"""How each data set is made ready: its official files, what is converted, and what must come out.

`fssbench prepare` runs a recipe; the counts and hashes that it compares with are those of protocols.md section 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datamodules import recipes_coco, recipes_davis, recipes_fss, recipes_pascal
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import Report


@dataclass(frozen=True)
class Recipe:
    """One data set.

    folder     name below `$FSSBENCH_DATA`
    sources    what must be there; `training` names those that only training needs
    extras     lists of the compat protocols, fetched where that is possible
    convert    made once: masks, indices; may be called again after an interruption. Arguments: root, training
    check      counts, lists and their hashes; raises `UserError` for what is wrong. Arguments: root, training, complete
    """

    folder: str
    sources: tuple[Source, ...]
    convert: Callable[[Path, bool], None]
    check: Callable[[Path, bool, bool], Report]
    training: tuple[str, ...] = ()
    extras: tuple[Source, ...] = ()


RECIPES: dict[str, Recipe] = {
    "coco20i": Recipe(
        "COCO2014",
        recipes_coco.SOURCES,
        recipes_coco.convert,
        recipes_coco.check,
        training=("train2014.zip",),
        extras=recipes_coco.EXTRAS,
    ),
    "davis17": Recipe("DAVIS", recipes_davis.SOURCES, recipes_davis.convert, recipes_davis.check),
    "fss1000": Recipe(
        "FSS-1000", recipes_fss.SOURCES, recipes_fss.convert, recipes_fss.check, extras=recipes_fss.EXTRAS
    ),
    "pascal5i": Recipe(
        "PASCAL", recipes_pascal.SOURCES, recipes_pascal.convert, recipes_pascal.check, training=("benchmark.tgz",)
    ),
}
"""Name on the command line -> recipe."""
