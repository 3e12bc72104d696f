"""FS-DINO as one network: frozen features of query and supports to a mask (fsdino.md 1, 2 and 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn

from fssbench.protocols.voting import vote_logits
from methods.fsdino.adapter import Adapter, AdapterConfig
from methods.fsdino.correlation import CorrConfig, CorrelationPrompt, token_signs
from methods.fsdino.decoder import Decoder, DecoderConfig, SamParts, new_prompt_encoder
from methods.fsdino.prompts import (
    NoDensePrompt,
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
    """Adapter, prompts and decoder over the tokens of several encoder blocks.

    Shapes: `B` episodes, `K` shots, `D` encoder channels, `C` decoder channels, `T` sparse tokens, `h w` patch grid.

    Args:
        in_channels: D.
        early: name of the query features that the adapter reads.
        late: name of the query and support features that prototypes and similarities are taken from.
        matched: names of the query and support features that are correlated, earliest first; read with `corr`, `both`.
        dense: the dense prompt: prototype similarity (`pcs`), 4D correlation (`corr`), the sum of `both`, or `none`:
            SAM's embedding of no mask.
        adapter, prototype, svp, pcs, corr, decoder: settings of the parts; `decoder.train` null counts as true,
            `corr.ce` null as false.
        train_adapter: train the adapter instead of keeping it frozen in eval mode.
        mask_threshold: a support none of whose tokens is covered to this part counts as empty (`prototype.fallback`).
        support_ignore: what pixels with 255 in a support mask are: `background`, or `exclude` for neither.
        kshot_merge: `feature` averages the shots' prototypes and correlation features, `logit` their logits, `vote`
            counts their masks.
        recompute_correlation: compute the correlation again in the backward pass instead of keeping it.
    """

    def __init__(
        self,
        in_channels: int,
        early: str,
        late: str,
        matched: Sequence[str] = (),
        *,
        dense: Literal["both", "pcs", "corr", "none"] = "pcs",
        adapter: AdapterConfig,
        prototype: PrototypeConfig,
        svp: SVPConfig,
        pcs: PCSConfig,
        decoder: DecoderConfig,
        corr: CorrConfig = CorrConfig(),  # noqa: B008 (frozen: safe to share)
        train_adapter: bool = False,
        mask_threshold: float = 0.5,
        support_ignore: Literal["background", "exclude"] = "background",
        kshot_merge: Literal["feature", "logit", "vote"] = "feature",
        recompute_correlation: bool = False,
    ) -> None:
        super().__init__()
        self.early, self.late, self.matched = early, late, tuple(matched)
        self.prototype = prototype
        self.tokens = svp.tokens
        self.mask_threshold = mask_threshold
        self.support_ignore: Literal["background", "exclude"] = support_ignore
        self.kshot_merge = kshot_merge
        self.train_adapter = train_adapter
        self.train_decoder = decoder.train is not False

        self.adapter = Adapter(in_channels, decoder.width, adapter)
        self.svp = SparsePrompt(in_channels, decoder.width, svp)
        self.pcs = SimilarityPrompt(decoder.width, pcs) if dense in ("both", "pcs") else None
        self.no_dense = NoDensePrompt(decoder.width) if dense == "none" else None
        self.decoder = Decoder(decoder)
        self._start_prompts(new_prompt_encoder(decoder.width))
        # last, so that one seed starts the other parts alike with and without it
        self.corr = (
            CorrelationPrompt(len(self.matched), decoder.width, corr, recompute_correlation)
            if dense in ("both", "corr")
            else None
        )
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
        for prompt in (self.pcs, self.no_dense):
            if prompt is not None:
                prompt.start_from(prompt_encoder)

    def parts(self) -> dict[str, list[nn.Module]]:
        """The modules by part, trained or not."""
        parts: dict[str, list[nn.Module | None]] = {
            "prompts": [self.svp, self.pcs, self.no_dense],
            "correlation": [self.corr],
            "decoder": [self.decoder],
            "adapter": [self.adapter],
        }
        return {name: [module for module in modules if module is not None] for name, modules in parts.items()}

    def trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that are optimised, by part: prompts, correlation, decoder, adapter; parts without any are
        left out."""
        trained = {
            name: [p for module in modules for p in module.parameters() if p.requires_grad]
            for name, modules in self.parts().items()
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
        """Query (B, D, h, w) and support tokens (B, K, D, u, v), masks (B, K, H, W) {0, 1, 255} to logits.

        The masks' grid is that of the support tokens; the query's may be another one. The logits are (B, 4g, 4g) float32,
        g the decoder's grid; with `vote` and K > 1 they are (B, H, W).
        """
        query = {name: tokens.float() for name, tokens in query.items()}  # a feature cache may hold half precision
        embedding = self.embed(query[self.early])
        weights = self.token_weights(support_masks, support[self.late].shape[-2:])
        prototypes = self.pooled(support[self.late], weights)
        matches = self.matches(query, support, weights)

        def logits(shots: slice) -> Tensor:
            """The logits of the average of some shots."""
            matched = None if matches is None else matches[:, shots].mean(1)
            return self.decode(embedding, query, prototypes[:, shots].mean(1), matched)

        count = support_masks.shape[1]
        if self.kshot_merge == "feature" or count == 1:
            return logits(slice(None))
        per_shot = torch.stack([logits(slice(shot, shot + 1)) for shot in range(count)], 1)
        # Votes have no gradient: training with more than one shot averages their logits instead.
        if self.kshot_merge == "logit" or self.training:
            return per_shot.mean(1)
        full = F.interpolate(per_shot, support_masks.shape[-2:], mode="bilinear", align_corners=False)
        return vote_logits(full > 0)

    def embed(self, tokens: Tensor) -> Tensor:
        """Early query tokens (B, D, h, w) to a SAM-like image embedding (B, C, h, w)."""
        with torch.set_grad_enabled(self.train_adapter and torch.is_grad_enabled()):
            return self.adapter(tokens)

    def token_weights(self, masks: Tensor, grid: tuple[int, int] | torch.Size) -> Tensor:
        """Masks (B, K, H, W) to token weights (B, K, 2, h, w): foreground with its fallback, background."""
        foreground, background = pooling_weights(masks, (grid[0], grid[1]), self.support_ignore).unbind(2)
        if self.prototype.fallback == "max_pool":
            foreground = with_fallback(foreground, self.mask_threshold)
        return torch.stack([foreground, background], 2)

    def prototypes(self, tokens: Tensor, masks: Tensor) -> Tensor:
        """Late support tokens (B, K, D, h, w) and masks (B, K, H, W) to prototypes (B, K, T, D), foreground first."""
        return self.pooled(tokens, self.token_weights(masks, tokens.shape[-2:]))

    def pooled(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Late support tokens and their weights to prototypes (B, K, T, D), foreground first; T is 1 or more."""
        return pooled_prototypes(tokens, weights[:, :, : max(1, self.tokens)], self.prototype.eps)

    def matches(self, query: Features, support: Features, weights: Tensor) -> Tensor | None:
        """What the 4D part makes of each shot (B, K, C', h, w); None without it."""
        if self.corr is None:
            return None
        signs = token_signs(
            *weights.unbind(2),
            ce=bool(self.corr.config.ce),
            mask=self.corr.config.mask,
            threshold=self.mask_threshold,
            exclude=self.support_ignore == "exclude",
            balance=self.corr.config.ce_balance,
        )
        maps, support_maps = ([features[name] for name in self.matched] for features in (query, support))
        return self.corr.match(maps, support_maps, signs)

    def decode(self, embedding: Tensor, query: Features, prototypes: Tensor, matches: Tensor | None) -> Tensor:
        """Image embedding (B, C, h, w), query tokens, prototypes (B, T, D) and what the 4D part found (B, C', h, w) to
        logits (B, 4g, 4g)."""
        dense = [] if self.pcs is None else [self.pcs(query[self.late], prototypes[:, 0])]
        if self.corr is not None:
            dense.append(self.corr(matches))
        if self.no_dense is not None:
            dense.append(self.no_dense(embedding))
        return self.decoder(embedding, self.svp(prototypes[:, : self.tokens]), sum(dense[1:], dense[0]))
