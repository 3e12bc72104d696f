"""SAM2FSS as a method: settings, frozen encoders, weights, training recipe around `SAM2FSSNet`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.encoders.sam2 import SAM2Size, build_sam2, checkpoint_name, own_settings
from fssbench.encoders.vit import ViTEncoder, backbone_facts
from fssbench.encoders.weights import tensors_sha256
from fssbench.errors import UserError, nearest
from fssbench.losses import squared_dice_loss
from fssbench.method import Features, FewShotMethod
from fssbench.metrics.at_size import Size, bilinear
from methods.sam2fss.calibration import ScmaKeys, ScmaShotMode, SupportTokens
from methods.sam2fss.episode_sam2 import LEVELS, EpisodeSAM2
from methods.sam2fss.maps import EmptyMaskFallback
from methods.sam2fss.model import DINO, SAM2FSSNet, autocast_for
from methods.sam2fss.trainable import Trainable, freeze_others, trainable_names

ATTENTION = "methods.sam2fss.memory_attention"
TARGETS = {
    "memory_attention": f"{ATTENTION}.CalibratedMemoryAttention",
    "memory_attention.layer": f"{ATTENTION}.CalibratedMemoryAttentionLayer",
    "memory_attention.layer.cross_attention": f"{ATTENTION}.CalibratedRoPEAttention",
}
"""Our classes in SAM 2's configuration; the names and shapes of all weights stay SAM 2's."""
LEARNING_RATES = {"affine": 1e-3, "paper": 1e-4}
"""The release's for `affine`; for `paper` our choice, the paper states 1e-3 (sam2fss.md 3.2)."""
POLY_POWER = 0.9
"""Of the learning rate's schedule, as in the release."""

Precision = Literal["bf16", "fp32"]
Selection = Literal["last", "base", "best_on_test"]
SELECTIONS = {"last": "last", "base": "base", "best_on_test": "novel"}
"""What `data.selection` must be for a selection: the command line then keeps `best.ckpt` beside `last.ckpt`."""


