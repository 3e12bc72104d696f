"""The distillation loss on either grid, and its scores against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.fsdino.alignment import DistillationScores, distillation_loss, down_to, up_to


@pytest.mark.parametrize("grid", [9, 18, 37])
def test_a_constant_map_stays_constant(grid: int) -> None:
    constant = torch.full((1, 3, 64, 64), 0.7)
    torch.testing.assert_close(down_to(constant, (grid, grid)), constant[..., :grid, :grid])
    torch.testing.assert_close(up_to(constant[..., :grid, :grid], (64, 64)), constant)


def test_an_equal_grid_is_the_identity_and_equal_maps_cost_nothing() -> None:
    features = torch.randn(2, 5, 37, 37)
    assert down_to(features, (37, 37)) is features
    assert up_to(features, (37, 37)) is features
    for align in ("down_teacher", "up_student", "both"):
        assert distillation_loss(features, features, align) == 0


def test_tokens_of_both_grids_lie_at_the_same_places() -> None:
    """A ramp over the square keeps its value at every token centre, away from the border that a filter reaches over."""
    ramp = ((torch.arange(64) + 0.5) / 64).expand(1, 1, 64, 64)
    centres = ((torch.arange(37) + 0.5) / 37).expand(37, 37)
    torch.testing.assert_close(down_to(ramp, (37, 37))[0, 0, :, 2:-2], centres[:, 2:-2], atol=2e-3, rtol=0)


def test_the_loss_is_the_mean_squared_error_on_the_chosen_grid() -> None:
    student, teacher = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 8, 8).half()
    down = (student - F.interpolate(teacher.float(), (4, 4), mode="bilinear", antialias=True)).square().mean()
    up = (F.interpolate(student, (8, 8), mode="bilinear") - teacher).square().mean()
    torch.testing.assert_close(distillation_loss(student, teacher), down)
    torch.testing.assert_close(distillation_loss(student, teacher, "up_student"), up)
    torch.testing.assert_close(distillation_loss(student, teacher, "both"), (down + up) / 2)
    assert distillation_loss(student.bfloat16(), teacher).dtype == torch.float32


def test_scores_equal_numpy_over_all_images() -> None:
    student, teacher = torch.randn(7, 5, 3, 3), torch.randn(7, 5, 3, 3) * 2 + 4
    scores = DistillationScores(5)
    for part in (slice(0, 4), slice(4, 7)):
        scores.update(student[part], teacher[part])
    found = scores.compute()
    s, t = (x.permute(0, 2, 3, 1).reshape(-1, 5).double().numpy() for x in (student, teacher))
    error = (s - t) ** 2
    np.testing.assert_allclose(found["mse"], error.mean())
    np.testing.assert_allclose(found["r2"], 1 - error.sum() / ((t - t.mean(0)) ** 2).sum())
    cosine = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    np.testing.assert_allclose(found["cosine"], cosine.mean())
    np.testing.assert_allclose(found["channel_mse"], error.mean(0))


def test_explained_variance_is_one_for_the_teacher_itself_and_zero_for_its_mean() -> None:
    teacher = torch.randn(3, 4, 5, 5)
    for student, wanted in ((teacher, 1.0), (teacher.mean((0, 2, 3), keepdim=True).expand_as(teacher), 0.0)):
        scores = DistillationScores(4)
        scores.update(student, teacher)
        assert scores.compute()["r2"] == pytest.approx(wanted, abs=1e-6)
