"""The centre-pivot convolution against a brute-force 4D convolution, on every stride and with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.fsdino.centre_pivot import Activation, CentrePivotConv4d


def kernel_4d(conv: CentrePivotConv4d) -> Tensor:
    """The equivalent 4D kernel (C', C, query k k, support k k): zero off the two planes through its centre."""
    query, support = conv.query.weight, conv.support.weight
    k = query.shape[-1]
    kernel = query.new_zeros(*query.shape[:2], k, k, k, k)
    kernel[..., k // 2, k // 2] += query
    kernel[:, :, k // 2, k // 2] += support
    return kernel


def convolution_4d(x: Tensor, kernel: Tensor, bias: Tensor, stride: int) -> Tensor:
    """(B, u, v, h, w, C) by brute force: one shifted copy per kernel entry, all k^4 of them."""
    k = kernel.shape[-1]
    _, u, v, h, w, _ = x.shape
    padded = F.pad(x, (0, 0, *[k // 2] * 8))
    total = bias
    for i in range(k):
        for j in range(k):
            for m in range(k):
                for n in range(k):
                    shifted = padded[:, m : m + u : stride, n : n + v : stride, i : i + h, j : j + w]
                    total = total + shifted @ kernel[:, :, i, j, m, n].T
    return total


CASES = [(3, 1, (3, 3), (4, 5)), (3, 1, (1, 2), (3, 3)), (3, 2, (5, 4), (4, 3)), (5, 4, (9, 7), (6, 5))]


@pytest.mark.parametrize(("kernel", "stride", "support", "query"), CASES)
def test_equals_a_brute_force_4d_convolution(
    kernel: int, stride: int, support: tuple[int, int], query: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = CentrePivotConv4d(3, 4, kernel, stride).double()
    x = torch.randn(2, *support, *query, 3, dtype=torch.float64, requires_grad=True)
    out, expected = conv(x), convolution_4d(x, kernel_4d(conv), conv.bias, stride)
    torch.testing.assert_close(out, expected)

    grad = torch.randn_like(expected)
    wanted = [x, *conv.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad(out, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_centre_entry_is_the_sum_of_both_branches() -> None:
    conv = CentrePivotConv4d(1, 1, 3).double()
    point = torch.zeros(1, 3, 3, 3, 3, 1, dtype=torch.float64)
    point[0, 1, 1, 1, 1] = 1
    response = (conv(point) - conv.bias)[0, 1, 1, 1, 1, 0]
    torch.testing.assert_close(response, conv.query.weight[0, 0, 1, 1] + conv.support.weight[0, 0, 1, 1])


def test_sides_of_the_support_and_of_the_query() -> None:
    x, sides = torch.zeros(1, 37, 37, 2, 3, 4), []
    for kernel, stride in ((5, 4), (3, 2), (3, 2), (3, 1)):
        x = CentrePivotConv4d(4, 4, kernel, stride)(x)
        sides.append(tuple(x.shape[1:5]))
    assert sides == [(10, 10, 2, 3), (5, 5, 2, 3), (3, 3, 2, 3), (3, 3, 2, 3)]


def test_memory_order_of_the_input_does_not_matter() -> None:
    conv = CentrePivotConv4d(4, 8, 3, 2)
    x = torch.randn(2, 4, 5, 5, 3, 3).permute(0, 2, 3, 4, 5, 1)
    torch.testing.assert_close(conv(x), conv(x.contiguous()))


def test_autocast_computes_in_half_precision_with_gradients_of_the_parameters_type() -> None:
    conv, x = CentrePivotConv4d(4, 8, 3), torch.randn(1, 3, 3, 4, 4, 4)
    expected = conv(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, atol=0.05, rtol=0.05)
    out.float().sum().backward()
    assert {p.grad.dtype for p in conv.parameters() if p.grad is not None} == {torch.float32}
    assert all(p.grad is not None for p in conv.parameters())


def test_started_as_an_average_it_is_the_mean_over_the_window_of_the_support() -> None:
    torch.manual_seed(0)
    conv = CentrePivotConv4d(3, 4, 3)
    conv.start_as_average(0.0)
    share = 9 * conv.support.weight[..., :1, :1]
    assert (share >= 0).all()
    assert (share < 1 / 3 + 1e-6).all()
    assert len(share.unique()) == 12
    x = torch.rand(2, 5, 5, 4, 4, 3)
    own = torch.einsum("buvhwc,oc->buvhwo", x, share[..., 0, 0])
    window = F.avg_pool2d(own.permute(0, 3, 4, 5, 1, 2).flatten(0, 2), 3, 1, padding=1)
    expected = own + window.unflatten(0, (2, 4, 4)).permute(0, 4, 5, 1, 2, 3) + conv.bias
    torch.testing.assert_close(conv(x), expected)


def test_some_of_the_random_start_is_kept() -> None:
    torch.manual_seed(0)
    conv = CentrePivotConv4d(3, 4, 3)
    before = conv.query.weight[..., 0, 0].clone()  # off the centre there is nothing else
    conv.start_as_average(0.5)
    torch.testing.assert_close(conv.query.weight[..., 0, 0], before / 2)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_input_computed_again_gives_the_same_gradients(autocast: bool) -> None:
    conv, norm = CentrePivotConv4d(8, 4, 3, 2), nn.GroupNorm(4, 8)
    before = torch.randn(2, 3, 3, 4, 5, 8)
    seen: list[torch.dtype] = []

    def again(x: Tensor) -> Tensor:
        seen.append(x.dtype)
        return F.relu(norm(x.movedim(-1, 1)).movedim(1, -1))

    def gradients(kept: bool) -> tuple[Tensor, ...]:
        x = before.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = again(x)
            out = conv(value if kept else Activation(value, x.detach(), again))
        return torch.autograd.grad(out.float().square().sum(), [x, *conv.parameters(), *norm.parameters()])

    for one, other in zip(gradients(kept=True), gradients(kept=False), strict=True):
        assert torch.equal(one, other)
    assert len(seen) == 3, "once for the gradient"
