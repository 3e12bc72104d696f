"""DAVIS scores: every worked value of protocols.md 3.5, the merge, and sequences."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fssbench.errors import UserError
from fssbench.metrics.boundary import boundary_iou, hausdorff95
from fssbench.metrics.davis import (
    boundary,
    boundary_accuracy,
    boundary_radius,
    davis_scores,
    merge_objects,
    region_similarity,
    sequence_scores,
    statistics,
)


def square(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top : top + side, left : left + side] = True
    return mask


SMALL = square(10, 10, 3, 3, 4)
EMPTY = np.zeros((10, 10), bool)
LARGE = square(60, 80, 10, 20, 30)


@pytest.mark.parametrize(
    ("predicted", "truth", "j", "f"),
    [
        (SMALL, SMALL, 1, 1),
        (square(10, 10, 3, 4, 4), SMALL, 0.6, 1.0),
        (square(10, 10, 3, 5, 4), SMALL, 1 / 3, 0.625),
        (EMPTY, SMALL, 0, 0),
        (SMALL, EMPTY, 0, 0),
        (EMPTY, EMPTY, 1, 1),
        (square(60, 80, 11, 20, 30), LARGE, 0.935484, 1.0),
        (square(60, 80, 12, 20, 30), LARGE, 0.875, 0.516667),
        (square(60, 80, 15, 20, 30), LARGE, 0.714286, 0.466667),
    ],
)
def test_worked_values(predicted: np.ndarray, truth: np.ndarray, j: float, f: float) -> None:
    assert region_similarity(predicted, truth) == pytest.approx(j, abs=5e-7)
    assert boundary_accuracy(predicted, truth) == pytest.approx(f, abs=5e-7)


@pytest.mark.parametrize(("size", "radius"), [((480, 854), 8), ((480, 910), 9), ((10, 10), 1)])
def test_radius(size: tuple[int, int], radius: int) -> None:
    assert boundary_radius(*size) == radius


def test_boundary_map() -> None:
    rows, columns = np.nonzero(boundary(square(4, 4, 1, 1, 2)))
    assert sorted(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    corner = boundary(square(3, 3, 2, 2, 1))
    assert corner.tolist() == [[False] * 3, [False, True, True], [False, True, False]]
    assert not boundary(np.ones((5, 7), bool)).any(), "a mask that fills the frame has no boundary"


def test_means_are_over_objects() -> None:
    scores = davis_scores({"a:1": [(1.0, 0.5), (0.5, 0.5)], "a:2": [(0.25, 1.0), (0.75, 1.0)]})
    assert scores.j.mean == 0.625
    assert scores.f.mean == 0.75
    assert scores.jf == 0.6875
    uneven = davis_scores({"a:1": [(1.0, 1.0)] * 9, "b:1": [(0.0, 0.0)]})
    assert uneven.j.mean == 0.5


def test_recall_and_decay() -> None:
    found = statistics([0.9, 0.8, 0.6, 0.5, 0.4])
    assert found.recall == 0.6, "0.5 itself does not count"
    assert found.decay == pytest.approx((0.9 + 0.8) / 2 - (0.5 + 0.4) / 2)  # edges 1 2 3 4 5, shared by neighbours
    # six frames: edges round(1, 2.25, 3.5, 4.75, 6) = 1 2 4 5 6
    assert statistics([1, 2, 3, 4, 5, 7]).decay == pytest.approx(1.5 - 6)
    with pytest.raises(UserError, match="no scored frame"):
        statistics([])


def test_merge_takes_the_most_likely_label() -> None:
    first = np.array([[3.0, -1.0, 1.0, 2.0, 90.0]])
    second = np.array([[2.0, -2.0, 5.0, 2.0, 99.0]])
    assert merge_objects({2: second, 1: first}).tolist() == [[1, 0, 2, 1, 2]]

    logits = np.random.default_rng(0).normal(-1, 2, (3, 20, 30))
    p = 1 / (1 + np.exp(-logits))
    expected = np.concatenate([np.prod(1 - p, 0, keepdims=True), p]).argmax(0)
    merged = merge_objects(dict(enumerate(logits, 1)))
    assert (merged == expected).all()
    assert set(np.unique(merged)) == {0, 1, 2, 3}
    assert ((merged > 0) & (logits.max(0) < 0)).any(), "two likely objects outweigh the background together"


def test_merging_one_object_is_thresholding_it() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (20, 30)).astype(np.float32)
    logits[0, :4] = (0, 1e-30, -1e-30, 1e-8)
    assert (merge_objects({4: logits}) == 4 * (logits > 0)).all()


def sequence(moves: list[int]) -> list[np.ndarray]:
    frames = []
    for move in moves:
        frame = np.zeros((40, 60), np.uint8)
        frame[5:15, 5 + move : 15 + move] = 1
        frame[25:35, 30:40] = 2
        frames.append(frame)
    return frames


def test_sequences_leave_out_first_and_last_frame() -> None:
    truth = sequence([0, 1, 2, 3])
    predicted = [frame.copy() for frame in truth]
    predicted[0][:] = predicted[3][:] = 0
    assert sequence_scores(predicted, truth) == {1: [(1.0, 1.0)] * 2, 2: [(1.0, 1.0)] * 2}
    predicted[1][predicted[1] == 2] = 0
    assert sequence_scores(predicted, truth)[2] == [(0.0, 0.0), (1.0, 1.0)]


def test_void_is_background_and_objects_are_those_of_the_first_frame() -> None:
    truth = sequence([0, 0, 0])
    truth[1][5:15, 5:10] = 255
    predicted = sequence([0, 0, 0])
    predicted[1][5:15, 5:10] = 0
    assert sequence_scores(predicted, truth)[1] == [(1.0, 1.0)]
    predicted[1][0, 0] = 3
    with pytest.raises(UserError, match="frame 1 holds object 3, the sequence has 2"):
        sequence_scores(predicted, truth)
    truth[0][0, :5] = 255
    predicted[1][0, 0] = 0
    assert sorted(sequence_scores(predicted, truth)) == [1, 2], "void in the first frame is no object"
    with pytest.raises(UserError, match="2 predicted frames and 3"):
        sequence_scores(predicted[:2], truth)
    with pytest.raises(UserError, match="shows no object"):
        sequence_scores([np.zeros((4, 4), np.uint8)] * 3, [np.zeros((4, 4), np.uint8)] * 3)


def test_shapes_must_agree() -> None:
    for metric in (region_similarity, boundary_accuracy, boundary_iou, hausdorff95):
        with pytest.raises(ValueError, match="differ in shape"):
            metric(np.ones((3, 3), bool), np.ones((3, 1), bool))


def test_boundary_iou_by_hand() -> None:
    """100x100: d = 3 pixels. The ring of a 20x20 square has 400 - 14^2 = 204 pixels."""
    truth = square(100, 100, 40, 40, 20)
    assert boundary_iou(truth, truth) == 1
    larger = square(100, 100, 38, 38, 24)  # ring 38..40, of which the truth's ring 40..42 shares one pixel's width
    shared = 20**2 - 18**2
    ring = 24**2 - 18**2
    assert boundary_iou(larger, truth) == pytest.approx(shared / (ring + 204 - shared))
    assert boundary_iou(np.zeros_like(truth), truth) == 0
    assert boundary_iou(np.zeros_like(truth), np.zeros_like(truth)) == 1
    outside = np.ones_like(truth)
    outside[40:60, 40:60] = False
    assert boundary_iou(larger, truth, ignore=outside) == 1


def test_hausdorff_by_hand() -> None:
    truth = square(60, 60, 20, 20, 10)
    assert hausdorff95(truth, truth) == 0
    assert hausdorff95(square(60, 60, 20, 25, 10), truth) == 5
    far = truth.copy()
    far[20, 50] = True  # one pixel of 37 outline pixels is beyond the 95th percentile
    assert hausdorff95(far, truth) == 0
    assert hausdorff95(np.zeros_like(truth), truth) == math.inf
    assert hausdorff95(np.zeros_like(truth), np.zeros_like(truth)) == 0


def test_hausdorff_is_the_larger_of_both_directions() -> None:
    """All of one mask lies on the other, but half of the other is 30 pixels away."""
    one = square(60, 60, 20, 5, 10)
    both = one | square(60, 60, 20, 45, 10)
    assert hausdorff95(both, one) == hausdorff95(one, both) > 30


def test_the_border_of_the_image_is_an_outline_and_the_region_is_a_pixel_wide_at_least() -> None:
    """8x8: 2 % of the diagonal is less than a pixel. The ring of the left half is 8 + 8 + 2 + 2 pixels."""
    truth = np.zeros((8, 8), bool)
    truth[:, :4] = True
    inside = truth.copy()
    inside[1:7, 1:3] = False
    assert np.count_nonzero(inside) == 20
    assert boundary_iou(inside, truth) == 1, "the region of a ring of one pixel is the ring"
    assert boundary_iou(square(8, 8, 0, 0, 4), truth) == 10 / (12 + 20 - 10)
