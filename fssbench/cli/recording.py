"""What a run leaves behind: a config and a completion note of a fit, a record of a test, masks of a predict."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info

from fssbench import __version__
from fssbench.checkpoint import completed, without
from fssbench.cli.provenance import data_of, method_config, now, result_key, result_record, unfinished
from fssbench.cli.tracking import log_record
from fssbench.errors import UserError, some
from fssbench.files import require_writable, write_text_whole
from fssbench.images import write_mask
from fssbench.method import FewShotMethod
from fssbench.metrics.square import Square
from fssbench.protocols.profiles import is_base
from fssbench.results.record import Key, ResultRecord, counted_at, read_record
from fssbench.results.store import ResultStore
from fssbench.results.table import EpisodeRow

CONFIG_FILE, NOTE_FILE, CHECKPOINT_FILE = "config.yaml", "run.json", "last.ckpt"
MASKS_FILE = "episodes.jsonl"
"""The manifest beside predicted masks."""
RUN_KEYS = ("ckpt_path", "run_dir", "results", "name", "verbose", "weights_only", "feature_cache", "feature_disk")
"""Config keys that say where things lie, not what is computed."""
LOADING = ("data.init_args.num_workers", "data.init_args.image_memory")
"""Settings of the data that say how images are read, not which."""


class AlreadyDone(Exception):
    """The run exists and is kept; the message says where."""


class RunRecorder(SaveConfigCallback):
    """Writes what a fit or test leaves behind; added to every trainer by the command line."""

    def __init__(self, parser: Any, config: Any, save_to_log_dir: bool, cli: Any) -> None:
        super().__init__(parser, config, save_to_log_dir=save_to_log_dir)
        self.cli = cli
        self.began = time.time()
        self.claim: Callable[[], None] | None = None
        self.keys: dict[Square | None, Key] = {}
        """Of the results that this test makes: at original size (None), and at squares."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the resolved configuration of a fit beside its checkpoint."""
        if stage == "fit":
            text = yaml.safe_dump(self.cli.recorded_config(), sort_keys=False)
            write_text_whole(self.cli.run_dir / CONFIG_FILE, text)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the fit is finished, so that it is not run again."""
        if not trainer.is_global_zero or trainer.interrupted or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        note = {
            "finished": now(),
            "seconds": round(time.time() - self.began, 3),
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "command": sys.argv,
            "code_version": __version__,
        }
        write_text_whole(self.cli.run_dir / NOTE_FILE, json.dumps(note, indent=2) + "\n")
        rank_zero_info(f"trained: {self.cli.run_dir / CHECKPOINT_FILE}")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the scores of `validate` to `on_validation_end`."""
        trainer.validate_loop.verbose = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the scores of `validate`; those of a validation during a fit are in the progress bar and the logs."""
        if self.cli.subcommand == "validate" and trainer.is_global_zero:
            assert isinstance(pl_module, FewShotMethod)
            header = data_of(trainer).val_manifest.header
            which = "base classes" if is_base(header.protocol) else "test episodes"
            print(score_line(f"{header.dataset} {which} of fold {header.fold}, {header.shot}-shot", pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a result that exists: the run ends here if the very same one is in the store."""
        assert isinstance(pl_module, FewShotMethod)
        pl_module.require_trained("test")  # before anything is left in the results folder
        trainer.test_loop.verbose = False
        self.began = time.time()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        for line in unfinished(pl_module):
            rank_zero_info(f"note: {line}")
        self.keys = self.make_keys(trainer, pl_module)
        self._claim(trainer)
        if self.cli_option("overwrite") != "always":
            self._keep_existing(trainer, pl_module)
        if trainer.is_global_zero:
            require_writable(self.store.root, "--results")

    def _keep_existing(self, trainer: Trainer, method: FewShotMethod) -> None:
        """End the run where its result is there, with all that was asked for beside it; refuse where another result has its
        place."""
        store = self.store
        existing = [key for key in self.keys.values() if store.path(key).exists()]
        for key in existing:
            same = holds(store.path(key), key, method.arithmetic)
            if not same or self.cli_option("overwrite") == "never":
                raise UserError(
                    f"{store.path(key)} holds a result {'' if same else 'of other weights, episodes or precision '}already. Use "
                    "--overwrite always to replace it, or --results FOLDER to keep both."
                )
        path = store.path(self.keys[None])
        if len(existing) == len(self.keys) and all(beside(path, o.name).is_file() for o in data_of(trainer).observers):
            raise AlreadyDone(f"kept: {path} holds this very result (--overwrite always runs it again)")

    def _claim(self, trainer: Trainer) -> None:
        """Leave a result alone that another process is computing; the claim ends with this process."""
        store, key = self.store, self.keys[None]
        self.claim = store.claim(key) if trainer.is_global_zero else None
        if not trainer.strategy.broadcast(self.claim is not None):
            raise AlreadyDone(f"elsewhere: another process is computing {store.path(key)}; this one leaves it alone")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give up the claim: the result is there, or this run does not make it."""
        if self.claim:
            self.claim()
            self.claim = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The same after an error, a result that is kept, or Ctrl-C."""
        self.teardown(trainer, pl_module, "test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record and the episode table, if every episode was counted."""
        assert isinstance(pl_module, FewShotMethod)
        if not trainer.is_global_zero:
            return
        key = self.keys[None]
        what = f"{key.dataset} fold {key.fold}, {key.shot}-shot, {len(pl_module.episode_rows)} episodes"
        print(score_line(what, pl_module))
        if not pl_module.complete:
            print("not all episodes were run, so no record is written", file=sys.stderr)
            return
        store = self.store
        made = {
            side: self._result(
                trainer, pl_module, key, pl_module.episode_rows if side is None else pl_module.square_rows[side]
            )
            for side, key in self.keys.items()
        }
        kept = self._kept({side: record for side, (record, _) in made.items()})
        if None not in kept:  # what lies beside a result that is replaced belongs to it
            for old in store.path(key).parent.glob(f"{store.path(key).stem}.*.csv"):
                old.unlink()
        for observer in data_of(trainer).observers:
            print("\n".join(observer.lines()))
            write_text_whole(beside(store.path(key), observer.name), observer.csv())
        for side, (record, rows) in made.items():
            if side in kept:
                continue
            key = record.key
            if side is not None:
                scores = record.scores
                print(
                    f"  at {counted_at(key.resolution)}: mIoU {100 * scores.miou:.2f}  FB-IoU {100 * scores.fb_iou:.2f}"
                )
            path = store.write(record, rows, overwrite=self.cli_option("overwrite") == "always")
            print(f"record: {path}")
            if side is None:
                log_record(trainer.loggers, record, path)

    def _kept(self, made: Mapping[Square | None, ResultRecord]) -> set[Square | None]:
        """The sides whose result is in the store already; raises `UserError` where that has other counts than this run."""
        kept: set[Square | None] = set()
        for side, record in made.items():
            path = self.store.path(record.key)
            if self.cli_option("overwrite") == "always" or not path.exists():
                continue
            if read_record(path).scores != record.scores:
                raise UserError(
                    f"{path} holds a result of the same weights and episodes, but other counts than this run: one of the two was "
                    "made elsewhere or from other data. --overwrite always replaces it, --results FOLDER keeps both."
                )
            kept.add(side)
        return kept

    def _result(
        self, trainer: Trainer, method: FewShotMethod, key: Key, found: Iterable[Mapping[str, Any]]
    ) -> tuple[ResultRecord, list[EpisodeRow]]:
        """The record and the episode table of the rows that a method `found`."""
        rows = [EpisodeRow(**{**row, "support_keys": tuple(row["support_keys"])}) for row in found]
        return result_record(trainer, method, rows, key, self.cli.recorded_config(), self.began), rows

    @property
    def store(self) -> ResultStore:
        """The results folder."""
        return ResultStore(self.cli_option("results"))

    def cli_option(self, name: str) -> Any:
        """A top-level option of the run."""
        return self.cli.config_init[self.cli.subcommand][name]

    def make_keys(self, trainer: Trainer, method: FewShotMethod) -> dict[Square | None, Key]:
        """The identities of this run's results: at original size (None) and at every square of the data module."""
        data = data_of(trainer)
        seed = int(method.training_facts.get("seed", self.cli_option("seed_everything") or 0))
        key = result_key(data.test_manifest, self.cli.run_name, method_config(method), method.weights_sha256(), seed)
        return {None: key, **{side: replace(key, resolution=str(side)) for side in data.squares}}


class PredictionWriter(Callback):
    """Writes each predicted mask as a PNG (0 background, 255 the class) the moment it is there; keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Tell Lightning to keep no masks in memory; take away those of an earlier run: where this one is cut off, what lies
        there must not pass for the masks of either."""
        trainer.predict_loop.return_predictions = False
        pl_module.require_trained("predict")  # before anything is taken away
        if trainer.is_global_zero:
            for old in (self.folder / MASKS_FILE, *self.folder.glob("[0-9]" * 6 + ".png")):
                old.unlink(missing_ok=True)
        trainer.strategy.barrier()  # before another process writes its first mask

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write the masks of one batch as `EPISODE.png`."""
        for number, mask in zip(batch.episode_id.tolist(), outputs, strict=True):
            write_mask(self.folder / f"{number:06d}.png", mask.to(torch.uint8).mul(255).cpu().numpy())

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Write the manifest beside the masks, so that each file's episode is known."""
        if trainer.is_global_zero:
            data_of(trainer).test_manifest.save(self.folder / MASKS_FILE)
            print(f"predictions: {self.folder} (mask N belongs to episode N of {MASKS_FILE})")


def score_line(what: str, method: FewShotMethod) -> str:
    """The scores of the last run, in per cent."""
    assert method.scores is not None
    return f"{what}: mIoU {100 * method.scores['miou']:.2f}  FB-IoU {100 * method.scores['fb_iou']:.2f}"


def unfinished_run(
    run_dir: Path, overwrite: str, config: dict[str, Any], defaults: Mapping[str, Any], neutral: Iterable[str] = ()
) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    defaults  values of options and settings that the version which began the run may not have known
    neutral   settings of the method that may have changed since (`Trainable.neutral_settings`), as may those in `LOADING`

    Raises `AlreadyDone` where the same fit is finished, `UserError` where another one is in the folder.
    """
    checkpoint = run_dir / CHECKPOINT_FILE
    if overwrite == "always" or not checkpoint.exists():
        if (run_dir / NOTE_FILE).exists() and overwrite == "always":
            (run_dir / NOTE_FILE).unlink()
        return None
    if overwrite == "never":
        raise UserError(f"{run_dir} holds a run already. Choose another --run_dir.")
    config_file = run_dir / CONFIG_FILE
    theirs = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    changeable = [*(f"model.init_args.{name}" for name in neutral), *LOADING]
    theirs, config = (without(settings, changeable) for settings in (completed(theirs, config, defaults), config))
    keys = {*theirs, *config} - set(RUN_KEYS)
    different = [name for key in sorted(keys) for name in differing(theirs.get(key), config.get(key), key)]
    if different:
        raise UserError(
            f"{run_dir} holds a run with other settings ({some(different)}). Choose another --run_dir or --name, or "
            f"replace it with --overwrite always."
        )
    if (run_dir / NOTE_FILE).exists():
        raise AlreadyDone(f"kept: {checkpoint} is trained already (--overwrite always trains again)")
    return checkpoint


def beside(path: Path, observer: str) -> Path:
    """The file with an observer's numbers beside a record."""
    return path.with_suffix(f".{observer}.csv")


def differing(one: Any, other: Any, name: str) -> list[str]:
    """The options, as one writes them on the command line, in which two configurations below `name` differ."""
    if one == other:
        return []
    if not (isinstance(one, dict) and isinstance(other, dict)) or one.get("class_path") != other.get("class_path"):
        return [name.replace(".init_args", "")]
    return [part for key in sorted({*one, *other}) for part in differing(one.get(key), other.get(key), f"{name}.{key}")]


def holds(path: Path, key: Key, dtype: str) -> bool:
    """Whether a file of the store is a whole record of this very key, computed in this precision."""
    try:
        record = read_record(path)
        return record.key == key and record.provenance.dtype == dtype and path.with_suffix(".parquet").is_file()
    except UserError:
        return False
