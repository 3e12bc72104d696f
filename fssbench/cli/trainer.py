"""One run of fit, validate, test or predict: a LightningCLI with config search, run folders and a checkpoint guard."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

import datamodules
import methods
from datamodules.episodic import EpisodicDataModule
from fssbench.checkpoint import checkpoint_mismatch, class_path
from fssbench.cli.configs import find_config
from fssbench.cli.grid import config_names
from fssbench.cli.recording import AlreadyDone, PredictionWriter, RunRecorder, unfinished_run
from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.weights import load_plain
from fssbench.errors import UserError
from fssbench.method import FewShotMethod

Overwrite = Literal["only-missing", "always", "never"]


class NamedConfig(ActionConfigFile):
    """`--config NAME`: the file is looked for by `find_config`, and the one taken is printed."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Resolve the name, then do what jsonargparse does with a file."""
        path = find_config(str(values))
        rank_zero_info(f"config {values}: {path}")
        super().__call__(parser, cfg, str(path), option_string)


class FssbenchCLI(LightningCLI):
    """Methods and data modules by class path; one run folder per run."""

    def __init__(self, arguments: list[str], run: bool = True) -> None:
        register_classes()
        super().__init__(
            model_class=FewShotMethod,
            datamodule_class=EpisodicDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecorder,
            save_config_kwargs={"save_to_log_dir": False},
            # our sampler shards the episodes: Lightning's would count some twice
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
            run=run,
        )

    # -- parsing --------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` searches by name and whose errors are exceptions."""
        parser = LightningArgumentParser(**{"exit_on_error": False, **kwargs})
        parser.add_argument(
            "-c", "--config", action=NamedConfig, help="config file or name; may be given several times"
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where results go, and what to do with those that exist."""
        parser.add_argument("--name", type=str | None, default=None, help="method name on the board and in run_dir")
        parser.add_argument("--run_dir", type=str | None, default=None, help="default: runs/NAME/DATA/foldF")
        parser.add_argument("--results", type=str, default="results", help="results folder of `test`")
        parser.add_argument(
            "--overwrite",
            type=Overwrite,
            default="only-missing",
            help="what exists is kept (only-missing), made again (always) or an error (never)",
        )

        parser.add_argument(
            "--feature_cache", type=float, default=1024, help="memory for frozen features, MiB; 0 = off"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what jsonargparse has to say becomes one line."""
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError) as error:
            raise UserError(parse_message(str(error))) from None

    def _parse_ckpt_path(self) -> None:
        """Do not merge a checkpoint's hyper-parameters over config and flags, as Lightning would: the guard is
        `check_checkpoint`. (The one non-public method of Lightning that is overridden.)"""

    def before_instantiate_classes(self) -> None:
        """Name the run and its folder."""
        config = self._own(self.config)
        for key, hint in (("model", "methods/comp.yaml"), ("data", "data/shapes.yaml")):
            if not config.get(key):
                raise UserError(f"No {key} is configured. Add --config {hint} (see `fssbench list`), or --{key} CLASS.")
        files = [str(path) for path in config.get("config") or []]
        method, data = config_names(files)
        init = config["data"].init_args
        self.run_name = config.get("name") or method or config["model"].class_path.rsplit(".", 1)[-1].lower()
        self.data_name = data or config["data"].class_path.rsplit(".", 1)[-1].lower()
        if not re.fullmatch(r"[\w.+-]+", self.run_name):
            raise UserError(f"--name may hold letters, digits and . _ + - only, not '{self.run_name}'.")
        fold = f"fold{init.fold}" + (f"_shot{init.shot}" if init.shot != 1 else "")
        fold += f"_seed{config['seed_everything']}" if config["seed_everything"] else ""
        default = Path("runs") / self.run_name / self.data_name / fold
        self.run_dir = Path(config.get("run_dir") or default)

    def _own(self, config: Any) -> Any:
        return config[self.subcommand] if self.subcommand else config

    def after_instantiate_classes(self) -> None:
        """Give the method its feature cache."""
        self.model.cache = FeatureCache(self._own(self.config_init)["feature_cache"])

    # -- making the trainer ---------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer with loggers and a checkpoint in the run folder."""
        config = self._own(self.config_init)["trainer"]
        callbacks = as_list(config.get("callbacks"))
        recorder = {"cli": self}
        self.save_config_kwargs = {**self.save_config_kwargs, **recorder}
        if self.subcommand == "fit":
            if config.get("logger") is not False:
                chosen = config.get("logger")
                kwargs["logger"] = default_loggers(self.run_dir) + ([] if chosen in (None, True) else as_list(chosen))
            if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
                callbacks.append(last_checkpoint(self.run_dir))
        else:
            kwargs["enable_checkpointing"] = False
            if config.get("logger") in (None, True):
                kwargs["logger"] = False
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(self.run_dir / "predictions"))
        return super().instantiate_trainer(
            default_root_dir=str(config.get("default_root_dir") or self.run_dir), callbacks=callbacks, **kwargs
        )

    # -- running --------------------------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Keep, continue or refuse a run that exists."""
        self.check_checkpoint()
        own = self._own(self.config_init)
        if own.get("ckpt_path"):
            return
        checkpoint = unfinished_run(self.run_dir, own["overwrite"], self.recorded_config())
        if checkpoint:
            rank_zero_info(f"going on with the unfinished run in {self.run_dir} (--overwrite always starts anew)")
            own["ckpt_path"] = str(checkpoint)

    def before_validate(self) -> None:
        """Check the checkpoint before anything runs."""
        self.check_checkpoint()

    before_test = before_predict = before_validate

    def check_checkpoint(self) -> None:
        """Refuse a missing, damaged or foreign checkpoint, and one of another method or other settings."""
        path = self._own(self.config_init).get("ckpt_path")
        if path is None or path in ("last", "best", "hpc", "registry"):
            return
        hint = "Train one with `fssbench fit`, or give another --ckpt_path."
        checkpoint = load_plain(path, "Checkpoint", hint)
        if not isinstance(checkpoint, dict):
            raise UserError(f"{path} holds no checkpoint. {hint}")
        settings, free = self.model.settings(), self.model.free_settings
        problem = checkpoint_mismatch(checkpoint.get("fssbench"), class_path(type(self.model)), settings, free)
        if problem:
            raise UserError(f"{path}: {problem}")

    def recorded_config(self) -> dict[str, Any]:
        """The whole resolved configuration as plain values, for records and run folders."""
        import yaml

        dumped = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        content: dict[str, Any] = yaml.safe_load(dumped)
        content = content[self.subcommand] if self.subcommand else content
        return {key: value for key, value in content.items() if key not in ("config", "overwrite")}


