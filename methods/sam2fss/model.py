"""SAM2FSS as one network: frozen features of query and supports to a mask (sam2fss.md 1.3 and 1.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.sam2fss.calibration import Calibration, ScmaKeys, ScmaShotMode, SupportTokens
from methods.sam2fss.episode_sam2 import LEVELS, EpisodeSAM2, Features, MemoryBank, MemoryFrame
from methods.sam2fss.maps import EmptyMaskFallback, foreground, shrunk_masks
from methods.sam2fss.memory_refinement import RefinedMemory, memory_refinement
from methods.sam2fss.pseudo_prompt import PseudoPrompt, pseudo_prompt

DINO = "dino"
"""Name of the DINOv2 features, beside the levels of SAM 2's pyramid."""


@dataclass
class Trace:
    """The intermediate results of a batch of episodes; those of the pseudo prompts are None in naive SAM 2.

    priors        pseudo masks (B, 1, S, S)
    support       memory frames of the supports, (B*K, ...)
    memory_fg     memory (B, c, h, w) of the query under its foreground pseudo mask
    query         memory frame (B, ...) of the query under its discriminative pseudo mask, before refinement
    refined       the refined memory
    bank          what the query attends to
    attended      query tokens after memory attention (N, B, C)
    logits        (B, S, S) float32
    """

    priors: PseudoPrompt | None
    support: MemoryFrame
    memory_fg: Tensor | None
    query: MemoryFrame | None
    refined: RefinedMemory | None
    bank: MemoryBank
    attended: Tensor
    logits: Tensor


class SAM2FSSNet(nn.Module):
    """Pseudo prompts, memories, refinement, calibrated attention and decoding around a SAM 2 model; has no parameters
    of its own.

    The arguments are those of `SAM2FSS`, where they are described.
    """

    def __init__(
        self,
        sam2: EpisodeSAM2,
        *,
        pseudo_prompts: bool = True,
        prior_renormalise: bool = False,
        imr_iterations: int = 3,
        imr_normalise_weight: bool = False,
        imr_prior_minmax: bool = True,
        scma_alpha: float = 10.0,
        scma_detach: bool = True,
        scma_keys: ScmaKeys = "rotated",
        scma_shot_mode: ScmaShotMode = "paper",
        support_tokens: SupportTokens = "keep",
        drop_pointers: bool = True,
        empty_mask_fallback: EmptyMaskFallback = "area",
    ) -> None:
        super().__init__()
        self.sam2 = sam2
        self.pseudo_prompts, self.prior_renormalise = pseudo_prompts, prior_renormalise
        self.imr_iterations = imr_iterations
        self.imr_normalise_weight, self.imr_prior_minmax = imr_normalise_weight, imr_prior_minmax
        self.scma_alpha, self.scma_detach = scma_alpha, scma_detach
        self.scma_keys: ScmaKeys = scma_keys
        self.scma_shot_mode: ScmaShotMode = scma_shot_mode
        self.support_tokens: SupportTokens = support_tokens
        self.drop_pointers = drop_pointers
        self.empty_mask_fallback: EmptyMaskFallback = empty_mask_fallback

    def forward(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """Features of queries (B, ...) and supports (B, K, ...), masks (B, K, S, S) {0, 1, 255} to logits (B, S, S)."""
        return self.trace(query, support, support_masks).logits

    def trace(self, query: Features, support: Features, support_masks: Tensor) -> Trace:
        """As `forward`, with everything in between."""
        pyramid = {name: query[name] for name in LEVELS}
        if not self.pseudo_prompts:
            frame = self.support_frames(support, support_masks)
            bank = self.sam2.build_bank(_per_shot(frame, support_masks.shape[1]))
            attended = self.sam2.attend(pyramid, bank)
            return Trace(None, frame, None, None, None, bank, attended, self.sam2.decode(pyramid, attended))

        priors = pseudo_prompt(
            query[DINO],
            support[DINO],
            support_masks,
            renormalise=self.prior_renormalise,
            empty_mask_fallback=self.empty_mask_fallback,
        )
        frame = self.support_frames(support, support_masks)
        memory_fg, _ = self.sam2.encode_memory(pyramid, priors.fg)
        own = self.sam2.encode_mask_memory(pyramid, priors.disc)
        refined = self.refine(frame, memory_fg, own.memory, priors, support_masks)
        bank = self.sam2.build_bank([*_per_shot(frame, support_masks.shape[1]), own._replace(memory=refined.memory)])
        attended = self.sam2.attend(pyramid, bank, self.calibration(support_masks, own.memory))
        return Trace(priors, frame, memory_fg, own, refined, bank, attended, self.sam2.decode(pyramid, attended))

    def support_frames(self, support: Features, support_masks: Tensor) -> MemoryFrame:
        """Memory frames (B*K, ...) of the supports with their true masks."""
        flat = {name: support[name].flatten(0, 1) for name in LEVELS}
        return self.sam2.encode_mask_memory(flat, foreground(support_masks).flatten(0, 1)[:, None])

    def refine(
        self, support: MemoryFrame, memory_fg: Tensor, memory_disc: Tensor, priors: PseudoPrompt, support_masks: Tensor
    ) -> RefinedMemory:
        """The query's memory (B, c, h, w) after `imr_iterations` refinements."""
        return memory_refinement(
            memory_fg,
            memory_disc,
            support.memory.unflatten(0, support_masks.shape[:2]),
            priors.fg,
            priors.disc,
            support_masks,
            iterations=self.imr_iterations,
            normalise_weight=self.imr_normalise_weight,
            prior_minmax=self.imr_prior_minmax,
            empty_mask_fallback=self.empty_mask_fallback,
        )

    def calibration(self, support_masks: Tensor, memory: Tensor) -> Calibration | None:
        """How memory attention is calibrated by masks (B, K, S, S), on the grid of `memory`; None where it is stock."""
        grid = (memory.shape[-2], memory.shape[-1])
        masks = shrunk_masks(foreground(support_masks), grid, "nearest", self.empty_mask_fallback)
        calibration = Calibration(
            masks.flatten(2),
            self.scma_alpha,
            self.scma_detach,
            self.scma_keys,
            self.scma_shot_mode,
            self.support_tokens,
            self.drop_pointers,
        )
        return calibration if calibration.biased or self.support_tokens == "drop" else None


def _per_shot(frame: MemoryFrame, shot: int) -> list[MemoryFrame]:
    """Frames (B*K, ...) as K frames of (B, ...)."""
    split = (part.unflatten(0, (-1, shot)).unbind(1) for part in frame)
    return [MemoryFrame(*parts) for parts in zip(*split, strict=True)]


def autocast_for(device: torch.device, precision: str) -> torch.autocast:
    """The one autocast of a forward pass: bf16, or none at all even inside another one.

    Without its cache: PyTorch would keep the bf16 copies of weights made by an earlier pass until the outermost autocast
    closes, and train or use stale weights where somebody leaves one open (sam2fss.md 3.3).
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
