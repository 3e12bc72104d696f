"""Running a record's configuration again and comparing the counts, episode by episode."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path

import yaml
from lightning.pytorch.utilities import rank_zero_only

from fssbench.cli.configs import told
from fssbench.cli.grid import option
from fssbench.cli.running import drop_option, run_once
from fssbench.errors import UserError
from fssbench.files import sha256_file
from fssbench.metrics.scores import COUNTS
from fssbench.results.record import VOCABULARY, Key, ResultRecord
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow
from fssbench.results.views import percent

OURS = ("results", "run_dir", "name")
"""Config keys that say where the first run put things."""
COMPARED = (*VOCABULARY, "class_partition", "supervision", "base_knowledge_at_test", "uses_text")
"""Metadata by which a reader compares: where a record says something else than its own run, it was changed."""


def replay(path: Path, record: ResultRecord, rows: Sequence[EpisodeRow], extra: list[str]) -> int:
    """Run the record's configuration again, with `extra` options on top; 0 where all counts and what a reader
    compares are identical, else 1.

    Raises `UserError` for the masks of another program, and for a checkpoint that is missing or another one.
    """
    if record.provenance.origin == "external":
        raise UserError(
            f"{path}: these masks were made by another program; only `fssbench score` can count them again."
        )
    checkpoint = find_checkpoint(record, extra)
    if checkpoint is not None:
        extra = [*drop_option(extra, "--ckpt_path"), "--ckpt_path", str(checkpoint)]
    with tempfile.TemporaryDirectory(prefix="fssbench_replay_") as name:
        folder = Path(name)
        status = run_again(record, extra, folder)
        if status or rank_zero_only.rank:  # type: ignore[attr-defined]  # the first of several processes compares
            return status
        store = ResultStore(folder / "results")
        again = store.find(resolution=record.key.resolution)  # one run counts at several resolutions
        if len(again) != 1:
            made = ", ".join(found.key.resolution for found in store.read_all().records) or "none"
            raise UserError(
                f"{path}: the run made no record at resolution {record.key.resolution} (made: {made}). Replay without options "
                "that shorten the test or change where pixels are counted."
            )
        return report(record, rows, again[0], store.rows(again[0]))


def find_checkpoint(record: ResultRecord, extra: list[str]) -> Path | None:
    """The recorded checkpoint: where `--ckpt_path` or the record says, else any below `runs` with its SHA-256.

    None for a record without one. Raises `UserError` where it is not to be found.
    """
    recorded = record.provenance
    if recorded.checkpoint is None:
        return None
    given = option(extra, "--ckpt_path")
    path = Path(given or recorded.checkpoint)
    if path.is_file() and sha256_file(path) == recorded.checkpoint_sha256:
        return path
    if given is None:
        for other in sorted(Path("runs").rglob("*.ckpt")):
            if sha256_file(other) == recorded.checkpoint_sha256:
                print(f"checkpoint: {other}, the recorded file by its SHA-256 (it was {path})", file=sys.stderr)
                return other
    what = "is another checkpoint than the recorded one" if path.is_file() else "is missing"
    searched = "" if given else ", and no .ckpt file below runs/ is it"
    raise UserError(
        f"The checkpoint {path} {what} (SHA-256 {recorded.checkpoint_sha256}){searched}: give that one with --ckpt_path FILE."
    )


def run_again(record: ResultRecord, extra: list[str], folder: Path) -> int:
    """Run `test` with the recorded configuration; its record goes to `folder`."""
    config = {key: value for key, value in record.provenance.config.items() if key not in OURS}
    file = folder / "recorded.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    told.add(file)  # ours, and gone when the user reads its name
    arguments = ["--config", str(file), "--name", record.key.method, "--results", str(folder / "results")]
    with redirect_stdout(io.StringIO()):  # its record is not kept, so its path is of no use
        return run_once("test", [*arguments, *extra])


def report(
    record: ResultRecord, rows: Sequence[EpisodeRow], again: ResultRecord, rows_again: Sequence[EpisodeRow]
) -> int:
    """Print what differs; 0 where no count, no part of the key and no word of the metadata in `COMPARED` does."""
    now = {row.episode_id: row for row in rows_again}
    different = [row for row in rows if row.episode_id not in now or not _same(row, now[row.episode_id])]
    keys = [f.name for f in fields(Key) if getattr(record.key, f.name) != getattr(again.key, f.name)]
    told = [name for name in COMPARED if getattr(record.metadata, name) != getattr(again.metadata, name)]
    scores = f"mIoU {percent(record.scores.miou)} then, {percent(again.scores.miou)} now"
    if not different and not keys and not told and len(rows) == len(now):
        print(f"identical: all counts of {len(rows)} episodes; {scores}")
        return 0
    counted = sum(getattr(row, name) != getattr(now.get(row.episode_id), name, None) for row in rows for name in COUNTS)
    print(f"different: {len(different)} of {len(rows)} episodes, {counted} counts; {scores}")
    if keys:
        print(f"  the key differs in {', '.join(keys)}: another experiment")
    for name in told:
        print(f"  metadata.{name}: {getattr(record.metadata, name)} then, {getattr(again.metadata, name)} now")
    for what, then, here in _circumstances(record, again):
        print(f"  {what}: {then} then, {here} now")
    for row in different[:5]:
        print(
            f"  episode {row.episode_id} (query {row.query_key}): {_counts(row)} then, {_counts(now.get(row.episode_id))} now"
        )
    return 1


def _same(one: EpisodeRow, other: EpisodeRow) -> bool:
    names = ("class_id", "query_key", "support_keys", *COUNTS)
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _counts(row: EpisodeRow | None) -> str:
    return "absent" if row is None else f"{row.fg_intersection} / {row.fg_union}"


def _circumstances(then: ResultRecord, now: ResultRecord) -> list[tuple[str, str, str]]:
    """What differs around the two runs and may be the reason."""
    names = ("code_version", "git_commit", "python", "device", "dtype", "processes", "backbone_sha256",
             "network_input", "mask_renderer", "image_filter")  # fmt: skip
    pairs = {name: (str(getattr(then.provenance, name)), str(getattr(now.provenance, name))) for name in names}
    libraries = sorted({*then.provenance.libraries, *now.provenance.libraries})
    pairs |= {
        name: (then.provenance.libraries.get(name, "absent"), now.provenance.libraries.get(name, "absent"))
        for name in libraries
    }
    return [(name, a, b) for name, (a, b) in pairs.items() if a != b]
