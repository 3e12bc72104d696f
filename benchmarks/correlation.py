"""Time and peak memory of the 4D branch against a plain centre-pivot implementation, forward and backward.

    python benchmarks/correlation.py --rounds 7
    python benchmarks/correlation.py --batch 4 --device cuda

Both sides get the same tokens (by default six blocks of 768 channels on a 37x37 grid, one episode) and the same weights,
and give a dense prompt and the gradients of all weights. The plain side is written the way the formulas read: it
normalises the tokens, stacks the cosines of all blocks to one 6D tensor, permutes it for each branch into the images of a
2D convolution, and the results back. `recomputing` is ours with `train.recompute_correlation`. With contrast (preset
`fsdino_ce`) every token of the support counts; without it (`--object 0.2`, preset `fsdino`) those of the object alone.

Times are paired and alternating. Peak memory is measured in processes of their own, one per side and pass: on the CPU
(Linux) the highest resident set during the step minus that just before it, when weights and tokens are there and a small
step has loaded the libraries; on a GPU torch's own peak. Goal: at least 2 times faster and at most half the memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial

import torch
from measuring import CLOCKS, alternating, forget_peak, heading, median_ratio, of_own_process, resident
from torch import Tensor, nn

from methods.fsdino.correlation import CorrConfig, CorrelationPrompt

SIDES = ("plain", "ours", "recomputing")


class PlainConv(nn.Module):
    """A centre-pivot convolution on (B, C, h, w, u, v), one permuted copy in and one out for each branch."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.query = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.support = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w, u, v) to (B, C', h, w, u', v')."""
        size, channels, h, w, u, v = x.shape
        kept = x[..., :: self.stride, :: self.stride]
        new_u, new_v = kept.shape[-2:]
        images = kept.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, channels, h, w)
        over_query = self.query(images).view(size, new_u, new_v, -1, h, w).permute(0, 3, 4, 5, 1, 2).contiguous()
        images = x.permute(0, 2, 3, 1, 4, 5).contiguous().view(-1, channels, u, v)
        over_support = self.support(images).view(size, h, w, -1, new_u, new_v).permute(0, 3, 1, 2, 4, 5).contiguous()
        return over_query + over_support


