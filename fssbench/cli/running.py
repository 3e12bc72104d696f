"""One run of fit, validate, test or predict in this process, or only a look at the configuration that it would have."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing import ProcessRaisedException

from datamodules.episodic import EpisodicDataModule
from fssbench.cli.messages import quiet
from fssbench.cli.recording import AlreadyDone
from fssbench.cli.trainer import FssbenchCLI, data_module
from fssbench.errors import UserError

TERMINATED = 143
"""Exit status after SIGTERM, as a shell reports it."""


def run_once(verb: str, arguments: list[str]) -> int:
    """One run in this process."""
    quiet()
    try:
        FssbenchCLI([verb, *arguments])
    except AlreadyDone as done:
        rank_zero_info(str(done))
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise out_of_memory(verb, str(error)) from error
    except ProcessRaisedException as error:
        return of_another_process(verb, error)
    except SIGTERMException:  # a SystemExit without a code, which would read as success
        print("fssbench: terminated; the run is not finished and goes on when it is started again.", file=sys.stderr)
        return TERMINATED
    except SystemExit as stop:
        # Lightning ends with status 1 after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return int(stop.code or 0) if isinstance(stop.code, int) or stop.code is None else 2
    return 0


def of_another_process(verb: str, error: ProcessRaisedException) -> int:
    """What a forked or spawned process raised, which arrives here as the text of its traceback."""
    kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
    name = kind.rpartition(".")[2]
    if name == AlreadyDone.__name__:
        rank_zero_info(message)
        return 0
    if name in (UserError.__name__, MisconfigurationException.__name__):
        raise UserError(message) from None
    if name == torch.OutOfMemoryError.__name__:
        raise out_of_memory(verb, message) from None
    if name == KeyboardInterrupt.__name__:
        raise KeyboardInterrupt from None
    raise error


def out_of_memory(verb: str, message: str) -> UserError:
    """What to do where the memory of a GPU was too small, from torch's own message."""
    what = ". ".join(message.split(". ")[:2]).rstrip(".")  # what was asked for; then come advice and statistics
    remedy = (
        "a smaller --data.batch_size (with --trainer.accumulate_grad_batches for as many episodes per step), or the "
        "method's option to recompute (docs/speed.md, Training)"
        if verb == "fit"
        else "--data.eval_batch_size 1, or a --feature_cache of a few MiB, which also encodes fewer images at once"
    )
    return UserError(f"{what}. Give {remedy}; or another GPU with CUDA_VISIBLE_DEVICES.")


def number_of_folds(arguments: list[str]) -> int:
    """The folds of the configured data set (1 for data without folds); checks the whole configuration on the way,
    before any run starts."""
    module = data_module(checked_config(arguments)["data"])
    return module.number_of_folds() if isinstance(module, EpisodicDataModule) else 1


def refuse_if_none_can_run(runs: Iterable[list[str]]) -> None:
    """Look at the configuration and the data folder of several runs before the first one starts. Raises the first
    one's `UserError` where all have one; where some are good, the others are left to fail by themselves."""
    problems: list[UserError] = []
    for arguments in runs:
        try:
            module = data_module(checked_config(arguments)["data"])
            if isinstance(module, EpisodicDataModule):
                _ = module.dataset
        except UserError as error:
            problems.append(error)
        else:
            return
    if problems:
        raise problems[0]


def checked_config(arguments: list[str]) -> Namespace:
    """The whole configuration that the options of a run describe. Raises `UserError` where it is none."""
    quiet()
    return ParseOnly(drop_option(arguments, "--ckpt_path")).config


class ParseOnly(FssbenchCLI):
    """Parses and checks a configuration without making anything of it."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments, run=False)

    def instantiate_classes(self) -> None:
        """Nothing is made."""

    def after_instantiate_classes(self) -> None:
        """Nothing was made."""


def drop_option(arguments: list[str], name: str) -> list[str]:
    """The arguments without `--name VALUE` and `--name=VALUE`."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument == name:
            skip = True
        elif not argument.startswith(f"{name}="):
            kept.append(argument)
    return kept
