"""`fssbench score PREDICTIONS`: masks made by any other program become a record like any other, marked as external.

PREDICTIONS is a folder with one PNG per episode, named by its number (000000.png or 0.png; 0 background, 1 or 255 the
class; the size of the query image), or a JSON file with a list of {"episode": N, "size": [H, W], "counts": ...}, COCO's
run-length encoding, compressed or not. Everything after the options below configures the data, as in `fssbench test`:
--config data/coco20i.yaml ...
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from fssbench import __version__
from fssbench.cli.parsing import data_of_manifest
from fssbench.cli.recording import candidate_hashes, library_versions, now
from fssbench.dataset import FewShotDataset
from fssbench.errors import UserError, nearest
from fssbench.files import sha256_file
from fssbench.metrics import COUNTS, episode_counts
from fssbench.protocols.manifest import Manifest, load_manifest
from fssbench.results.record import UNKNOWN, Cost, Key, Metadata, Provenance, ResultRecord, config_hash
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow, scores_from

Array = np.ndarray[Any, np.dtype[Any]]


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


# -- the masks --------------------------------------------------------------------------------------------------------


class Masks(ABC):
    """One mask per episode of a manifest."""

    @abstractmethod
    def numbers(self) -> dict[int, str]:
        """Episode number -> what the mask is called."""

    @abstractmethod
    def read(self, number: int) -> Array:
        """The mask of an episode: (H0, W0) uint8 {0, 1}."""

    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 (hex) of all masks as they lie there."""


class PNGMasks(Masks):
    """A folder of PNG files named by episode number."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".png")
        strange = [path.name for path in files if not path.stem.isdecimal()]
        if strange:
            raise UserError(
                f"{folder}: {_some(strange)} not named by an episode's number. Name masks 000000.png, 000001.png, ..."
            )
        _refuse_twins((int(path.stem), path.name) for path in files)
        self.files = {int(path.stem): path for path in files}

    def numbers(self) -> dict[int, str]:
        """Number -> file name."""
        return {number: path.name for number, path in self.files.items()}

    def read(self, number: int) -> Array:
        """The mask; refuses values but 0 and 1, or 0 and 255."""
        path = self.files[number]
        try:
            with Image.open(path) as image:
                mask = np.asarray(image)
        except OSError as error:
            raise UserError(f"{path} cannot be read as a PNG ({error}). Write the mask again.") from error
        values = np.unique(mask) if mask.ndim == 2 else None
        if values is None or not (set(values.tolist()) <= {0, 1} or set(values.tolist()) <= {0, 255}):
            found = "several channels" if values is None else f"the values {', '.join(map(str, values[:6]))}"
            raise UserError(f"{path} holds {found}, expected one channel of 0 and 1, or of 0 and 255.")
        return (mask > 0).astype(np.uint8)

    def sha256(self) -> str:
        """Over names and bytes."""
        return _digest(f"{number} {sha256_file(path)}" for number, path in sorted(self.files.items()))


class RLEMasks(Masks):
    """A JSON list of run-length encoded masks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            self.entries = {int(e["episode"]): {"size": e["size"], "counts": e["counts"]} for e in entries}
            _refuse_twins((int(e["episode"]), f"entry {i}") for i, e in enumerate(entries))
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f'{path} is no list of {{"episode": N, "size": [H, W], "counts": ...}} ({error!r}). Write it again.'
            ) from error

    def numbers(self) -> dict[int, str]:
        """Number -> place in the file."""
        return {number: f"episode {number} of {self.path.name}" for number in self.entries}

    def read(self, number: int) -> Array:
        """The decoded mask."""
        entry = self.entries[number]
        try:
            height, width = map(int, entry["size"])
            runs = entry["counts"]
            encoded = coco_mask.frPyObjects(entry, height, width) if isinstance(runs, list) else entry
            decoded: Array = coco_mask.decode({**encoded, "size": [height, width]})
        except (ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"{self.path}: episode {number} is no COCO run-length encoding ({error}).") from error
        if isinstance(runs, list) and sum(runs) != height * width:
            raise UserError(f"{self.path}: the runs of episode {number} cover {sum(runs)} of {height * width} pixels.")
        return decoded

    def sha256(self) -> str:
        """Of the file."""
        return sha256_file(self.path)


