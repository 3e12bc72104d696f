"""Pictures of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fssbench.viz import FOREGROUND, episode_sheet, overlay, save_picture


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


def test_a_sheet_has_a_row_per_episode(tmp_path: Path) -> None:
    pictures = [np.full((40, 80, 3), value, np.uint8) for value in (0, 90, 180)]
    sheet = episode_sheet([pictures, pictures], ["support", "query", "truth"], ["one", "two"], side=50)
    assert sheet.size == (6 + 3 * 56, 18 + 2 * (50 + 18 + 6))
    save_picture(tmp_path / "sheet.png", sheet)
    assert Image.open(tmp_path / "sheet.png").size == sheet.size
    assert np.asarray(sheet)[18 + 25, 6 + 25].tolist() == [0, 0, 0]
