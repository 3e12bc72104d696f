"""`fssbench episodes export`: all that another code base needs to run the same episodes."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fssbench.errors import UserError
from fssbench.files import write_text_whole
from fssbench.protocols.manifest import Manifest, load_manifest


def export_manifest(path: Path, style: str, out: Path | None, masks: Path | None, data: list[str]) -> int:
    """Write a manifest as CSV or JSON, and its masks where a folder is given.

    Raises `UserError` for masks without data, and for data that do not give these episodes.
    """
    manifest = load_manifest(path)
    if masks is None and data:
        raise UserError(f"'{' '.join(data)}' is only needed for masks: add --masks FOLDER, or leave it out.")
    if masks is not None and not data:
        raise UserError("--masks needs the data: add --config data/NAME.yaml (and --data. options).")
    out = out or path.with_suffix(f".{style}")
    if out.resolve() == path.resolve():
        raise UserError(f"{out} is the manifest itself: give another --out.")
    write_text_whole(out, csv_text(manifest) if style == "csv" else json_text(manifest))
    print(f"written: {out} ({len(manifest.episodes)} episodes)")
    if masks is not None:
        print(f"written: {write_masks(manifest, path, masks, data)} masks in {masks}")
    return 0


def csv_text(manifest: Manifest) -> str:
    """One line per episode: number, class, query and a column for each support."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    shots = [f"support_{k}" for k in range(1, manifest.header.shot + 1)]
    writer.writerow(["episode", "class_id", "class_name", "query", *shots])
    for number, episode in enumerate(manifest.episodes):
        name = manifest.header.classes[str(episode.class_id)]
        writer.writerow([number, episode.class_id, name, episode.query, *episode.supports])
    return out.getvalue()


def json_text(manifest: Manifest) -> str:
    """The header, the manifest's hash, and the episodes in one object."""
    episodes = [
        {
            "episode": number,
            "class_id": episode.class_id,
            "class_name": manifest.header.classes[str(episode.class_id)],
            "query": episode.query,
            "supports": list(episode.supports),
        }
        for number, episode in enumerate(manifest.episodes)
    ]
    content: dict[str, Any] = {**vars(manifest.header), "manifest_sha256": manifest.sha256}
    return json.dumps({**content, "episodes": episodes}, indent=1, ensure_ascii=False) + "\n"


def write_masks(manifest: Manifest, path: Path, folder: Path, data: list[str]) -> int:
    """Write the mask of every (class, image) pair of a manifest as `CLASS/IMAGE.png`; returns how many."""
    from fssbench.cli.parsing import data_of_manifest
    from fssbench.images import write_mask

    dataset = data_of_manifest(manifest, path, data).dataset
    pairs = {(e.class_id, key) for e in manifest.episodes for key in (e.query, *e.supports)}
    for class_id, key in sorted(pairs):
        write_mask(folder / str(class_id) / f"{key}.png", dataset.read_mask(key, class_id))
    return len(pairs)
