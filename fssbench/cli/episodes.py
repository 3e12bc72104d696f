"""`fssbench episodes build|verify|show|export`: episode manifests as files."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from fssbench.errors import UserError
from fssbench.protocols.manifest import Manifest, load_manifest, verify_manifest


def run(verb: str, arguments: list[str]) -> int:
    """Build, verify or show a manifest."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser(
        "build",
        help="make the clean-v1 episodes of a data set",
        description="Make the clean-v1 episodes of a data set. Everything after the options below configures the data, as "
        "in `fssbench test`: --config data/coco20i.yaml --data.fold 0 --data.shot 1 ...",
    )
    build.add_argument("--out", type=Path, help="file to write (default: episodes/DATASET_PROTOCOL_foldF_shotK.jsonl)")
    verify = actions.add_parser(
        "verify",
        help="check a manifest file, and against the data where they are configured",
        description="Check that a manifest file is whole and consistent. With --config data/... (and --data. options) "
        "also that the data give exactly these episodes.",
    )
    verify.add_argument("manifest", type=Path)
    show = actions.add_parser("show", help="what a manifest file holds")
    show.add_argument("manifest", type=Path)
    show.add_argument("--episodes", type=int, default=5, help="number of episodes to print (default: 5)")
    export = actions.add_parser(
        "export",
        help="a manifest as CSV or JSON for another code base",
        description="Write a manifest as CSV or JSON for another code base (docs/board.md has a reader of ten lines). With "
        "--masks and --config data/... also one PNG per image and class: 0 background, 1 the class, 255 not counted.",
    )
    export.add_argument("manifest", type=Path)
    export.add_argument("--format", choices=["csv", "json"], default="csv", help="default: csv")
    export.add_argument("--out", type=Path, help="file to write (default: the manifest's name with .csv or .json)")
    export.add_argument("--masks", type=Path, help="folder for the masks, as CLASS/IMAGE.png")
    options, data = parser.parse_known_args(arguments)
    if options.action == "export":
        from fssbench.cli.export import export_manifest

        return export_manifest(options.manifest, options.format, options.out, options.masks, data)
    if options.action == "show":
        if data:
            parser.error(f"unknown options: {' '.join(data)}")
        return _show(load_manifest(options.manifest), options.episodes)
    if options.action == "verify":
        return _verify(options.manifest, data)
    return _build(options.out, data)


def _build(out: Path | None, data: list[str]) -> int:
    from fssbench.cli.parsing import configured_data

    manifest = configured_data(data).test_manifest
    header = manifest.header
    path = out or Path("episodes") / f"{header.dataset}_{header.protocol}_fold{header.fold}_shot{header.shot}.jsonl"
    manifest.save(path)
    _show(manifest, 0)
    print(f"written: {path}")
    return 0


def _verify(path: Path, data: list[str]) -> int:
    manifest = load_manifest(path)  # checks the file itself
    print(f"{path}: whole and consistent, {len(manifest.episodes)} episodes, SHA-256 {manifest.sha256}")
    if not data:
        print("not compared with the data: add --config data/... to do so")
        return 0
    from fssbench.cli.parsing import configured_data

    problems = verify_manifest(manifest, configured_data(data).dataset)
    if problems:
        raise UserError(f"{path} differs from the data: {'; '.join(problems)}.")
    print("the data give exactly these episodes")
    return 0


def _show(manifest: Manifest, episodes: int) -> int:
    header = manifest.header
    print(
        f"{header.dataset} {header.protocol} fold {header.fold} of {header.n_folds}, {header.shot}-shot, seed {header.seed}"
    )
    print(f"SHA-256 of the file      {manifest.sha256}")
    print(f"SHA-256 of the episodes  {header.episodes_sha256}")
    print(
        f"{header.episodes} episodes over {len(manifest.images())} images; filter {header.image_filter}, masks {header.mask_renderer}"
    )
    distinct, counts = manifest.distinct_queries(), Counter(e.class_id for e in manifest.episodes)
    for class_id, name in header.classes.items():
        print(
            f"  class {class_id:>4}  {name:<24} {counts[int(class_id)]:>5} episodes, {distinct.get(int(class_id), 0)} distinct queries"
        )
    for class_id, name in header.left_out.items():
        print(f"  class {class_id:>4}  {name:<24} left out: too few images")
    for number, episode in enumerate(manifest.episodes[: max(0, episodes)]):
        print(f"  {number}: class {episode.class_id}  {episode.query} <- {' '.join(episode.supports)}")
    return 0
