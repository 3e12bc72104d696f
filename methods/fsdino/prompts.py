"""The prompt generator: support masks and tokens to a sparse and a dense prompt (fsdino.md 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder
from torch import Tensor, autocast, nn

from fssbench.errors import UserError
from methods.fsdino.decoder import new_prompt_encoder


@dataclass(frozen=True)
class PrototypeConfig:
    """The pooled prototype (our choice but for the pooling itself).

    Args:
        block: encoder block (1-based; negative counts from the end) that prototypes and similarities are taken from.
        eps: added to the sum of the pooling weights.
        fallback: `max_pool` weights the tokens by the max-pooled mask where no token reaches `mask_threshold`, so that
            a small object is not averaged away; `none` always uses the average-pooled mask.
    """

    block: int = -1
    eps: float = 1e-6
    fallback: Literal["max_pool", "none"] = "max_pool"


@dataclass(frozen=True)
class SVPConfig:
    """The sparse prompt, called semantic-aware visual prompt (sizes and start are our choice).

    Args:
        hidden: width between the two linear layers; 64 keeps the smallest preset at 0.07 M parameters.
        tokens: 1 (foreground prototype), 2 (foreground and background prototype, each with its own layers), or 0 to
            leave this prompt out.
        init: `sam` starts the last bias at SAM's positive (background: negative) point embedding; `random` does not.
    """

    hidden: int = 64
    tokens: Literal[0, 1, 2] = 1
    init: Literal["sam", "random"] = "sam"


@dataclass(frozen=True)
class PCSConfig:
    """The dense prompt, from the prototype-cosine-similarity map (scale and start are our choice).

    Args:
        scale: `learned` feeds alpha * cosine + beta with learned alpha and beta; `raw` the cosine; `minmax` the cosine
            stretched to [0, 1] in each image.
        encoder_init: `sam` starts the encoder at SAM's mask-prompt encoder; `random` does not.
    """

    scale: Literal["learned", "raw", "minmax"] = "learned"
    encoder_init: Literal["sam", "random"] = "sam"


def pooling_weights(
    masks: Tensor, grid: tuple[int, int], support_ignore: Literal["background", "exclude"] = "background"
) -> Tensor:
    """Support masks (B, K, H, W) {0, 1, 255} to token weights (B, K, 2, h, w) in [0, 1]: foreground, background.

    Each weight is the part of the patch that the class covers (exact average pooling, patch by patch). Ignored pixels
    (255) are never foreground; they are background, or with `exclude` neither. The sides of `grid` must divide H and W.
    """
    if masks.shape[-2] % grid[0] or masks.shape[-1] % grid[1]:
        raise UserError(
            f"Support masks of {masks.shape[-2]}x{masks.shape[-1]} pixels do not tile into {grid[0]}x{grid[1]} patches"
            ". Give masks at the network size (model.image_size)."
        )
    foreground = masks == 1
    background = masks == 0 if support_ignore == "exclude" else ~foreground
    return F.adaptive_avg_pool2d(torch.stack([foreground, background], 2).flatten(0, 2).float(), grid).view(
        *masks.shape[:2], 2, *grid
    )


def with_fallback(weights: Tensor, threshold: float) -> Tensor:
    """Foreground weights (B, K, h, w), replaced by [weight > 0] where no token of the shot reaches `threshold`.

    [average > 0] is the max-pooled mask. Only a mask without any foreground stays empty.
    """
    present = weights > 0
    empty = ~((weights >= threshold) & present).flatten(2).any(2)
    return torch.where(empty[..., None, None], present.to(weights), weights)


def pooled_prototypes(tokens: Tensor, weights: Tensor, eps: float = 1e-6) -> Tensor:
    """Weighted means of the tokens: (B, K, D, h, w), (B, K, T, h, w) to (B, K, T, D) float32.

    p = sum_j m_j X(j) / (sum_j m_j + eps). Zero where all weights of a shot are zero.
    """
    with autocast(tokens.device.type, enabled=False):
        weights = weights.float()
        total = torch.einsum("bkdhw,bkthw->bktd", tokens.float(), weights)
        return total / (weights.sum((-2, -1))[..., None] + eps)


def cosine_map(tokens: Tensor, prototype: Tensor) -> Tensor:
    """Cosine of every token with the prototype: (B, D, h, w), (B, D) to (B, h, w) float32 in [-1, 1]."""
    with autocast(tokens.device.type, enabled=False):
        tokens = F.normalize(tokens.float(), dim=1)
        prototype = F.normalize(prototype.float(), dim=1)
        return torch.einsum("bdhw,bd->bhw", tokens, prototype).clamp(-1, 1)


class SparsePrompt(nn.Module):
    """SVP: one token per prototype, t = W2 GELU(W1 p + b1) + b2.

    65,856 parameters per token from 768 channels by default.
    """

    def __init__(self, in_channels: int, width: int, config: SVPConfig) -> None:
        super().__init__()
        self.init, self.width = config.init, width
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Linear(in_channels, config.hidden), nn.GELU(), nn.Linear(config.hidden, width))
            for _ in range(config.tokens)
        )

    @torch.no_grad()
    def start_from(self, prompt_encoder: PromptEncoder) -> None:
        """Start the tokens at SAM's positive and negative point embeddings, with little influence of the prototype."""
        if self.init == "random":
            return
        for projection, label in zip(self.projections, (1, 0), strict=False):
            last = projection.get_submodule("2")
            assert isinstance(last, nn.Linear)
            nn.init.normal_(last.weight, std=0.02)
            last.bias.copy_(prompt_encoder.point_embeddings[label].weight[0])

    def forward(self, prototypes: Tensor) -> Tensor:
        """Prototypes (B, T, D), foreground first, to tokens (B, T, C)."""
        tokens = [project(prototypes[:, t]) for t, project in enumerate(self.projections)]
        return torch.stack(tokens, 1) if tokens else prototypes.new_empty(len(prototypes), 0, self.width)