class SAM2FSS(FewShotMethod):
    """SAM2FSS: DINOv2 makes pseudo masks of the query, SAM 2 segments it as the last frame of a video of the episode.

    After FSSAM (ICML 2025, arXiv 2505.14100). All weights are SAM 2's and DINOv2's; there are no new parameters.

    Args:
        sam2_size: `tiny`, `small`, `base_plus` or `large`. FSSAM's main model is small.
        sam2_version: 2.0, or 2.1 (not what FSSAM used).
        sam2_weights: `stock` (the official checkpoint, found by its name in `FSSBENCH_WEIGHTS`), `random`, or a file.
        sam2_config: settings laid over the packaged configuration of SAM 2: a mapping, or a YAML file with a `model` key.
        image_size: side in pixels of the squares given to SAM 2; a multiple of 32.
        dino: timm name of a plain vision transformer that makes the pseudo prompts.
        backbone_weights: its weights: `hub` (timm's download), `random`, or the path of a weight file.
        dino_image_size: side in pixels of the squares given to it; a multiple of its patch size.
        pos_embed_resize: resize position embeddings as the `original` DINOv2 does, or as `timm` does.
        prior_precision: precision of the DINOv2 features and their similarities.
        prior_renormalise: stretch the pseudo masks to [0, 1] again after averaging over the supports.
        pseudo_prompts: false is naive SAM 2: support memories only, neither DINOv2 nor the parts below.
        imr_iterations: refinements of the query's memory; 0 is off.
        imr_normalise_weight: min-max the blending weight of the refinement (the release's variant v2).
        imr_prior_minmax: min-max the pseudo mask in every refinement, which the paper leaves out.
        scma_alpha: strength of the calibration of memory attention; 0 is off.
        scma_detach: no gradient through the calibration.
        scma_keys: calibrate by keys after position and rotation (`rotated`), or before rotation (`projected`).
        scma_shot_mode: `paper`; `off`; or `released_5shot`, the release's mistake with several supports.
        support_tokens: `drop` lets the supports calibrate only: the query attends to its own memory alone.
        drop_pointers: with `drop`, leave out the object pointers too.
        object_score_gating: empty the final mask where SAM 2 believes the object to be absent, as stock SAM 2 does.
        empty_mask_fallback: how to shrink a support mask that would become empty: `area`, `max`, or `none`.
        trainable: `affine` (norms and tokens, 15,144 parameters), `paper` (11.2 M), or `none` (nothing: no fit).
        lr: learning rate; null: 1e-3 for `affine`, 1e-4 for `paper`.
        loss_ignore_255: leave ignored pixels out of the loss; false counts them as background, as the release does.
        train_shot: supports of the training episodes; `fit` refuses other data.
        recompute: in training, compute memories and memory attention again in the backward pass instead of keeping what
            they need for it: at 512 px and one support 0.4 GB less memory per episode of a batch. Changes no number.
        precision: `bf16` inside the forward pass (similarities and loss stay in float32), or `fp32`.
        selection: `last`; or also keep `best.ckpt` by validation on `base` classes, or on the test episodes
            (`best_on_test`, only to reproduce published numbers); data.selection must agree.
        upsample_align_corners: align corners when logits are scaled to the original size.
    """

    frozen: ClassVar[tuple[str, ...]] = ("encoder", "net.sam2.model.image_encoder")
    free_settings: ClassVar[tuple[str, ...]] = (
        *FewShotMethod.free_settings,
        "sam2_weights",
        "scma_shot_mode",
        "upsample_align_corners",
    )
    neutral_settings: ClassVar[tuple[str, ...]] = ("recompute",)

    def __init__(
        self,
        sam2_size: SAM2Size = "small",
        sam2_version: float = 2.0,
        sam2_weights: str = "stock",
        sam2_config: str | dict[str, Any] | None = None,
        image_size: int = 512,
        dino: str = "vit_base_patch14_dinov2.lvd142m",
        backbone_weights: str = "hub",
        dino_image_size: int = 560,
        pos_embed_resize: Literal["original", "timm"] = "original",
        prior_precision: Precision = "fp32",
        prior_renormalise: bool = False,
        pseudo_prompts: bool = True,
        imr_iterations: int = 3,
        imr_normalise_weight: bool = False,
        imr_prior_minmax: bool = True,
        scma_alpha: float = 10.0,
        scma_detach: bool = True,
        scma_keys: ScmaKeys = "rotated",
        scma_shot_mode: ScmaShotMode = "paper",
        support_tokens: SupportTokens = "keep",
        drop_pointers: bool = True,
        object_score_gating: bool = False,
        empty_mask_fallback: EmptyMaskFallback = "area",
        trainable: Trainable = "affine",
        lr: float | None = None,
        loss_ignore_255: bool = False,
        train_shot: int = 1,
        recompute: bool = False,
        precision: Precision = "bf16",
        selection: Selection = "last",
        upsample_align_corners: bool = True,
    ) -> None:
        super().__init__()
        _check(self.hparams)
        if sam2_config is not None:  # the record says what was used, not where it lay
            self.hparams["sam2_config"] = sam2_config = own_settings(sam2_config)
        self.image_size, self.dino_image_size = image_size, dino_image_size
        self.precision, self.prior_precision = precision, prior_precision
        self.trainable, self.lr, self.loss_ignore_255 = trainable, lr, loss_ignore_255
        self.train_shot, self.selection = train_shot, selection
        self.upsample_align_corners = upsample_align_corners
        self.upsampling = f"torch-bilinear-align_corners_{str(upsample_align_corners).lower()}"
        self.trained = trainable == "none"
        self.encoder: ViTEncoder | None = None
        if pseudo_prompts:
            self.encoder = ViTEncoder(dino, backbone_weights, dino_image_size, (-1,), pos_embed_resize=pos_embed_resize)
        sam2 = build_sam2(sam2_size, sam2_version, sam2_weights, image_size, sam2_config, TARGETS)
        self.net = SAM2FSSNet(
            EpisodeSAM2(sam2, object_score_gating, recompute),
            pseudo_prompts=pseudo_prompts,
            prior_renormalise=prior_renormalise,
            imr_iterations=imr_iterations,
            imr_normalise_weight=imr_normalise_weight,
            imr_prior_minmax=imr_prior_minmax,
            scma_alpha=scma_alpha,
            scma_detach=scma_detach,
            scma_keys=scma_keys,
            scma_shot_mode=scma_shot_mode,
            support_tokens=support_tokens,
            drop_pointers=drop_pointers,
            empty_mask_fallback=empty_mask_fallback,
        )
        self.trained_parameters = freeze_others(sam2, trainable)

    # -- an episode -----------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Features:
        """Images (M, 3, S, S) float32 in [0, 1] to DINOv2's last tokens (M, D, h, w) as `dino` and SAM 2's pyramid as
        `level0` to `level2`. Raises `UserError` for images of another size than `image_size`."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            height, width = images.shape[-2:]
            raise UserError(
                f"The images have {height}x{width} pixels, model.image_size is {self.image_size}. Leave data.image_size out, "
                "or give both the same value."
            )
        with autocast_for(images.device, self.precision):
            features = self.net.sam2.encode_images(images)
        if self.encoder is not None:
            side = (self.dino_image_size, self.dino_image_size)
            resized = F.interpolate(images, side, mode="bilinear", align_corners=True)
            with autocast_for(images.device, self.prior_precision):
                (tokens,) = self.encoder(resized).values()
            features[DINO] = tokens.bfloat16() if self.prior_precision == "bf16" else tokens
        return features

    def feature_kinds(self) -> dict[str, str]:
        """Stored features are those of the encoders, whatever is made or trained of them."""
        settings, state = self.settings(), self.net.sam2.model.state_dict()
        used = ("image_encoder.", "sam_mask_decoder.conv_s0.", "sam_mask_decoder.conv_s1.")
        weights = tensors_sha256({name: value for name, value in state.items() if name.startswith(used)})
        config = json.dumps(settings["sam2_config"], sort_keys=True)
        pyramid = (
            f"SAM {settings['sam2_version']} {settings['sam2_size']} {config}, sam2 {version('sam2')}, "
            f"{self.precision}, weights {weights}"
        )
        kinds = {level: f"{level} of {pyramid}" for level in LEVELS}
        if self.encoder is not None:
            (tokens,) = self.encoder.kinds().values()
            kinds[DINO] = f"{tokens}, at {self.dino_image_size} px, {self.prior_precision}"
        return kinds

    def segment(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """Logits (B, S, S) float32 at network size, in the one autocast of the forward pass."""
        with autocast_for(support_masks.device, self.precision):
            return self.net(query, support, support_masks)

    def upsample(self, logits: Tensor, size: Size) -> Tensor:
        """Logits (..., S, S) -> (..., H0, W0) float32, bilinear."""
        return bilinear(logits, size, self.upsample_align_corners)

    # -- training -------------------------------------------------------------------------------------------------

    def loss(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Dice loss with squared denominators: logits (B, S, S), mask (B, S, S) {0, 1, 255} -> scalar."""
        return squared_dice_loss(logits, mask, self.loss_ignore_255)

    def configure_optimizers(self) -> Any:
        """AdamW without weight decay over the chosen parameters, and a polynomial schedule to 0, step by step."""
        if self.trainable == "none":
            raise UserError(
                "trainable is none: there is nothing to fit. Test as it is, or set trainable: affine or paper."
            )
        rate = LEARNING_RATES[self.trainable] if self.lr is None else self.lr
        optimizer = torch.optim.AdamW(self.trained_parameters, lr=rate, weight_decay=0.0, fused=self.fused)
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError("The polynomial schedule needs an end. Set trainer.max_epochs or trainer.max_steps.")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, poly(int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Refuse data that the settings do not mean. Raises `UserError`."""
        super().on_fit_start()
        if self._data.shot != self.train_shot:
            raise UserError(
                f"data.shot is {self._data.shot}, model.train_shot is {self.train_shot}. Make them the same: training is "
                "separate for each number of supports."
            )
        wanted = SELECTIONS[self.selection]
        if self._data.selection != wanted:
            raise UserError(
                f"model.selection is {self.selection}, data.selection is {self._data.selection}. Set data.selection: {wanted}, "
                "or another model.selection."
            )

    def frozen_names(self) -> set[str]:
        """All weights of DINOv2, and those of SAM 2 that `trainable` leaves as they are."""
        trained = {f"net.sam2.model.{name}" for name in trainable_names(self.net.sam2.model, self.trainable)}
        return {name for name in self.state_dict() if name.startswith(("encoder.", "net.")) and name not in trained}

    # -- the record -----------------------------------------------------------------------------------------------

    @property
    def arithmetic(self) -> str:
        """`bf16-mixed` or `float32`, as `precision` says; a mixed precision of the trainer has no effect."""
        return "bf16-mixed" if self.precision == "bf16" else "float32"

    def metadata(self) -> dict[str, Any]:
        """Facts for the record; SAM 2's official weights have seen class-agnostic masks of other images."""
        size, version = self.hparams["sam2_size"], self.hparams["sam2_version"]
        sam2 = f"SAM {float(version):.1f} Hiera {size}"
        shot = self.train_shot if self._trainer is None else self._data.shot
        own = PurePath(self.hparams["sam2_weights"]).name
        own = "stock" if own == checkpoint_name(size, version) else own
        masks = {"stock": "SA-1B and SA-V masks", "random": "none"}.get(own, "unknown")
        seen = {"stock": ("class-agnostic masks",), "random": ("none",)}.get(own, ("unknown",))
        parts: list[dict[str, Any]] = [
            {"backbone": sam2, "backbone_pretraining": f"{sam2}: {masks}", "contamination": seen}
        ]
        if self.encoder is not None:
            parts.insert(0, backbone_facts(self.hparams["dino"], self.hparams["backbone_weights"]))
        return {
            "backbone": " and ".join(part["backbone"] for part in parts),
            "backbone_pretraining": "; ".join(part["backbone_pretraining"] for part in parts),
            "contamination": _joined(*(part["contamination"] for part in parts)),
            "track": "training-free" if self.trainable == "none" else "strict",
            "supervision": masks,
            "base_knowledge_at_test": False,
            "kshot_mode": "separate-model" if self.trainable != "none" and 1 < self.train_shot == shot else "joint",
            "hyper_parameters": "one setting for all data sets and shots",
            "uses_text": False,
        }


def _check(settings: Mapping[str, Any]) -> None:
    """Raise `UserError` for a word that is none of its setting's, and for numbers below their least value."""
    for name, hint in get_type_hints(SAM2FSS.__init__).items():
        if get_origin(hint) is Literal and settings[name] not in get_args(hint):
            raise UserError(f"{name} is {settings[name]!r}, which is unknown.{nearest(settings[name], get_args(hint))}")
    for name, least in (("imr_iterations", 0), ("train_shot", 1)):
        if settings[name] < least:
            raise UserError(f"{name} is {settings[name]}, expected {least} or more.")
    if settings["lr"] is not None and settings["lr"] <= 0:
        raise UserError(f"lr is {settings['lr']}, expected a number above 0, or null for the default of `trainable`.")


def poly(steps: int) -> Callable[[int], float]:
    """Factor (1 - step / steps)^0.9 of the learning rate at a step (0-based) of `steps`."""
    return lambda step: max(0.0, 1 - step / steps) ** POLY_POWER


def _joined(*contaminations: tuple[str, ...]) -> tuple[str, ...]:
    """What several pre-trainings have in common with the test data: unknown where one is unknown."""
    words = tuple(dict.fromkeys(word for words in contaminations for word in words))
    if "unknown" in words:
        return ("unknown",)
    return tuple(word for word in words if word != "none") or ("none",)
