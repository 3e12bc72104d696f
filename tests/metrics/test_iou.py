"""mIoU and FB-IoU against the specification's worked example and an independent implementation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from fssbench.errors import UserError
from fssbench.metrics import COUNTS, FewShotIoU, episode_counts, iou_scores
from fssbench.results.table import scores_from
from tests.results.make import NAMES, make_record, make_rows

A, B, C = 4, 9, 12


def _mask(*pixels: tuple[int, int]) -> Tensor:
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    for row, column in pixels:
        mask[row, column] = 1
    return mask


def _rows(rows: int, columns: int) -> Tensor:
    return _mask(*((r, c) for r in range(rows) for c in range(columns)))


def _example(ignore: bool = True) -> tuple[Tensor, Tensor]:
    """The three episodes of protocols.md 3.4: counts (3, 4) and class ids (3,)."""
    target = _rows(1, 4)
    if ignore:
        target[1, 0] = target[1, 1] = 255
    counts = [
        episode_counts(_rows(2, 2), _rows(2, 3)),
        episode_counts(_mask((1, 1)).bool(), _mask((0, 0))),
        episode_counts(_rows(2, 4), target),
    ]
    return torch.stack(counts), torch.tensor([A, A, B])


def _metric(class_ids: tuple[int, ...] = (A, B), strict: bool = True, ignore: bool = True) -> FewShotIoU:
    metric = FewShotIoU(class_ids, strict)
    metric.update(*_example(ignore))
    return metric


def test_counts_of_the_worked_example() -> None:
    counts, _ = _example()
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[4, 6, 10, 12], [0, 2, 14, 16], [4, 6, 8, 10]]
    assert _example(ignore=False)[0][2].tolist() == [4, 8, 8, 12]


def test_scores_of_the_worked_example() -> None:
    scores = _metric().compute()
    assert scores["class_iou"] == {A: 4 / 8, B: 4 / 6}
    assert scores["miou"] == (4 / 8 + 4 / 6) / 2
    assert scores["fb_iou"] == (8 / 14 + 32 / 38) / 2
    assert scores["episodes_per_class"] == {A: 2, B: 1}
    assert scores["counts"] == {A: (4, 8, 24, 28), B: (4, 6, 8, 10)}
    assert scores["missing_classes"] == []
    assert round(scores["miou"], 6) == 0.583333
    assert round(scores["fb_iou"], 6) == 0.706767


def test_wrong_but_common_means_give_other_numbers() -> None:
    counts, _ = _example()
    episode_iou = (counts[:, 0] / counts[:, 1]).double()
    miou = _metric().compute()["miou"]
    over_episodes = float(episode_iou.mean())
    over_classes_of_episodes = float((episode_iou[:2].mean() + episode_iou[2]) / 2)
    assert round(over_episodes, 6) == 0.444444
    assert round(over_classes_of_episodes, 6) == 0.5
    assert miou - over_classes_of_episodes > 0.08
    assert miou - over_episodes > 0.13


def test_forgotten_ignore_gives_other_numbers() -> None:
    scores = _metric(ignore=False).compute()
    assert scores["class_iou"][B] == 0.5
    assert scores["miou"] == 0.5


def test_class_without_episodes_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"class 12 was scored \(1 of 3 novel classes\)"):
        _metric((A, B, C)).compute()


def test_class_without_episodes_is_left_out_only_on_request() -> None:
    scores = _metric((A, B, C), strict=False).compute()
    assert round(scores["miou"], 6) == 0.583333
    assert scores["missing_classes"] == [C]
    assert scores["episodes_per_class"] == {A: 2, B: 1, C: 0}
    as_in_hsnet = sum(scores["class_iou"].values()) / 3
    assert round(as_in_hsnet, 6) == 0.388889


@pytest.mark.parametrize("strict", [True, False])
def test_no_episode_at_all_has_no_score(strict: bool) -> None:
    with pytest.raises(UserError, match="No episode"):
        iou_scores({A: (0, 0, 0, 0)}, {A: 0}, strict)


def test_empty_union_counts_as_zero() -> None:
    target = torch.full((4, 4), 255, dtype=torch.uint8)
    metric = FewShotIoU((A,))
    metric.update(episode_counts(_rows(2, 2), target)[None], torch.tensor([A]))
    scores = metric.compute()
    assert scores["counts"] == {A: (0, 0, 0, 0)}
    assert scores["miou"] == scores["fb_iou"] == 0.0


def test_episodes_of_a_class_that_is_not_novel_are_refused() -> None:
    counts, _ = _example()
    for stranger in (0, 5, 99):
        with pytest.raises(UserError, match=rf"class {stranger} were scored.* 4, 9"):
            FewShotIoU((A, B)).update(counts, torch.tensor([A, stranger, B]))


@pytest.mark.parametrize("class_ids", [(), (3, 3)])
def test_class_ids_must_be_a_set(class_ids: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="class_ids"):
        FewShotIoU(class_ids)


def test_wrong_prediction_shape_or_type_is_refused() -> None:
    target = torch.zeros(4, 6, dtype=torch.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        episode_counts(torch.zeros(1, 6, dtype=torch.uint8), target)
    with pytest.raises(ValueError, match="threshold the logits"):
        episode_counts(torch.zeros(4, 6), target)


def test_counting_never_waits_for_the_device() -> None:
    """The meta device has no values, so whatever reads one (`.item()`, a shape that depends on data) fails."""
    mask = torch.zeros(8, 8, dtype=torch.uint8, device="meta")
    assert episode_counts(mask, mask).shape == (4,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_equal_cpu_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = _random_episode(generator)
    on_cuda = prediction.cuda(), target.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        counts = episode_counts(*on_cuda)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    metric = FewShotIoU((A,)).cuda()
    metric.update(counts[None], torch.tensor([A]))
    assert metric.compute()["counts"][A] == tuple(episode_counts(prediction, target).tolist())


def _random_episode(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    height, width = (int(n) for n in torch.randint(5, 30, (2,), generator=generator))
    target = torch.randint(0, 3, (height, width), generator=generator).to(torch.uint8)
    target[target == 2] = 255
    return torch.rand(height, width, generator=generator) > 0.6, target


def test_equals_torchmetrics_on_random_episodes() -> None:
    """Masks times (class index + 1) turn the pooled binary IoUs into the classes of an ordinary Jaccard index."""
    class_ids = (2, 7, 11)
    metric = FewShotIoU(class_ids)
    jaccard = MulticlassJaccardIndex(len(class_ids) + 1, average="none", ignore_index=255)
    confusion = MulticlassConfusionMatrix(2, ignore_index=255)
    generator = torch.Generator().manual_seed(1)
    for episode in range(30):
        index = episode % len(class_ids)
        prediction, target = _random_episode(generator)
        metric.update(episode_counts(prediction, target)[None], torch.tensor([class_ids[index]]))
        confusion.update(prediction.long(), target.long())
        labelled = target.long()
        labelled[labelled == 1] = index + 1
        jaccard.update(prediction.long() * (index + 1), labelled)
    scores = metric.compute()
    assert list(scores["class_iou"].values()) == pytest.approx(jaccard.compute()[1:].tolist(), abs=1e-6)
    (tn, fp), (fn, tp) = confusion.compute().tolist()
    assert scores["fb_iou"] == pytest.approx((tp / (tp + fp + fn) + tn / (tn + fp + fn)) / 2, abs=1e-12)


def test_counts_single_pixels_beyond_2_to_the_24() -> None:
    """float32 sums cannot: 2^24 + 1 is not a float32."""
    metric = FewShotIoU((A,))
    large = torch.tensor([[2**24, 2**24 + 1, 2**40, 2**40]])
    for _ in range(3):
        metric.update(large, torch.tensor([A]))
    metric.update(torch.tensor([[1, 1, 0, 0]]), torch.tensor([A]))
    assert metric.compute()["counts"][A] == (3 * 2**24 + 1, 3 * 2**24 + 4, 3 * 2**40, 3 * 2**40)
    assert torch.tensor(2.0**24) + 1 == 2.0**24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_states_stay_int64_when_the_module_is_cast(dtype: torch.dtype) -> None:
    metric = torch.nn.ModuleDict({"iou": _metric()}).to(dtype)["iou"]
    assert isinstance(metric, FewShotIoU)
    metric.update(*_example())
    assert metric.counts.dtype == metric.episodes.dtype == torch.int64
    assert metric.compute()["counts"][A] == (8, 16, 48, 56)


def test_reset_inside_inference_mode_leaves_a_usable_metric() -> None:
    metric = _metric()
    with torch.inference_mode():
        metric.reset()
        metric.update(*_example())
    metric.update(*_example())
    assert metric.compute()["episodes_per_class"] == {A: 4, B: 2}


def test_scores_from_checks_the_metric_against_the_rows() -> None:
    rows = make_rows()
    metric = FewShotIoU(list(NAMES))
    counts = torch.tensor([[getattr(row, name) for name in COUNTS] for row in rows])
    metric.update(counts, torch.tensor([row.class_id for row in rows]))
    scores = scores_from(rows, NAMES, metric.compute())
    assert scores == make_record(rows).scores
    with pytest.raises(UserError, match="The metric and the episode table differ in fb_iou, counts"):
        scores_from([dataclasses.replace(rows[0], bg_union=1000), *rows[1:]], NAMES, metric.compute())