def register_classes() -> None:
    """Import the classes that may be named without their path: shipped ones and those of installed packages."""
    for package, names in ((methods, methods.__all__), (datamodules, datamodules.__all__)):
        for name in names:
            getattr(package, name)
    for point in entry_points(group="fssbench.methods"):
        point.load()


def run_once(verb: str, arguments: list[str]) -> int:
    """One run in this process."""
    quiet()
    working_dir = os.getcwd()
    if working_dir not in sys.path:
        sys.path.insert(0, working_dir)  # a method in the user's own folder can be named by its class path
    try:
        FssbenchCLI([verb, *arguments])
    except AlreadyDone as done:
        rank_zero_info(str(done))
    except SystemExit as stop:
        # Lightning ends with status 1 after Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return int(stop.code or 0) if isinstance(stop.code, int) or stop.code is None else 2
    return 0


def number_of_folds(arguments: list[str]) -> int:
    """The folds of the configured data set; checks the whole configuration on the way, before any run starts."""
    quiet()
    cli = _ParseOnly(drop_option(drop_option(arguments, "--ckpt_path"), "--return_predictions"))
    data = cli.config["data"]
    package, _, name = data.class_path.rpartition(".")
    module: EpisodicDataModule = getattr(import_module(package), name)(**data.init_args.as_dict())
    return module.number_of_folds()


class _ParseOnly(FssbenchCLI):
    """Parses and checks a configuration without making anything of it."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments, run=False)

    def instantiate_classes(self) -> None:
        """Nothing is made."""


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


def default_loggers(run_dir: Path) -> list[Logger]:
    """CSV and TensorBoard files in the run folder."""
    where: dict[str, Any] = {"save_dir": str(run_dir), "name": "", "version": ""}
    return [CSVLogger(**where), TensorBoardLogger(**where)]


def last_checkpoint(run_dir: Path) -> ModelCheckpoint:
    """`last.ckpt` after each epoch: nothing is selected, so nothing is selected on test classes."""
    return ModelCheckpoint(
        dirpath=str(run_dir), filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )


def as_list(value: Any) -> list[Any]:
    """None, one or several things as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def quiet() -> None:
    """Silence notices that are not for the user of a benchmark."""
    logging.getLogger("lightning.pytorch").addFilter(_no_tips)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_tips)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*isinstance.*",
    ):
        warnings.filterwarnings("ignore", message=text)


def _no_tips(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not text.startswith(("💡", "Seed set", "GPU available", "TPU available", "HPU available", "`Trainer.fit`"))


def parse_message(text: str) -> str:
    """jsonargparse's message as one line: the key, what is wrong with it, and the nearest valid name."""
    flat = " ".join(text.split())
    unknown = re.search(
        r"[Nn]o action for key [\"'](?:\w+\.)?([\w.]+)[\"']|[Kk]ey [\"']([\w.]+)[\"'] is not expected", flat
    )
    if unknown:
        return f"{flat} Check the spelling; `fssbench fit --config ... --print_config` shows all keys."
    return flat


def configured_data(arguments: list[str]) -> EpisodicDataModule:
    """The data module that `--config data/...` and `--data.*` options describe, without a method or a trainer."""
    quiet()
    register_classes()
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("-c", "--config", action=NamedConfig, help="config file or name; may be given several times")
    parser.add_subclass_arguments(EpisodicDataModule, "data", required=True)
    try:
        config = parser.parse_args(arguments)
    except (ArgumentError, TypeError) as error:
        raise UserError(parse_message(str(error))) from None
    if not config.get("data"):
        raise UserError("No data are configured. Add --config data/NAME.yaml (see `fssbench list datasets`).")
    module: EpisodicDataModule = parser.instantiate_classes(config).data
    return module