def open_masks(path: Path, manifest: Manifest) -> Masks:
    """The masks of a folder or JSON file.

    Raises `UserError` that names missing and extra masks.
    """
    if not path.exists():
        raise UserError(f"The predictions {path} do not exist. Give a folder of PNG files or a JSON file.")
    masks: Masks = PNGMasks(path) if path.is_dir() else RLEMasks(path)
    there, wanted = masks.numbers(), range(len(manifest.episodes))
    missing = [str(number) for number in wanted if number not in there]
    extra = [name for number, name in there.items() if number not in wanted]
    problems = [f"no mask for episode {_some(missing)}"] if missing else []
    problems += [f"{_some(extra)} beyond the {len(wanted)} episodes"] if extra else []
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}. Each episode of the manifest needs exactly one mask.")
    return masks


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
        raise UserError(f"Masks of another size than their query: {_some(wrong)}. Scale them back to original size.")
    return rows


def _refuse_twins(named: Iterable[tuple[int, str]]) -> None:
    seen: dict[int, str] = {}
    for number, name in named:
        if number in seen:
            raise UserError(f"{seen[number]} and {name} are both for episode {number}: keep one.")
        seen[number] = name


def _some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# -- the record -------------------------------------------------------------------------------------------------------


def metadata_facts(given: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as metadata fields; several contaminations are separated by `;`."""
    free = [f.name for f in fields(Metadata) if f.name not in ("n_folds", "class_partition", "method_class")]
    facts: dict[str, Any] = {name: UNKNOWN for name in free}
    facts["contamination"] = (UNKNOWN,)
    for word in given:
        name, equals, value = word.partition("=")
        if not equals or name not in free:
            raise UserError(f"--metadata '{word}' is not KEY=VALUE with a known key.{nearest(name, free)}")
        facts[name] = {"true": True, "false": False}.get(value, value)
        if name == "contamination":
            facts[name] = tuple(part.strip() for part in value.split(";"))
    return facts


def make_record(
    options: argparse.Namespace, manifest: Manifest, data: Any, facts: dict[str, Any], rows: list[EpisodeRow],
    predictions_sha256: str, began: str,
) -> ResultRecord:  # fmt: skip
    """The record of external masks: what is not known about their making is null or `unknown`."""
    header = manifest.header
    method_config = {"class": "external", "name": options.name, "code": options.code}
    return ResultRecord(
        key=Key(
            dataset=header.dataset,
            protocol=header.protocol,
            protocol_version=1,
            fold=header.fold,
            shot=header.shot,
            manifest_sha256=manifest.sha256,
            method=options.name,
            config_hash=config_hash(method_config),
            weights_sha256=sha256_file(options.weights) if options.weights else None,
            resolution="original",
            seed=options.seed,
        ),
        scores=scores_from(rows, {int(c): name for c, name in header.classes.items()}),
        cost=Cost(parameters=None, trained_parameters=None, seconds_per_episode=None, peak_memory=None),
        metadata=Metadata(
            n_folds=header.n_folds, class_partition=data.dataset.class_partition, method_class="external", **facts
        ),
        provenance=Provenance(
            origin="external",
            command=tuple(sys.argv),
            config={"predictions": str(options.predictions), "predictions_sha256": predictions_sha256},
            method_config=method_config,
            checkpoint=str(options.weights) if options.weights else None,
            checkpoint_sha256=sha256_file(options.weights) if options.weights else None,
            backbone_sha256=None,
            code_version=f"{options.code}; counted by fssbench {__version__}",
            git_commit=None,
            libraries=library_versions(),
            python=platform.python_version(),
            platform=platform.platform(),
            device=UNKNOWN,
            dtype=UNKNOWN,
            processes=1,
            started=began,
            finished=now(),
            seconds=0.0,
            image_lists=candidate_hashes(data),
            episodes_sha256=header.episodes_sha256,
            mask_renderer=header.mask_renderer,
            image_filter=header.image_filter,
            network_input=None,
            interpolation={},
            skipped=tuple(f"class {name} left out: too few images" for name in header.left_out.values()),
        ),
    )
