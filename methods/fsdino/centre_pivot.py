"""The centre-pivot 4D convolution of HSNet (Min et al., ICCV 2021), in a layout that needs no permuted copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Activation(NamedTuple):
    """What a layer hands on. A convolution that reads it keeps what it was computed from, where that is told, instead of
    the values, and computes them again for the gradient.

    value   (B, u, v, h, w, C)
    before  the same before the layer's norm and ReLU
    again   gives `value` from `before`, outside autocast too
    """

    value: Tensor
    before: Tensor | None = None
    again: Callable[[Tensor], Tensor] | None = None


class CentrePivotConv4d(nn.Module):
    """A 4D convolution whose kernel is zero off the two planes through its centre: the sum of two 2D convolutions.

    One runs over the query at the support positions that the stride keeps (0, s, 2s, ...), the other over the support
    with stride s at every query position; both are padded by half a kernel and have a bias. Parameters:
    2 (out * in * k * k + out).

    Shape legend: `u v` support grid, `h w` query grid, `C` channels, last in memory.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.query = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.support = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)

    @property
    def bias(self) -> Tensor:
        """The sum of both biases (C)."""
        assert self.query.bias is not None
        assert self.support.bias is not None
        return self.query.bias + self.support.bias

    @torch.no_grad()
    def start_as_average(self, noise: float) -> None:
        """Start near a mean over the support and the input channels that leaves query positions apart.

        Kernels are `noise` times their random start plus, over the support, an even share of every entry, over the
        query of the central entry alone. The shares of the input channels are random in [0, 1 / in).
        """
        query, support = self.query.weight, self.support.weight
        share = torch.rand(*query.shape[:2], 1, 1, device=query.device) / query.shape[1]
        centre = query.shape[-1] // 2
        query.mul_(noise)[..., centre : centre + 1, centre : centre + 1] += share
        support.mul_(noise).add_(share / support[0, 0].numel())

    @torch.compiler.disable  # loops over matrix products that write in place: nothing to fuse
    def forward(self, x: Tensor | Activation) -> Tensor:
        """(B, u, v, h, w, C) to (B, u', v', h, w, C'), u' = ceil(u / stride)."""
        value, before, again = x if isinstance(x, Activation) else Activation(x)
        tensors = [value, self.query.weight, self.support.weight, self.bias]
        device = value.device.type
        if torch.is_autocast_enabled(device):
            tensors = [t.to(torch.get_autocast_dtype(device)) for t in tensors]
        with torch.autocast(device, enabled=False):
            result: Tensor = _CentrePivot.apply(*tensors, self.stride, before, again)
        return result


