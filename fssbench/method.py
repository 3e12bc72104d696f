"""FewShotMethod: what a method author subclasses, and everything that all methods share.

An author writes `encode` and `segment`. Training, validation, test and predict steps, up-sampling to original size,
thresholding, counting and recording live here, once.

Shape legend: `B` episodes, `K` shots, `M` images, `H W` network size, `H0 W0` original size, `H' W'` the method's own
logit size.
"""

from __future__ import annotations

import dataclasses
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.checkpoint import class_path, code_sha256
from fssbench.encoders.ahead import EncodeAhead
from fssbench.encoders.cache import ALL, FeatureCache, Features, numerics
from fssbench.encoders.compiled import CompiledEncoder, CompileMode
from fssbench.episode import EpisodeBatch
from fssbench.errors import UserError
from fssbench.losses import bce_dice_loss
from fssbench.metrics.at_size import Size, bilinear, predicted_counts, predicted_masks
from fssbench.metrics.iou import FewShotIoU
from fssbench.metrics.scores import IoUScores
from fssbench.metrics.square import Square, square_target
from fssbench.protocols.voting import vote_logits
from fssbench.timer import Timer
from fssbench.trainable import Trainable

COUNT_NAMES = ("fg_intersection", "fg_union", "bg_intersection", "bg_union")
ROW_COUNTS = (*COUNT_NAMES, "fg_target")


