"""Masks and counts of a batch are those of its images one by one, and images of one size are scaled together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fssbench.metrics import at_size, episode_counts
from fssbench.metrics.at_size import Size, bilinear, predicted_counts, predicted_masks

SIZES = [(9, 14), (21, 8), (9, 14), (30, 30), (21, 8), (9, 14)]


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return torch.randn(len(SIZES), 7, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def targets() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([0, 1, 255], dtype=torch.uint8)
    return [values[torch.randint(3, size, generator=generator)] for size in SIZES]


def alone(logits: Tensor, size: Size, align_corners: bool) -> Tensor:
    return F.interpolate(logits[None, None], size, mode="bilinear", align_corners=align_corners)[0, 0]


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_batch_counts_what_its_images_count(logits: Tensor, targets: list[Tensor], align_corners: bool) -> None:
    calls: list[tuple[int, Size]] = []

    def upsample(maps: Tensor, size: Size) -> Tensor:
        calls.append((len(maps), size))
        return bilinear(maps, size, align_corners)

    counts = predicted_counts(logits, targets, upsample)
    assert calls == [(3, (9, 14)), (2, (21, 8)), (1, (30, 30))]
    masks = predicted_masks(logits, SIZES, upsample)
    assert counts.dtype == torch.int64
    for row, target in enumerate(targets):
        mask = alone(logits[row], SIZES[row], align_corners) > 0
        assert torch.equal(masks[row], mask)
        assert counts[row].tolist() == [*episode_counts(mask, target).tolist(), int((target == 1).sum())]


def test_huge_images_are_scaled_apart(logits: Tensor, targets: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predicted_counts(logits, targets, bilinear)
    monkeypatch.setattr(at_size, "PIXELS_AT_ONCE", 9 * 14 * 2)
    calls: list[int] = []

    def upsample(maps: Tensor, size: Size) -> Tensor:
        calls.append(len(maps))
        return bilinear(maps, size)

    assert torch.equal(predicted_counts(logits, targets, upsample), whole)
    assert calls == [2, 1, 1, 1, 1]


def test_upsampling_takes_one_map_or_many(logits: Tensor) -> None:
    one = bilinear(logits[0], (11, 5))
    assert one.shape == (11, 5)
    assert torch.equal(bilinear(logits.view(2, 3, 7, 7), (11, 5))[0, 0], one)
    assert bilinear(logits.half(), (7, 7)).dtype == torch.float32


def test_counting_never_waits_for_the_device() -> None:
    """The meta device has no values, so whatever reads one fails."""
    targets = [torch.zeros(size, dtype=torch.uint8, device="meta") for size in SIZES]
    assert predicted_counts(torch.zeros(6, 7, 7, device="meta"), targets, bilinear).shape == (6, 5)


def test_a_logit_of_zero_is_background(targets: list[Tensor]) -> None:
    zeros = torch.zeros(len(SIZES), 7, 7)
    assert not torch.cat([mask.flatten() for mask in predicted_masks(zeros, SIZES, bilinear)]).any()
    counts = predicted_counts(zeros, targets, bilinear)
    assert counts[:, 0].tolist() == [0] * len(SIZES)
    assert torch.equal(counts[:, 1], counts[:, 4]), "the union is the object alone"
