"""Drawings of the page as SVG text: the interval of a row, and score against cost of a table."""

from __future__ import annotations

import math
from html import escape

from fssbench.results.leaderboard import Row, Table
from fssbench.results.views import percent, row_name, seconds, span


def interval_bar(mean: float, interval: tuple[float, ...], bounds: tuple[float, float]) -> str:
    """A row's mean as a dot and its interval as a bar, on the scale from `bounds[0]` to `bounds[1]`."""

    def x(value: float) -> float:
        return round(4 + 168 * (value - bounds[0]) / max(1e-9, bounds[1] - bounds[0]), 1)

    bar = f'<line class="span" x1="{x(interval[0])}" x2="{x(interval[1])}" y1="11" y2="11"/>' if interval else ""
    label = f"{percent(mean)}, 95 % {span(interval)}"
    return (
        f'<svg class="interval" viewBox="0 0 176 22" role="img" aria-label="{label}"><title>{label}</title>'
        f'<line x1="4" x2="172" y1="11" y2="11"/>{bar}<circle cx="{x(mean)}" cy="11" r="4"/></svg>'
    )


WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 150, 20, 45
"""Margins; the right one leaves room for the last method's name."""


def cost_plot(table: Table) -> str:
    """mIoU against seconds per episode (logarithmic) of the ranked rows that know both; empty with fewer than two."""
    rows = [(row, row.seconds_per_episode, row.miou) for row in table.rows]
    known = [(row, cost, score) for row, cost, score in rows if cost and score is not None]
    if len(known) < 2:
        return ""
    costs = _decades(min(cost for _, cost, _ in known), max(cost for _, cost, _ in known))
    ends = [end for row, _, score in known for end in (*row.interval, score)]
    low, high = math.floor(10 * min(ends)) / 10, math.ceil(10 * max(ends)) / 10

    def x(cost: float) -> float:
        share = (math.log10(cost) - math.log10(costs[0])) / (math.log10(costs[-1]) - math.log10(costs[0]))
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(score: float) -> float:
        return round(HEIGHT - BOTTOM - (score - low) / max(1e-9, high - low) * (HEIGHT - TOP - BOTTOM), 1)

    axes = [f'<line x1="{x(c)}" x2="{x(c)}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/><text class="soft" x="{x(c)}" '
            f'y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{c:g}</text>' for c in costs]  # fmt: skip
    for step in range(round(10 * (high - low)) + 1):
        score = low + step / 10
        axes.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(score)}" y2="{y(score)}"/><text class="soft" '
                    f'x="{LEFT - 8}" y="{y(score) + 4}" text-anchor="end">{100 * score:.0f}</text>')  # fmt: skip
    dots = [_dot(row, x(cost), y(score), [y(end) for end in row.interval]) for row, cost, score in known]
    caption = "mIoU in per cent, with its interval, against seconds per episode (logarithmic)"
    return (
        f'<details><summary>Score against cost</summary><figure><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{caption}">{"".join(axes)}{"".join(dots)}<text x="{LEFT}" y="{HEIGHT - 6}" class="soft">seconds per '
        f'episode</text><text x="4" y="12" class="soft">mIoU</text></svg><figcaption>{caption}</figcaption></figure></details>'
    )


def _dot(row: Row, x: float, y: float, interval: list[float]) -> str:
    bar = f'<line class="span" x1="{x}" x2="{x}" y1="{interval[0]}" y2="{interval[1]}"/>' if interval else ""
    told = f"{row_name(row)}: mIoU {percent(row.miou)}, {seconds(row.seconds_per_episode)} s per episode"
    return (
        f'<g>{bar}<circle cx="{x}" cy="{y}" r="5"><title>{escape(told)}</title></circle>'
        f'<text x="{x + 9}" y="{y + 4}">{escape(row.method)}{f" seed {row.seed}" if row.seed else ""}</text></g>'
    )


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten around the values, at least two."""
    low = math.floor(math.log10(least))
    return [10.0**e for e in range(low, max(low + 1, math.ceil(math.log10(most))) + 1)]