class FewShotMethod(Trainable):
    """A function from an episode to a mask.

    Subclasses set `image_size`, write `encode` and `segment`, and, if they are trained, `configure_optimizers`.
    """

    upsampling: str = "torch-bilinear-align_corners_false"
    """What `upsample` does, as the record names it; a method that overrides it says so here."""
    image_size: int
    """Side in pixels of the square the images are resized to; a data module asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.episode_rows: list[dict[str, Any]] = []
        """Rows of the last test, one per episode, complete on every process after the test."""
        self.square_rows: dict[Square, list[dict[str, Any]]] = {}
        """Square -> the same rows with the pixels counted at a square, for the squares that the data module names."""
        self.scores: IoUScores | None = None
        """Scores of the last validation or test."""
        self.complete = False
        """Whether the last test counted every episode of the manifest exactly once."""
        self.cache = FeatureCache()
        """Frozen features of images seen before; `FeatureCache(0)` switches it off."""
        self.compile_encoder: CompileMode = "no"
        """How torch.compile makes `encode` faster, from the next `setup` on."""
        self._compiled: CompiledEncoder | None = None
        self._pending: list[tuple[EpisodeRef, Tensor, dict[Square, Tensor], Callable[[], float]]] = []
        self._ahead: EncodeAhead | None = None

    # -- what a method is -----------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, images: Tensor) -> Features:
        """Frozen features of single images, run without gradient and therefore cacheable.

        images (M, 3, H, W) float32 in [0, 1] -> tensors of shape (M, ...)
        """

    @abstractmethod
    def segment(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """The method itself.

        query tensors (B, ...), support tensors (B, K, ...), support_masks (B, K, H, W) uint8 {0, 1, 255}
        -> logits (B, H', W'); a pixel belongs to the class where its logit is above 0
        """

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Training loss: logits (B, H, W) at network size, mask (B, H, W) uint8 {0, 1, 255} -> scalar. BCE + Dice."""
        return bce_dice_loss(logits, mask)

    @property
    def arithmetic(self) -> str:
        """Precision of the forward pass as the record names it: the trainer's. A method that decides for itself says so
        here."""
        precision = str(self.trainer.precision)
        return "float32" if precision == "32-true" else precision

    def metadata(self) -> dict[str, Any]:
        """Facts for the record that a reader must know before comparing (docs/records.md): `track`, `contamination`,
        `supervision`, `base_knowledge_at_test`, `kshot_mode`, `hyper_parameters`, `uses_text`, `backbone`,
        `backbone_pretraining`. What is not given is recorded as `unknown`."""
        return {}

    def feature_kinds(self) -> dict[str, str]:
        """What each tensor of `encode` depends on besides the pixels, for the store on disk: name -> text.

        By default all of them together depend on everything: class, settings, frozen weights, and the source files of
        the class and its bases (not what they import). A method that names the encoder's own kinds (`ViTEncoder.kinds`)
        shares its stored features with others.
        """
        settings, frozen = json.dumps(self.settings(), sort_keys=True), self.frozen_sha256()
        code = code_sha256(type(self), FewShotMethod)
        return {ALL: f"{class_path(type(self))} {settings}, frozen weights {frozen}, code {code}"}

    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Logits (B, H', W') of a batch of episodes."""
        query, support = self._features(batch)
        return self.segment(query, support, batch.support_masks)

    @property
    def encodes_ahead(self) -> bool:
        """Whether the images of a manifest are encoded by themselves, each once; its episodes then come without images.
        Without a feature cache every episode brings its images, and they are encoded with it."""
        return self.cache.limit > 0

    def _features(self, batch: EpisodeBatch) -> tuple[Features, Features]:
        """Frozen features of queries (B, ...) and supports (B, K, ...), each distinct image encoded once."""
        keys = [*batch.query_key, *(key for episode in batch.support_keys for key in episode)]
        with torch.no_grad():
            if batch.query_image.numel():
                images = torch.cat([batch.query_image, batch.support_images.flatten(0, 1)])
                features = self.cache.features(keys, images, self._compiled or self.encode)
            else:
                assert self._ahead is not None, "a batch without images, and no loader to take them from"
                features = self._ahead.features(keys)
        query = {name: value[: batch.size] for name, value in features.items()}
        support = {name: v[batch.size :].unflatten(0, (batch.size, batch.shot)) for name, v in features.items()}
        return query, support

    def _look_ahead(self, loader: Any) -> None:
        """Learn which images the episodes of a loader share, where they come without them."""
        self._ahead = None
        source: Any = getattr(loader, "dataset", None)
        if getattr(source, "by_image", False):
            sampler = loader.batch_sampler  # its own iterator may be in use already
            keys = [source.keys(position) for position in sampler.sampler]
            size = sampler.batch_size
            batches = [keys[start : start + size] for start in range(0, len(keys), size)]
            uses = [tuple(dict.fromkeys(key for episode in batch for key in episode)) for batch in batches]
            self._ahead = EncodeAhead(self.cache, uses, source.stream, self._compiled or self.encode, self.device)

    def _end_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.end()

    # -- steps ----------------------------------------------------------------------------------------------------

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """One optimisation step on a batch of base-class episodes."""
        logits = F.interpolate(self(batch)[:, None], batch.query_mask.shape[-2:], mode="bilinear", align_corners=False)
        loss = self.loss(logits[:, 0], batch.query_mask)
        self.log("train_loss", loss, prog_bar=True, batch_size=batch.size)
        return loss

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Count intersections and unions of a batch of validation episodes."""
        counts = predicted_counts(self._logits(batch), batch.query_mask_full, self.upsample)
        self.metric.update(counts[:, :4], batch.class_id)

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Count a batch of test episodes and keep one small row for each."""
        timer = Timer(self.device)
        logits = self._logits(batch)
        counts = predicted_counts(logits, batch.query_mask_full, self.upsample)
        self.metric.update(counts[:, :4], batch.class_id)
        stop = timer.stop()
        squares = {side: self._count_square(logits, batch, side) for side in self._data.squares}
        self._pending.append((EpisodeRef.of(batch), counts, squares, stop))
        self._show_observers(logits, batch)

    def predict_step(self, batch: EpisodeBatch, batch_idx: int) -> list[Tensor]:
        """Masks of a batch of episodes: B bool tensors (H0, W0)."""
        return self.predict_masks(batch)

    def predict_masks(self, batch: EpisodeBatch) -> list[Tensor]:
        """Predicted masks at original size: B bool tensors (H0, W0)."""
        sizes = [tuple(mask.shape) for mask in batch.query_mask_full]
        return predicted_masks(self._logits(batch), sizes, self.upsample)

    def _logits(self, batch: EpisodeBatch) -> Tensor:
        """Logits (B, H', W') as the data module wants K supports used."""
        if batch.shot == 1 or self._trainer is None or self._data.kshot == "method":
            return cast(Tensor, self(batch))
        query, support = self._features(batch)
        masks = []  # K times (B, H, W) at network size, where HSNet counts its votes
        for k in range(batch.shot):
            one = {name: value[:, k : k + 1] for name, value in support.items()}
            logits = self.segment(query, one, batch.support_masks[:, k : k + 1])
            masks.append(self.upsample(logits, tuple(batch.query_mask.shape[-2:])) > 0)
        return vote_logits(torch.stack(masks, 1))

    def _show_observers(self, logits: Tensor, batch: EpisodeBatch) -> None:
        for b, truth in enumerate(batch.query_mask_full if self._data.observers else ()):
            full = self.upsample(logits[b], tuple(truth.shape)).cpu().numpy()
            ids = int(batch.episode_id[b]), int(batch.class_id[b])
            for observer in self._data.observers:
                observer.update(*ids, batch.query_key[b], full, truth.cpu().numpy())

    def _count_square(self, logits: Tensor, batch: EpisodeBatch, square: Square) -> Tensor:
        targets = [square_target(mask, square) for mask in batch.query_mask_full]
        return predicted_counts(logits, targets, self.upsample)

    def upsample(self, logits: Tensor, size: Size) -> Tensor:
        """Logits (..., H', W') -> (..., H0, W0) float32, bilinear. Called with a whole batch of episodes, or with one."""
        return bilinear(logits, size)

    # -- scores ---------------------------------------------------------------------------------------------------

    def _start_counting(self, class_ids: Iterable[int]) -> None:
        self.metric = FewShotIoU(tuple(class_ids), strict=False).to(self.device)
        self.episode_rows, self._pending, self.scores, self.complete = [], [], None, False
        self.square_rows = {}

    def on_validation_start(self) -> None:
        """Counts of this validation start at zero."""
        self._start_counting(self._data.val_manifest.class_ids)
        self._look_ahead(self.trainer.val_dataloaders)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the validation episodes, which a callback may monitor."""
        self._end_reading()
        self.scores = self.metric.compute()
        # the same on every process: computed from summed integer counts, not averaged by the logger
        self.log("val_miou", self.scores["miou"], prog_bar=True, sync_dist=False)
        self.log("val_fb_iou", self.scores["fb_iou"], sync_dist=False)

    def on_test_start(self) -> None:
        """Refuse to score random heads and classes that were trained on, then start counting at zero."""
        self.require_trained("test")
        self._require_own_fold()
        for observer in self._data.observers:
            if self.trainer.world_size > 1:
                raise UserError(f"The {observer.name} scores are made in one process: use --trainer.devices 1.")
            observer.start()
        self._start_counting(self._data.test_manifest.class_ids)
        self._look_ahead(self.trainer.test_dataloaders)

    def on_test_epoch_end(self) -> None:
        """Gather one row per episode from all processes and compute the scores."""
        self._end_reading()
        self.episode_rows = self._gather(self._rows())
        squares = [row.pop("squares") for row in self.episode_rows]
        self.square_rows = {
            side: [{**row, **counts[side]} for row, counts in zip(self.episode_rows, squares, strict=True)]
            for side in self._data.squares
        }
        self.complete = self._is_complete()
        self.metric.strict = self.complete
        self.scores = self.metric.compute()
        self.log("test_miou", self.scores["miou"], sync_dist=False)
        self.log("test_fb_iou", self.scores["fb_iou"], sync_dist=False)

    def on_predict_start(self) -> None:
        """Refuse to predict with random heads, and classes that were trained on."""
        self.require_trained("predict")
        self._require_own_fold()
        self._look_ahead(self.trainer.predict_dataloaders)

    def on_predict_end(self) -> None:
        """End the processes that read images."""
        self._end_reading()

    def require_trained(self, verb: str) -> None:
        """Raise `UserError` where a trained method has no trained weights."""
        if not self.trained:
            raise UserError(
                f"{type(self).__name__} is a trained method and has no trained weights: `{verb}` would score random "
                f"numbers. Give them with --ckpt_path FILE (made by `fssbench fit`)."
            )

    def _require_own_fold(self) -> None:
        """Raise `UserError` where the weights were trained on another fold of the same data: the classes that are novel
        here were among its base classes."""
        trained, fold = self.training_facts, self._data.fold
        if trained.get("fold", fold) != fold and trained["dataset"] == self._data.dataset.name:
            raise UserError(
                f"The checkpoint was trained on fold {trained['fold']} of {trained['dataset']}, and so on the novel classes of "
                f"fold {fold}. Give that of fold {fold} (with --folds, write {{fold}} in --ckpt_path), or --data.fold "
                f"{trained['fold']}."
            )

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for ref, counts, square_counts, stop in self._pending:
            seconds = stop() / len(ref.query_key)
            episode_ids, class_ids = ref.episode_id.tolist(), ref.class_id.tolist()
            at_square = {side: values.tolist() for side, values in square_counts.items()}
            for b, values in enumerate(counts.tolist()):
                row = {
                    "episode_id": episode_ids[b],
                    "class_id": class_ids[b],
                    "query_key": ref.query_key[b],
                    "support_keys": list(ref.support_keys[b]),
                    **dict(zip(ROW_COUNTS, values, strict=True)),
                    "seconds": seconds,
                    "squares": {s: dict(zip(ROW_COUNTS, v[b], strict=True)) for s, v in at_square.items()},
                }
                rows.append(row)
        self._pending = []
        return rows

    def _gather(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self.trainer.world_size > 1:
            shards: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(shards, rows)
            rows = [row for shard in shards for row in shard]
        return sorted(rows, key=lambda row: row["episode_id"])

    def _is_complete(self) -> bool:
        """Whether each episode of the manifest was counted exactly once; counting one twice is an error."""
        counted = [row["episode_id"] for row in self.episode_rows]
        if len(set(counted)) < len(counted):
            raise RuntimeError("an episode was counted twice: is use_distributed_sampler still False?")
        return counted == list(range(len(self._data.test_manifest.episodes)))

    def setup(self, stage: str) -> None:
        """Begin with an empty cache, and as every trainable module does."""
        super().setup(stage)
        mode = self.compile_encoder
        self._compiled = None if mode == "no" else CompiledEncoder(self.encode, mode)
        self.cache.clear()
        if self.cache.store is not None:
            where = numerics(self.trainer.strategy.root_device, str(self.trainer.precision))
            where += "" if mode == "no" else f", compiled {mode}"  # fused operations round differently
            self.cache.kinds = {name: f"{kind}; {where}" for name, kind in self.feature_kinds().items()}


@dataclasses.dataclass(frozen=True)
class EpisodeRef:
    """Which episodes a batch held, without its images and masks. Its ids stay on their device until they are asked for:
    reading them at once would wait for it."""

    episode_id: Tensor
    class_id: Tensor
    query_key: list[str]
    support_keys: list[tuple[str, ...]]

    @classmethod
    def of(cls, batch: EpisodeBatch) -> EpisodeRef:
        """The reference of a batch."""
        # cloned: a tensor from a loader process is shared memory, of which only so much may be open at a time
        return cls(batch.episode_id.clone(), batch.class_id.clone(), batch.query_key, batch.support_keys)
