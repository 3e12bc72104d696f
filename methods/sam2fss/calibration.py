"""SCMA as formulas: what support-calibrated memory attention adds to the scores of SAM 2's cross-attention.

sam2fss.md 2.6; FSSAM eq. 11-14. `B` episodes, `K` shots, `H` heads, `N` tokens of a memory, `L` tokens of the bank,
`d` channels per head. The bank is [support 1] ... [support K] [query] [pointers].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods.sam2fss.maps import cosine, masked_average, minmax

ScmaKeys = Literal["rotated", "projected"]
ScmaShotMode = Literal["paper", "off", "released_5shot"]
SupportTokens = Literal["keep", "drop"]


@dataclass(frozen=True)
class Calibration:
    """How one forward pass is calibrated.

    support_masks   (B, K, N) float32 in [0, 1], on the memory grid
    alpha           largest reduction of a score; 0 leaves all scores as they are
    detach          no gradient through the bias
    keys            supports and query memory are compared by keys with (`rotated`) or without (`projected`) rotation
    shot_mode       `paper`: query tokens are compared with each support, and the cosine maps averaged; `off`: no bias;
                    `released_5shot`: as the release does by mistake, the second block of the bank is calibrated by the
                    first support (with one support that is the query's block, as in `paper`)
    support_tokens  `drop`: supports serve for calibration only; the softmax covers the query's memory
    drop_pointers   with `drop`, leave out the pointers too
    """

    support_masks: Tensor
    alpha: float = 10.0
    detach: bool = True
    keys: ScmaKeys = "rotated"
    shot_mode: ScmaShotMode = "paper"
    support_tokens: SupportTokens = "keep"
    drop_pointers: bool = True

    @property
    def biased(self) -> bool:
        """Whether any score is changed."""
        return self.alpha != 0 and self.shot_mode != "off"

    @property
    def supports(self) -> int:
        """How many supports the prototypes are pooled from."""
        return 1 if self.shot_mode == "released_5shot" else self.support_masks.shape[1]

    def block(self) -> slice:
        """Where in the bank the calibrated tokens are: counted from the front, pointers cannot shift it."""
        number = self.support_masks.shape[2]
        return slice(self.supports * number, (self.supports + 1) * number)

    def attended(self, length: int) -> slice:
        """Which of the bank's `length` tokens are keys and values."""
        shot, number = self.support_masks.shape[1:]
        if self.support_tokens == "keep":
            return slice(0, length)
        return slice(shot * number, (shot + 1) * number if self.drop_pointers else length)


def likeness_to_supports(keys_support: Tensor, keys_memory: Tensor, support_masks: Tensor) -> Tensor:
    """c in [0, 1], (B, H, N): keys of supports (B, H, K, N, d) and of the calibrated memory (B, H, N, d), masks (B, K, N).

    For each support the cosine of its pooled key with every token, min-max over the tokens; then the mean of the K maps.
    """
    prototypes = masked_average(keys_support.float(), support_masks[:, None])
    maps = cosine(keys_memory.float()[:, :, None], prototypes)
    return minmax(maps, (-1,)).mean(2)


def calibration_bias(scores: Tensor, likeness: Tensor, alpha: float = 10.0) -> Tensor:
    """alpha * min(a + c - 1, 0) in [-alpha, 0]: scores (B, H, Q, N) of the calibrated block, c (B, H, N) -> (B, H, Q, N).

    a is the min-max of a query token's scores over the block: tokens are spared that both the query token and the
    supports resemble most.
    """
    return alpha * (minmax(scores.float(), (-1,)) + (likeness[..., None, :] - 1)).clamp(max=0)
