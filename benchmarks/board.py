"""Time and memory to show the board of a large results folder.

    python benchmarks/board.py --records 100000 --episodes 100

Writes a folder of made-up results (COCO-20i's four folds, 1 and 5 shots, five draws of episodes; as many methods as the
number of records needs), then shows the board three times in processes of their own:

- `first`: nothing is known; every record is read and checked, every episode table read and compared with its record;
- `changed`: one record was replaced, the others come from the index;
- `unchanged`: nothing changed since.

Beside them stands a board of 40 records (one method), unchanged, and `python -c pass`. Memory is the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from measuring import heading

from fssbench.files import sha256_text
from fssbench.results.record import Cost, Key, Metadata, Provenance, ResultRecord, config_hash
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow, scores_from, seconds_per_episode, write_table

FOLDS, SHOTS, DRAWS, CLASSES = 4, (1, 5), 5, 20
CELLS = FOLDS * len(SHOTS) * DRAWS


def main() -> None:
    """Write, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000, help="default: 100000")
    parser.add_argument("--episodes", type=int, default=100, help="per record (default: 100)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FSSBENCH_CACHE"] = str(folder / "cache")
        began = time.perf_counter()
        written = write_store(folder / "large", options.records, options.episodes)
        write_store(folder / "small", CELLS, options.episodes)
        print(heading("polars", "numpy"))
        print(
            f"\n{written} records, {written * options.episodes} episode rows, written in {time.perf_counter() - began:.0f} s\n"
        )
        print("| board | seconds | processor s | MiB |\n|---|---|---|---|")
        show("python -c pass", ["-c", "pass"], folder)
        leaderboard = ["-m", "fssbench", "leaderboard", "--format", "csv"]
        show("small, first", [*leaderboard, "small"], folder)
        show("small, unchanged", [*leaderboard, "small"], folder)
        show("large, first", [*leaderboard, "large"], folder)
        touch_one(folder / "large")
        show("large, changed", [*leaderboard, "large"], folder)
        show("large, unchanged", [*leaderboard, "large"], folder)


def show(what: str, command: list[str], folder: Path) -> None:
    """Run a Python process and print what it took."""
    probe = (
        "import resource, subprocess, sys, time; began = time.perf_counter(); "
        "subprocess.run([sys.executable, *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *command], cwd=folder, check=True, capture_output=True, text=True
    )
    seconds, busy, kibibytes = map(float, done.stdout.split())
    print(f"| {what} | {seconds:.2f} | {busy:.2f} | {kibibytes / 1024:.0f} |", flush=True)


