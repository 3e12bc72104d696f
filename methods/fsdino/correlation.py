"""The 4D branch: support-query correlation over several encoder blocks, read into a dense prompt (fsdino.md 2.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fssbench.errors import UserError
from methods.fsdino.centre_pivot import Activation, CentrePivotConv4d

NORM_GROUPS = 4
"""Groups of every GroupNorm, as in HSNet."""
START_NOISE = 0.3
"""Part of the usual random start that is kept where the convolutions start as means."""
CHUNK_BYTES = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}
"""Bytes of the correlation computed at once: about a processor's cache, or enough to keep a GPU busy."""


@dataclass(frozen=True)
class CorrConfig:
    """The 4D correlation and its reader, HSNet's centre-pivot convolutions at one scale (our choice but for the idea).

    Args:
        blocks: encoder blocks that are correlated (1-based; negative numbers count from the end).
        channels: channels after the three squeezing convolutions; each divisible by 4.
        groups: 2 squeezes the later and the earlier half of the blocks separately and adds the results before mixing.
        init: `average` starts the convolutions near means over the support, so that they tell object and background apart
            before they have learned anything; `random` as usual (untrained, the map is then close to noise).
        zero_init_head: start the last layer at zero, so that the model starts exactly where it would without this part.
        mask: `binary` counts a support token as foreground where the class covers it to `mask_threshold`; `soft`
            weights it by the covered part.
        eps: added to the length of a token when it is normalised (HSNet's value).
        ce: contrastive enhancement: correlations with the support's background are subtracted; null: as the preset
            says (`fsdino_ce` yes, others no).
        ce_balance: with `ce`, weigh the background down until it counts no more than the object in sum (our choice; the
            paper's formula counts every token the same, and most tokens are background).
    """

    blocks: tuple[int, ...] = (-6, -5, -4, -3, -2, -1)
    channels: tuple[int, int, int] = (16, 64, 128)
    groups: Literal[1, 2] = 1
    init: Literal["average", "random"] = "average"
    zero_init_head: bool = True
    mask: Literal["binary", "soft"] = "binary"
    eps: float = 1e-5
    ce: bool | None = None
    ce_balance: bool = False


class Tokens(NamedTuple):
    """Tokens of L blocks and the inverse of their lengths.

    blocks  L tensors (B, D, N) float32
    scale   (B, L, N), 1 / (|f| + eps)
    """

    blocks: list[Tensor]
    scale: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], eps: float) -> Tokens:
        """Of L maps (B, D, h, w)."""
        blocks = [tokens.flatten(2).float() for tokens in maps]
        return cls(blocks, torch.stack([1 / (tokens.square().sum(1).sqrt() + eps) for tokens in blocks], 1))

    def at(self, positions: slice | Tensor) -> Tokens:
        """Those at some of the N positions."""
        return Tokens([tokens[..., positions] for tokens in self.blocks], self.scale[..., positions])

    def of_episode(self, number: int) -> Tokens:
        """Those of one of the B episodes, B = 1."""
        return Tokens([tokens[number, None] for tokens in self.blocks], self.scale[number, None])


def correlation(rows: Tokens, columns: Tokens) -> Tensor:
    """Cosines of all rows with all columns, clipped at 0: (B, M, L, N) float32 in [0, 1] for M rows and N columns."""
    size, count = len(rows.scale), len(rows.blocks)
    result = rows.scale.new_empty(size, rows.scale.shape[-1], count, columns.scale.shape[-1])
    for number, (row, column) in enumerate(zip(rows.blocks, columns.blocks, strict=True)):
        unit = row * rows.scale[:, number, None]
        cosines = torch.bmm(unit.transpose(1, 2), column).clamp_(min=0)
        torch.mul(cosines, columns.scale[:, number, None], out=result[:, :, number])
    return result


