"""The gallery of the page: a record's best, median and worst episodes, predicted again from its configuration."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodules.episode_items import ManifestEpisodes
from datamodules.episodic import EpisodicDataModule
from datamodules.squares import Squares
from fssbench.cli.messages import quiet
from fssbench.cli.replay import OURS, find_checkpoint
from fssbench.cli.trainer import FssbenchCLI
from fssbench.encoders.weights import load_plain
from fssbench.errors import UserError
from fssbench.images import resize_image
from fssbench.method import FewShotMethod
from fssbench.results.page import Gallery, Shown
from fssbench.results.record import ResultRecord, read_record
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow, read_table
from fssbench.viz import PREDICTED, overlay

EACH = 4
"""Episodes per group."""
SIDE = 224
"""Longest side of a picture in pixels: 48 of them in JPEG are about half a MiB."""
QUALITY = 80


def gallery(path: Path) -> Gallery:
    """The gallery of the record in `path`.

    Raises `UserError` where its masks were made by another program, or data or checkpoint are not here.
    """
    record = read_record(path)
    if record.provenance.origin == "external":
        raise UserError(
            f"{path}: these masks were made by another program, so they cannot be made again for a gallery."
        )
    rows = read_table(path.with_suffix(".parquet"))
    method, data = revived(record, find_checkpoint(record, []))
    if data.test_manifest.sha256 != record.key.manifest_sha256:
        raise UserError(f"{path}: the data here give other episodes than the recorded ones. Check the data folder.")
    chosen = chosen_episodes(rows)
    episodes = tuple(_shown(group, row, method, data) for group, rows_of in chosen.items() for row in rows_of)
    key = record.key
    title = f"Episodes of {key.method}: {key.dataset} fold {key.fold}, {key.shot}-shot"
    return Gallery(title, ResultStore(".").path(key).as_posix(), episodes)


def chosen_episodes(rows: Sequence[EpisodeRow], each: int = EACH) -> dict[str, list[EpisodeRow]]:
    """The best, middle and worst episodes by their IoU, each episode at most once."""
    ordered = sorted(rows, key=lambda row: (-row.fg_intersection / max(1, row.fg_union), row.episode_id))
    each = max(1, min(each, len(ordered) // 3))
    middle = max(each, (len(ordered) - each) // 2)
    parts = {
        "best": ordered[:each],
        "median": ordered[middle : middle + each],
        "worst": ordered[middle + each :][-each:],
    }
    return {name: part for name, part in parts.items() if part}


def revived(record: ResultRecord, weights: Path | None) -> tuple[FewShotMethod, EpisodicDataModule]:
    """The method with the weights of a checkpoint, and the data, as the record's configuration says."""
    quiet()
    config = {name: value for name, value in record.provenance.config.items() if name not in (*OURS, "ckpt_path")}
    cli = FssbenchCLI({**config, "name": record.key.method}, run=False)
    method, data = cli.model, cli.datamodule
    if weights is not None:
        checkpoint = load_plain(weights, "Checkpoint", "")
        method.on_load_checkpoint(checkpoint)
        method.load_state_dict(checkpoint["state_dict"])
    data.image_size = data.image_size or method.image_size
    return method.eval(), data


@torch.inference_mode()
def _shown(group: str, row: EpisodeRow, method: FewShotMethod, data: EpisodicDataModule) -> Shown:
    batch = ManifestEpisodes(Squares(data.dataset, method.image_size, 0), data.test_manifest)[0, row.episode_id]
    mask = method.predict_masks(batch)[0].numpy().astype(np.uint8)
    query, truth = data.dataset.read_image(row.query_key), data.dataset.read_mask(row.query_key, row.class_id)
    pictures = [
        (f"support {k}", overlay(data.dataset.read_image(key), data.dataset.read_mask(key, row.class_id)))
        for k, key in enumerate(row.support_keys, start=1)
    ]
    pictures += [("query", query), ("truth", overlay(query, truth)), ("prediction", overlay(query, mask, PREDICTED))]
    iou = 100 * row.fg_intersection / max(1, row.fg_union)
    caption = (
        f"{data.dataset.class_names[row.class_id]}, IoU {iou:.1f}, episode {row.episode_id}, query {row.query_key}"
    )
    return Shown(group, caption, tuple((what, data_uri(picture)) for what, picture in pictures))


def data_uri(picture: np.ndarray) -> str:
    """An (H, W, 3) uint8 picture, scaled down to `SIDE`, as text that a page can hold."""
    scale = min(1.0, SIDE / max(picture.shape[:2]))
    small = resize_image(picture, (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale))))
    out = io.BytesIO()
    Image.fromarray(small).save(out, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
