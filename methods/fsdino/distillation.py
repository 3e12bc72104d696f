"""Stage 1 of FS-DINO: the adapter learns SAM's image embedding from early DINOv2 tokens, coarse to fine (fsdino.md 3.1)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors.torch
import torch
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torchmetrics import MeanMetric

from fssbench.encoders.sam import SAM_FILES, SamEncoder, check_variant
from fssbench.encoders.vit import ViTEncoder
from fssbench.errors import UserError
from fssbench.files import write_text_whole, written_whole
from fssbench.trainable import Trainable
from fssbench.unlabelled import ImageBatch
from methods.fsdino.adapter import FACTS_KEY, Adapter, AdapterConfig
from methods.fsdino.alignment import DistillationScores, distillation_loss, down_to
from methods.fsdino.module import warmup_cosine
from methods.fsdino.stages import DistillConfig, Schedule, Stage
from methods.fsdino.teacher import Share, teacher_features

ADAPTER_FILE, REPORT_FILE = "adapter.safetensors", "distillation.json"


class Distillation(Trainable):
    """Trains FS-DINO's adapter to give SAM's image embedding, without labels; `adapter_weights` of FSDINO takes the result.

    All stages run in one `fit`: epoch e of the trainer belongs to the stage that `distill.epochs` says, so a stage's own
    epoch counter is the distance from its first epoch and cannot be carried over. A stage ends with its best weights
    (lowest validation loss) in the adapter and on disk; the next begins from them with a new optimiser, a new schedule
    and no best loss. Since all of this happens at fixed epochs, a checkpoint of any epoch is enough to go on from.

    The run folder gets `adapter.safetensors`, `adapter_126px.safetensors`, ... of the earlier stages, and
    `distillation.json` with the validation scores of each stage.

    arXiv 2504.15669; not a reproduction of its training, of which only loss, teacher, images and resolutions are known.

    Args:
        backbone: timm name of a plain vision transformer.
        backbone_weights: `hub` (timm's download), `random`, or the path of a weight file.
        apply_final_norm: apply the encoder's final norm to the tokens of every block that is used.
        pos_embed_resize: resize position embeddings as the `original` DINOv2 does, or as `timm` does.
        teacher: SAM's image encoder: `vit_h`, `vit_l`, `vit_b`, or `from_weights` for a smaller one of its shape.
        teacher_weights: SAM's original checkpoint: a path, or a file name in `FSSBENCH_WEIGHTS` (default
            `~/.cache/fssbench/weights`); `random` leaves it untrained, to measure speed.
        width: channels of the teacher's embedding (256 for SAM).
        cache_dir: folder for the teacher's features; null: `teacher` in the cache folder (`FSSBENCH_CACHE`).
        teacher_batch: images per pass through the teacher.
        adapter: settings of the adapter, as FSDINO will have them.
        distill: settings of the stages and of the optimiser.
    """

    reads: ClassVar[Literal["episodes", "images"]] = "images"
    verbs: ClassVar[tuple[str, ...]] = ("fit",)
    free_settings: ClassVar[tuple[str, ...]] = (*Trainable.free_settings, "teacher_weights")
    neutral_settings: ClassVar[tuple[str, ...]] = ("cache_dir", "teacher_batch")

    def __init__(
        self,
        backbone: str = "vit_base_patch14_dinov2.lvd142m",
        backbone_weights: str = "hub",
        apply_final_norm: bool = True,
        pos_embed_resize: Literal["original", "timm"] = "original",
        teacher: str = "vit_h",
        teacher_weights: str = SAM_FILES["vit_h"],
        width: int = 256,
        cache_dir: str | None = None,
        teacher_batch: int = 4,
        adapter: AdapterConfig = AdapterConfig(),  # noqa: B008 (frozen: safe to share)
        distill: DistillConfig = DistillConfig(),  # noqa: B008
    ) -> None:
        super().__init__()
        check_variant(teacher, teacher_weights)
        self.teacher, self.teacher_weights, self.width = teacher, teacher_weights, width
        self.cache_dir, self.teacher_batch = cache_dir, teacher_batch
        self.config = distill
        self.encoder = ViTEncoder(
            backbone,
            backbone_weights,
            max(distill.resolutions, default=None),
            (adapter.block,),
            final_norm=apply_final_norm,
            pos_embed_resize=pos_embed_resize,
        )
        self.schedule = Schedule(distill, self.encoder.patch_size)
        self.adapter = Adapter(self.encoder.embed_dim, width, adapter)
        self.metric = DistillationScores(width)
        self.loss_metric = MeanMetric(nan_strategy=math.inf)  # by default it leaves out batches whose loss is nan
        self.best: dict[str, Tensor] | None = None
        """The adapter's best weights of this stage so far, on the CPU; None before its first validation."""
        self.best_loss = math.inf
        self.best_scores: dict[str, Any] = {}
        self.reports: list[dict[str, Any]] = []
        """Scores of each finished stage."""
        self.teacher_sha256 = ""
        self._first_epoch = 0  # of this process; Lightning restores its own counter after the optimiser is made

    # -- stages ---------------------------------------------------------------------------------------------------

    def trainer_settings(self) -> dict[str, Any]:
        """The trainer runs all stages to their end, and asks for loaders of another resolution as they come."""
        return {"max_epochs": self.schedule.total, "max_steps": -1, "reload_dataloaders_every_n_epochs": 1}

    @property
    def stage(self) -> Stage:
        """The stage that is trained now."""
        return self.schedule.at(max(self.trainer.current_epoch, self._first_epoch))

    @property
    def image_size(self) -> int:
        """Side in pixels of the student's input, which the data module asks for whenever it makes a loader."""
        return self.stage.resolution

    @property
    def batch_size(self) -> int:
        """Images per step and process, which the data module asks for whenever it makes a loader."""
        return self.stage.batch

    def setup(self, stage: str) -> None:
        """Compute the teacher's features that are not on disk yet, and hand them to the data module.

        Raises `UserError` for other data than images, a trainer of another length, one that may stop earlier or with a
        moving average of the weights, and a teacher of another width.
        """
        super().setup(stage)
        self._check_trainer()
        data, trainer = self._data, self.trainer
        teacher = SamEncoder(self.teacher, self.teacher_weights)
        grid = self.config.cache_grid
        if teacher.channels != self.width:
            raise UserError(
                f"The teacher has {teacher.channels} channels, model.width is {self.width}. Make them equal."
            )
        if grid is not None and not max(self.config.resolutions) // self.encoder.patch_size <= grid <= teacher.grid:
            raise UserError(
                f"distill.cache_grid is {grid}: it must lie between the student's largest grid "
                f"({max(self.config.resolutions) // self.encoder.patch_size}) and the teacher's ({teacher.grid})."
            )
        self.adapter.start_at_neck(teacher.net.neck[-1])  # a checkpoint is read after this
        self.teacher_sha256 = teacher.sha256()
        data.targets = teacher_features(
            teacher,
            data.images,
            [row for rows in data.splits.values() for row in rows],
            None if self.cache_dir is None else Path(self.cache_dir).expanduser(),
            grid,
            self.teacher_batch,
            Share(trainer.global_rank, trainer.world_size, trainer.strategy.root_device, data.num_workers),
        )

    def _check_trainer(self) -> None:
        """Refuse a trainer that would end a stage early, or put other weights in the place of its best."""
        trainer: Any = self.trainer
        if trainer.fast_dev_run:
            raise UserError(
                "fast_dev_run is one step, distillation trains several stages. For a quick look, give "
                "--trainer.limit_train_batches 1 --trainer.limit_val_batches 1."
            )
        for name, value in self.trainer_settings().items():
            if getattr(trainer, name) != value:
                raise UserError(f"The stages need Trainer({name}={value}); give it Distillation.trainer_settings().")
        for callback in trainer.callbacks:
            if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
                raise UserError(
                    "A stage keeps the weights that did best in validation, which a moving average over all stages would "
                    "replace by others. Leave the averaging callback (trainer/ema.yaml) out of distillation."
                )
            if isinstance(callback, EarlyStopping | Timer):
                name = "Timer (max_time)" if isinstance(callback, Timer) else type(callback).__name__
                raise UserError(
                    f"{name} may stop the training before its last stage is done, and there would be no adapter. Leave it "
                    "out: a distillation that is killed goes on with the same command."
                )

    def configure_optimizers(self) -> Any:
        """AdamW over the adapter and the learning rate's schedule, for one stage."""
        config = self.config
        optimizer = torch.optim.AdamW(
            self.adapter.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=self.fused
        )
        assert self.trainer.max_epochs is not None
        steps = int(self.trainer.estimated_stepping_batches) // self.trainer.max_epochs * self.stage.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(steps, self.config.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Begin a stage: a new optimiser and schedule, no best loss; the adapter already holds the previous best."""
        stage = self.stage
        if self.trainer.current_epoch > stage.first:
            return
        self.best, self.best_loss, self.best_scores = None, math.inf, {}
        self.trainer.strategy.setup_optimizers(self.trainer)
        side = stage.resolution // self.encoder.patch_size
        rank_zero_info(
            f"stage {stage.number} of {len(self.schedule.stages)}: {stage.resolution} px ({side} x {side} tokens), "
            f"{stage.epochs} epochs of {int(self.trainer.num_training_batches)} batches of {stage.batch}"
        )

    def on_train_epoch_end(self) -> None:
        """End a stage: its best weights go into the adapter and on disk (before the checkpoint of this epoch)."""
        stage = self.stage
        if self.trainer.current_epoch < stage.last:
            return
        if self.best is not None:
            self.adapter.load_state_dict(self.best)
        steps = int(self.trainer.num_training_batches) * stage.epochs
        self.reports.append(
            {"resolution": stage.resolution, "epochs": stage.epochs, "batches": steps, **self.best_scores}
        )
        self.write(Path(self.trainer.default_root_dir), stage)

    @rank_zero_only
    def write(self, folder: Path, stage: Stage) -> None:
        """Write the adapter as it is after `stage`; beside it, and within it, what it was made of and the stages' scores."""
        final = stage is self.schedule.stages[-1]
        path = folder / (ADAPTER_FILE if final else f"adapter_{stage.resolution}px.safetensors")
        facts = {
            "settings": self.settings(),
            "teacher_sha256": self.teacher_sha256,
            "encoder_sha256": self.weights_sha256(self.frozen),
            "training": self.training_facts,
            "stages": self.reports,
        }
        state = {name: value.detach().cpu().contiguous() for name, value in self.adapter.state_dict().items()}
        with written_whole(path) as temporary:
            metadata = {FACTS_KEY: json.dumps(facts, sort_keys=True)}
            temporary.write_bytes(safetensors.torch.save(state, metadata))
        write_text_whole(folder / REPORT_FILE, json.dumps(facts, indent=2) + "\n")
        reached = ", ".join(f"{n} {self.best_scores[n]:.4f}" for n in ("r2", "cosine") if n in self.best_scores)
        rank_zero_info(f"stage {stage.number} done: {path} ({reached or 'not validated'})")

    # -- steps ----------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to the adapter's embedding (B, C, h, w)."""
        (tokens,) = self.encoder(images).values()
        return self.adapter(tokens)

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Loss of a batch; only the adapter has gradients."""
        loss = distillation_loss(self(batch.image), batch.target, self.stage.align)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.image))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Start counting at zero."""
        self.metric.reset()
        self.loss_metric.reset()

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        """Count a batch of held-out images."""
        student, teacher = self(batch.image)[batch.counts].float(), batch.target[batch.counts].float()
        if len(student):
            self.loss_metric.update(distillation_loss(student, teacher, self.stage.align), len(student))
            self.metric.update(student, down_to(teacher, student.shape[-2:]))

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and keep the adapter if it is the best of its stage."""
        loss, scores = float(self.loss_metric.compute()), self.metric.compute()
        channels = scores.pop("channel_mse")
        logged = {"loss": loss, **{name: float(value) for name, value in scores.items()}}
        shown = {"r2", "cosine"}
        for name, value in logged.items():  # already summed over processes
            self.log(f"val_{name}", value, prog_bar=name in shown, sync_dist=False)
        self.log("val_channel_mse_max", float(channels.max()), sync_dist=False)
        self.log("stage", float(self.stage.number), sync_dist=False)
        epoch = self.trainer.current_epoch - self.stage.first
        if not math.isfinite(loss):
            raise UserError(
                f"The validation loss of stage {self.stage.number} is {loss} in its epoch {epoch}: the training has "
                "diverged. Give a lower model.distill.lr, or another precision, and start anew with --overwrite always."
            )
        if loss < self.best_loss and not self.trainer.sanity_checking:
            self.best_loss = loss
            self.best_scores = {
                "best_epoch": epoch,
                **logged,
                "channel_mse": channels.tolist(),
            }
            self.best = {name: value.detach().cpu().clone() for name, value in self.adapter.state_dict().items()}

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Remember how the weights are made. Raises `UserError` where a run would go on with other images."""
        before, names = self.training_facts, "image_names_sha256"
        super().on_fit_start()
        if names in before and before[names] != self.training_facts.get(names):
            raise UserError(
                f"The run began with {before.get('images')} training images; now there are "
                f"{self.training_facts.get('images')}, or others. Give the same (data.root, data.max_images), or start anew "
                "with --overwrite always."
            )
        self.training_facts |= {"selection": "val-split", "teacher_sha256": self.teacher_sha256}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a stage remembers."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["distillation"] = {
            "teacher_sha256": self.teacher_sha256,
            "best": self.best,
            "best_loss": self.best_loss,
            "best_scores": self.best_scores,
            "reports": self.reports,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the same stage; refuse another teacher."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["distillation"]
        if self.teacher_sha256 and state["teacher_sha256"] != self.teacher_sha256:
            raise UserError(
                f"The checkpoint was distilled from another teacher than {self.teacher_weights}. Give the same weights, "
                "or start anew with --overwrite always."
            )
        self.best, self.best_loss = state["best"], state["best_loss"]
        self.best_scores, self.reports = state["best_scores"], state["reports"]
        self._first_epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
