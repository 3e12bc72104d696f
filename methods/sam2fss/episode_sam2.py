"""SAM 2 used as if an episode were a video: frames are encoded into memories, the query is decoded from them.

sam2fss.md 2.3, 2.5 and 2.7. Everything is done by SAM 2's own functions except the final choice of a mask. `B` episodes,
`M` images, `C` hidden channels (256), `c` memory channels (64), `S` network size, `h w` = S/16 memory grid, `N` = h*w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fssbench.encoders.sam2 import MEAN, STD, rope_attentions

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from methods.sam2fss.calibration import Calibration

Features = dict[str, Tensor]
Result = TypeVar("Result")
LEVELS = ("level0", "level1", "level2")
"""Names of the pyramid: (M, C/8, S/4, S/4), (M, C/4, S/8, S/8), (M, C, h, w)."""
NO_OBJECT = -1024.0
"""Logit that stock SAM 2 writes over a mask whose object it believes to be absent."""


class MemoryFrame(NamedTuple):
    """What an image and its mask leave in the memory: spatial memory and sine positions (M, c, h, w), pointer (M, C)."""

    memory: Tensor
    position: Tensor
    pointer: Tensor


class MemoryBank(NamedTuple):
    """Tokens that the query attends to (L, B, c), their positions, and how many at the end are pointers' tokens."""

    memory: Tensor
    position: Tensor
    pointer_tokens: int


