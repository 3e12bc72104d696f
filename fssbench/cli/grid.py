"""fit, validate, test, predict: one run here, or one process per run for `--folds` and `--shots`."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import product
from pathlib import Path

from fssbench.cli.configs import find_config, read_config
from fssbench.errors import UserError

GRID_HELP = (
    "--folds all|F [F ...]: the folds to run; {fold} in any value becomes the fold. "
    "--shots K [K ...]: the numbers of supports; {shot} in any value becomes K."
)


def run(verb: str, arguments: list[str]) -> int:
    """Run a trainer verb, once or for each fold and shot."""
    arguments, folds, shots = split_grid(arguments)
    if folds is None and shots is None:
        from fssbench.cli.trainer import run_once

        return run_once(verb, arguments)
    if folds == ["all"]:
        from fssbench.cli.trainer import number_of_folds

        folds = [str(fold) for fold in range(number_of_folds(arguments))]
    return _run_all(verb, arguments, folds, shots)


def split_grid(arguments: list[str]) -> tuple[list[str], list[str] | None, list[str] | None]:
    """Take `--folds ...` and `--shots ...` out of the arguments; checks that they are numbers (or `all`)."""
    rest: list[str] = []
    taken: dict[str, list[str]] = {}
    current: str | None = None
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in ("--folds", "--shots"):
            current = name
            taken[current] = re.split("[, ]+", value) if value else []
        elif current and re.fullmatch(r"all|\d+(,\d+)*", argument):
            taken[current] += argument.split(",")
        else:
            current = None
            rest.append(argument)
    for name, values in taken.items():
        valid = (values == ["all"] and name == "--folds") or (values and all(v.isdigit() for v in values))
        if not valid:
            example = "all, or numbers such as 0 2" if name == "--folds" else "numbers such as 1 5"
            raise UserError(f"{name} needs {example}; got '{' '.join(values)}'.")
    return rest, taken.get("--folds"), taken.get("--shots")


def _run_all(verb: str, arguments: list[str], folds: list[str] | None, shots: list[str] | None) -> int:
    """Run each (fold, shot) in a process of its own, which frees its memory and survives a crash of another."""
    empty: list[str | None] = [None]
    cells = list(product(folds or empty, shots or empty))
    failed: list[str] = []
    for number, (fold, shot) in enumerate(cells, start=1):
        what = " ".join(f"{n} {v}" for n, v in (("fold", fold), ("shot", shot)) if v is not None)
        print(f"== {verb} {number}/{len(cells)}: {what}", flush=True)
        status = subprocess.call([sys.executable, "-m", "fssbench", verb, *cell_arguments(arguments, fold, shot)])
        if status == 130:
            raise KeyboardInterrupt
        if status:
            failed.append(what)
            print(f"== {verb} {what}: failed (exit status {status})", file=sys.stderr, flush=True)
    if verb == "test":
        from fssbench.cli.leaderboard import print_board

        print_board(Path(option(arguments, "--results") or "results"))
    if failed:
        print(f"fssbench: {len(failed)} of {len(cells)} runs failed: {'; '.join(failed)}", file=sys.stderr)
        return 1
    return 0


def cell_arguments(arguments: list[str], fold: str | None, shot: str | None) -> list[str]:
    """The arguments of one run: `{fold}` and `{shot}` filled in, `data.fold` and `data.shot` set."""
    for name, value in (("fold", fold), ("shot", shot)):
        if value is None:
            if any(f"{{{name}}}" in a for a in arguments):
                raise UserError(f"{{{name}}} is used, but --{name}s is not given.")
            continue
        arguments = [a.replace(f"{{{name}}}", value) for a in arguments]
        arguments = [*arguments, f"--data.{name}", value]
    return arguments


def option(arguments: list[str], name: str) -> str | None:
    """The last value of `--name VALUE` or `--name=VALUE`."""
    found = None
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            found = argument.split("=", 1)[1]
        elif argument == name and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def config_names(files: list[str]) -> tuple[str | None, str | None]:
    """Names for the run folder from the configs given: the stems of those that set the model and the data."""
    model = data = None
    for name in files:
        path = find_config(name)
        content = read_config(path)
        model = path.stem if "model" in content else model
        data = path.stem if "data" in content else data
    return model, data
