"""Generated images of textured objects, each a pure function of integers (numpy only, no torch).

Built to give the same bytes on every machine: random numbers come from the raw PCG64 stream (NumPy keeps bit generators
stable, but not the methods of `Generator`), and pictures use only integer arithmetic and the float operations that
IEEE 754 rounds exactly (+ - * / sqrt floor); no sine, exponential, matrix product or library resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy import ndarray

Pattern = Callable[[ndarray, ndarray], ndarray]
"""(x, y) float32 coordinates of equal shape -> bool of that shape."""
Colour = tuple[int, int, int]
Colours = tuple[Colour, Colour]
T = TypeVar("T")


class Draw:
    """A stream of random integers that depends on `key` alone (non-negative integers, e.g. seed, split, index)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(list(key))
        self._drawn: list[int] = []

    def below(self, n: int) -> int:
        """An integer in [0, n), n < 2^32."""
        if not self._drawn:  # in blocks, since one call per number is slow
            self._drawn = self._bits.random_raw(128).tolist()
        return (self._drawn.pop() >> 32) * n >> 32

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.below(100) < percent

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[self.below(len(options))]

    def bytes(self, n: int) -> ndarray:
        """(n,) uint8."""
        return self._bits.random_raw(-(-n // 8)).astype("<u8", copy=False).view(np.uint8)[:n]

    def tilt(self) -> tuple[float, float]:
        """(cosine, sine) of a random angle of up to 25 degrees either way: rational points of the unit circle."""
        t = (self.below(115) - 57) / 256
        return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)

    def turn(self) -> tuple[float, float]:
        """(cosine, sine) of a random angle: rational points of the unit circle, in all four quadrants."""
        t = self.below(257) / 256
        c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        for _ in range(self.below(4)):
            c, s = -s, c
        return c, s


def _fraction(x: ndarray) -> ndarray:
    return x - np.floor(x)


def _star(x: ndarray, y: ndarray) -> ndarray:
    """Five-pointed star of radius 1: the points inside at least four of the pentagram's five half-planes."""
    normals = ((0.0, 1.0), (0.95106, 0.30902), (0.58779, -0.80902), (-0.58779, -0.80902), (-0.95106, 0.30902))
    inside = sum(((a * x + b * y < 0.36).astype(np.uint8) for a, b in normals), np.zeros(x.shape, np.uint8))
    return inside >= 4


def _heart(x: ndarray, y: ndarray) -> ndarray:
    x, y = 1.3 * x, 0.1 - 1.25 * y
    a = x * x + y * y - 1
    return a * a * a < x * x * y * y * y


SHAPES: dict[str, Pattern] = {
    "disc": lambda x, y: x * x + y * y < 0.7,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.72,
    "triangle": lambda x, y: (y < 0.5) & (1.732 * abs(x) - y < 1),
    "ring": lambda x, y: (x * x + y * y < 0.9) & (x * x + y * y > 0.26),
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.29) & (np.maximum(abs(x), abs(y)) < 0.95),
    "star": _star,
    "crescent": lambda x, y: (x * x + y * y < 0.95) & ((x - 0.5) * (x - 0.5) + y * y > 0.5),
    "bar": lambda x, y: (abs(y) < 0.3) & (abs(x) < 0.95),
    "heart": _heart,
    "hourglass": lambda x, y: (abs(y) < 0.9) & (abs(x) < 0.1 + 0.75 * abs(y)),
}
"""Name -> membership in the object's frame: the shape lies in about the unit disc."""


def _dots(x: ndarray, y: ndarray) -> ndarray:
    a, b = _fraction(x) - 0.5, _fraction(y) - 0.5
    return a * a + b * b < 0.1


def _bricks(x: ndarray, y: ndarray) -> ndarray:
    row = np.floor(y / 0.8)
    return (_fraction(y / 0.8) > 0.3) & (_fraction(x / 1.7 + 0.5 * row) > 0.16)


def _speckle(x: ndarray, y: ndarray) -> ndarray:
    """One hashed bit per cell of a third of a period."""
    cell = np.floor(3 * x).astype(np.int64) * 73856093 ^ np.floor(3 * y).astype(np.int64) * 19349663
    cell = (cell ^ cell >> 13) * 1274126177 & 0x7FFFFFFF
    return (cell >> 16 & 1).astype(bool)


