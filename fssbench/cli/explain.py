"""`fssbench explain RECORD`: how a number came about; `fssbench replay RECORD`: run it again and compare the counts.

RECORD is the JSON file of a result. A replay runs the recorded configuration from the folder you are in; options after
the record, such as --data.root FOLDER or --ckpt_path FILE, say where things lie on this machine.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from fssbench.errors import UserError
from fssbench.results.record import ResultRecord, counted_at, read_record
from fssbench.results.statistics import intervals
from fssbench.results.table import EpisodeRow, read_table, recompute
from fssbench.results.views import count, gibibytes, percent, seconds, span


def run(verb: str, arguments: list[str]) -> int:
    """Explain a record, or replay it."""
    parser = argparse.ArgumentParser(
        prog=f"fssbench {verb}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", metavar="RECORD", type=Path)
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="results folder (default: results); RECORD may be its path "
        "from here or below this folder",
    )  # fmt: skip
    options, rest = parser.parse_known_args(arguments)
    below = options.results / options.record
    if below.is_file() and not options.record.is_file():
        options.record = below
    record = read_record(options.record)
    rows = read_table(options.record.with_suffix(".parquet"))
    try:
        recompute(record, rows)  # before a replay, too: it compares rows, and the record must be theirs
    except UserError as error:
        raise UserError(f"{options.record}: {error}") from error
    if verb == "replay":
        from fssbench.cli.replay import replay

        return replay(options.record, record, rows, rest)
    if rest:
        parser.error(f"unknown options: {' '.join(rest)}")
    print(explained(options.record, record, rows))
    return 0


def explained(path: Path, record: ResultRecord, rows: list[EpisodeRow]) -> str:
    """The story of a record, section by section."""
    sections = {
        "the number": _number(record, rows),
        "data and episodes": _data(record),
        "method and weights": _method(record),
        "what to know before comparing": _metadata(record),
        "execution": _execution(record),
        "to run it again": [("", replay_command(path, record))],
    }
    lines = []
    for title, facts in sections.items():
        wide = max(21, *(len(name) for name, _ in facts))
        lines += [title, *(f"  {name:<{wide}} {value}" if name else f"  {value}" for name, value in facts), ""]
    return "\n".join(lines).rstrip()


def replay_command(path: str | Path, record: ResultRecord) -> str:
    """The command that makes the numbers of a record again."""
    if record.provenance.origin == "external":
        words = ["fssbench", *record.provenance.command[1:]]
        return f"masks of another program; scored by: {shlex.join(words)}"
    return f"fssbench replay {shlex.quote(str(path))}"


Facts = list[tuple[str, str]]


def _number(record: ResultRecord, rows: list[EpisodeRow]) -> Facts:
    from fssbench.results.samples import record_samples

    scores = record.scores
    miou, fb_iou = (intervals(samples)[0] for samples in record_samples(record, rows))
    return [
        ("mIoU", f"{percent(scores.miou)}, the mean over {len(scores.class_iou)} novel classes of fold {record.key.fold}"),
        ("95 % interval", f"{span(miou)}, stratified bootstrap over the episodes"),
        ("FB-IoU", f"{percent(scores.fb_iou)}, 95 % {span(fb_iou)}"),
        ("recomputed", f"from {scores.episodes} rows of the episode table: the same bits"),
        *((f"class {c} {s.name}", f"{percent(s.iou)} = {s.fg_intersection} / {s.fg_union} pixels in {s.episodes} episodes, "
           f"{s.distinct_queries} distinct queries") for c, s in scores.class_iou.items()),
    ]  # fmt: skip


def _data(record: ResultRecord) -> Facts:
    key, provenance = record.key, record.provenance
    return [
        ("data set", f"{key.dataset}, fold {key.fold} of {record.metadata.n_folds}, classes {record.metadata.class_partition}"),
        ("protocol", f"{key.protocol} version {key.protocol_version}, {key.shot}-shot"),
        ("manifest", f"SHA-256 {key.manifest_sha256}"),
        ("episodes", f"SHA-256 {provenance.episodes_sha256 or 'unknown'} of the canonical text"),
        *((f"image list {name}", f"SHA-256 {value}") for name, value in provenance.image_lists.items()),
        ("masks", f"renderer {provenance.mask_renderer}; candidates: {provenance.image_filter}"),
        ("counted at", counted_at(key.resolution)),
        *(("left out", text) for text in provenance.skipped),
    ]  # fmt: skip


def _method(record: ResultRecord) -> Facts:
    key, provenance, cost = record.key, record.provenance, record.cost
    facts = [
        ("method", f"{key.method} ({record.metadata.method_class}), configuration {key.config_hash}"),
        ("weights", f"SHA-256 {key.weights_sha256}" if key.weights_sha256 else "none recorded"),
        ("parameters", f"{count(cost.parameters)}, of which trained {count(cost.trained_parameters)}"),
    ]
    if provenance.checkpoint:
        facts.append(("checkpoint", f"{provenance.checkpoint}, SHA-256 {provenance.checkpoint_sha256}"))
    if provenance.backbone_sha256:
        facts.append(("backbone file", f"SHA-256 {provenance.backbone_sha256}"))
    training = provenance.method_config.get("training") or {}
    return [*facts, *((f"training {name}", str(value)) for name, value in training.items())]


def _metadata(record: ResultRecord) -> Facts:
    names = ("track", "selection", "contamination", "supervision", "training_policy", "base_knowledge_at_test",
             "kshot_mode", "support_sampling", "hyper_parameters", "uses_text", "backbone", "backbone_pretraining")  # fmt: skip
    values = {name: getattr(record.metadata, name) for name in names}
    return [(n.replace("_", " "), ", ".join(v) if isinstance(v, tuple) else str(v)) for n, v in values.items()]


def _execution(record: ResultRecord) -> Facts:
    p, cost = record.provenance, record.cost
    size = "unknown" if p.network_input is None else "{} x {} px".format(*p.network_input)
    return [
        ("made by", "another program, masks counted here" if p.origin == "external" else "fssbench"),
        ("command", shlex.join(p.command)),
        ("code", f"{p.code_version}, commit {p.git_commit or 'unknown'}"),
        ("when", f"{p.started} to {p.finished}, {seconds(p.seconds)} s"),
        ("device", f"{p.device}, {p.dtype}, {p.processes} process(es)"),
        ("cost", f"{seconds(cost.seconds_per_episode)} s per episode, {gibibytes(cost.peak_memory)} GiB at most"),
        ("network input", size),
        *((f"resized {name}", rule) for name, rule in p.interpolation.items()),
        ("python", f"{p.python} on {p.platform}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in p.libraries.items())),
    ]
