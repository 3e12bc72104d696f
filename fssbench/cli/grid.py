"""fit, validate, test, predict: one run here, or one process per run of a grid of methods, folds, shots and seeds."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from fssbench.cli import VERBS
from fssbench.cli.configs import find_config, read_config
from fssbench.cli.launching import Cell, Outcome, make_launcher, visible_gpus
from fssbench.cli.progress import make_progress
from fssbench.cli.run_help import asks_for_help, short_help, with_configured_class
from fssbench.cli.suite import MethodWords, read_suite
from fssbench.errors import UserError
from fssbench.results.failures import forget, remember

OPTIONS = {"seed": "--seed_everything", "fold": "--data.fold", "shot": "--data.shot"}
"""Placeholder -> the option of a run that it belongs to."""


class Axes(NamedTuple):
    """What the runs of a grid are spread over; an axis that is None is left to the configuration."""

    folds: list[str] | None = None
    """Numbers, or `all`."""
    shots: list[str] | None = None
    seeds: list[str] | None = None


def run(verb: str, arguments: list[str]) -> int:
    """Run a trainer verb, once or for each method, fold, shot and seed."""
    wanted = asks_for_help(arguments)
    if wanted == "short":
        print(short_help(verb, VERBS[verb][1]))
        return 0
    if wanted == "all":
        arguments = ["--help"]
    arguments = with_configured_class(arguments, options(arguments, "--config", "-c"))
    arguments, words = take_words(arguments)
    arguments, axes = take_axes(arguments)
    methods = {name_of(file): MethodWords(["--config", file], []) for file in words.get("--methods", [])}
    if "--suite" in words:
        methods, common, of_suite = read_suite(words["--suite"][0])
        arguments = [*common, *arguments]
        axes = Axes(**{**of_suite, **{name: values for name, values in axes._asdict().items() if values}})
    if axes == Axes() and not methods:
        if words:
            raise UserError(f"{', '.join(words)} belongs to several runs: add --folds, --shots, --seeds or --methods.")
        from fssbench.cli.running import run_once

        return run_once(verb, arguments)
    if axes.folds == ["all"]:
        from fssbench.cli.running import number_of_folds

        first = next(iter(methods.values()), MethodWords([], []))
        count = number_of_folds([*first.before, *arguments, *first.after])
        axes = axes._replace(folds=[str(fold) for fold in range(count)])
    cells = grid_cells(verb, arguments, methods, axes)
    firsts = cells[:: len(cells) // max(1, len(methods))]  # each method's first run
    return _run_all(verb, cells, firsts, words, results_folder(arguments))


def take_words(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Take the options of the grid itself out of the arguments: each with the words that follow it."""
    several = {"--methods": True, "--slurm": True, "--suite": False, "--launcher": False, "--jobs": False}
    rest: list[str] = []
    taken: dict[str, list[str]] = {}
    current: str | None = None
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in several:
            taken[name] = [value] if equals else []
            current = None if equals and not several[name] else name
        elif current and not argument.startswith("-"):
            taken[current].append(argument)
            current = current if several[current] else None
        else:
            current = None
            rest.append(argument)
    for name, values in taken.items():
        if not values:
            raise UserError(f"{name} needs a value. See `fssbench test --help`.")
    return rest, taken


def take_axes(arguments: list[str]) -> tuple[list[str], Axes]:
    """Take `--folds ...`, `--shots ...` and `--seeds ...` out of the arguments; checks that they are numbers (or `all`)."""
    rest: list[str] = []
    taken: dict[str, list[str]] = {}
    current: str | None = None
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.removeprefix("--") in Axes._fields and name.startswith("--"):
            current = name.removeprefix("--")
            taken[current] = re.split("[, ]+", value) if value else []
        elif current and (
            re.fullmatch(r"all|\d+(,\d+)*", argument) or not (taken[current] or argument.startswith("-"))
        ):
            taken[current] += argument.split(",")
        else:
            current = None
            rest.append(argument)
    for name, values in taken.items():
        valid = (values == ["all"] and name == "folds") or (values and all(v.isdigit() for v in values))
        if not valid:
            example = "all, or numbers such as 0 2" if name == "folds" else "numbers such as 1 5"
            raise UserError(f"--{name} needs {example}; got '{' '.join(values)}'.")
    return rest, Axes(**taken)


