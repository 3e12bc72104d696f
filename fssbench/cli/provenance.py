"""The record of a test: which result it is, what it cost, and all that a reader needs to judge it or make it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.episodic import EpisodicDataModule
from fssbench import __version__
from fssbench.checkpoint import class_path
from fssbench.cli.tracking import peak_memory, trained_parameters
from fssbench.encoders.weights import find_weights
from fssbench.files import sha256_file, sha256_text
from fssbench.images import IMAGE_INTERPOLATION, MASK_INTERPOLATION
from fssbench.method import FewShotMethod
from fssbench.protocols.manifest import Manifest
from fssbench.results.record import UNKNOWN, Cost, Key, Metadata, Provenance, ResultRecord, config_hash
from fssbench.results.table import EpisodeRow, scores_from, seconds_per_episode

LIBRARIES = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "segment-anything", "sam2", "numpy", "pillow",
             "albumentations", "opencv-python-headless", "pycocotools")  # fmt: skip
PER_FOLD = ("fold", "seed", "data_seed", "training_list_sha256")
"""Facts of a training that differ between the folds or seeds of one experiment."""


def data_of(trainer: Trainer) -> EpisodicDataModule:
    """The data module of a running trainer."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EpisodicDataModule)
    return data


# -- which result it is -----------------------------------------------------------------------------------------------


def result_key(
    manifest: Manifest,
    method: str,
    method_config: Mapping[str, Any],
    weights_sha256: str | None,
    seed: int,
    resolution: str = "original",
) -> Key:
    """The identity of a result on the episodes of a manifest; `method` is its name on the board."""
    header = manifest.header
    return Key(
        dataset=header.dataset,
        protocol=header.protocol,
        protocol_version=1,  # no protocol has changed since it was defined
        fold=header.fold,
        shot=header.shot,
        manifest_sha256=manifest.sha256,
        method=method,
        config_hash=config_hash(method_config),
        weights_sha256=weights_sha256,
        resolution=resolution,
        seed=seed,
    )


def method_config(method: FewShotMethod) -> dict[str, Any]:
    """What defines the method under test: its class, settings, and how it was trained, without what differs between folds
    and seeds."""
    recipe = {k: v for k, v in method.training_facts.items() if k not in PER_FOLD}
    config: dict[str, Any] = {"class": class_path(type(method)), "settings": method.settings(), "training": recipe}
    data = data_of(method.trainer)
    if _votes(data):  # another experiment with the same method
        config["kshot"] = "vote"
    if data.other_image_size:  # another one, too
        config["image_size"] = data.other_image_size
    return config


def _votes(data: EpisodicDataModule) -> bool:
    return data.kshot == "vote" and data.shot > 1


# -- the record -------------------------------------------------------------------------------------------------------


def result_record(
    trainer: Trainer,
    method: FewShotMethod,
    rows: Sequence[EpisodeRow],
    key: Key,
    config: dict[str, Any],
    began: float,
) -> ResultRecord:
    """Everything about a test run that has ended, with the pixels counted as `key` says.

    config  the run's whole configuration
    began   when it began, in seconds since 1970
    """
    names = class_names(data_of(trainer).test_manifest)
    return ResultRecord(
        key=key,
        scores=scores_from(rows, names, method.scores if key.resolution == "original" else None),
        cost=Cost(
            parameters=sum(p.numel() for p in method.parameters()),
            trained_parameters=trained_parameters(method),
            seconds_per_episode=seconds_per_episode(rows),
            peak_memory=peak_memory(method.device),
        ),
        metadata=_metadata(method, data_of(trainer)),
        provenance=_provenance(trainer, method, config, began),
    )


def _metadata(method: FewShotMethod, data: EpisodicDataModule) -> Metadata:
    known: dict[str, Any] = {**unknown_facts(), **method.metadata()}
    known |= {"kshot_mode": "vote"} if _votes(data) else {}
    known |= {
        "selection": method.training_facts.get("selection", "not trained"),
        "training_policy": method.training_facts.get("training_policy", "not trained"),
        "support_sampling": "distinct" if data.profile.distinct_supports else "with replacement",
    }
    return Metadata(
        n_folds=data.test_manifest.header.n_folds,
        class_partition=data.dataset.class_partition,
        method_class=class_path(type(method)),
        **known,
    )


