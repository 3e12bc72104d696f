"""`fssbench list`: what can be named on the command line. Reads files and metadata only, but for `methods --verbose`,
which builds the methods, without weights, to count their parameters."""

from __future__ import annotations

import argparse
from importlib.metadata import entry_points

from fssbench.cli.configs import first_comment, known_configs
from fssbench.errors import UserError


def run(verb: str, arguments: list[str]) -> int:
    """List methods, datasets or configs."""
    parser = argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__)
    parser.add_argument("what", nargs="?", choices=["methods", "datasets", "configs"], default="configs")
    parser.add_argument("--verbose", action="store_true", help="methods: numbers of parameters")
    parser.add_argument("--backbone", help="methods --verbose: count with this encoder (timm name)")
    options = parser.parse_args(arguments)
    what = options.what
    if (options.verbose and what != "methods") or (options.backbone and not options.verbose):
        raise UserError(
            "--verbose belongs to `fssbench list methods`, and --backbone to its --verbose. Add or drop them."
        )
    folder = {"methods": "methods/", "datasets": "data/", "configs": ""}[what]
    rows = [(name, first_comment(path)) for name, path in known_configs().items() if name.startswith(folder)]
    if what == "methods":
        rows += [
            (f"--model {point.value.replace(':', '.')}", f"from package {point.dist.name if point.dist else '?'}")
            for point in entry_points(group="fssbench.methods")
        ]
    if options.verbose:
        from fssbench.cli.counting import print_counts

        print_counts([name for name, _ in rows if name.startswith(folder)], options.backbone)
        return 0
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0
