"""FS-DINO as one network: frozen features of query and supports to a mask (fsdino.md 1, 2 and 2.6)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from methods.fsdino.adapter import Adapter, AdapterConfig
from methods.fsdino.decoder import Decoder, DecoderConfig, SamParts, new_prompt_encoder
from methods.fsdino.prompts import (
    PCSConfig,
    PrototypeConfig,
    SimilarityPrompt,
    SparsePrompt,
    SVPConfig,
    pooled_prototypes,
    pooling_weights,
    with_fallback,
)

Features = dict[str, Tensor]


class FSDINONet(nn.Module):
    """Adapter, prompts and decoder over the tokens of two encoder blocks.

    Shapes: `B` episodes, `K` shots, `D` encoder channels, `C` decoder channels, `T` sparse tokens, `h w` patch grid.

    Args:
        in_channels: D.
        early: name of the query features that the adapter reads.
        late: name of the query and support features that prototypes and similarities are taken from.
        adapter, prototype, svp, pcs, decoder: settings of the parts; `decoder.train` null counts as true.
        train_adapter: train the adapter instead of keeping it frozen in eval mode.
        mask_threshold: a support none of whose tokens is covered to this part counts as empty (`prototype.fallback`).
        support_ignore: what pixels with 255 in a support mask are: `background`, or `exclude` for neither.
        kshot_merge: `feature` averages the prototypes of the shots, `logit` their logits, `vote` counts their masks.
    """

    def __init__(
        self,
        in_channels: int,
        early: str,
        late: str,
        *,
        adapter: AdapterConfig,
        prototype: PrototypeConfig,
        svp: SVPConfig,
        pcs: PCSConfig,
        decoder: DecoderConfig,
        train_adapter: bool = False,
        mask_threshold: float = 0.5,
        support_ignore: Literal["background", "exclude"] = "background",
        kshot_merge: Literal["feature", "logit", "vote"] = "feature",
    ) -> None:
        super().__init__()
        self.early, self.late = early, late
        self.prototype = prototype
        self.tokens = svp.tokens
        self.mask_threshold = mask_threshold
        self.support_ignore: Literal["background", "exclude"] = support_ignore
        self.kshot_merge = kshot_merge
        self.train_adapter = train_adapter
        self.train_decoder = decoder.train is not False

        self.adapter = Adapter(in_channels, decoder.width, adapter)
        self.svp = SparsePrompt(in_channels, decoder.width, svp)
        self.pcs = SimilarityPrompt(decoder.width, pcs)
        self.decoder = Decoder(decoder)
        self._start_prompts(new_prompt_encoder(decoder.width))
        self.adapter.requires_grad_(train_adapter)
        self.decoder.requires_grad_(False)
        for parameter in self.decoder.trained_parameters():
            parameter.requires_grad_(self.train_decoder)
        self.train()  # Lightning keeps the modes it finds: frozen parts start in eval mode

    # -- weights --------------------------------------------------------------------------------------------------

    def start_from_sam(self, sam: SamParts) -> None:
        """Start decoder and prompts at SAM's weights; raises `UserError` where they do not fit."""
        self.decoder.start_from(sam)
        self._start_prompts(sam.prompt_encoder)

    def _start_prompts(self, prompt_encoder: PromptEncoder) -> None:
        self.svp.start_from(prompt_encoder)
        self.pcs.start_from(prompt_encoder)

    def trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that are optimised, by part: prompts, decoder, adapter; parts without any are left out."""
        parts: dict[str, list[nn.Module]] = {
            "prompts": [self.svp, self.pcs],
            "decoder": [self.decoder],
            "adapter": [self.adapter],
        }
        trained = {
            name: [p for module in modules for p in module.parameters() if p.requires_grad]
            for name, modules in parts.items()
        }
        return {name: parameters for name, parameters in trained.items() if parameters}

    def train(self, mode: bool = True) -> FSDINONet:
        """Set training mode, but never for frozen parts (BatchNorm and dropout stay as they were learned)."""
        super().train(mode)
        if not self.train_adapter:
            self.adapter.eval()
        if not self.train_decoder:
            self.decoder.eval()
        return self

    # -- an episode -----------------------------------------------------------------------------------------------

    def forward(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """Query (B, D, h, w) and support tokens (B, K, D, h, w), masks (B, K, H, W) {0, 1, 255} to logits.

        The logits are (B, 4g, 4g) float32, g the decoder's grid; with `vote` and K > 1 they are (B, H, W).
        """
        query = {name: tokens.float() for name, tokens in query.items()}  # a feature cache may hold half precision
        embedding = self.embed(query[self.early])
        prototypes = self.prototypes(support[self.late], support_masks)
        if self.kshot_merge == "feature" or support_masks.shape[1] == 1:
            return self.decode(embedding, query, prototypes.mean(1))
        per_shot = torch.stack([self.decode(embedding, query, p) for p in prototypes.unbind(1)], 1)
        # Votes have no gradient: training with more than one shot averages their logits instead.
        if self.kshot_merge == "logit" or self.training:
            return per_shot.mean(1)
        return vote(F.interpolate(per_shot, support_masks.shape[-2:], mode="bilinear", align_corners=False))

    def embed(self, tokens: Tensor) -> Tensor:
        """Early query tokens (B, D, h, w) to a SAM-like image embedding (B, C, h, w)."""
        with torch.set_grad_enabled(self.train_adapter and torch.is_grad_enabled()):
            return self.adapter(tokens)

    def prototypes(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """Late support tokens (B, K, D, h, w) and masks (B, K, H, W) to prototypes (B, K, T, D), foreground first."""
        height, width = tokens.shape[-2:]
        foreground, background = pooling_weights(masks, (height, width), self.support_ignore).unbind(2)
        if self.prototype.fallback == "max_pool":
            foreground = with_fallback(foreground, self.mask_threshold)
        weights = torch.stack([foreground, background], 2)[:, :, : self.tokens]
        return pooled_prototypes(tokens, weights, self.prototype.eps)

    def decode(self, embedding: Tensor, query: Features, prototypes: Tensor) -> Tensor:
        """Image embedding (B, C, h, w), query tokens and prototypes (B, T, D) to logits (B, 4g, 4g)."""
        dense = self.pcs(query[self.late], prototypes[:, 0])
        return self.decoder(embedding, self.svp(prototypes), dense)


def vote(logits: Tensor) -> Tensor:
    """HSNet's K-shot vote: logits (B, K, H, W) to (B, H, W), above 0 where votes / max(1, most votes) >= 0.5.

    The most votes are those of any pixel of the same image. Values are fractions of the most votes, shifted so that
    the decision lies half-way between two counts.
    """
    votes = (logits > 0).sum(1).float()
    most = votes.amax((1, 2), keepdim=True).clamp(min=1)
    return (votes - torch.ceil(most / 2) + 0.5) / most
