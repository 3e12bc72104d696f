"""`fssbench cache info|verify|clear`: the frozen features on disk that `--feature_disk` keeps."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from fssbench.encoders.store import FeatureStore
from fssbench.files import features_folder


def run(verb: str, arguments: list[str]) -> int:
    """Show, check or empty the store."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument("action", choices=["info", "verify", "clear"],
                        help="info: what lies there; verify: read every file and remove damaged ones; clear: remove all")  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, help="default: FSSBENCH_FEATURES, else `features` in FSSBENCH_CACHE or ~/.cache/fssbench"
    )
    options = parser.parse_args(arguments)
    store = FeatureStore(options.folder or features_folder(), 0)
    return {"info": _info, "verify": _verify, "clear": _clear}[options.action](store)


def _info(store: FeatureStore) -> int:
    total = 0
    for kind, entries in sorted(store.kinds().items()):
        size = sum(entry.size for entry in entries)
        used = datetime.fromtimestamp(max(entry.used for entry in entries)).strftime("%Y-%m-%d %H:%M")
        print(f"{len(entries):>7} images  {size / 2**20:>9.1f} MiB  last used {used}  {kind}")
        total += size
    print(f"{total / 2**30:.2f} GiB in {store.folder}")
    return 0


def _verify(store: FeatureStore) -> int:
    damaged = store.damaged()
    for path in damaged:
        print(f"damaged, removed: {path}")
        path.unlink(missing_ok=True)
    print(f"{sum(1 for _ in store.entries())} file(s) whole, {len(damaged)} damaged in {store.folder}")
    return 1 if damaged else 0


def _clear(store: FeatureStore) -> int:
    print(f"{store.clear()} file(s) removed from {store.folder}")
    return 0
