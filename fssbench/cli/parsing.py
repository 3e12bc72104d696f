"""Parsers that find configs by name, know the installed methods and data sets, and answer mistakes in one line."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_info

import datamodules
import methods
from datamodules.episodic import EpisodicDataModule
from fssbench.cli import VERBS
from fssbench.cli.configs import find_config, read_config, told
from fssbench.cli.messages import parse_message, quiet
from fssbench.errors import UserError, user_error_in
from fssbench.protocols.manifest import Manifest


class NamedConfig(ActionConfigFile):
    """`--config NAME`: the file is looked for by `find_config`, and the one taken is printed once in a command."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolve the name, then do what jsonargparse does with a file; errors name the file."""
        path = find_config(str(values))
        read_config(path)
        if path not in told:
            told.add(path)
            rank_zero_info(f"config {values}: {path}")
        try:
            super().__call__(parser, cfg, str(path), option_string)
        except (ArgumentError, TypeError) as error:
            raise UserError(f"{path}: {parse_message(str(error), option_names(parser))}") from None


def new_parser(**kwargs: Any) -> LightningArgumentParser:
    """A parser whose `--config` searches by name, whose errors are exceptions, and which guesses no option."""
    parser = LightningArgumentParser(exit_on_error=False, allow_abbrev=False, **kwargs)
    parser.add_argument("-c", "--config", action=NamedConfig, help="config file or name; may be given several times")
    return parser


def verb_help(verb: str) -> dict[str, str]:
    """Head of a verb's --help."""
    usage = f"fssbench {verb} --config methods/NAME.yaml --config data/NAME.yaml [options]"
    text = f"{VERBS[verb][1]}. Options override configs, later configs override earlier ones. `fssbench list` names "
    text += "the configs; --model.help CLASS and --data.help CLASS explain the options of a method or data set."
    return {"usage": usage, "description": text[0].upper() + text[1:]}


def option_names(parser: Any) -> list[str]:
    """All option strings of a parser."""
    return [name for action in parser._actions for name in action.option_strings]


def instantiated(parser: LightningArgumentParser, arguments: list[str]) -> Any:
    """The objects that the arguments describe, by the parser's keys. Raises `UserError`, in one line, for arguments that the
    parser does not take and for what a constructor refuses."""
    try:
        config = parser.parse_args(arguments)
    except (ArgumentError, TypeError) as error:
        raise UserError(parse_message(str(error), option_names(parser))) from None
    try:
        return parser.instantiate(config)
    except ValueError as error:
        raise user_error_in(error) or error from None


def register_classes() -> None:
    """Import the classes that may be named without their path: shipped ones and those of installed packages. A class
    in the working directory can be named by its path."""
    working_dir = os.getcwd()
    if working_dir not in sys.path:
        sys.path.insert(0, working_dir)
    for package, names in ((methods, methods.__all__), (datamodules, datamodules.__all__)):
        for name in names:
            getattr(package, name)
    for point in entry_points(group="fssbench.methods"):
        point.load()


def configured_data(arguments: list[str]) -> EpisodicDataModule:
    """The data module that `--config data/...` and `--data.*` options describe, without a method or a trainer."""
    quiet()
    register_classes()
    parser = new_parser()
    parser.add_subclass_arguments(EpisodicDataModule, "data", required=True)
    module: EpisodicDataModule = instantiated(parser, arguments).data
    return module


def data_of_manifest(manifest: Manifest, path: Path, arguments: list[str]) -> EpisodicDataModule:
    """The data module of `arguments`, set to the fold, shot and episodes of a manifest file, which are checked against the
    data. Raises `UserError` where the data give other episodes."""
    header = manifest.header
    own = ["--data.fold", str(header.fold), "--data.shot", str(header.shot), "--data.manifest", str(path)]
    data = configured_data([*arguments, *own])
    _ = data.test_manifest  # read and checked now
    return data
