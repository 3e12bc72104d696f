"""The LightningCLI behind fit, validate, test and predict: config search, run folders and a checkpoint guard."""

from __future__ import annotations

import operator
import re
from functools import cached_property, reduce
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar, TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter as CSVExperimentWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from datamodules.episodic import EpisodicDataModule
from fssbench.checkpoint import checkpoint_mismatch, class_path
from fssbench.cli.grid import config_names
from fssbench.cli.messages import parse_message
from fssbench.cli.parsing import new_parser, option_names, register_classes, verb_help
from fssbench.cli.recording import PredictionWriter, RunRecorder, unfinished_run
from fssbench.cli.run_help import grid_text, run_option_texts
from fssbench.cli.selection import BestCheckpoint
from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.compiled import CompileMode
from fssbench.encoders.store import FeatureStore, StoredType
from fssbench.encoders.weights import load_plain
from fssbench.errors import UserError, user_error_in
from fssbench.files import features_folder
from fssbench.method import FewShotMethod
from fssbench.trainable import Trainable

RUN_GROUP = "run"
METRICS_FILE = CSVExperimentWriter.NAME_METRICS_FILE
Overwrite = Literal["only-missing", "always", "never"]
SEES_NOVEL = ("in-domain", "generalist")
"""Tracks of methods that may have been trained on the tested classes: elsewhere, such a checkpoint is refused."""
OTHER_WEIGHTS = ("64", "64-true", "16-true", "bf16-true")
"""Precisions in which Lightning converts the weights, and would convert a batch's masks and ids too."""
RUN_OPTION_TYPES: dict[str, tuple[Any, Any]] = {
    "name": (str | None, None),
    "run_dir": (str | None, None),
    "results": (str, "results"),
    "overwrite": (Overwrite, "only-missing"),
    "feature_cache": (float, 1024),
    "feature_disk": (float, 0),
    "feature_dtype": (StoredType, "float32"),
    "compile_encoder": (CompileMode, "no"),
}
"""fssbench's own options of a run: type and default (their texts are in `run_help.RUN_OPTIONS`)."""


def integers_first(hints: dict[str, Any]) -> None:
    """Put int before float in type hints that allow both.

    `Trainer(limit_test_batches=1)` is one batch, 1.0 all of them, and a parser takes the first type that fits. `typing`
    remembers unions regardless of their order, so what was imported before would decide which that is.
    """
    for name, hint in hints.items():
        kinds = get_args(hint)
        if {int, float} <= set(kinds):
            hints[name] = reduce(operator.or_, sorted(kinds, key=lambda kind: kind is not int))


integers_first(Trainer.__init__.__annotations__)