def _provenance(trainer: Trainer, method: FewShotMethod, config: dict[str, Any], began: float) -> Provenance:
    data, checkpoint, facts = data_of(trainer), trainer.ckpt_path, method.training_facts
    side = data.image_size
    assert side is not None, "setup() has asked the method"
    trained_on = {"training": facts["training_list_sha256"]} if "training_list_sha256" in facts else {}
    return Provenance(
        origin="fssbench",
        command=tuple(sys.argv),
        config=config,
        method_config=method_config(method),
        checkpoint=str(checkpoint) if checkpoint else None,
        checkpoint_sha256=sha256_file(checkpoint) if checkpoint else None,
        backbone_sha256=backbone_sha256(method),
        code_version=__version__,
        git_commit=git_commit(),
        device=device_name(method.device),
        dtype=method.arithmetic,
        processes=trainer.world_size,
        started=datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        finished=now(),
        seconds=round(time.time() - began, 3),
        image_lists={**candidate_hashes(data), **trained_on},
        network_input=(side, side),
        interpolation={"image": IMAGE_INTERPOLATION, "mask": MASK_INTERPOLATION, "logits": method.upsampling},
        skipped=(*left_out(data.test_manifest), *data.dataset.skipped, *unfinished(method)),
        **manifest_facts(data.test_manifest),
        **python_facts(),
    )


# -- facts that external masks have, too ------------------------------------------------------------------------------


def unknown_facts() -> dict[str, Any]:
    """The fields of `Metadata` that a method's author must give, all of them unknown."""
    found = {f.name: UNKNOWN for f in fields(Metadata) if f.name not in ("n_folds", "class_partition", "method_class")}
    return {**found, "contamination": (UNKNOWN,)}


def class_names(manifest: Manifest) -> dict[int, str]:
    """Class id -> name of the classes that have episodes."""
    return {int(class_id): name for class_id, name in manifest.header.classes.items()}


def left_out(manifest: Manifest) -> list[str]:
    """A line for each class that has no episodes."""
    header = manifest.header
    return [f"class {name} left out: {header.why_left_out}" for name in header.left_out.values()]


def unfinished(method: FewShotMethod) -> list[str]:
    """A line where the checkpoint under test is of a training that had not ended; else nothing."""
    early = method.stopped_early
    return [f"the training of the checkpoint had not ended: {early}"] if early else []


def manifest_facts(manifest: Manifest) -> dict[str, Any]:
    """The fields of `Provenance` that a manifest states."""
    header = manifest.header
    return {name: getattr(header, name) for name in ("episodes_sha256", "mask_renderer", "image_filter")}


def candidate_hashes(data: EpisodicDataModule) -> dict[str, str]:
    """SHA-256 of the image lists behind the episodes: novel candidates, one line `LABEL NAME` per pair."""
    dataset = data.dataset
    lines = [
        f"{dataset.label(c)} {dataset.episode_name(key)}"
        for c in dataset.novel_classes(data.fold)
        for key in sorted(dataset.candidates(c, "test"))
    ]
    return {"test_candidates": sha256_text("\n".join(lines))}


def python_facts() -> dict[str, Any]:
    """The fields of `Provenance` about Python, its libraries and the system."""
    return {"libraries": library_versions(), "python": platform.python_version(), "platform": platform.platform()}


def library_versions() -> dict[str, str]:
    """Versions of the libraries that can move a number."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# -- where it ran -----------------------------------------------------------------------------------------------------


def backbone_sha256(method: FewShotMethod) -> str | None:
    """SHA-256 of the backbone's weights file; None where the weights came from a hub or are random."""
    path = find_weights(str(method.hparams.get("backbone_weights", "")))
    return sha256_file(path) if path else None


def git_commit() -> str | None:
    """The commit of the source tree that runs, with `+changes` where its code differs from it (files that
    git does not know included); None for an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # results, runs and data that lie beside the code are no change of it; a new method is
        code = ["--", "fssbench", "methods", "datamodules", "pyproject.toml"]
        changed = subprocess.run([*git, "status", "--porcelain", *code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed.stdout.strip() else "")


def device_name(device: torch.device) -> str:
    """The device's model name; of a CPU also how much of it is used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or "unknown"
    threads = torch.get_num_threads()
    return f"cpu: {model}, {threads} thread{'' if threads == 1 else 's'} of {os.cpu_count()} cores"


def now() -> str:
    """The time in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
