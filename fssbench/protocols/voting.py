"""HSNet's K-shot rule: K runs with one support each, and a vote (protocols.md 3.1)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KShot = Literal["method", "vote"]
"""How K supports are used: as the method itself does, or by a vote of K runs with one support."""


def vote_logits(masks: Tensor) -> Tensor:
    """Masks (K, H, W) bool of K runs -> (H, W) float32, above 0 where the vote is for the class.

    The votes of a pixel are divided by the **largest number of votes in the image**, not by K, and 0.5 is enough: where the
    best pixel has one vote, one vote is enough. Without any vote nothing is predicted.
    """
    votes = masks.sum(0)
    most = votes.max().clamp(min=1)
    return (2 * votes - most).to(torch.float32) + 0.5