class SignedTokens:
    """A support's tokens with their signs, which its correlations are multiplied by.

    On a CPU the correlations of tokens whose sign is 0 are not computed: without contrast these are all but the object's.
    (How many there are is known on the CPU alone; a GPU would be waited for.)

    Args:
        tokens: of B episodes, N each.
        signs: (B, N) in [-1, 1].
    """

    def __init__(self, tokens: Tokens, signs: Tensor) -> None:
        self.tokens, self.signs = tokens, signs
        self.where: list[Tensor] | None = None
        """By episode, the positions of tokens whose sign is not 0; None: all are taken."""
        if signs.device.type == "cpu" and not torch.compiler.is_compiling() and not signs.all():
            self.where = [one.nonzero()[:, 0] for one in signs]
            self.seen = [self.tokens.of_episode(number).at(where) for number, where in enumerate(self.where)]

    def of_query(self, query: Tokens) -> Tensor:
        """Clipped cosines of M query tokens with all tokens, signed: (B, M, L, N) float32 in [-1, 1]."""
        if self.where is None:
            return correlation(query, _signed(self.tokens, self.signs))
        size, count, tokens = query.scale.shape
        result = query.scale.new_zeros(size, tokens, count, self.signs.shape[-1])
        for number, where in enumerate(self.where):
            seen = _signed(self.seen[number], self.signs[number, None, where])
            result[number].index_copy_(-1, where, correlation(query.of_episode(number), seen)[0])
        return result

    def with_query(self, query: Tokens) -> tuple[Tensor, Tensor | None]:
        """The same from the other side: signed cosines (S, L, M) of tokens with M query tokens, and which S of all B * N
        these are; None: all."""
        if self.where is None:
            values = correlation(self.tokens, query).mul_(self.signs[..., None, None])
            return values.flatten(0, 1), None
        values = torch.cat([correlation(seen, query.of_episode(number))[0] for number, seen in enumerate(self.seen)])
        where = torch.cat([number * self.signs.shape[-1] + where for number, where in enumerate(self.where)])
        return values.mul_(self.signs.flatten()[where, None, None]), where


def _signed(tokens: Tokens, signs: Tensor) -> Tokens:
    return tokens._replace(scale=tokens.scale * signs[:, None])


def token_signs(
    foreground: Tensor,
    background: Tensor,
    *,
    ce: bool,
    mask: Literal["binary", "soft"] = "binary",
    threshold: float = 0.5,
    exclude: bool = False,
    balance: bool = False,
) -> Tensor:
    """The factor of each support token's correlations: (..., h, w) in [-1, 1]; every support of a batch by itself.

    Foreground counts 1 (soft: its part of the token). Background counts 0, with `ce` -1: H = C M, or H = C (2 M - 1);
    with `balance` all background of a support together at most as much as its foreground: H = C (M - w (1 - M)).
    Where ignored pixels are excluded, a token is background only where that covers it to `threshold` (soft: by its
    part), and a token that is neither counts 0.

    foreground, background  (..., h, w) in [0, 1], as `pooling_weights` gives them, the foreground with its fallback
    """
    if mask == "binary":
        foreground = ((foreground >= threshold) & (foreground > 0)).to(foreground)
        background = (background >= threshold).to(background)
    if not ce:
        return foreground
    other = 1 - foreground
    if exclude:
        other = torch.minimum(background, other)
    if balance:
        inside, outside = (part.sum((-2, -1), keepdim=True) for part in (foreground, other))
        other = other * torch.where(outside > inside, inside / outside, 1)
    return foreground - other