class FssbenchCLI(LightningCLI):
    """Methods and data modules by class path; one run folder per run.

    Args:
        arguments: verb and options, as words.
        run: False = only make method, data module and trainer; the arguments then have no verb, and may be the values of a
            configuration instead of words.
    """

    def __init__(self, arguments: list[str] | dict[str, Any], run: bool = True) -> None:
        register_classes()
        self._verb = arguments[0] if run and isinstance(arguments, list) else None
        super().__init__(
            model_class=Trainable,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecorder,
            save_config_kwargs={"save_to_log_dir": False},
            # our sampler shards the episodes: Lightning's would count some twice
            trainer_defaults={"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_kwargs={verb: verb_help(verb) for verb in self.subcommands()} if run else {},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arguments,
            run=run,
        )

    # -- parsing --------------------------------------------------------------------------------------------------

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose `--config` searches by name and whose errors are exceptions."""
        parser = new_parser(**kwargs)
        # made here, so that --help shows them above the trainer's
        parser.add_argument_group("where the run goes", name=RUN_GROUP)
        parser.add_argument_group("several runs, one process each", grid_text())
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Where results go, and what to do with those that exist."""
        assert parser.groups is not None
        texts = run_option_texts()
        for name, (kind, default) in RUN_OPTION_TYPES.items():
            parser.groups[RUN_GROUP].add_argument(f"--{name}", type=kind, default=default, help=texts[name])

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """The verb that runs (making the parsers of all takes a second), and the arguments of Trainer's method that are
        not offered: the data come from `data`, scores are printed once, masks are written and not kept, and a checkpoint
        is never allowed to hold code."""
        taken = {"model", "datamodule", "verbose", "return_predictions", "weights_only"}
        verbs = LightningCLI.subcommands()
        return {verb: taken | verbs[verb] for verb in verbs if self._verb in (verb, None)}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; what jsonargparse has to say becomes one line."""
        try:
            self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)
        except (ArgumentError, TypeError) as error:
            verb = self._verb if self._verb in self.subcommands() else None
            raise UserError(parse_message(str(error), option_names(self._parser(verb)))) from None

    def _parse_ckpt_path(self) -> None:
        """Do not merge a checkpoint's hyper-parameters over config and flags, as Lightning would: the guard is
        `check_checkpoint`. (The one non-public method of Lightning that is overridden.)"""

    def before_instantiate_classes(self) -> None:
        """Name the run and its folder."""
        config = self._own(self.config)
        files = [str(path) for path in config.get("config") or []]
        method, data = config_names(files)
        init = config["data"].init_args
        self.run_name = config.get("name") or method or config["model"].class_path.rsplit(".", 1)[-1].lower()
        self.data_name = data or config["data"].class_path.rsplit(".", 1)[-1].lower()
        if not re.fullmatch(r"[\w.+-]+", self.run_name):
            raise UserError(f"--name may hold letters, digits and . _ + - only, not '{self.run_name}'.")
        parts = [f"fold{init.fold}"] if "fold" in init else []  # images without classes have no folds
        parts += [f"shot{init.shot}"] if init.get("shot", 1) != 1 else []
        parts += [f"seed{config['seed_everything']}"] if config["seed_everything"] else []
        default = Path("runs") / self.run_name / self.data_name / "_".join(parts)
        self.run_dir = Path(config.get("run_dir") or default)

    def _own(self, config: Any) -> Any:
        return config[self.subcommand] if self.subcommand else config

    def instantiate_classes(self) -> None:
        """Make method, data module and trainer. The data come first: a wrong folder, or a class with too few images, is told
        at once, not after weights were downloaded."""
        try:
            first = data_module(self._own(self.config)["data"])
            if isinstance(first, EpisodicDataModule) and self.subcommand:
                first.read(self.subcommand)
            self._check_class_of_checkpoint()
            super().instantiate_classes()
        except ValueError as error:
            raise user_error_in(error) or error from None
        if isinstance(first, EpisodicDataModule):
            self.datamodule.take(first)  # it may have read every mask: once is enough

    def after_instantiate_classes(self) -> None:
        """Refuse what does not go together, and give a method its feature cache."""
        name = class_path(type(self.model))
        if self.subcommand and self.subcommand not in self.model.verbs:
            raise UserError(
                f"{name} can only be run with {' and '.join(self.model.verbs)}, not with {self.subcommand}."
            )
        if getattr(self.datamodule, "gives", self.model.reads) != self.model.reads:
            example = {"episodes": "data/shapes.yaml", "images": "data/images.yaml"}[self.model.reads]
            raise UserError(
                f"{name} is trained on {self.model.reads}, {class_path(type(self.datamodule))} gives "
                f"{self.datamodule.gives}. Use --config {example}."
            )
        if isinstance(self.model, FewShotMethod):
            own = self._own(self.config_init)
            disk, dtype = own["feature_disk"], own["feature_dtype"]
            store = FeatureStore(features_folder(), disk, dtype) if disk else None
            self.model.cache = FeatureCache(own["feature_cache"], store=store)
            self.model.compile_encoder = own["compile_encoder"]

    # -- making the trainer ---------------------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer with loggers and a checkpoint in the run folder."""
        config = self._own(self.config_init)["trainer"]
        if str(config.get("precision")) in OTHER_WEIGHTS:
            raise UserError(
                f"trainer.precision {config['precision']} changes the type of the weights themselves, which no method here is "
                "made for. Use 32-true, bf16-mixed or 16-mixed."
            )
        callbacks = as_list(config.get("callbacks"))
        self.save_config_kwargs = {**self.save_config_kwargs, "cli": self}
        if self.subcommand == "fit":
            if config.get("logger") is not False:
                chosen = config.get("logger")
                kwargs["logger"] = default_loggers(self.run_dir) + ([] if chosen in (None, True) else as_list(chosen))
            if not any(isinstance(c, ModelCheckpoint) for c in callbacks):
                callbacks.append(last_checkpoint(self.run_dir))
            label = self.datamodule.selection_label
            if label is not None:
                callbacks.append(BestCheckpoint(self.run_dir, label))
        else:
            kwargs["enable_checkpointing"] = False
            if config.get("logger") in (None, True):
                kwargs["logger"] = False
            if self.subcommand == "predict":
                callbacks.append(PredictionWriter(self.run_dir / "predictions"))
        on_cuda = config.get("accelerator") in (None, "auto", "gpu", "cuda") and torch.cuda.is_available()
        if on_cuda and config.get("enable_progress_bar") is not False:
            callbacks += progress_bar_on_cuda(callbacks)
        kwargs["default_root_dir"] = str(config.get("default_root_dir") or self.run_dir)
        kwargs |= self._settings_of_the_method(config)
        torch.backends.cudnn.allow_tf32 = (
            False  # by default a GPU rounds convolutions: "float32" in a record is float32
        )
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            remedy = "Correct the trainer part of the configuration."
            if config.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
                remedy = (
                    "torch finds no GPU here (`fssbench doctor` says why): leave trainer/gpu.yaml out to use the CPU."
                )
            raise UserError(f"trainer: {error} {remedy}") from error

    def _settings_of_the_method(self, config: Any) -> dict[str, Any]:
        """What the method's own settings say about the trainer; a flag that says otherwise is an error."""
        settings = self.model.trainer_settings()
        for name, value in settings.items():
            if config.get(name) not in (None, 0, value):
                raise UserError(
                    f"trainer.{name} is {config[name]}, but the settings of {class_path(type(self.model))} make it {value}. "
                    f"Leave trainer.{name} out."
                )
        return settings

    # -- running --------------------------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Refuse a method that says nothing about training; keep, continue or refuse a run that exists."""
        if type(self.model).configure_optimizers is LightningModule.configure_optimizers:
            raise UserError(
                f"{class_path(type(self.model))} has no configure_optimizers, so there is nothing to fit. Run `fssbench test` with it "
                "right away, or return its optimiser there."
            )
        self.check_checkpoint()
        own = self._own(self.config_init)
        self._check_end(own["trainer"])
        if own.get("ckpt_path"):
            return
        defaults: dict[str, Any] = {name: default for name, (_, default) in RUN_OPTION_TYPES.items()}
        defaults["model"] = {"init_args": self.model.default_settings()}
        neutral = self.model.neutral_settings
        checkpoint = unfinished_run(self.run_dir, own["overwrite"], self.recorded_config(), defaults, neutral)
        if checkpoint:
            rank_zero_info(f"going on with the unfinished run in {self.run_dir} (--overwrite always starts anew)")
            keep_metrics(self.run_dir)
            own["ckpt_path"] = str(checkpoint)

    def _check_end(self, trainer: Any) -> None:
        """Refuse a training without an end: Lightning would take 1000 epochs."""
        ends = {**trainer, **self.model.trainer_settings()}
        if ends.get("max_epochs") is None and ends.get("max_steps", -1) == -1 and not (
            ends.get("max_time") or ends.get("fast_dev_run") or not getattr(self.model, "needs_checkpoint", True)
        ):  # fmt: skip
            raise UserError(
                "fit has no end: neither trainer.max_epochs nor trainer.max_steps is given. Add --trainer.max_epochs N, such "
                "as 20 on COCO-20i."
            )

    def before_validate(self) -> None:
        """Check the checkpoint before anything runs."""
        self.check_checkpoint()

    before_test = before_predict = before_validate

    def check_checkpoint(self) -> None:
        """Refuse a missing, damaged or foreign checkpoint, one of another method or other settings, and one whose training has
        seen the classes that are novel here."""
        path = self._own(self.config).get("ckpt_path")
        if path is None:
            return
        facts = self._checkpoint_facts
        problem = self.model.checkpoint_problem(facts)
        if facts is not None and problem is None and isinstance(self.datamodule, EpisodicDataModule):
            problem = self.datamodule.training_problem(facts.get("training", {}), goes_on=self.subcommand == "fit")
            if problem and self.subcommand != "fit" and self.model.metadata().get("track") in SEES_NOVEL:
                problem = None
        if problem:
            raise UserError(f"{path}: {problem}")

    def _check_class_of_checkpoint(self) -> None:
        """The part of `check_checkpoint` that needs no method, which may have to download weights first."""
        own = self._own(self.config)
        path = own.get("ckpt_path")
        if path is None:
            return
        facts = self._checkpoint_facts
        package, _, name = own["model"].class_path.rpartition(".")
        settings = facts["settings"] if facts else {}
        problem = checkpoint_mismatch(facts, class_path(getattr(import_module(package), name)), settings)
        if problem:
            raise UserError(f"{path}: {problem}")

    @cached_property
    def _checkpoint_facts(self) -> dict[str, Any] | None:
        return checkpoint_facts(self._own(self.config)["ckpt_path"])

    def recorded_config(self) -> dict[str, Any]:
        """The whole resolved configuration as plain values, for records and run folders."""
        import yaml

        dumped = self.parser.dump(
            self.config, skip_link_targets=False, skip_unset=False, skip_validation=True, format="yaml"
        )
        content: dict[str, Any] = yaml.safe_load(dumped)
        content = content[self.subcommand] if self.subcommand else content
        return {key: value for key, value in content.items() if key not in ("config", "overwrite")}


def data_module(config: Any) -> LightningDataModule:
    """The data module of a parsed configuration, made without method and trainer."""
    package, _, name = config.class_path.rpartition(".")
    module: LightningDataModule = getattr(import_module(package), name)(**config.init_args.as_dict())
    return module


def checkpoint_facts(path: str) -> dict[str, Any] | None:
    """What a checkpoint says about its method; None where fssbench did not make it. Raises `UserError` where there is no
    checkpoint, or a damaged one."""
    hint = "Train one with `fssbench fit`, or give another --ckpt_path."
    content = load_plain(path, "Checkpoint", hint)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no checkpoint. {hint}")
    return content.get("fssbench")


def progress_bar_on_cuda(callbacks: list[Callback]) -> list[Callback]:
    """A progress bar that shows the loss of every tenth step, where there is none among the callbacks: to show it the GPU is
    waited for, and by default that would be after each step."""
    return [] if any(isinstance(c, ProgressBar) for c in callbacks) else [TQDMProgressBar(refresh_rate=10)]


def default_loggers(run_dir: Path) -> list[Logger]:
    """CSV and TensorBoard files in the run folder."""
    where: dict[str, Any] = {"save_dir": str(run_dir), "name": "", "version": ""}
    return [CSVLogger(**where), TensorBoardLogger(**where)]


def last_checkpoint(run_dir: Path) -> ModelCheckpoint:
    """`last.ckpt` after each epoch: nothing is selected, so nothing is selected on test classes."""
    return ModelCheckpoint(
        dirpath=str(run_dir), filename="last", enable_version_counter=False, save_on_train_epoch_end=True
    )


@rank_zero_only
def keep_metrics(run_dir: Path) -> None:
    """Rename the metrics of an interrupted fit to metrics_1.csv, metrics_2.csv, ...: the CSV logger deletes its file."""
    if (run_dir / METRICS_FILE).exists():
        number = len(list(run_dir.glob("metrics_*.csv"))) + 1
        (run_dir / METRICS_FILE).rename(run_dir / f"metrics_{number}.csv")


def as_list(value: Any) -> list[Any]:
    """None, one or several things as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
