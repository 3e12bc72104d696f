"""Shapes and textures for training the small encoder that ships with fssbench, none of them of the Shapes benchmark.

Shapes are random polygons and random connected cells of a 4 x 4 grid; textures are random periodic tiles and thresholded
sums of two or three waves. One that resembles any shape or texture of the benchmark is thrown away: `shape_likeness` and
`texture_likeness` say how it is measured, `MOST_ALIKE` where the line is. What stays common to both worlds is the
renderer: colours, sizes, clutter, light, blur and noise.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

from datamodules.shapes_render import SHAPES, TEXTURES, Pattern, World

MOST_ALIKE = {"shape": 0.8, "texture": 0.5}
"""Largest allowed likeness to any other shape (IoU) or texture (correlation)."""


def other_world(seed: int, shapes: int, textures: int) -> tuple[World, dict[str, float]]:
    """A world of `shapes` x `textures` kinds of object, and the largest likeness to the benchmark that is left."""
    generator = np.random.default_rng(seed)
    chosen_shapes, shape_max = _unlike(
        shapes, lambda i: (_polygon if i % 2 else _cells)(generator), SHAPES, shape_likeness, MOST_ALIKE["shape"]
    )
    chosen_textures, texture_max = _unlike(
        textures, lambda i: (_tile if i % 3 else _waves)(generator), TEXTURES, texture_likeness, MOST_ALIKE["texture"]
    )
    kinds = tuple((s, t) for s in range(shapes) for t in range(textures))
    return World(chosen_shapes, chosen_textures, kinds), {"shape": shape_max, "texture": texture_max}


def _unlike(
    count: int,
    make: Callable[[int], Pattern],
    benchmark: dict[str, Pattern],
    likeness: Callable[[Pattern, list[Pattern]], float],
    limit: float,
) -> tuple[tuple[Pattern, ...], float]:
    """The first `count` made patterns below `limit`, and the largest likeness to the benchmark among them."""
    kept: list[Pattern] = []
    largest, index = 0.0, 0
    while len(kept) < count:
        pattern = make(index)
        index += 1
        alike = likeness(pattern, list(benchmark.values()))
        if alike < limit:
            kept.append(pattern)
            largest = max(largest, alike)
    return tuple(kept), largest


# -- shapes ---------------------------------------------------------------------------------------------------------


def _polygon(generator: np.random.Generator) -> Pattern:
    """A polygon of 4 to 9 corners around the centre, at uneven angles and distances."""
    corners = generator.integers(4, 10)
    angles = np.sort((np.arange(corners) + generator.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners)
    radii = generator.uniform(0.3, 1.0, corners)
    radii[generator.integers(corners)] = 1.0
    px, py = (radii * np.cos(angles)).astype(np.float32), (radii * np.sin(angles)).astype(np.float32)
    qx, qy = np.roll(px, -1), np.roll(py, -1)

    def inside(x: ndarray, y: ndarray) -> ndarray:
        crossings = np.zeros(np.broadcast(x, y).shape, bool)
        for ax, ay, bx, by in zip(px, py, qx, qy, strict=True):  # even-odd rule
            if ay != by:
                crossings ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
        return crossings

    return inside


def _cells(generator: np.random.Generator) -> Pattern:
    """6 to 11 connected cells of a 4 x 4 grid."""
    filled = np.zeros((6, 6), bool)
    filled[2, 2] = True
    for _ in range(generator.integers(5, 11)):
        near = np.zeros_like(filled)
        for axis in (0, 1):
            near |= np.roll(filled, 1, axis) | np.roll(filled, -1, axis)
        near[[0, -1]] = near[:, [0, -1]] = False
        free = np.argwhere(near & ~filled)
        filled[tuple(free[generator.integers(len(free))])] = True

    def inside(x: ndarray, y: ndarray) -> ndarray:
        column = np.clip(np.floor(x / 0.42) + 3, 0, 5).astype(np.int64)
        row = np.clip(np.floor(y / 0.42) + 3, 0, 5).astype(np.int64)
        return filled[row, column]

    return inside


def shape_likeness(pattern: Pattern, others: list[Pattern]) -> float:
    """Largest IoU with another shape over 36 turns and mirroring, both moved to one centre and one area."""
    pictures = np.stack([_normalised(other) for other in others])
    best = 0.0
    for mirror in (1, -1):
        for k in range(36):
            turned = _normalised(pattern, k * np.pi / 18, mirror)
            both, either = (pictures & turned).sum((1, 2)), (pictures | turned).sum((1, 2))
            best = max(best, float((both / either).max()))
    return best


def _normalised(pattern: Pattern, angle: float = 0.0, mirror: int = 1) -> ndarray:
    """(40, 40) bool picture of a shape, its centre of mass in the middle, its area a fifth of the picture."""
    y, x = np.mgrid[-1.6:1.6:80j, -1.6:1.6:80j].astype(np.float32)
    drawn = pattern(x, y)
    cx, cy, side = x[drawn].mean(), y[drawn].mean(), np.sqrt(drawn.mean() * 5) * 3.2
    v, u = np.mgrid[-0.5:0.5:40j, -0.5:0.5:40j].astype(np.float32) * np.float32(side)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return pattern(cx + mirror * (c * u - s * v), cy + s * u + c * v)


# -- textures -------------------------------------------------------------------------------------------------------


def _tile(generator: np.random.Generator) -> Pattern:
    """A random binary tile of 2 to 4 cells a side, repeated, each row of tiles shifted."""
    rows, columns = generator.integers(2, 5, 2)
    tile = np.zeros((rows, columns), bool)
    filled = generator.permutation(rows * columns)[: round(rows * columns * generator.uniform(0.3, 0.7))]
    tile.flat[filled] = True
    cell, slant = generator.uniform(0.36, 0.6), generator.integers(columns)

    def which(x: ndarray, y: ndarray) -> ndarray:
        row, column = np.floor(y / cell).astype(np.int64), np.floor(x / cell).astype(np.int64)
        return tile[row % rows, (column + slant * (row // rows)) % columns]

    return which


def _waves(generator: np.random.Generator) -> Pattern:
    """Where the sum of two or three plane waves is positive."""
    waves = []
    for _ in range(generator.integers(2, 4)):
        angle, frequency = generator.uniform(0, np.pi), generator.uniform(0.35, 0.9) * 2 * np.pi
        waves.append((frequency * np.cos(angle), frequency * np.sin(angle), generator.uniform(0, 6.28)))
    offset = generator.uniform(-0.5, 0.5)

    def which(x: ndarray, y: ndarray) -> ndarray:
        return sum((np.sin(a * x + b * y + p) for a, b, p in waves), np.float32(0)) > offset

    return which


def texture_likeness(pattern: Pattern, others: list[Pattern]) -> float:
    """Largest correlation with another texture, of either sign, over 18 turns, 5 scales and all shifts."""
    spectra = np.stack([np.fft.rfft2(_swatch(other)) for other in others]).conj()
    best = 0.0
    for angle in np.arange(18) * np.pi / 18:
        for scale in (0.7, 0.85, 1.0, 1.18, 1.4):
            spectrum = np.fft.rfft2(_swatch(pattern, float(angle), scale))
            best = max(best, float(abs(np.fft.irfft2(spectra * spectrum, s=(_SIDE, _SIDE))).max()))
    return best


_SIDE = 48


def _swatch(pattern: Pattern, angle: float = 0.0, scale: float = 1.0) -> ndarray:
    """(48, 48) picture of 6 periods of a texture, with zero mean and unit length, under a soft window."""
    y, x = np.mgrid[-3:3:48j, -3:3:48j].astype(np.float32) * np.float32(scale)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    picture = pattern(c * x - s * y, s * x + c * y).astype(np.float64)
    picture = (picture - picture.mean()) * np.hanning(_SIDE)[:, None] * np.hanning(_SIDE)
    return picture / max(float(np.sqrt((picture**2).sum())), 1e-9)


# -- what the network has to tell about a patch -----------------------------------------------------------------------


def shape_facts(shapes: tuple[Pattern, ...], size: int) -> ndarray:
    """(shapes, size) float32: leading principal components of the upright silhouettes; total variance 1."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j].astype(np.float32)
    return _components(np.stack([shape(x, y).reshape(8, 4, 8, 4).mean((1, 3)).ravel() for shape in shapes]), size)


def texture_facts(textures: tuple[Pattern, ...], size: int) -> ndarray:
    """(textures, size) float32: leading principal components of the upright power spectra; total variance 1."""
    frequencies = [abs(np.fft.fftshift(np.fft.fft2(_swatch(texture)))) for texture in textures]
    middle = slice(_SIDE // 2 - 18, _SIDE // 2 + 18)
    pooled = [np.sqrt(f[middle, middle].reshape(18, 2, 18, 2).mean((1, 3))).ravel() for f in frequencies]
    return _components(np.stack(pooled), size)


def _components(rows: ndarray, size: int) -> ndarray:
    centred = rows - rows.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    kept = u[:, :size] * s[:size]
    return (kept / np.sqrt((kept**2).sum(1).mean())).astype(np.float32)
