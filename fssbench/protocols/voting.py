"""HSNet's K-shot rule: K runs with one support each, and a vote (protocols.md 3.1)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

KShot = Literal["method", "vote"]
"""How K supports are used: as the method itself does, or by a vote of K runs with one support."""


def vote_logits(masks: Tensor) -> Tensor:
    """Masks (B, K, H, W) bool of K runs -> (B, H, W) float32, above 0 where the vote is for the class.

    The votes of a pixel are divided by the **largest number of votes in the image**, not by K, and 0.5 is enough: where the
    best pixel has one vote, one vote is enough. Without any vote nothing is predicted. The values are fractions of the most
    votes, shifted so that the decision lies half-way between two counts, where logits are scaled to another size.
    """
    votes = masks.sum(1)
    most = votes.amax((1, 2), keepdim=True).clamp(min=1)
    return (votes - (most + 1) // 2 + 0.5) / most
