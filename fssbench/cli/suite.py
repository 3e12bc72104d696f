"""A suite: the runs of several methods over folds, shots and seeds, in one small YAML file.

    methods:
      prototype: {config: methods/prototype.yaml}
      comp: {config: methods/comp.yaml, ckpt_path: 'runs/comp/coco20i/fold{fold}/last.ckpt'}
    config: data/coco20i.yaml
    folds: all
    shots: [1, 5]

Every other key is an option of all runs (`results: mine`, `trainer.devices: 1`), below a method's name of its runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fssbench.cli.configs import find_config, read_config
from fssbench.errors import UserError, closest

AXES = ("folds", "shots", "seeds")


class MethodWords(NamedTuple):
    """A method's own arguments: its configs stand before those of all runs, its options after them and win."""

    before: list[str]
    after: list[str]


def read_suite(name: str) -> tuple[dict[str, MethodWords], list[str], dict[str, list[str]]]:
    """The methods' own arguments by name, the arguments of all runs, and the axes of a suite file.

    Raises `UserError` for a file that is no suite.
    """
    path = find_config(name)
    content = read_config(path)
    methods = content.pop("methods", None)
    if not isinstance(methods, dict) or not methods:
        raise UserError(f"{path}: `methods` must hold NAME: {{config: FILE, ...}} for each method.")
    axes = {axis: _values(content.pop(axis), axis, path) for axis in AXES if axis in content}
    own = {}
    for method, options in methods.items():
        if not isinstance(options, dict):
            raise UserError(f"{path}: methods.{method} must hold options such as config: methods/NAME.yaml.")
        configs = {"config": options.pop("config")} if "config" in options else {}
        own[str(method)] = MethodWords(
            arguments_of(configs, path), [*arguments_of(options, path), "--name", str(method)]
        )
    return own, arguments_of(content, path), axes


def _values(value: Any, axis: str, path: Path) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int | str) and not isinstance(v, bool) for v in values):
        raise UserError(f"{path}: `{axis}` must be a number, a list of numbers{' or all' if axis == 'folds' else ''}.")
    return [str(v) for v in values]


def arguments_of(options: dict[str, Any], path: Path) -> list[str]:
    """Options as command-line words; `config` may be a list."""
    words = []
    for key, value in options.items():
        for item in value if key == "config" and isinstance(value, list) else [value]:
            if isinstance(item, dict | list):
                axis = closest(key, AXES)
                hint = f"Did you mean '{axis}'?" if axis else "Write deeper keys with dots, e.g. trainer.devices: 1."
                raise UserError(f"{path}: `{key}` must be one value. {hint}")
            text = {True: "true", False: "false", None: "null"}[item] if isinstance(item, bool | None) else str(item)
            words += [f"--{key}", text]
    return words
