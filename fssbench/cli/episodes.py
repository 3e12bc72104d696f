"""`fssbench episodes build|freeze|verify|show|export`: episode manifests as files."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from fssbench.errors import TooFewImages, UserError
from fssbench.files import write_text_whole
from fssbench.protocols.list_dataset import QUERIES, ListDataset
from fssbench.protocols.manifest import Manifest, build_manifest, load_manifest, verify_manifest
from fssbench.protocols.profiles import BAM_SEEDS, ProtocolName

OF_LISTS = ("dataset", "protocol", "shot")
"""Options of `build` that only its --lists needs."""


def run(verb: str, arguments: list[str]) -> int:
    """Build, verify or show manifests."""
    parser = _parser(verb)
    options, data = parser.parse_known_args(arguments)
    if options.action == "export":
        from fssbench.cli.export import export_manifest

        return export_manifest(options.manifest, options.format, options.out, options.masks, data)
    if options.action == "show":
        if data:
            parser.error(f"unknown options: {' '.join(data)}")
        return _show(load_manifest(options.manifest), options.episodes)
    if options.action == "freeze":
        return _freeze(options.shots, options.out, data)
    if options.action == "verify":
        return _verify(options.manifest, data)
    own = {name: value for name in OF_LISTS if (value := getattr(options, name)) is not None}
    if options.lists and data:
        parser.error(f"with --lists no data are configured: {' '.join(data)}")
    if options.lists:
        return _write(_of_list(options.lists, **own), options.out)
    if own:
        meant = {"dataset": "--config data/NAME.yaml"}
        hints = [f"--{name} belongs to --lists: say {meant.get(name, f'--data.{name}')} instead." for name in own]
        raise UserError(" ".join(hints))
    from fssbench.cli.parsing import configured_data

    return _write(configured_data(data).test_manifest, options.out)


def _of_list(
    path: Path, dataset: str = "pascal-5i", protocol: ProtocolName = "hsnet-compat", shot: int = 1
) -> Manifest:
    """The episodes of a published list, without data."""
    return build_manifest(ListDataset.read(dataset, path), 0, shot, protocol=protocol)


def _parser(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser(
        "build",
        allow_abbrev=False,  # --data is the data's own option, not short for --dataset
        help="make the episodes of a data set, or of published lists alone",
        description="Make the episodes of a data set. Everything after the options below configures the data, as in "
        "`fssbench test`: --config data/coco20i.yaml --data.protocol clean-v1 --data.fold 0 --data.shot 1 ... With "
        "--lists, no data are needed: the episodes are drawn from a published list file.",
    )
    build.add_argument(
        "--lists", type=Path, help="list file of one fold (NAME__CC, CC NAME, HSNet's pickle; or classes)"
    )
    build.add_argument("--dataset", help=f"with --lists: {', '.join(QUERIES)} (default: pascal-5i)")
    build.add_argument("--protocol", help="with --lists: hsnet-compat or clean-v1 (default: hsnet-compat)")
    build.add_argument("--shot", type=int, help="with --lists: number of supports (default: 1)")
    build.add_argument("--out", type=Path, help="file to write (default: episodes/DATASET_PROTOCOL_foldF_shotK.jsonl)")
    freeze = actions.add_parser(
        "freeze",
        allow_abbrev=False,
        help="make the episodes of all folds and shots, for publication",
        description="Make the manifests of all folds and numbers of supports (and of all seeds, for bam-compat), compressed, "
        "with a list of their hashes. A number of supports for which a class has too few images is left out. Everything "
        "after the options below configures the data, as in `fssbench test`.",
    )
    freeze.add_argument(
        "--shots", type=int, nargs="+", default=[1, 5, 10], help="numbers of supports (default: 1 5 10)"
    )
    freeze.add_argument("--out", type=Path, default=Path("episodes"), help="folder to write (default: episodes)")
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
    return parser


def _freeze(shots: list[int], out: Path, data: list[str]) -> int:
    from fssbench.cli.parsing import configured_data

    module = configured_data(data)
    several = module.protocol == "bam-compat" and module.manifest_seed is None
    hashes: dict[str, dict[str, Any]] = {}
    for shot in shots:
        try:
            made = [
                module.manifest(fold, shot, seed)
                for fold in range(module.dataset.n_folds)
                for seed in (BAM_SEEDS if several else (None,))
            ]
        except TooFewImages as error:
            print(f"{shot}-shot left out: {error}")
            continue
        for manifest in made:
            path = out / f"{file_name(manifest)}.gz"
            manifest.save(path)
            hashes[path.name] = {
                "sha256": manifest.sha256,
                "episodes_sha256": manifest.header.episodes_sha256,
                "episodes": manifest.header.episodes,
                "bytes": path.stat().st_size,
            }
            print(f"{manifest.sha256}  {path}")
    if not hashes:
        raise UserError(f"No number of supports among {shots} has enough images in every class. Use fewer shots.")
    name = f"{module.dataset.name}_{module.protocol}.json"
    write_text_whole(out / name, json.dumps(hashes, indent=2) + "\n")
    print(f"written: {out / name}, {sum(h['bytes'] for h in hashes.values()) / 2**20:.2f} MiB in {len(hashes)} files")
    return 0


def file_name(manifest: Manifest) -> str:
    """The usual name of a manifest's file."""
    header = manifest.header
    return f"{header.dataset}_{header.protocol}_fold{header.fold}_shot{header.shot}.jsonl"


def _write(manifest: Manifest, out: Path | None) -> int:
    path = out or Path("episodes") / file_name(manifest)
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
        print(f"  class {class_id:>4}  {name:<24} left out: {header.why_left_out}")
    for number, episode in enumerate(manifest.episodes[: max(0, episodes)]):
        print(f"  {number}: class {episode.class_id}  {episode.query} <- {' '.join(episode.supports)}")
    return 0