def write_store(root: Path, records: int, episodes: int) -> int:
    """Results of so many methods that there are at least `records`; returns how many were written.

    Real files, from one record and table that are made properly and then filled with other counts: writing each of them
    through the store would take hours.
    """
    methods = -(-records // CELLS)
    template, table = made(episodes)
    for number, (record, rows) in enumerate(results(template, table, methods)):
        path = ResultStore(root).path(record)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(rows[0], encoding="utf-8")
        parquet.write_table(rows[1], path.with_suffix(".parquet"))
        if number % 10000 == 9999:
            print(f"{number + 1} written", file=sys.stderr, flush=True)
    return methods * CELLS


def results(template: ResultRecord, table: pa.Table, methods: int) -> Iterator[tuple[Key, tuple[str, pa.Table]]]:
    """Key, JSON text and episode table of every result."""
    generator = np.random.default_rng(0)
    class_ids = table["class_id"].to_numpy()
    base = json.loads(template.to_text())
    for method in range(methods):
        config = {"class": f"method{method}"}
        digest = config_hash(config)
        quality = generator.uniform(0.2, 0.7)
        for draw in range(DRAWS):
            for shot in SHOTS:
                for fold in range(FOLDS):
                    share = np.clip(generator.normal(quality, 0.2, len(class_ids)), 0, 1)
                    hit = (share * 10000).astype(np.int64)
                    protocol = "clean-v1" + (f".s{draw}" if draw else "")
                    key = replace(
                        template.key, method=f"m{method}", config_hash=digest, fold=fold, shot=shot, protocol=protocol,
                        manifest_sha256=sha256_text(f"{draw} {shot} {fold}"),
                    )  # fmt: skip
                    yield key, (filled(base, key, config, class_ids, hit), with_hits(table, hit))


def filled(base: dict, key: Key, config: dict, class_ids: np.ndarray, hit: np.ndarray) -> str:
    """The JSON text of a result whose episodes hit so many pixels of 10000."""
    from fssbench.metrics.scores import COUNTS, iou_scores

    counts = {
        int(c): (int(hit[class_ids == c].sum()), 10000 * int((class_ids == c).sum()), 0, 0)
        for c in np.unique(class_ids)
    }
    scores = iou_scores(counts, {c: int((class_ids == c).sum()) for c in counts})
    for c, count in counts.items():
        base["scores"]["class_iou"][str(c)].update(zip(COUNTS, count, strict=True), iou=scores["class_iou"][c])
    base["scores"].update(miou=scores["miou"], fb_iou=scores["fb_iou"])
    base["key"] = vars(key)
    base["provenance"]["method_config"] = config
    return json.dumps(base)


def with_hits(table: pa.Table, hit: np.ndarray) -> pa.Table:
    """The table with other foreground intersections."""
    column = table.schema.get_field_index("fg_intersection")
    return table.set_column(column, table.schema.field(column), pa.array(hit))


def made(episodes: int) -> tuple[ResultRecord, pa.Table]:
    """A record and its table, made as a test run makes them."""
    rows = [
        EpisodeRow(
            episode_id=i, class_id=i * CLASSES // episodes, query_key=f"val2014/COCO_val2014_{i:012d}.jpg",
            support_keys=(f"val2014/COCO_val2014_{i + 1:012d}.jpg",), fg_intersection=0, fg_union=10000,
            bg_intersection=0, bg_union=0, fg_target=None, seconds=0.1,
        )
        for i in range(episodes)
    ]  # fmt: skip
    names = {c: f"class {c}" for c in range(CLASSES)}
    config = {"class": "method"}
    key = Key(
        dataset="coco-20i", protocol="clean-v1", protocol_version=1, fold=0, shot=1, manifest_sha256="0" * 64,
        method="m", config_hash=config_hash(config), weights_sha256=None, resolution="original", seed=0,
    )  # fmt: skip
    cost = Cost(
        parameters=10**8, trained_parameters=10**6, seconds_per_episode=seconds_per_episode(rows), peak_memory=2**30
    )
    record = ResultRecord(
        key=key, scores=scores_from(rows, names), cost=cost, metadata=metadata(), provenance=provenance(config)
    )
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        write_table(rows, file.name)
        return record, parquet.read_table(file.name)


def metadata() -> Metadata:
    """Of a training-free method."""
    words = dict.fromkeys(
        ("supervision", "hyper_parameters", "backbone", "backbone_pretraining", "method_class"), "unknown"
    )
    return Metadata(
        **words, n_folds=FOLDS, class_partition="interleaved", track="training-free", contamination=("unknown",),
        selection="not trained", training_policy="not trained", base_knowledge_at_test=False, kshot_mode="joint",
        support_sampling="distinct", uses_text=False,
    )  # fmt: skip


def provenance(config: dict) -> Provenance:
    """As long as that of a real run."""
    texts = dict.fromkeys(
        ("code_version", "python", "platform", "device", "dtype", "mask_renderer", "image_filter"), "x"
    )
    return Provenance(
        **texts, origin="fssbench", command=("fssbench", "test"), config={f"key{i}": i for i in range(60)},
        method_config=config, checkpoint=None, checkpoint_sha256=None, backbone_sha256=None, git_commit=None,
        libraries={f"library{i}": "1.0" for i in range(11)}, processes=1, started="2026-11-21T01:20:29+00:00",
        finished="2026-11-21T01:20:31+00:00", seconds=2.0, image_lists={}, episodes_sha256=None,
        network_input=(518, 518), interpolation={}, skipped=(),
    )  # fmt: skip


def touch_one(root: Path) -> None:
    """Make one record look new."""
    os.utime(next(root.rglob("*.json")))


if __name__ == "__main__":
    main()
