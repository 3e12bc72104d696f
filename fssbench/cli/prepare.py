"""`fssbench prepare DATASET`: from archives, folders or mirrors to a checked, signed-off data set."""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fssbench.errors import UserError, nearest
from fssbench.files import data_folder
from fssbench.preparation import seal
from fssbench.preparation.fetch import Source, fetch, verify
from fssbench.preparation.unpack import refuse_no_archive, unpack

if TYPE_CHECKING:
    from datamodules.recipes import Recipe

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz")


def run(verb: str, arguments: list[str]) -> int:
    """Prepare a data set, or check one that is prepared."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument("dataset", help="coco20i, davis17, fss1000 or pascal5i")
    parser.add_argument(
        "--root", type=Path, help="folder of the data set (default: its place in $FSSBENCH_DATA or data)"
    )
    parser.add_argument("--from", type=Path, nargs="+", default=[], dest="places", metavar="PATH",
                        help="official archives that you have, or folders with them")  # fmt: skip
    parser.add_argument("--download", action="store_true", help="get what is missing from the official sources")
    parser.add_argument("--without-training", action="store_true", help="only what testing needs")
    parser.add_argument(
        "--subset", action="store_true", help="a part of the data set: do not ask for the official counts"
    )
    parser.add_argument("--check", action="store_true", help="change nothing: check again what was signed off")
    options = parser.parse_args(arguments)
    from datamodules.recipes import RECIPES
    from fssbench.cli.configs import known_configs

    if f"data/{options.dataset}.yaml" in known_configs() and options.dataset not in RECIPES:
        raise UserError(
            f"{options.dataset} needs no preparation: its files are read as they are. docs/data.md says what its folder must hold."
        )
    if options.dataset not in RECIPES:
        raise UserError(f"Unknown data set '{options.dataset}'.{nearest(options.dataset, RECIPES)}")
    recipe = RECIPES[options.dataset]
    root = options.root or data_folder() / recipe.folder
    if options.check:
        return _check(options.dataset, recipe, root)
    return _prepare(options, recipe, root)


def _prepare(options: argparse.Namespace, recipe: Recipe, root: Path) -> int:
    training = not options.without_training
    archives = _archives(options.places)
    sources = [source for source in recipe.sources if training or source.file not in recipe.training]
    for source in sources:  # before the folder is marked: a mistake leaves it as it was
        _refuse_missing(source, root, archives, options)
        if source.file in archives:
            refuse_no_archive(archives[source.file])
    done = seal.begin(root, options.dataset)
    for source in sources:
        _provide(source, root, archives, options, done)
    for source in recipe.extras:
        _provide_extra(source, root, options.download)
    recipe.convert(root, training)
    report = recipe.check(root, training, not options.subset)
    path = seal.finish(root, options.dataset, not options.subset, training, done["unpacked"], report)
    _show(report)
    print(f"prepared: {path}")
    return 0


def _refuse_missing(source: Source, root: Path, archives: dict[str, Path], options: argparse.Namespace) -> None:
    """Raise `UserError` for a source that is neither unpacked nor given, and is not to be downloaded."""
    there = source.is_in(root) or source.file in archives or (root / source.file).is_file()
    if there or options.subset or options.download or source.file in seal.unpacked(root):
        return
    raise UserError(
        f"{root / source.makes[0]} is missing. Get {source.file} from {source.page} and name it with --from FILE, give the "
        "folder that holds it unpacked as --root, or add --download."
    )


def _provide(
    source: Source, root: Path, archives: dict[str, Path], options: argparse.Namespace, done: dict[str, Any]
) -> None:
    """See to it that a source is unpacked: it is already, or its archive is given, in the root, or downloaded."""
    unpacked = source.file in done["unpacked"]
    if unpacked or (source.is_in(root) and source.file not in archives):
        return
    archive = archives.get(source.file) or (root / source.file if (root / source.file).is_file() else None)
    if archive is None and options.subset:
        return  # what the check misses, it names
    archive = archive or fetch(source, root)
    digest = verify(archive, source) if not options.subset else f"bytes:{archive.stat().st_size}"
    unpack(archive, root)
    done["unpacked"][source.file] = digest
    seal.note(root, done)


def _provide_extra(source: Source, root: Path, download: bool) -> None:
    """Fetch a list of a compat protocol where that was asked for; without it only that protocol is missing."""
    target = root / source.makes[0]
    if target.is_file() or not download:
        return
    try:
        fetch(source, target.parent)
    except UserError as error:
        print(f"note: {error}")
        # a folder without lists would be taken for the protocol's; one with other files in it is the user's
        (target.parent / f"{source.file}.part").unlink(missing_ok=True)
        with suppress(OSError):
            target.parent.rmdir()


def _archives(places: list[Path]) -> dict[str, Path]:
    """Archives by file name, from files and folders; raises `UserError` for a path that is neither."""
    found: dict[str, Path] = {}
    for place in places:
        if place.is_dir():
            found |= {path.name: path for path in sorted(place.iterdir()) if path.suffix in _ARCHIVES}
        elif place.is_file():
            found[place.name] = place
        else:
            raise UserError(f"--from {place} does not exist. Name an archive, or a folder with archives.")
    return found


def _check(name: str, recipe: Recipe, root: Path) -> int:
    seal.refuse_unfinished(root)
    prepared = seal.read_prepared(root)
    if prepared is None or prepared["dataset"] != name:
        raise UserError(f"{root} was not prepared as {name}. Run `fssbench prepare {name} --root {quote(str(root))}`.")
    report = recipe.check(root, prepared["training"], prepared["complete"])
    changed = seal.changes(prepared, name, report)
    if changed:
        raise UserError(f"{root} changed since it was prepared: {', '.join(changed[:5])}. Prepare it again.")
    _show(report)
    print(f"as prepared on {prepared['made']}: {root / seal.PREPARED}")
    return 0


def _show(report: seal.Report) -> None:
    for what, number in report.counts.items():
        print(f"  {what:<36} {number:>8}")
    for what, found in report.lists.items():
        state = {True: "the published list", False: "NOT the published list", None: ""}[found["published"]]
        print(f"  {what:<36} {found['entries']:>8}  {found['sha256'][:16]}  {state}".rstrip())
    for line in report.notes:
        print(f"  note: {line}")
