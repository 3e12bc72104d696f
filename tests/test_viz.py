"""Pictures of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssbench.viz import FOREGROUND, PREDICTED, episode_sheet, overlay, save_picture


def test_overlay_tints_the_class_and_greys_what_is_ignored() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[5:15, 5:15] = 1
    mask[:, 25:] = 255
    picture = overlay(image, mask)
    assert tuple(picture[5, 5]) == FOREGROUND, "the outline"
    assert tuple(picture[10, 10]) == (128, 32, 32)
    assert tuple(picture[0, 29]) == (64, 64, 64)
    assert tuple(picture[0, 0]) == (0, 0, 0)
    assert not image.any(), "the image itself is left alone"


@pytest.mark.parametrize("colour", [FOREGROUND, PREDICTED])
@pytest.mark.parametrize("own", [True, False])
def test_an_outline_stands_out_from_every_picture(colour: tuple[int, int, int], own: bool) -> None:
    """From one of its own colour by the black around it, and from a black one by its own."""
    image = np.full((320, 320, 3), colour if own else 0, np.uint8)
    mask = np.zeros((320, 320), np.uint8)
    mask[100:200, 100:200] = 1
    line = overlay(image, mask, colour)[150]
    assert (line[98:100] == 0).all(), "as wide as the picture is large"
    assert (line[100:102] == colour).all()
    assert (line[97] == image[0, 0]).all()
    assert (overlay(image, np.ones_like(mask), colour)[0, 0] != 0).any(), "the picture's edge is no outline"


def test_a_sheet_has_a_row_per_episode(tmp_path: Path) -> None:
    pictures = [np.full((40, 80, 3), value, np.uint8) for value in (0, 90, 180)]
    sheet = episode_sheet([pictures, pictures], ["support", "query", "truth"], ["one", "two"], side=50)
    assert sheet.size == (6 + 3 * 56, 18 + 2 * (50 + 18 + 6))
    save_picture(tmp_path / "sheet.png", sheet)
    assert Image.open(tmp_path / "sheet.png").size == sheet.size
    assert np.asarray(sheet)[18 + 25, 6 + 25].tolist() == [0, 0, 0]
