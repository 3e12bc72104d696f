"""SAM 2's memory attention with calibrated cross-attention: same parameters, and without calibration the same results.

Subclasses of the public `sam2` classes, put in through its configuration (`TARGETS`). This module imports sam2, so
nothing else in the project imports it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.position_encoding import apply_rotary_enc
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.sam2fss.calibration import Calibration, calibration_bias, likeness_to_supports


class CalibratedRoPEAttention(RoPEAttention):
    """SAM 2's rotary attention from query tokens to the memory bank, optionally calibrated by the supports."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0, calibration: Calibration | None = None
    ) -> Tensor:
        """Query tokens (B, Q, C), keys and values (B, L, M) -> (B, Q, C).

        The last `num_k_exclude_rope` keys (object pointers) have no position. Q equals the tokens of one memory.
        """
        if calibration is None:
            return super().forward(q, k, v, num_k_exclude_rope=num_k_exclude_rope)
        query, plain, values = (
            self._separate_heads(project(x), self.num_heads)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        query, keys = self._rotated(query, plain, num_k_exclude_rope)
        attended = calibration.attended(keys.shape[2])
        scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
        if calibration.biased:
            scores = self._calibrated(scores, keys, plain, calibration)
        weights = scores[..., attended].softmax(-1)
        weights = F.dropout(weights, self.dropout_p, self.training)
        return self.out_proj(self._recombine_heads(weights @ values[:, :, attended]))

    def _rotated(self, query: Tensor, keys: Tensor, pointers: int) -> tuple[Tensor, Tensor]:
        """Queries and keys with rotary positions; the stock module writes into its keys, which the calibration may need."""
        number = keys.shape[2] - pointers
        query, spatial = apply_rotary_enc(
            query, keys[:, :, :number], freqs_cis=self.freqs_cis, repeat_freqs_k=self.rope_k_repeat
        )
        return query, torch.cat([spatial, keys[:, :, number:]], dim=2)

    def _calibrated(self, scores: Tensor, keys: Tensor, plain: Tensor, calibration: Calibration) -> Tensor:
        """Scores (B, H, Q, L) with the bias on the calibrated block, all other columns untouched."""
        block, shot = calibration.block(), calibration.supports
        masks = calibration.support_masks[:, :shot]
        compared = keys if calibration.keys == "rotated" else plain
        with torch.set_grad_enabled(torch.is_grad_enabled() and not calibration.detach):
            supports = compared[:, :, : shot * masks.shape[2]].unflatten(2, (shot, masks.shape[2]))
            with torch.autocast(scores.device.type, enabled=False):
                likeness = likeness_to_supports(supports, compared[:, :, block], masks)
                bias = calibration_bias(scores[..., block], likeness, calibration.alpha)
        parts = (scores[..., : block.start], scores[..., block] + bias, scores[..., block.stop :])
        return torch.cat(parts, dim=-1)


class CalibratedMemoryAttentionLayer(MemoryAttentionLayer):
    """SAM 2's layer, which hands a calibration on to its cross-attention.

    With `recompute` nothing but the arguments is kept for the gradient, and the layer computed again in the backward pass.
    """

    recompute = False

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor | None = None,
        query_pos: Tensor | None = None,
        num_k_exclude_rope: int = 0,
        calibration: Calibration | None = None,
    ) -> Tensor:
        """Query tokens (B, N, C) and bank (B, L, M) with its positions -> (B, N, C)."""
        args = tgt, memory, pos, query_pos, num_k_exclude_rope, calibration
        if self.recompute and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._forward, *args, use_reentrant=False)
            return again
        return self._forward(*args)

    def _forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        pos: Tensor | None,
        query_pos: Tensor | None,
        pointers: int,
        calibration: Calibration | None,
    ) -> Tensor:
        if calibration is None:
            return super().forward(tgt, memory, pos, query_pos, pointers)
        tgt = self._forward_sa(tgt, query_pos)
        tgt = self._forward_calibrated(tgt, memory, pos, query_pos, pointers, calibration)
        hidden = self.dropout(self.activation(self.linear1(self.norm3(tgt))))
        return tgt + self.dropout3(self.linear2(hidden))

    def _forward_calibrated(
        self, tgt: Tensor, memory: Tensor, pos: Any, query_pos: Any, pointers: int, calibration: Calibration
    ) -> Tensor:
        normed = self.norm2(tgt)
        attended = self.cross_attn_image(
            q=normed + query_pos if self.pos_enc_at_cross_attn_queries else normed,
            k=memory + pos if self.pos_enc_at_cross_attn_keys else memory,
            v=memory,
            num_k_exclude_rope=pointers,
            calibration=calibration,
        )
        return tgt + self.dropout2(attended)


class CalibratedMemoryAttention(MemoryAttention):
    """SAM 2's memory attention, optionally calibrated in every layer."""

    def forward(
        self,
        curr: Tensor,
        memory: Tensor,
        curr_pos: Tensor | None = None,
        memory_pos: Tensor | None = None,
        num_obj_ptr_tokens: int = 0,
        calibration: Calibration | None = None,
    ) -> Tensor:
        """Query tokens (N, B, C) and bank (L, B, M), each with positions -> conditioned query tokens (N, B, C)."""
        if calibration is None:
            return super().forward(curr, memory, curr_pos, memory_pos, num_obj_ptr_tokens)
        assert curr_pos is not None
        assert memory_pos is not None
        output = curr + 0.1 * curr_pos if self.pos_enc_at_input else curr
        first = [x.transpose(0, 1) if self.batch_first else x for x in (output, memory, memory_pos, curr_pos)]
        output, memory, memory_pos, curr_pos = first
        for layer in self.layers:
            output = layer(output, memory, memory_pos, curr_pos, num_obj_ptr_tokens, calibration)
        output = self.norm(output)
        return output.transpose(0, 1) if self.batch_first else output
