"""Small real records and episode tables, made by the code under test from pixel counts chosen here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fssbench.files import sha256_text
from fssbench.results.record import Cost, Key, Metadata, Provenance, ResultRecord, config_hash
from fssbench.results.table import EpisodeRow, scores_from

NAMES = {3: "bird", 7: "car"}
METHOD_CONFIG = {"class_path": "methods.prototype.Prototype", "init_args": {"image_size": 518, "threshold": 0.5}}


def make_rows(shift: int = 0, shot: int = 1) -> list[EpisodeRow]:
    """Four episodes, two of each class; `shift` moves every foreground hit and so every score."""
    return [
        EpisodeRow(
            episode_id=i,
            class_id=class_id,
            query_key=query,
            support_keys=tuple(f"s{k}" for k in range(shot)),
            fg_intersection=hit + shift,
            fg_union=100,
            bg_intersection=900,
            bg_union=1000 - hit - shift,
            fg_target=60 + 10 * i,
            seconds=0.25,
        )
        for i, (class_id, query, hit) in enumerate([(3, "a", 10), (3, "a", 31), (7, "b", 40), (7, "c", 17)])
    ]


def make_record(rows: list[EpisodeRow] | None = None, **changes: Any) -> ResultRecord:
    """A record of `rows`; `changes` go to the key, metadata or provenance field of that name."""
    method_config = changes.pop("method_config", METHOD_CONFIG)
    key = Key(
        dataset="pascal-5i",
        protocol="clean-v1",
        protocol_version=1,
        fold=0,
        shot=1,
        manifest_sha256=sha256_text(f"manifest {changes.get('fold', 0)}"),
        method="prototype",
        config_hash=config_hash(method_config),
        weights_sha256=None,
        resolution="original",
        seed=0,
    )
    metadata = Metadata(
        n_folds=4,
        class_partition="contiguous",
        method_class="methods.prototype.Prototype",
        track="training-free",
        contamination=("unlabelled images",),
        supervision="none",
        selection="not trained",
        training_policy="not trained",
        base_knowledge_at_test=False,
        kshot_mode="joint",
        support_sampling="distinct",
        hyper_parameters="one setting for all data sets",
        uses_text=False,
        backbone="vit_base_patch14_dinov2",
        backbone_pretraining="LVD-142M",
    )
    cost = Cost(parameters=86_000_000, trained_parameters=0, seconds_per_episode=0.25, peak_memory=2**30)
    provenance = Provenance(
        origin="fssbench",
        command=("fssbench", "test", "--config", "methods/prototype.yaml"),
        config={"model": METHOD_CONFIG, "seed_everything": 0},
        method_config=method_config,
        checkpoint=None,
        checkpoint_sha256=None,
        backbone_sha256=None,
        code_version="0.1.0",
        git_commit=None,
        libraries={"torch": "2.14.1"},
        python="3.11.9",
        platform="Linux-x86_64",
        device="cpu",
        dtype="float32",
        processes=1,
        started="2026-11-21T01:20:29+00:00",
        finished="2026-11-21T01:20:31+00:00",
        seconds=2.0,
        image_lists={"test": sha256_text("list")},
        episodes_sha256=sha256_text("episodes"),
        mask_renderer="clean",
        image_filter="none",
        network_input=(518, 518),
        interpolation={"image": "torch-bilinear-antialias", "mask": "numpy-nearest"},
        skipped=(),
    )
    groups: dict[str, Any] = {"key": key, "cost": cost, "metadata": metadata, "provenance": provenance}
    for name, group in groups.items():
        mine = {field: changes.pop(field) for field in list(changes) if hasattr(group, field)}
        groups[name] = replace(group, **mine)
    assert not changes, f"no field {', '.join(changes)}"
    return ResultRecord(scores=scores_from(make_rows() if rows is None else rows, NAMES), **groups)
