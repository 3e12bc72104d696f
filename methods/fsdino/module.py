"""FS-DINO as a method: settings, frozen encoder, starting weights and optimiser around `FSDINONet`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fssbench.encoders.vit import ViTEncoder, backbone_facts
from fssbench.encoders.weights import tensors_sha256
from fssbench.errors import UserError
from fssbench.method import Features, FewShotMethod
from methods.fsdino.adapter import AdapterConfig, distillation_facts
from methods.fsdino.correlation import CorrConfig
from methods.fsdino.decoder import SAM_FILES, DecoderConfig, SamParts
from methods.fsdino.model import FSDINONet
from methods.fsdino.prompts import PCSConfig, PrototypeConfig, SVPConfig

PRESETS: dict[str, dict[str, Any]] = {
    "comp_star": {"dense": "pcs", "corr.ce": False, "decoder.train": False},
    "comp": {"dense": "pcs", "corr.ce": False, "decoder.train": True},
    "fsdino": {"dense": "both", "corr.ce": False, "decoder.train": True},
    "fsdino_ce": {"dense": "both", "corr.ce": True, "decoder.train": True},
}
"""What a preset decides where the setting itself is left null."""


@dataclass(frozen=True)
class TrainConfig:
    """The optimiser: AdamW with a linear warm-up and a cosine to 0, step by step (all our choice, after VRP-SAM).

    Args:
        lr: learning rate of the prompt generator, the 4D correlation included.
        decoder_lr: learning rate of the decoder, where it is trained.
        adapter_lr: learning rate of the adapter, where it is trained; null: 1e-5 from `adapter_weights`, else `lr`.
        weight_decay: of all trained parameters.
        warmup_steps: length of the warm-up; never more than a tenth of the training.
        recompute_correlation: compute the correlation again in the backward pass instead of keeping it: with six blocks
            at 518 px 45 MB less memory per episode of a batch. Changes no number.
    """

    lr: float = 1e-4
    decoder_lr: float = 5e-5
    adapter_lr: float | None = None
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    recompute_correlation: bool = False


class FSDINO(FewShotMethod):
    """FS-DINO: a pooled prototype, its similarity map and a 4D correlation prompt a SAM mask decoder.

    arXiv 2504.15669; not a reproduction of its training, which is not published. The weights of SAM and of the adapter
    are read when `fit` starts; every other use takes all weights but the encoder's from a checkpoint.

    Args:
        preset: `fsdino_ce` is the full model with contrastive enhancement, `fsdino` without it; `comp`, the compact
            model, has no 4D correlation, and `comp_star` keeps the decoder frozen too. A setting given explicitly wins.
        backbone: timm name of a plain vision transformer.
        backbone_weights: `hub` (timm's download), `random`, or the path of a weight file.
        image_size: side in pixels of the squares given to the encoder; a multiple of its patch size.
        apply_final_norm: apply the encoder's final norm to the tokens of every block that is used.
        pos_embed_resize: resize position embeddings as the `original` DINOv2 does, or as `timm` does.
        sam_weights: SAM's original checkpoint for decoder and prompts: a path, or a file name in `FSSBENCH_WEIGHTS`
            (default `~/.cache/fssbench/weights`); `random` starts them untrained.
        adapter_weights: the `adapter.safetensors` of a distillation with the same encoder and `adapter` settings.
        train_adapter: train the adapter; null: train it exactly where `adapter_weights` is null.
        mask_threshold: a support none of whose tokens is covered to this part counts as empty (`prototype.fallback`).
        support_ignore: pixels with 255 in a support mask are `background`, or with `exclude` neither in
            prototypes nor in the correlation.
        kshot_merge: `feature` averages the shots' prototypes and correlation features, `logit` their logits, `vote`
            counts their masks.
        dense: the dense prompt: prototype similarity (`pcs`), 4D correlation (`corr`), the sum of `both`, or `none`
            (SAM's embedding of no mask); null: as the preset says (`pcs` for the compact models, else `both`).
        compile: let torch.compile make the network faster (needs a C++ compiler, and some minutes at the start).
        adapter: settings of the adapter.
        prototype: settings of the pooled prototype.
        svp: settings of the sparse prompt.
        pcs: settings of the prototype similarity.
        corr: settings of the 4D correlation.
        decoder: settings of the decoder.
        train: settings of the optimiser.
    """

    free_settings: ClassVar[tuple[str, ...]] = (*FewShotMethod.free_settings, "kshot_merge", "compile")
    neutral_settings: ClassVar[tuple[str, ...]] = ("train.recompute_correlation",)

    def __init__(
        self,
        preset: Literal["comp_star", "comp", "fsdino", "fsdino_ce"] = "fsdino_ce",
        backbone: str = "vit_base_patch14_dinov2.lvd142m",
        backbone_weights: str = "hub",
        image_size: int = 518,
        apply_final_norm: bool = True,
        pos_embed_resize: Literal["original", "timm"] = "original",
        sam_weights: str = "sam_vit_h_4b8939.pth",
        adapter_weights: str | None = None,
        train_adapter: bool | None = None,
        mask_threshold: float = 0.5,
        support_ignore: Literal["background", "exclude"] = "background",
        kshot_merge: Literal["feature", "logit", "vote"] = "feature",
        dense: Literal["both", "pcs", "corr", "none"] | None = None,
        compile: bool = False,
        adapter: AdapterConfig = AdapterConfig(),  # noqa: B008 (frozen: safe to share)
        prototype: PrototypeConfig = PrototypeConfig(),  # noqa: B008
        svp: SVPConfig = SVPConfig(),  # noqa: B008
        pcs: PCSConfig = PCSConfig(),  # noqa: B008
        corr: CorrConfig = CorrConfig(),  # noqa: B008
        decoder: DecoderConfig = DecoderConfig(),  # noqa: B008
        train: TrainConfig = TrainConfig(),
    ) -> None:
        super().__init__()
        if decoder.train is None:
            decoder = replace(decoder, train=PRESETS[preset]["decoder.train"])
        if corr.ce is None:
            corr = replace(corr, ce=PRESETS[preset]["corr.ce"])
        if corr.ce_balance and not corr.ce:
            raise UserError(
                "corr.ce_balance weighs the background of contrast, but there is no contrast. Add corr.ce true (or preset "
                "fsdino_ce), or leave corr.ce_balance out."
            )
        if dense is None:
            dense = PRESETS[preset]["dense"]
        if train_adapter is None:
            train_adapter = adapter_weights is None
        if adapter_weights is None and not train_adapter:
            raise UserError(
                "train_adapter is false, but no adapter_weights are given: the adapter would stay random. Give "
                "adapter_weights (from distillation), or leave train_adapter out to train it."
            )
        if not 0 <= mask_threshold <= 1:
            raise UserError(
                f"mask_threshold is {mask_threshold}: it is the part of a token that the class covers. Give 0 to 1."
            )
        if sam_weights != "random" and not decoder.fits_sam:
            raise UserError(
                f"SAM's weights ({sam_weights}) fit only a decoder of SAM's own width, depth, heads and mlp_dim. "
                "Leave these at their defaults, or set sam_weights: random."
            )
        self.image_size = image_size
        self.sam_weights, self.adapter_weights = sam_weights, adapter_weights
        self.optimisation, self.compiled = train, compile
        correlated = corr.blocks if dense in ("both", "corr") else ()
        self.encoder = ViTEncoder(
            backbone,
            backbone_weights,
            image_size,
            (adapter.block, prototype.block, *correlated),
            final_norm=apply_final_norm,
            pos_embed_resize=pos_embed_resize,
        )
        early, late, *matched = self.encoder.blocks
        if len(set(matched)) < len(matched) or (dense in ("both", "corr") and not matched):
            raise UserError(f"corr.blocks are {list(corr.blocks)}. Give one block or more, each of them once.")
        self.net = FSDINONet(
            self.encoder.embed_dim,
            f"block{early}",
            f"block{late}",
            [f"block{block}" for block in sorted(matched)],
            dense=dense,
            adapter=adapter,
            prototype=prototype,
            svp=svp,
            pcs=pcs,
            corr=corr,
            decoder=decoder,
            train_adapter=train_adapter,
            mask_threshold=mask_threshold,
            support_ignore=support_ignore,
            kshot_merge=kshot_merge,
            recompute_correlation=train.recompute_correlation,
        )

    def encode(self, images: Tensor) -> Features:
        """Images (M, 3, H, W) float32 in [0, 1] to the tokens (M, D, h, w) of every block that is used."""
        return self.encoder(images)

    def feature_kinds(self) -> dict[str, str]:
        """Stored tokens are those of the encoder, whichever method made them."""
        return {f"block{block}": kind for block, kind in self.encoder.kinds().items()}

    def segment(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """Logits (B, 4g, 4g) at four times the decoder's grid; (B, H, W) where several shots vote."""
        return self.net(query, support, support_masks)

    def setup(self, stage: str) -> None:
        """Before `fit`, read the starting weights; other stages load a checkpoint, which holds them all."""
        if stage == "fit":
            self.load_starting_weights()
        super().setup(stage)
        if self.compiled:
            self.net.compile()  # in place: names in checkpoints stay as they are

    def load_starting_weights(self) -> None:
        """Start at SAM's and the distilled adapter's weights where they are configured.

        Raises `UserError` where a file is missing or does not fit.
        """
        if self.sam_weights != "random":
            self.net.start_from_sam(SamParts.read(self.sam_weights))
        if self.adapter_weights is not None:
            self.net.adapter.start_from(self.adapter_weights)
            self._check_distilled(self.adapter_weights)

    def _check_distilled(self, weights: str) -> None:
        """Refuse an adapter whose tensors fit, but which was distilled with other settings or another encoder: it would
        silently give another embedding. Files that do not say how they were made are taken as they are."""
        facts = distillation_facts(weights)
        if not facts:
            return
        theirs, ours = _distilled_settings(facts["settings"]), _distilled_settings(self.settings())
        different = [name for name in sorted(ours) if theirs.get(name, ours[name]) != ours[name]]
        if different:
            name = different[0]
            raise UserError(
                f"{weights} was distilled with model.{name}={theirs[name]!r}, the configuration says {ours[name]!r} "
                f"(differing: {', '.join(different)}). Set them as in the distillation, or distil again."
            )
        above = tuple(f"encoder.vit.blocks.{n}." for n in range(self.encoder.blocks[0], self.encoder.depth))
        read = {n: v for n, v in self.state_dict().items() if n.startswith("encoder.") and not n.startswith(above)}
        if facts["encoder_sha256"] != tensors_sha256(read):
            raise UserError(
                f"{weights} was distilled on another encoder ({facts['settings']['backbone']}, weights "
                f"{facts['settings']['backbone_weights']}). Give the same backbone and backbone_weights, or distil again."
            )

    def metadata(self) -> dict[str, Any]:
        """Facts for the record; SAM's weights add class-agnostic masks to what the backbone has seen. Of weights under
        another name than SAM's, and of an adapter distilled without SAM's decoder, nobody knows what they have seen."""
        facts = backbone_facts(self.hparams["backbone"], self.hparams["backbone_weights"])
        nothing = self.sam_weights == "random" and self.adapter_weights is None
        sam = Path(self.sam_weights).name in SAM_FILES
        if not nothing:
            others = tuple(word for word in facts["contamination"] if word not in ("none", "unknown"))
            known = sam and "unknown" not in facts["contamination"]
            facts["contamination"] = (*others, "class-agnostic masks") if known else ("unknown",)
        merge = {"feature": "joint", "logit": "average", "vote": "vote"}[self.hparams["kshot_merge"]]
        return {
            **facts,
            "track": "strict",
            "supervision": "none" if nothing else "SA-1B masks (SAM)" if sam else "unknown",
            "base_knowledge_at_test": False,
            "kshot_mode": merge,
            "hyper_parameters": "one setting for all data sets and shots",
            "uses_text": False,
        }

    @classmethod
    def without_files(cls) -> dict[str, Any]:
        """As published, the adapter is distilled and frozen; its file is read when a fit starts, not before."""
        return {"backbone_weights": "random", "adapter_weights": "distilled.safetensors"}

    def parameter_counts(self) -> dict[str, int]:
        """As for every method; the decoder's mask-quality head is trainable, being part of it, but not optimised."""
        trained = self.net.trained_parameters()
        modules = [module for name in trained for module in self.net.parts()[name]]
        trainable = sum(p.numel() for module in modules for p in module.parameters())
        return {**super().parameter_counts(), "trainable": trainable}

    def configure_optimizers(self) -> Any:
        """AdamW with one group per trained part (prompts, correlation, decoder, adapter), and the learning rate's schedule."""
        train = self.optimisation
        adapter_lr = train.adapter_lr
        if adapter_lr is None:
            adapter_lr = train.lr if self.adapter_weights is None else 1e-5
        rates = {"prompts": train.lr, "correlation": train.lr, "decoder": train.decoder_lr, "adapter": adapter_lr}
        groups = [{"name": n, "params": p, "lr": rates[n]} for n, p in self.net.trained_parameters().items()]
        optimizer = torch.optim.AdamW(groups, weight_decay=train.weight_decay, fused=self.fused)
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError("The cosine schedule needs an end. Set trainer.max_epochs or trainer.max_steps.")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(int(steps), train.warmup_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _distilled_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what a distilled adapter makes of an image (dropout only acts while it is trained)."""
    adapter = {f"adapter.{name}": value for name, value in settings["adapter"].items() if name != "dropout"}
    return {"apply_final_norm": settings["apply_final_norm"], **adapter}


def warmup_cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step (0-based): linear up over the warm-up, then a half cosine down to 0.

    `steps` counts the optimiser steps of the whole training; `warmup` is cut to a tenth of them.
    """
    warmup = min(warmup, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return factor