class _CentrePivot(torch.autograd.Function):
    """Both branches on one input, which alone is kept for the gradient, or what it is computed from.

    The support's grid is small (10 x 10 and less), and with zero padding up to 40 % of a convolution over it would
    multiply zeros. So that branch is a sum of matrix products over the positions a kernel entry really meets, each
    added in place to the result of the query's branch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        query: Tensor,
        support: Tensor,
        bias: Tensor,
        stride: int,
        before: Tensor | None,
        again: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        x = x.contiguous()
        kept = x[:, ::stride, ::stride]
        out = _as_4d(F.conv2d(_as_images(kept), query, bias, padding=query.shape[-1] // 2), kept)
        entries = _entries(support.permute(2, 3, 1, 0), len(x))
        below, above = _as_rows(x), _as_rows(out)
        for run in _runs(x.shape[1:5], support.shape[-1], stride):
            run.above(above).baddbmm_(run.below(below), entries[run.entry])
        ctx.save_for_backward(x if before is None else before, query, support)
        ctx.stride, ctx.again = stride, again
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None, None]:
        x, query, support = ctx.saved_tensors
        if ctx.again is not None:
            x = ctx.again(x).to(query).contiguous()
        grad, stride, pad = grad.contiguous(), ctx.stride, query.shape[-1] // 2
        kept = x[:, ::stride, ::stride]
        of_kept, of_query, of_bias = torch.ops.aten.convolution_backward(
            _as_images(grad), _as_images(kept), query, [len(query)], [1, 1], [pad, pad], [1, 1], False, [0, 0], 1,
            [True, True, True],
        )  # fmt: skip
        of_x = _as_4d(of_kept, kept)
        if stride > 1:
            full = torch.zeros_like(x)
            full[:, ::stride, ::stride] = of_x
            of_x = full
        entries = _entries(support.permute(2, 3, 0, 1), len(x))
        of_entries = [x.new_zeros(x.shape[-1], grad.shape[-1]) for _ in entries]
        below, of_below, above = _as_rows(x).transpose(1, 2), _as_rows(of_x), _as_rows(grad)
        for run in _runs(x.shape[1:5], support.shape[-1], stride):
            part = run.above(above)
            run.below(of_below).baddbmm_(part, entries[run.entry])
            of_entries[run.entry].addbmm_(run.below(below, 2), part)
        of_support = torch.stack(of_entries).unflatten(0, support.shape[2:]).permute(3, 2, 0, 1)
        return of_x, of_query, of_support, of_bias, None, None, None


class _Run(NamedTuple):
    """What one kernel entry joins: rows `out`, `out` + 1, ... of the output with as many of the input from `into` on."""

    entry: int
    out: int
    into: int
    length: int

    def above(self, rows: Tensor) -> Tensor:
        """The outputs' rows, a view."""
        return rows.narrow(1, self.out, self.length)

    def below(self, rows: Tensor, dim: int = 1) -> Tensor:
        """The inputs' rows, a view."""
        return rows.narrow(dim, self.into, self.length)


@lru_cache
def _runs(sides: torch.Size, kernel: int, stride: int) -> tuple[_Run, ...]:
    """All pairs of an input and an output position (u, v) that a kernel entry joins, as rows of h * w; neighbours make
    one run at stride 1."""
    height, width, tokens = sides[0], sides[1], sides[2] * sides[3]
    out_width = (width - 1) // stride + 1
    runs: list[_Run] = []
    for i, out_u, in_u in _pairs(height, kernel, stride):
        for j, out_v, in_v in _pairs(width, kernel, stride):
            run = _Run(i * kernel + j, (out_u * out_width + out_v) * tokens, (in_u * width + in_v) * tokens, tokens)
            last = runs[-1] if runs else None
            if last and (last.entry, last.out + last.length, last.into + last.length) == run[:3]:
                runs[-1] = last._replace(length=last.length + tokens)
            else:
                runs.append(run)
    return tuple(runs)


def _pairs(size: int, kernel: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(kernel entry, output, input) of a 1D convolution padded by half a kernel, the padding left out."""
    for entry in range(kernel):
        for out in range((size - 1) // stride + 1):
            position = out * stride + entry - kernel // 2
            if 0 <= position < size:
                yield entry, out, position


def _entries(kernel: Tensor, size: int) -> list[Tensor]:
    """The k * k matrices of a kernel (k, k, C, C'), each for a batch: (B, C, C')."""
    return [entry.expand(size, -1, -1) for entry in kernel.flatten(0, 1).contiguous()]


def _as_rows(x: Tensor) -> Tensor:
    """Contiguous (B, u, v, h, w, C) as rows (B, u * v * h * w, C), a view."""
    return x.flatten(1, 4)


def _as_images(x: Tensor) -> Tensor:
    """(B, u, v, h, w, C) as images (B * u * v, C, h, w) in channels-last memory; a view where x is contiguous."""
    return x.flatten(0, 2).permute(0, 3, 1, 2)


def _as_4d(images: Tensor, like: Tensor) -> Tensor:
    """Images (B * u * v, C, h, w) as contiguous (B, u, v, h, w, C), the grids as in `like`."""
    return images.permute(0, 2, 3, 1).contiguous().unflatten(0, like.shape[:3])
