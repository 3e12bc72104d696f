"""Published list files of a compat protocol, found in a folder and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.protocols.known import KNOWN_LISTS
from fssbench.protocols.lists import PublishedList, read_list

_ENDINGS = (".txt", ".txt.gz", ".pkl")
_ORDERS = ("val", "val_order")


@dataclass(frozen=True)
class FoldLists:
    """Lists of one split: pairs per fold, or one order of all images.

    folds  fold -> list of pairs, for the folds whose files are there
    order  image names in order; empty where there are fold files
    """

    folds: dict[int, PublishedList] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    identity: str = ""
    """Names of known lists, or a hash; part of `image_filter`."""

    def pairs(self, fold: int) -> tuple[tuple[int, str], ...]:
        """Pairs of a fold; raises `UserError` where its file is not there."""
        if fold not in self.folds:
            raise UserError(f"The lists hold folds {sorted(self.folds)}, not fold {fold}. Add its file.")
        return self.folds[fold].pairs

    def by_class(self) -> dict[int, list[str]]:
        """Class id -> names, over all folds that are there."""
        return {c: names for found in self.folds.values() for c, names in found.by_class().items()}


def find_lists(place: Path, n_folds: int, split: str = "val") -> FoldLists:
    """The lists at `place`: `fold0.txt`, `.txt.gz` or `.pkl` in the folder or its subfolder `split`, else `val.txt` (an
    order of all images), or one file of either kind (pairs stand for the fold of their number in the file name, else 0).

    Raises `UserError` where there is none, or as `read_list` does.
    """
    if place.is_file():
        found = read_list(place)
        if not found.pairs:
            return FoldLists(order=found.names, identity=_identity([found]))
        digits = "".join(c for c in place.name.split(".")[0] if c.isdigit())
        return FoldLists(folds={int(digits or 0): found}, identity=_identity([found]))
    for folder in (place / split, place):
        folds = {fold: read_list(path) for fold in range(n_folds) if (path := _file(folder, f"fold{fold}"))}
        if folds:
            return FoldLists(folds=folds, identity=_identity(list(folds.values())))
    for path in (_file(place, name) for name in _ORDERS):
        if path:
            found = read_list(path)
            return FoldLists(order=found.names, identity=_identity([found]))
    raise UserError(
        f"{place} holds no lists, expected fold0.txt (or .txt.gz, .pkl) to fold{n_folds - 1}, in it or in {split}/, or "
        "val.txt with the order of all images. Correct data.lists."
    )


def _file(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{ending}" for ending in _ENDINGS if (folder / f"{name}{ending}").is_file()), None)


def _identity(lists: list[PublishedList]) -> str:
    """The name that all of the lists share where they are known, else a hash of theirs."""
    names = {KNOWN_LISTS.get(found.sha256, "") for found in lists}
    if len(names) == 1 and "" not in names:
        return names.pop()
    return "list-" + sha256_text("\n".join(found.sha256 for found in lists))[:16]