class EpisodeSAM2(nn.Module):
    """The four things SAM2FSS asks of a SAM 2 model: encode images, encode masks to memories, attend, decode.

    object_score_gating  overwrite the final mask of an object that SAM 2 believes to be absent, as stock SAM 2 does
    recompute            in training, compute memories, pointers and each layer of memory attention again in the backward
                         pass instead of keeping what they need for it
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: SAM2Base, object_score_gating: bool = False, recompute: bool = False) -> None:
        super().__init__()
        self.model: Any = model
        self.object_score_gating, self.recompute = object_score_gating, recompute
        for layer in self.model.memory_attention.layers:
            layer.recompute = recompute
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Features:
        """Images (M, 3, S, S) in [0, 1] to the pyramid; the two finest levels have passed the mask decoder's convolutions."""
        found = self.model.forward_image((images - self.mean) / self.std)["backbone_fpn"]
        return dict(zip(LEVELS, found[-self.model.num_feature_levels :], strict=True))

    # -- memories ---------------------------------------------------------------------------------------------------

    def encode_mask_memory(self, features: Features, mask: Tensor) -> MemoryFrame:
        """Pyramid of M images and soft masks (M, 1, S, S) in [0, 1] to memories, positions and pointers."""
        memory, position = self.encode_memory(features, mask)
        return MemoryFrame(memory, position, self.encode_pointer(features, mask))

    def _recomputed(self, function: Callable[[Features, Tensor], Result], features: Features, mask: Tensor) -> Result:
        """The function's result; with `recompute` only its arguments are kept for the gradient."""
        if not (self.recompute and torch.is_grad_enabled()):
            return function(features, mask)
        result: Result = checkpoint(function, features, mask, use_reentrant=False)
        return result

    def encode_memory(self, features: Features, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The spatial part alone: memory and position (M, c, h, w).

        A mask p is taken as the logits 20 p - 10, as SAM 2 takes a mask that it is given.
        """
        return self._recomputed(self._memory, features, mask)

    def _memory(self, features: Features, mask: Tensor) -> tuple[Tensor, Tensor]:
        coarse = features[LEVELS[-1]]
        present = (mask.flatten(1) > 0).any(1, keepdim=True).float()
        memory, positions = self.model._encode_new_memory(
            current_vision_feats=[_tokens_first(coarse)],
            feat_sizes=[coarse.shape[-2:]],
            pred_masks_high_res=20 * mask - 10,
            object_score_logits=20 * present - 10,
            is_mask_from_pts=False,
        )
        return memory, positions[-1]

    def encode_pointer(self, features: Features, mask: Tensor) -> Tensor:
        """The object pointer alone (M, C), with SAM 2's own handling of absent objects."""
        return self._recomputed(self._pointer, features, mask)

    def _pointer(self, features: Features, mask: Tensor) -> Tensor:
        fine = [features[name] for name in LEVELS[:-1]]
        pointer: Tensor = self.model._use_mask_as_output(features[LEVELS[-1]], fine, mask)[5]
        return pointer

    def build_bank(self, frames: Sequence[MemoryFrame]) -> MemoryBank:
        """Frames of M = B episodes, supports first, in one bank: all spatial memories, then all pointers.

        Every frame has the temporal position of a conditioning frame, the query's own too (sam2fss.md 2.5).
        """
        temporal = self.model.maskmem_tpos_enc[self.model.num_maskmem - 1]
        width = frames[0].memory.shape[1]
        pointers = torch.cat([frame.pointer.unflatten(1, (-1, width)).transpose(0, 1) for frame in frames])
        memory = torch.cat([*(_tokens_first(frame.memory) for frame in frames), pointers])
        position = [_tokens_first(frame.position) + temporal for frame in frames]
        return MemoryBank(memory, torch.cat([*position, self._pointer_positions(pointers)]), len(pointers))

    def _pointer_positions(self, pointers: Tensor) -> Tensor:
        """Zero in SAM 2.0. SAM 2.1 projects the distance in time: here one frame of a video of two, for all pointers,
        so that the order of the supports does not matter (our choice)."""
        if not self.model.add_tpos_enc_to_obj_ptrs:
            return torch.zeros_like(pointers)
        from sam2.modeling.sam2_utils import get_1d_sine_pe

        projected = self.model.proj_tpos_enc_in_obj_ptrs
        width = self.model.hidden_dim if projected else self.model.mem_dim
        distance = pointers.new_ones(1, dtype=torch.float32)
        return self.model.obj_ptr_tpos_proj(get_1d_sine_pe(distance, dim=width)).expand_as(pointers)

    # -- the query ----------------------------------------------------------------------------------------------------

    def attend(self, features: Features, bank: MemoryBank, calibration: Calibration | None = None) -> Tensor:
        """Query pyramid and bank to query tokens that know the memories (N, B, C)."""
        coarse = features[LEVELS[-1]]
        self._ready_tables(coarse)
        return self.model.memory_attention(
            curr=_tokens_first(coarse),
            curr_pos=_tokens_first(self.model.image_encoder.neck.position_encoding(coarse).to(coarse.dtype)),
            memory=bank.memory,
            memory_pos=bank.position,
            num_obj_ptr_tokens=bank.pointer_tokens,
            **({} if calibration is None else {"calibration": calibration}),
        )

    def candidates(self, features: Features, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query pyramid and conditioned tokens (N, B, C) to the three masks that SAM 2 decodes without any prompt:
        logits (B, 3, S/4, S/4), their predicted IoU (B, 3), and the object score (B, 1)."""
        coarse, size = features[LEVELS[-1]], tokens.shape[1]
        no_point = tokens.new_zeros(size, 1, 2), -tokens.new_ones(size, 1, dtype=torch.int32)
        sparse, dense = self.model.sam_prompt_encoder(points=no_point, boxes=None, masks=None)
        masks, quality, _, score = self.model.sam_mask_decoder(
            image_embeddings=tokens.permute(1, 2, 0).reshape(coarse.shape),
            image_pe=self.model.sam_prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
            repeat_image=False,
            high_res_features=[features[name] for name in LEVELS[:-1]],
        )
        return masks, quality, score

    def decode(self, features: Features, tokens: Tensor) -> Tensor:
        """Query pyramid and conditioned tokens (N, B, C) to float32 logits (B, S, S): the candidate of the highest
        predicted IoU."""
        masks, quality, score = self.candidates(features, tokens)
        best = masks[torch.arange(len(masks), device=masks.device), quality.argmax(1)][:, None].float()
        if self.object_score_gating:
            best = torch.where(score[..., None, None] > 0, best, NO_OBJECT)
        side = self.model.image_size
        return F.interpolate(best, (side, side), mode="bilinear", align_corners=False)[:, 0]

    def _ready_tables(self, like: Tensor) -> None:
        """Rotations on the right device, made outside inference mode: a table from a validation serves training too."""
        with torch.inference_mode(False):
            for module in rope_attentions(self.model.memory_attention):
                module.freqs_cis = module.freqs_cis.to(like.device)


def _tokens_first(maps: Tensor) -> Tensor:
    """(M, C, h, w) -> (h*w, M, C)."""
    return maps.flatten(2).permute(2, 0, 1)