class _Layer(nn.Module):
    """A centre-pivot convolution, GroupNorm and ReLU; channels last. Only the convolution's result is kept for the
    gradient: norm and ReLU, which are little arithmetic, are computed again."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = CentrePivotConv4d(in_channels, out_channels, kernel, stride)
        self.norm = nn.GroupNorm(NORM_GROUPS, out_channels)

    def forward(self, x: Activation) -> Activation:
        """(B, u, v, h, w, C) to (B, u', v', h, w, C')."""
        return self.activate(self.conv(x))

    def activate(self, x: Tensor) -> Activation:
        """Norm and ReLU of a convolution's result (B, u, v, h, w, C)."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return Activation(self._normed(x))
        value = checkpoint(self._normed, x, use_reentrant=False, preserve_rng_state=False)
        value_type = value.dtype  # under autocast not that of x
        return Activation(value, x.detach(), lambda before: self._normed(before.to(value_type)))

    def _normed(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(1, 2).permute(0, 4, 1, 2, 3))  # views: the memory stays channels-last
        return F.relu_(y).permute(0, 2, 3, 4, 1).unflatten(1, x.shape[1:3])


class _Squeeze(nn.Module):
    """Three layers that shrink the support's grid: 37 to 10, 5 and 3. The first computes the correlation it reads."""

    def __init__(self, blocks: int, channels: tuple[int, int, int], recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.first = _Layer(blocks, channels[0], 5, 4)
        self.rest = nn.Sequential(_Layer(*channels[:2], 3, 2), _Layer(*channels[1:], 3, 2))

    def forward(self, query: Tokens, support: Tokens, signs: Tensor, grid: tuple[int, int]) -> Activation:
        """Tokens of the query on its `grid` and of the support, its signs (B, u, v), to (B, u', v', h, w, C).

        The first convolution and the correlations it reads are float32 under autocast too.
        """
        with torch.autocast(signs.device.type, enabled=False):
            first = self._over_query(query, support, signs, grid) + self._over_support(query, support, signs, grid)
        result: Activation = self.rest(self.first.activate(first))
        return result

    def _over_query(self, query: Tokens, support: Tokens, signs: Tensor, grid: tuple[int, int]) -> Tensor:
        """The branch over the query: only support positions that the stride keeps are correlated."""
        conv = self.first.conv
        with torch.no_grad():
            positions = torch.arange(signs[0].numel(), device=signs.device).view(signs.shape[1:])
            kept = positions[:: conv.stride, :: conv.stride]
            signed = SignedTokens(support.at(kept.flatten()), signs.flatten(1)[:, kept.flatten()])
            values, where = signed.with_query(query)
            images = values.unflatten(-1, grid).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(images, conv.query.weight, conv.bias, padding=conv.query.padding).permute(0, 2, 3, 1)
        if where is not None:  # elsewhere the images are 0
            everywhere = conv.bias.expand(len(signs) * kept.numel(), *grid, -1)
            out = everywhere.index_copy(0, where, out)
        return out.unflatten(0, (len(signs), *kept.shape))

    def _over_support(self, query: Tokens, support: Tokens, signs: Tensor, grid: tuple[int, int]) -> Tensor:
        """The branch over the support, some query positions at a time, so that the whole 4D tensor is never there at
        once (in training: only if it is kept for the gradient)."""
        conv = self.first.conv
        with torch.no_grad():
            signed = SignedTokens(support, signs.flatten(1))

        def some(positions: slice) -> Tensor:
            with torch.no_grad():
                values = signed.of_query(query.at(positions))
                images = values.flatten(0, 1).unflatten(-1, signs.shape[1:])
            out = F.conv2d(images, conv.support.weight, None, conv.stride, conv.support.padding)
            return out.unflatten(0, values.shape[:2])

        count = query.scale.shape[-1]
        step = max(1, CHUNK_BYTES.get(signs.device.type, CHUNK_BYTES["cuda"]) // (4 * support.scale.numel()))
        keep = not (self.recompute and torch.is_grad_enabled())
        parts = [slice(start, start + step) for start in range(0, count, step)]
        done = [some(part) if keep else checkpoint(some, part, use_reentrant=False) for part in parts]
        return torch.cat(done, 1).permute(0, 3, 4, 1, 2).unflatten(3, grid)  # (B, u', v', h, w, C)


class CorrelationPrompt(nn.Module):
    """4D correlation to a dense prompt: squeeze, mix, average over the support, and a 2D head.

    1,238,400 parameters with six blocks and 256 output channels: squeeze 171,520, mixing 886,272, head 180,608.

    Args:
        blocks: number of correlated blocks L.
        width: channels of the dense prompt.
        config: the settings; `ce` null counts as false.
        recompute: compute the correlation again in the backward pass instead of keeping it.

    Raises `UserError` where channels or blocks do not fit.
    """

    def __init__(self, blocks: int, width: int, config: CorrConfig, recompute: bool = False) -> None:
        super().__init__()
        if any(channels < 1 or channels % NORM_GROUPS for channels in config.channels):
            raise UserError(
                f"corr.channels are {list(config.channels)}, but each must be divisible by the {NORM_GROUPS} groups of "
                "its norm. Choose multiples of 4."
            )
        if blocks < config.groups:
            raise UserError(
                f"corr.groups is {config.groups}, but only {blocks} block(s) are correlated. Give more corr.blocks, or "
                "groups: 1."
            )
        self.config = config
        late = blocks - blocks // 2 if config.groups == 2 else blocks
        self.sizes = (blocks - late, late) if config.groups == 2 else (blocks,)
        last = config.channels[-1]
        self.squeeze = nn.ModuleList(_Squeeze(size, config.channels, recompute) for size in self.sizes)
        self.mixing = nn.Sequential(*(_Layer(last, last, 3, 1) for _ in range(3)))
        if config.init == "average":
            for module in self.modules():
                if isinstance(module, CentrePivotConv4d):
                    module.start_as_average(START_NOISE)
        prompt = nn.Conv2d(last, width, 1)
        self.head = nn.Sequential(nn.Conv2d(last, last, 3, padding=1), nn.ReLU(), prompt)
        if config.zero_init_head:
            for parameter in prompt.parameters():
                nn.init.zeros_(parameter)

    def match(self, query: Sequence[Tensor], support: Sequence[Tensor], signs: Tensor) -> Tensor:
        """The 4D part for each of K supports by itself, one after the other, for memory; `forward` takes their average
        (fsdino.md 2.6).

        query (B, D, h, w) and support (B, K, D, u, v), L maps each, earliest block first; signs (B, K, u, v)
        -> (B, K, C, h, w)
        """
        grid = (query[0].shape[-2], query[0].shape[-1])
        prepared = self._tokens(query)
        shots = range(signs.shape[1])
        return torch.stack(
            [self._match(prepared, [maps[:, k] for maps in support], signs[:, k], grid) for k in shots], 1
        )

    def _match(self, query: list[Tokens], support: Sequence[Tensor], signs: Tensor, grid: tuple[int, int]) -> Tensor:
        """One support: the query's tokens of each group, the support's maps (B, D, u, v), signs (B, u, v)."""
        both = zip(self.squeeze, query, self._tokens(support), strict=True)
        squeezed = [squeeze(tokens, others, signs, grid) for squeeze, tokens, others in both]
        total = squeezed[0] if len(squeezed) == 1 else Activation(squeezed[0].value + squeezed[1].value)
        mixed: Activation = self.mixing(total)
        return mixed.value.mean((1, 2)).permute(0, 3, 1, 2)

    def _tokens(self, maps: Sequence[Tensor]) -> list[Tokens]:
        """The tokens of L maps, those of each group of blocks by themselves."""
        starts = [sum(self.sizes[:number]) for number in range(len(self.sizes))]
        with torch.no_grad():
            return [
                Tokens.of(maps[start : start + size], self.config.eps)
                for start, size in zip(starts, self.sizes, strict=True)
            ]

    def forward(self, matches: Tensor) -> Tensor:
        """The 2D head: what `match` gave (B, C, h, w), averaged over the shots, to a dense prompt (B, width, h, w)."""
        prompt: Tensor = self.head(matches)
        return prompt
