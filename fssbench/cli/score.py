"""`fssbench score PREDICTIONS`: masks made by any other program become a record like any other, marked as external.

PREDICTIONS is a folder with one PNG per episode, named by its number (000000.png or 0.png; 0 background, 1 or 255 the
class; the size of the query image), or a JSON file with a list of {"episode": N, "size": [H, W], "counts": ...}, COCO's
run-length encoding, compressed or not. Everything after the options below configures the data, as in `fssbench test`:
--config data/coco20i.yaml ...
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.episodic import EpisodicDataModule
from fssbench import __version__
from fssbench.cli.external_masks import Masks, open_masks
from fssbench.cli.parsing import data_of_manifest
from fssbench.cli.provenance import (
    candidate_hashes,
    class_names,
    left_out,
    manifest_facts,
    now,
    python_facts,
    result_key,
    unknown_facts,
)
from fssbench.dataset import FewShotDataset
from fssbench.errors import UserError, nearest, some
from fssbench.files import sha256_file
from fssbench.metrics import COUNTS, episode_counts
from fssbench.protocols.manifest import Manifest, load_manifest
from fssbench.results.record import UNKNOWN, Cost, Metadata, Provenance, ResultRecord
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow, scores_from


def run(verb: str, arguments: list[str]) -> int:
    """Check, count and record the masks."""
    parser = argparse.ArgumentParser(
        prog=f"fssbench {verb}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--name", required=True, help="method name on the board")
    parser.add_argument("--manifest", type=Path, help="default: episodes.jsonl beside the masks")
    parser.add_argument("--code", default=UNKNOWN, help="what made the masks, e.g. repository and commit")
    parser.add_argument("--weights", type=Path, help="checkpoint behind the masks; its hash is recorded")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run that made the masks (default: 0)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="results folder (default: results)")
    parser.add_argument("--overwrite", action="store_true", help="replace a result that exists")
    parser.add_argument(
        "--metadata", nargs="+", default=[], metavar="KEY=VALUE",
        help="facts for the record, such as track=strict backbone=resnet50 'contamination=image labels'; see "
        "docs/records.md. What is not given is recorded as unknown.",
    )  # fmt: skip
    options, data = parser.parse_known_args(arguments)
    path = options.manifest or options.predictions / "episodes.jsonl"
    manifest = load_manifest(path)
    own = options.predictions / "episodes.jsonl"
    if own.is_file() and load_manifest(own).sha256 != manifest.sha256:
        raise UserError(
            f"{options.predictions} holds masks of the episodes in {own}, not of those in {path}. Leave --manifest out."
        )
    if not data:
        raise UserError("The true masks are needed: add --config data/NAME.yaml (and --data. options).")
    facts = metadata_facts(options.metadata)
    module = data_of_manifest(manifest, path, data)
    began = now()
    masks = open_masks(options.predictions, manifest)
    rows = count(masks, manifest, module.dataset)
    record = make_record(options, manifest, module, facts, rows, masks.sha256(), began)
    written = ResultStore(options.results).write(record, rows, overwrite=options.overwrite)
    header = manifest.header
    print(f"{header.dataset} fold {header.fold}, {header.shot}-shot, {len(rows)} episodes: "
          f"mIoU {100 * record.scores.miou:.2f}  FB-IoU {100 * record.scores.fb_iou:.2f}")  # fmt: skip
    print(f"record: {written}")
    return 0


def count(masks: Masks, manifest: Manifest, dataset: FewShotDataset) -> list[EpisodeRow]:
    """Pixel counts of every episode.

    Raises `UserError` that names masks of another size than their query image.
    """
    rows, wrong = [], []
    names = masks.numbers()
    for number, episode in enumerate(manifest.episodes):
        truth, mask = dataset.read_mask(episode.query, episode.class_id), masks.read(number)
        if mask.shape != truth.shape:
            sizes = " instead of ".join(f"{w}x{h}" for h, w in (mask.shape, truth.shape))
            wrong.append(f"{names[number]} ({sizes})")
            continue
        counts = episode_counts(torch.from_numpy(mask), torch.from_numpy(np.ascontiguousarray(truth))).tolist()
        rows.append(
            EpisodeRow(
                episode_id=number,
                class_id=episode.class_id,
                query_key=episode.query,
                support_keys=episode.supports,
                **dict(zip(COUNTS, counts, strict=True)),
                fg_target=int((truth == 1).sum()),
                seconds=0.0,
            )
        )
    if wrong:
        raise UserError(f"Masks of another size than their query: {some(wrong)}. Scale them back to original size.")
    return rows


def metadata_facts(given: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as metadata fields; several contaminations are separated by `;`."""
    facts = unknown_facts()
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or name not in facts:
            raise UserError(f"--metadata '{word}' is not KEY=VALUE with a known key.{nearest(name, facts)}")
        facts[name] = {"true": True, "false": False}.get(value, value)
        if name == "contamination":
            facts[name] = tuple(part.strip() for part in value.split(";"))
    return facts


def make_record(
    options: argparse.Namespace, manifest: Manifest, data: EpisodicDataModule, facts: dict[str, Any],
    rows: list[EpisodeRow], predictions_sha256: str, began: str,
) -> ResultRecord:  # fmt: skip
    """The record of external masks: what is not known about their making is null or `unknown`."""
    method_config = {"class": "external", "name": options.name, "code": options.code}
    weights = sha256_file(options.weights) if options.weights else None
    return ResultRecord(
        key=result_key(manifest, options.name, method_config, weights, options.seed),
        scores=scores_from(rows, class_names(manifest)),
        cost=Cost(parameters=None, trained_parameters=None, seconds_per_episode=None, peak_memory=None),
        metadata=Metadata(
            n_folds=manifest.header.n_folds,
            class_partition=data.dataset.class_partition,
            method_class="external",
            **facts,
        ),
        provenance=Provenance(
            origin="external",
            command=tuple(sys.argv),
            config={"predictions": str(options.predictions), "predictions_sha256": predictions_sha256},
            method_config=method_config,
            checkpoint=str(options.weights) if options.weights else None,
            checkpoint_sha256=weights,
            backbone_sha256=None,
            code_version=f"{options.code}; counted by fssbench {__version__}",
            git_commit=None,
            device=UNKNOWN,
            dtype=UNKNOWN,
            processes=1,
            started=began,
            finished=now(),
            seconds=0.0,
            image_lists=candidate_hashes(data),
            network_input=None,
            interpolation={},
            skipped=(*left_out(manifest), *data.dataset.skipped),
            **manifest_facts(manifest),
            **python_facts(),
        ),
    )