class SimilarityPrompt(nn.Module):
    """PCS: cosine map of query tokens and foreground prototype, read by SAM's mask-prompt encoder.

    4,684 parameters for 256 channels, and 2 where the scale is learned.
    """

    def __init__(self, width: int, config: PCSConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = new_prompt_encoder(width).mask_downscaling
        if config.scale == "learned":
            # The encoder expects logits: cosines of 0.5 sit on its zero. Untuned (fsdino.md 6.1).
            self.alpha = nn.Parameter(torch.tensor(10.0))
            self.beta = nn.Parameter(torch.tensor(-5.0))

    def start_from(self, prompt_encoder: PromptEncoder) -> None:
        """Start the encoder at SAM's own."""
        if self.config.encoder_init == "sam":
            self.encoder.load_state_dict(prompt_encoder.mask_downscaling.state_dict())

    def scaled(self, cosine: Tensor) -> Tensor:
        """The cosine map (B, h, w) as the encoder's input, by `pcs.scale`."""
        if self.config.scale == "learned":
            return self.alpha * cosine + self.beta
        if self.config.scale == "minmax":
            low, high = cosine.amin((1, 2), keepdim=True), cosine.amax((1, 2), keepdim=True)
            return (cosine - low) / (high - low).clamp(min=1e-6)
        return cosine

    def forward(self, query: Tensor, prototype: Tensor) -> Tensor:
        """Query tokens (B, D, h, w) and foreground prototype (B, D) to a dense prompt (B, C, h, w)."""
        cosine = self.scaled(cosine_map(query, prototype))[:, None]
        # The encoder halves the side twice.
        return self.encoder(F.interpolate(cosine, scale_factor=4, mode="bilinear", align_corners=False))


class NoDensePrompt(nn.Module):
    """In place of a dense prompt, SAM's embedding of no mask: the same vector everywhere, 256 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def start_from(self, prompt_encoder: PromptEncoder) -> None:
        """Start at SAM's own."""
        self.embedding.copy_(prompt_encoder.no_mask_embed.weight[0])

    def forward(self, like: Tensor) -> Tensor:
        """The vector at every position of a map (B, C, h, w)."""
        return self.embedding[:, None, None].expand_as(like)
