"""The bottleneck adapter: early encoder tokens to a SAM-like image embedding (fsdino.md 2.2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import safetensors
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, autocast, nn

from fssbench.encoders.weights import find_weights, load_strict, read_tensors
from fssbench.errors import UserError

GROUPS = 32
"""Groups of GroupNorm: the default of its paper (Wu and He 2018)."""
FACTS_KEY = "fssbench_distillation"
"""Key of the safetensors metadata under which distillation says, as JSON, how an adapter was made."""


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter's settings. The stack of layers is reported for FS-DINO; the rest is our choice.

    Args:
        block: encoder block (1-based; negative counts from the end) whose query tokens the adapter reads.
        norm: norm after each of the first three convolutions. `bn` needs a batch of 8 or more per device while the
            adapter is trained; `ln2d` (over channels) and `gn` do not. All three have the same number of parameters.
        act: activation of the convolutions and of the attention blocks.
        hidden: channels of the first two convolutions.
        width: channels of the bottleneck; the attention blocks' inner layer has four times as many.
        depth: number of self-attention blocks.
        heads: attention heads; must divide `width`.
        pre_norm: LayerNorm before (true) or after (false) attention and feed-forward layer.
        pos_enc: `none`, or `fourier`: SAM's random Fourier features of the normalised token centres (resolution-free).
        dropout: dropout inside the attention blocks.
        final_ln: end with a LayerNorm over channels, as SAM's neck does; distillation starts it at the teacher's own.
    """

    block: int = 3
    norm: Literal["bn", "ln2d", "gn"] = "bn"
    act: Literal["gelu", "relu"] = "gelu"
    hidden: int = 256
    width: int = 128
    depth: int = 2
    heads: int = 8
    pre_norm: bool = True
    pos_enc: Literal["none", "fourier"] = "none"
    dropout: float = 0.0
    final_ln: bool = False


class AttentionBlock(nn.TransformerEncoderLayer):
    """PyTorch's layer for (B, N, C) with the attention fused in evaluation too: its own shortcut for inference writes the
    matrix of all pairs of tokens to memory, which takes most of the adapter's time on a large grid."""

    def forward(self, src: Tensor) -> Tensor:  # type: ignore[override]  # no masks here
        """Tokens (B, N, C) to (B, N, C)."""
        if self.norm_first:
            x = src + self.dropout1(self._attended(self.norm1(src)))
            return x + self._fed_forward(self.norm2(x))
        x = self.norm1(src + self.dropout1(self._attended(src)))
        return self.norm2(x + self._fed_forward(x))

    def _attended(self, x: Tensor) -> Tensor:
        attention = self.self_attn
        projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = attention.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return attention.out_proj(heads.transpose(1, 2).flatten(2))

    def _fed_forward(self, x: Tensor) -> Tensor:
        return self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))


class Adapter(nn.Module):
    """Three convolutions down to a bottleneck, self-attention over all tokens, one convolution to SAM's width.

    1,250,048 parameters from 768 to 256 channels with the default settings (1,151,744 from 384; 1,315,584 from 1024).
    Raises `UserError` where the widths do not fit the heads or the groups.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, config: AdapterConfig | None = None) -> None:
        super().__init__()
        config = config or AdapterConfig()
        _check(config)
        self.squeeze = nn.Sequential(
            *_conv(in_channels, config.hidden, 1, config),
            *_conv(config.hidden, config.hidden, 3, config),
            *_conv(config.hidden, config.width, 1, config),
        )
        self.position = PositionEmbeddingRandom(config.width // 2) if config.pos_enc == "fourier" else None
        self.attention = nn.Sequential(
            *(
                AttentionBlock(
                    config.width,
                    config.heads,
                    dim_feedforward=4 * config.width,
                    dropout=config.dropout,
                    activation=config.act,
                    batch_first=True,
                    norm_first=config.pre_norm,
                )
                for _ in range(config.depth)
            )
        )
        self.expand = nn.Conv2d(config.width, out_channels, 1)
        self.final_ln = LayerNorm2d(out_channels) if config.final_ln else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def start_from(self, weights: str) -> None:
        """Start at the weights of a distilled adapter: a flat .safetensors, .pth or .pt file with this module's names.

        Raises `UserError` where the file is missing or does not fit these settings.
        """
        state = read_tensors(weights, "Expected the adapter that distillation writes.")
        device = self.expand.weight.device
        what = "this adapter (settings adapter.*, encoder width)"
        load_strict(self, {name: value.to(device) for name, value in state.items()}, weights, what)

    def start_at_neck(self, norm: nn.Module) -> None:
        """Start the final LayerNorm, if there is one, at that of SAM's neck: its affine map makes the target reachable."""
        if isinstance(self.final_ln, LayerNorm2d):
            self.final_ln.load_state_dict(norm.state_dict())

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, D, h, w) of one encoder block to an image embedding (B, C, h, w), on any grid."""
        x = self.squeeze(tokens)
        if self.position is not None:
            with autocast(x.device.type, enabled=False):  # angles of many turns: never in half precision
                x = x + self.position(x.shape[-2:])
        grid = x.shape[-2:]
        x = self.attention(x.flatten(2).transpose(1, 2))
        return self.final_ln(self.expand(x.transpose(1, 2).unflatten(2, grid)))


def distillation_facts(weights: str) -> dict[str, Any]:
    """What distillation wrote into an adapter's file beside its weights (`settings`, `encoder_sha256`, ...); empty for
    any other file."""
    path = find_weights(weights)
    if path is None or path.suffix != ".safetensors":
        return {}
    with safetensors.safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS_KEY, "{}"))
    return facts


def _conv(inside: int, outside: int, kernel: int, config: AdapterConfig) -> list[nn.Module]:
    norms: dict[str, Callable[[int], nn.Module]] = {
        "bn": nn.BatchNorm2d,
        "ln2d": LayerNorm2d,
        "gn": lambda channels: nn.GroupNorm(GROUPS, channels),
    }
    acts: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU}
    convolution = nn.Conv2d(inside, outside, kernel, padding=kernel // 2, bias=False)
    return [convolution, norms[config.norm](outside), acts[config.act]()]


def _check(config: AdapterConfig) -> None:
    if config.heads < 1 or config.width % config.heads or config.width % 2:
        raise UserError(
            f"adapter.width is {config.width}, which is odd or not divisible by adapter.heads ({config.heads}). "
            "Choose heads that divide the width."
        )
    if config.norm == "gn" and (config.hidden % GROUPS or config.width % GROUPS):
        raise UserError(
            f"adapter.norm is gn, but adapter.hidden ({config.hidden}) or adapter.width ({config.width}) is not "
            f"divisible by its {GROUPS} groups. Choose such widths, or norm ln2d."
        )
