"""Parts of the demo; the whole of it runs as the README's first command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.shapes import ShapesDataset
from fssbench.cli import demo
from fssbench.cli.demo import _picture, everything
from fssbench.cli.running import checked_config
from fssbench.images import write_mask
from fssbench.protocols.manifest import build_manifest


def test_a_mask_of_everything_scores_the_share_of_the_objects() -> None:
    assert all(0.02 < everything(fold) < 0.25 for fold in range(4))


def test_the_picture_shows_one_episode_of_each_class(tmp_path: Path) -> None:
    dataset = ShapesDataset()
    manifest = build_manifest(dataset, 2, 1, episodes_per_class=2)
    manifest.save(tmp_path / "episodes.jsonl")
    for number, episode in enumerate(manifest.episodes):
        size = dataset.read_mask(episode.query, episode.class_id).shape
        write_mask(tmp_path / f"{number:06d}.png", np.zeros(size, np.uint8))
    _picture(tmp_path, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (6 + 4 * 166, 18 + 5 * 184)


def test_every_step_runs_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On several GPUs Lightning would start the whole demo again, once for each of them."""
    steps: list[list[str]] = []

    def run(verb: str, arguments: list[str]) -> int:
        steps.append(arguments)
        return int(len(steps) == 3)

    monkeypatch.setattr(demo, "_quietly", run)
    assert demo.run("demo", ["--out", str(tmp_path)]) == 1
    assert [checked_config(arguments)["trainer"]["accelerator"] for arguments in steps] == ["cpu"] * 3
