"""Pictures of episodes: support, query, truth and prediction side by side. Needs Pillow and NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from fssbench.files import written_whole
from fssbench.images import resize_image

FOREGROUND = (255, 64, 64)
PREDICTED = (255, 221, 0)
IGNORED = (128, 128, 128)
OUTLINE = 1 / 160
"""Width of an outline, of the picture's longest side: it is still seen when the picture is scaled down."""


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = FOREGROUND) -> np.ndarray:
    """Image (H, W, 3) uint8 with the mask's class tinted in `colour`, its outline drawn, and 255 (ignore) in grey.

    The outline is bright within the mask and black around it, so that it stands out from any picture.

    mask (H, W) uint8 {0, 1, 255} -> (H, W, 3) uint8
    """
    out = image.astype(np.float32)
    for value, tint in ((1, colour), (255, IGNORED)):
        where = mask == value
        out[where] = 0.5 * out[where] + 0.5 * np.array(tint, np.float32)
    inside = mask == 1
    drawn = Image.fromarray(inside.astype(np.uint8))
    reach = 2 * max(1, round(OUTLINE * max(mask.shape))) + 1
    core, grown = (np.asarray(drawn.filter(f(reach))) > 0 for f in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    out[inside & ~core] = colour
    out[grown & ~inside] = 0
    return out.round().astype(np.uint8)


def episode_sheet(
    rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str], labels: Sequence[str], side: int = 160
) -> Image.Image:
    """A sheet with a row per episode and a titled column per picture.

    rows     pictures (H, W, 3) uint8, each shown in a square of `side` pixels (aspect ratio kept)
    columns  titles, one per picture of a row
    labels   one text per row, e.g. class and IoU
    """
    gap, head = 6, 18
    width = gap + len(columns) * (side + gap)
    height = head + len(rows) * (side + head + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in enumerate(columns):
        draw.text((gap + x * (side + gap), 4), title, fill="black")
    for y, (pictures, label) in enumerate(zip(rows, labels, strict=True)):
        top = head + y * (side + head + gap)
        for x, picture in enumerate(pictures):
            h, w = picture.shape[:2]
            scale = side / max(h, w)
            small = resize_image(picture, (max(1, round(h * scale)), max(1, round(w * scale))))
            left = gap + x * (side + gap) + (side - small.shape[1]) // 2
            sheet.paste(Image.fromarray(small), (left, top + (side - small.shape[0]) // 2))
        draw.text((gap, top + side + 3), label, fill="black")
    return sheet


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Write a PNG, whole or not at all."""
    with written_whole(path) as temporary:
        picture.save(temporary, format="PNG")