def _scales(x: ndarray, y: ndarray) -> ndarray:
    row = np.floor(y / 0.7)
    a, b = _fraction(x / 1.3 + 0.5 * row) - 0.5, _fraction(y / 0.7)
    return a * a + 0.25 * b * b < 0.17


TEXTURES: dict[str, Pattern] = {
    "stripes": lambda x, y: _fraction(x) < 0.5,
    "checks": lambda x, y: (_fraction(x / 1.5) < 0.5) ^ (_fraction(y / 1.5) < 0.5),
    "dots": _dots,
    "bricks": _bricks,
    "zigzag": lambda x, y: _fraction(y + 0.9 * abs(2 * _fraction(x / 1.6) - 1)) < 0.5,
    "grid": lambda x, y: (_fraction(x) < 0.3) | (_fraction(y) < 0.3),
    "speckle": _speckle,
    "circles": lambda x, y: _fraction(np.sqrt(x * x + y * y)) < 0.5,
    "teeth": lambda x, y: _fraction(x / 1.2) + _fraction(y / 1.2) < 1,
    "scales": _scales,
}
"""Name -> which of the two colours, in periods of the texture (one period is 9 to 12 pixels of the image)."""


@dataclass(frozen=True)
class World:
    """Shapes, textures, and the classes made of them: `classes[i]` = (index of the shape, index of the texture)."""

    shapes: tuple[Pattern, ...]
    textures: tuple[Pattern, ...]
    classes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Piece:
    """One object: what it is, its place and half-axes in pixels, and the cosine and sine of its tilt."""

    shape: int
    texture: int
    x: int
    y: int
    radius: int
    wide: float
    tall: float
    tilt: tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Size of a picture and its objects. `pieces[0]` is the primary one; a piece hides those after it."""

    height: int
    width: int
    pieces: tuple[Piece, ...]


SIZES = ((128, 160), (160, 128), (144, 144), (132, 152), (152, 132), (120, 160))
"""(H0, W0) of the generated images."""


def lay_out(world: World, primary: tuple[int, int], draw: Draw) -> Layout:
    """Objects of a picture whose first is of the (shape, texture) pair `primary`.

    Besides it: up to two more objects (the same class again, or any class) and one or two distractors that share the
    shape or the texture with the primary one.
    """
    height, width = draw.pick(SIZES)
    kinds = [primary]
    for _ in range(draw.between(0, 2)):
        kinds.append(primary if draw.chance(30) else draw.pick(world.classes))
    for _ in range(draw.between(1, 2)):
        kinds.append(_lookalike(world, primary, draw))
    pieces: list[Piece] = []
    for kind in kinds:  # the primary object has the first choice of place
        pieces.append(_placed(kind, height, width, pieces, draw))
    return Layout(height, width, tuple(pieces))


def draw_layer(world: World, layout: Layout) -> ndarray:
    """(H0, W0) uint8: 0 background and clutter, i the visible part of `pieces[i - 1]`."""
    layer = np.zeros((layout.height, layout.width), np.uint8)
    for index in range(len(layout.pieces), 0, -1):
        piece = layout.pieces[index - 1]
        window, dx, dy = _window(layer.shape, piece.x, piece.y, piece.radius)
        layer[window][_silhouette(world, piece, dx, dy)] = index
    return layer


def draw_picture(world: World, layout: Layout, draw: Draw) -> ndarray:
    """(H0, W0, 3) uint8 RGB: the objects over patches of textured clutter, in random colours.

    Colours, texture tilts and light are random, so only shape and texture together tell the class.
    """
    canvas = _Canvas(layout.height, layout.width)
    for _ in range(draw.between(3, 5)):
        _paint_clutter(canvas, world, draw)
    for piece in reversed(layout.pieces):
        _paint_object(canvas, world, piece, draw)
    return _photograph(canvas.developed(_background(layout.height, layout.width, draw)), draw)


def _lookalike(world: World, primary: tuple[int, int], draw: Draw) -> tuple[int, int]:
    """Shares exactly the shape or exactly the texture with `primary`; may or may not be a class itself."""
    shape, texture = primary
    if draw.chance(50):
        return shape, (texture + 1 + draw.below(len(world.textures) - 1)) % len(world.textures)
    return (shape + 1 + draw.below(len(world.shapes) - 1)) % len(world.shapes), texture


def _placed(kind: tuple[int, int], height: int, width: int, others: list[Piece], draw: Draw) -> Piece:
    """An object with little overlap with `others`: the freest of a few tries."""
    best, best_gap = (0, 0, 0), -1
    for _ in range(8):
        radius = draw.between(22, 38)
        rim = radius * 3 // 4
        x, y = draw.between(rim, width - rim), draw.between(rim, height - rim)
        # squared distance in percent of the squared sum of radii, in whole numbers
        gaps = (((x - o.x) ** 2 + (y - o.y) ** 2) * 100 // (radius + o.radius) ** 2 for o in others)
        gap = min(gaps, default=100)
        if gap > best_gap:
            best, best_gap = (x, y, radius), gap
        if gap >= 100:
            break
    x, y, radius = best
    wide, tall = (radius * (100 - draw.below(30)) / 100 for _ in range(2))
    return Piece(*kind, x, y, radius, wide, tall, draw.tilt())


def _window(size: tuple[int, ...], x: int, y: int, radius: int) -> tuple[tuple[slice, slice], ndarray, ndarray]:
    """The part of a picture within `radius` of (x, y): its row and column slices, column and row offsets from there."""
    rows = slice(max(0, y - radius), min(size[0], y + radius + 1))
    columns = slice(max(0, x - radius), min(size[1], x + radius + 1))
    dx = np.arange(columns.start - x, columns.stop - x, dtype=np.float32)[None, :]
    dy = np.arange(rows.start - y, rows.stop - y, dtype=np.float32)[:, None]
    return (rows, columns), dx, dy


def _silhouette(world: World, piece: Piece, dx: ndarray, dy: ndarray) -> ndarray:
    """Which pixels (offsets from the centre) the object covers, hidden or not."""
    c, s = piece.tilt
    along = c / piece.wide * dx + s / piece.wide * dy
    return world.shapes[piece.shape](along, c / piece.tall * dy - s / piece.tall * dx)


class _Canvas:
    """What is painted so far: per pixel the index of a paint and the light on it.

    Colours are looked up once at the end, which is much faster than painting three channels object by object.
    """

    def __init__(self, height: int, width: int) -> None:
        self.paint = np.zeros((height, width), np.uint8)
        self.light = np.ones((height, width), np.float32)
        self._colours: list[tuple[float, float, float]] = [(0, 0, 0)]
        self._clear: list[float] = [1]

    def fill(
        self, window: tuple[slice, slice], inside: ndarray, which: ndarray, colours: Colours, cover: float
    ) -> None:
        """Paint `inside` with one of two colours that let 1 - `cover` of the background through."""
        first = len(self._colours)
        for red, green, blue in colours:
            self._colours.append((red * cover, green * cover, blue * cover))
            self._clear.append(1 - cover)
        np.copyto(self.paint[window], which.view(np.uint8) + np.uint8(first), where=inside)

    def developed(self, background: ndarray) -> ndarray:
        """(3, H0, W0) float32 colours, with `background` where nothing is painted or paint lets it through."""
        colours = np.array(self._colours, np.float32).T
        clear = np.array(self._clear, np.float32)[self.paint]
        return np.stack([c[self.paint] + b * clear for c, b in zip(colours, background, strict=True)]) * self.light


def _colour(draw: Draw) -> Colour:
    return draw.between(20, 235), draw.between(20, 235), draw.between(20, 235)


def _luma(colour: Colour) -> int:
    """Luma in 1/256 (weights of ITU-R BT.601)."""
    return 77 * colour[0] + 150 * colour[1] + 29 * colour[2]


def _two_colours(draw: Draw, contrast: int) -> Colours:
    """Two colours whose luma differs by at least `contrast` of 255."""
    while True:
        one, two = _colour(draw), _colour(draw)
        if abs(_luma(one) - _luma(two)) >= 256 * contrast:
            return one, two


def _background(height: int, width: int, draw: Draw) -> ndarray:
    """(3, height, width) float32: a smooth random colour field, bilinear in a 4 x 4 grid of colours."""
    base = np.array(_colour(draw), np.float32)[:, None, None]
    grid = base + (draw.bytes(48).reshape(3, 4, 4).astype(np.float32) - 128) * np.float32(draw.between(15, 50) / 100)
    y, x = (np.arange(n, dtype=np.float32) * np.float32(2.999 / n) for n in (height, width))
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    fy, fx = (y - top.astype(np.float32))[:, None], x - left.astype(np.float32)
    rows = grid[:, top] * (1 - fy) + grid[:, top + 1] * fy
    return rows[:, :, left] * (1 - fx) + rows[:, :, left + 1] * fx


def _textured(pattern: Pattern, dx: ndarray, dy: ndarray, draw: Draw) -> ndarray:
    """Which of two colours (bool), for a texture of random turn, shift and period."""
    c, s = draw.tilt()
    period = draw.between(36, 48) / 4
    shift = draw.below(64) / 64 - 0.5
    c, s = c / period, s / period
    return pattern((c * dx + shift) + s * dy, (c * dy + shift) - s * dx)


def _paint_clutter(canvas: _Canvas, world: World, draw: Draw) -> None:
    """A faint textured patch: a disc cut by three random lines, so an irregular corner-and-arc piece of any texture."""
    height, width = canvas.paint.shape
    radius = draw.between(16, 46)
    window, dx, dy = _window(canvas.paint.shape, draw.below(width), draw.below(height), radius)
    inside = dx * dx + dy * dy < radius * radius
    for _ in range(3):
        c, s = draw.turn()
        inside &= c * dx + s * dy < radius * (draw.between(10, 80) / 100)
    which = _textured(draw.pick(world.textures), dx, dy, draw)
    canvas.fill(window, inside, which, _two_colours(draw, 25), cover=draw.between(40, 85) / 100)


def _paint_object(canvas: _Canvas, world: World, piece: Piece, draw: Draw) -> None:
    """Paint one object with shading, and a shadow on what lies under it."""
    window, dx, dy = _window(canvas.paint.shape, piece.x, piece.y, piece.radius + 6)
    inside = _silhouette(world, piece, dx, dy)
    which = _textured(world.textures[piece.texture], dx, dy, draw)
    canvas.fill(window, inside, which, _two_colours(draw, 60), cover=1)

    light = canvas.light[window]
    light[4:, 3:][inside[:-4, :-3]] *= np.float32(0.7)
    c, s = draw.turn()
    slope = draw.between(0, 25) / 100 / piece.radius
    np.copyto(light, (c * slope * dx + 1) + s * slope * dy, where=inside)


def _photograph(image: ndarray, draw: Draw) -> ndarray:
    """Uneven light, a small blur and noise; (3, H0, W0) float32 -> (H0, W0, 3) uint8."""
    _, height, width = image.shape
    c, s = draw.turn()
    slope = draw.below(50) / 100
    dx = np.arange(width, dtype=np.float32) * np.float32(c * slope / width) + np.float32(draw.between(85, 115) / 100)
    dy = np.arange(height, dtype=np.float32)[:, None] * np.float32(s * slope / height)
    image = np.clip(image * (dx + dy - np.float32((c + s) * slope / 2)), 0, 255)
    side = draw.pick((0.25, 0.25, 0.125))  # of the three taps (side, 1 - 2 side, side): exact in binary
    image[:, 1:-1] = (image[:, :-2] + image[:, 2:]) * side + image[:, 1:-1] * (1 - 2 * side)
    image[:, :, 1:-1] = (image[:, :, :-2] + image[:, :, 2:]) * side + image[:, :, 1:-1] * (1 - 2 * side)
    noise = draw.bytes(image.size).reshape(image.shape).astype(np.float32) - 127.5
    image += noise * np.float32(draw.between(3, 12) / 128)
    out = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        out[:, :, channel] = np.clip(image[channel], 0, 255).astype(np.uint8)
    return out