def grid_cells(verb: str, arguments: list[str], methods: dict[str, MethodWords], axes: Axes) -> list[Cell]:
    """The runs of a grid: all folds, shots and seeds of one method, then those of the next."""
    empty: list[str | None] = [None]
    cells = []
    for method, seed, fold, shot in product(
        methods or empty, axes.seeds or empty, axes.folds or empty, axes.shots or empty
    ):
        own = methods.get(method or "", MethodWords([], []))
        given = {"method": method, "seed": seed, "fold": fold, "shot": shot}
        words = cell_arguments([*own.before, *arguments, *own.after], given)
        named = [f"{name} {given[name]}" for name in ("fold", "shot", "seed") if given[name] is not None]
        cells.append(Cell(" ".join([*([method] if method else []), *named]), (verb, *words)))
    return cells


def cell_arguments(arguments: list[str], given: Mapping[str, str | None]) -> list[str]:
    """The arguments of one run: `{fold}`, `{shot}`, `{seed}` and `{method}` filled in, and the options that they belong to
    added. Raises `UserError` where one is used that has no value."""
    for name, value in given.items():
        if value is None:
            if any(f"{{{name}}}" in word for word in arguments):
                raise UserError(f"{{{name}}} is used, but --{name}s is not given. Add it, or write the value itself.")
            continue
        arguments = [word.replace(f"{{{name}}}", value) for word in arguments]
        arguments += [OPTIONS[name], value] if name in OPTIONS else []
    return arguments


def _run_all(verb: str, cells: list[Cell], firsts: list[Cell], words: dict[str, list[str]], results: Path) -> int:
    """Run each cell in a process of its own; a failed one does not stop the others. `firsts` are looked at before."""
    jobs = words.get("--jobs", ["1"])[0]
    if not jobs.isdigit():
        raise UserError(f"--jobs needs a number; got '{jobs}'.")
    progress = make_progress(verb, len(cells), int(jobs))
    kind = words.get("--launcher", ["local"])[0]
    alone = kind == "local" and int(jobs) > 1 and all(on_one_device(cell.arguments) for cell in cells)
    launcher = make_launcher(
        kind, int(jobs), slurm_parameters(words.get("--slurm", [])),
        Path("runs") / "slurm", show=not progress.live, gpus=visible_gpus() if alone else (),
    )  # fmt: skip
    if kind == "local":  # other machines may have other folders
        from fssbench.cli.running import refuse_if_none_can_run

        refuse_if_none_can_run(list(cell.arguments[1:]) for cell in firsts)
    failed: dict[str, str] = {}
    with progress:
        for cell, outcome in launcher.run(cells, progress):
            progress.ended(cell, outcome)
            if outcome.state == "failed":
                failed[cell.name] = outcome.message
            if verb == "test":
                _note(results, cell, outcome)
    if verb == "test":
        from fssbench.cli.leaderboard import print_board

        print_board(results)
    else:
        for name, reason in failed.items():
            print(f"fssbench: failed: {name}: {reason}", file=sys.stderr)
    if failed:
        print(f"fssbench: {len(failed)} of {len(cells)} runs failed: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def on_one_device(arguments: Sequence[str]) -> bool:
    """Whether a run does not ask for several devices, in its options or its configs."""
    words = list(arguments)
    trainers = [read_config(find_config(name)).get("trainer") for name in options(words, "--config", "-c")]
    asked = [trainer["devices"] for trainer in trainers if isinstance(trainer, dict) and "devices" in trainer]
    return str(["auto", *asked, *options(words, "--trainer.devices")][-1]) in ("1", "auto")


def _note(results: Path, cell: Cell, outcome: Outcome) -> None:
    """Remember a failed test for the board, until it succeeds."""
    if outcome.state == "failed":
        remember(results, cell.name, cell.arguments, outcome.message)
    elif outcome.state in ("done", "kept"):
        forget(results, cell.arguments)


def slurm_parameters(words: list[str]) -> dict[str, Any]:
    """`KEY=VALUE` words as parameters; numbers become numbers."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--slurm '{word}' is not KEY=VALUE, such as timeout_min=240 or slurm_partition=gpu.")
        found[name] = int(value) if value.isdigit() else value
    return found


def results_folder(arguments: list[str]) -> Path:
    """Where the runs leave their records."""
    return Path(option(arguments, "--results") or "results")


def name_of(config: str) -> str:
    """A method's name from its config."""
    return find_config(config).stem


def option(arguments: list[str], name: str) -> str | None:
    """The last value of `--name VALUE` or `--name=VALUE`."""
    found = options(arguments, name)
    return found[-1] if found else None


def options(arguments: list[str], *names: str) -> list[str]:
    """All values of `--name VALUE` and `--name=VALUE`, for any of the names."""
    found = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and equals:
            found.append(value)
        elif argument in names and position + 1 < len(arguments):
            found.append(arguments[position + 1])
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
