"""`fssbench list`: what can be named on the command line. Reads files and metadata only."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points

from fssbench.cli.configs import first_comment, known_configs


def run(verb: str, arguments: list[str]) -> int:
    """List methods, datasets or configs."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["methods", "datasets", "configs"], default="configs")
    what = parser.parse_args(arguments).what
    folder = {"methods": "methods/", "datasets": "data/", "configs": ""}[what]
    rows = [(name, first_comment(path)) for name, path in known_configs().items() if name.startswith(folder)]
    if what == "methods":
        rows += [
            (f"--model {point.value.replace(':', '.')}", f"from package {point.dist.name if point.dist else '?'}")
            for point in entry_points(group="fssbench.methods")
        ]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0