class Plain(nn.Module):
    """The whole branch, plainly, with the methods of `CorrelationPrompt` and its parameters in the same order."""

    def __init__(self, blocks: int, width: int, config: CorrConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [blocks, *config.channels, *[config.channels[-1]] * 3]
        shapes = [(5, 4), (3, 2), (3, 2), (3, 1), (3, 1), (3, 1)]
        self.reader = nn.Sequential(
            *(
                nn.Sequential(PlainConv(*sizes[i : i + 2], *shape), nn.GroupNorm(4, sizes[i + 1]), nn.ReLU())
                for i, shape in enumerate(shapes)
            )
        )
        last = sizes[-1]
        self.head = nn.Sequential(nn.Conv2d(last, last, 3, padding=1), nn.ReLU(), nn.Conv2d(last, width, 1))

    def match(self, query: list[Tensor], support: list[Tensor], signs: Tensor) -> Tensor:
        """L maps (B, D, h, w) and (B, 1, D, u, v), signs (B, 1, u, v), to (B, 1, C, h, w)."""
        cosines = []
        for one, other in zip(query, [maps[:, 0] for maps in support], strict=True):
            one, other = (x / (x.norm(dim=1, keepdim=True) + 1e-5) for x in (one, other))
            cosine = torch.bmm(one.flatten(2).transpose(1, 2), other.flatten(2)).clamp(min=0)
            cosines.append(cosine.view(len(one), *one.shape[2:], *other.shape[2:]))
        correlation = torch.stack(cosines, 1) * signs[:, None, None]
        return self.reader(correlation).mean((-2, -1))[:, None]

    def forward(self, matches: Tensor) -> Tensor:
        """What `match` gave to a dense prompt (B, width, h, w)."""
        return self.head(matches)

    @classmethod
    def like(cls, prompt: CorrelationPrompt) -> Plain:
        """The same in plain, with the same weights."""
        width = prompt.head[-1].out_channels
        plain = cls(sum(prompt.sizes), width, prompt.config)
        for own, same in zip(plain.parameters(), prompt.parameters(), strict=True):
            own.data.copy_(same.data)
        return plain


class Task:
    """One side with its inputs."""

    def __init__(self, side: str, options: argparse.Namespace, grid: int | None = None) -> None:
        self.device, self.clock = torch.device(options.device), CLOCKS[options.clock]
        torch.manual_seed(0)
        shape = (options.batch, options.channels, *[grid or options.grid] * 2)
        self.query = [torch.randn(shape).to(self.device) for _ in range(options.blocks)]
        self.support = [torch.randn(shape)[:, None].to(self.device) for _ in range(options.blocks)]
        contrast = options.object is None
        inside = torch.rand(shape[0], 1, *shape[2:]) < (0.3 if contrast else options.object)
        self.signs = (inside.float() * 2 - 1 if contrast else inside.float()).to(self.device)
        config = CorrConfig(zero_init_head=False, ce=contrast)
        ours = CorrelationPrompt(options.blocks, 256, config, side == "recomputing")
        self.net = (Plain.like(ours) if side == "plain" else ours).to(self.device)

    def forward(self) -> Tensor:
        """The dense prompt."""
        result: Tensor = self.net(self.net.match(self.query, self.support, self.signs)[:, 0])
        return result

    def step(self, backward: bool) -> Tensor:
        """Forward, or forward and backward."""
        self.net.zero_grad(set_to_none=True)
        if not backward:
            with torch.no_grad():
                return self.forward()
        out = self.forward()
        out.square().mean().backward()
        return out

    def seconds(self, backward: bool) -> float:
        """Seconds of a step."""
        self.wait()
        began = self.clock()
        self.step(backward)
        self.wait()
        return self.clock() - began

    def wait(self) -> None:
        """Let the GPU finish."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    """Measure and print the tables, or the peak memory of one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--grid", type=int, default=37, help="side of the token grid (default: 37)")
    parser.add_argument("--blocks", type=int, default=6, help="correlated blocks (default: 6)")
    parser.add_argument("--channels", type=int, default=768, help="channels of a token (default: 768)")
    parser.add_argument("--batch", type=int, default=1, help="episodes (default: 1)")
    parser.add_argument(
        "--object", type=float, help="without contrast, where the object covers this part; default: with contrast"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="default: wall; processor on a busy machine")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--peak", choices=SIDES, help="only print the peak memory of one side")
    parser.add_argument("--forward", action="store_true", help="with --peak: without backward pass")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps({"peak": peak(Task(options.peak, options), options, not options.forward)}))
        return
    print(heading("torch") + f"; {torch.get_num_threads()} thread(s), {options.device}, {options.clock} clock")
    tasks = [Task(side, options) for side in SIDES]
    check(tasks)
    print("\n| pass | side | median s | times faster | peak MB | of plain |")
    print("|---|---|---|---|---|---|")
    for backward in (True, False):
        for task in tasks:
            task.step(backward)
        times = alternating([partial(task.seconds, backward) for task in tasks], options.rounds)
        peaks = [of_process(side, backward) if not options.no_memory else 0 for side in SIDES]
        for side, seconds, size in zip(SIDES, times, peaks, strict=True):
            if side == "recomputing" and not backward:
                continue  # nothing to compute again
            memory = f"{size / 1e6:.0f} | {size / peaks[0]:.2f}" if size else "- | -"
            name = "forward and backward" if backward else "forward, no gradient"
            ratio = median_ratio(times[0], seconds)
            print(f"| {name} | {side} | {statistics.median(seconds):.3f} | {ratio:.2f} | {memory} |")


def check(tasks: list[Task]) -> None:
    """Stop if the sides do not compute the same, gradients included."""
    # by default a GPU rounds the convolutions of the plain side to TF32, and not the matrix products of ours
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    outputs = [task.step(True) for task in tasks]
    torch.backends.cudnn.allow_tf32 = allowed
    for task, out in zip(tasks[1:], outputs[1:], strict=True):
        torch.testing.assert_close(out, outputs[0], atol=1e-4, rtol=1e-3)
        for own, same in zip(task.net.parameters(), tasks[0].net.parameters(), strict=True):
            assert own.grad is not None
            assert same.grad is not None
            assert (own.grad - same.grad).norm() <= 1e-2 * same.grad.norm() + 1e-7
    print("all sides give the same prompt and the same gradients")


def of_process(side: str, backward: bool) -> int:
    """Peak bytes of a side, measured by this script in a process of its own."""
    return int(of_own_process(__file__, "--peak", side, *([] if backward else ["--forward"]))["peak"])


def peak(task: Task, options: argparse.Namespace, backward: bool) -> int:
    """Bytes that a step needs beyond weights and tokens."""
    Task(options.peak, options, grid=4).step(backward)
    if task.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        task.step(backward)
        return torch.cuda.max_memory_allocated() - before
    forget_peak()
    before = resident("VmRSS")
    task.step(backward)
    return resident("VmHWM") - before


if __name__ == "__main__":
    main()
