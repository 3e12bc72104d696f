"""The small SAM for experiments: its prompts are SAM's, it learns, and the code for the official files reads its file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from segment_anything.modeling import Sam

from datamodules.shapes import WORLD
from fssbench.encoders.sam import SamEncoder
from methods.fsdino.decoder import Decoder, DecoderConfig, SamParts

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "encoders"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The training script, imported as it is run: from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield import_module("train_shapes_sam")


@pytest.fixture(scope="module")
def sam(script: ModuleType) -> Sam:
    torch.manual_seed(0)
    return script.new_sam(width=16, depth=2, heads=2).eval()


def test_prompts_are_encoded_as_sam_does(script: ModuleType, sam: Sam) -> None:
    embedding, masks = torch.randn(2, 256, 14, 14), torch.zeros(2, 112, 112, dtype=torch.bool)
    masks[0, 20:60, 30:90] = masks[1, 70:100, 5:25] = True
    generator = torch.Generator().manual_seed(0)
    for boxes in (False, True):
        prompts = script.first_prompts(masks, generator, boxes)
        points = (prompts.points[:, :1], prompts.labels[:, :1])
        assert all(masks[i, int(y), int(x)] for i, (x, y) in enumerate(points[0][:, 0].tolist())) or boxes
        rectangles = prompts.points.flatten(1) if boxes else None
        with torch.no_grad():
            ours, _ = script.decode(sam, embedding, prompts)
            for image in range(2):
                sparse, dense = sam.prompt_encoder(
                    None if boxes else (points[0][image : image + 1], points[1][image : image + 1]),
                    None if rectangles is None else rectangles[image : image + 1],
                    None,
                )
                theirs, _ = sam.mask_decoder.predict_masks(
                    embedding[image : image + 1], sam.prompt_encoder.get_dense_pe(), sparse, dense
                )
                torch.testing.assert_close(ours[image], theirs[0], atol=1e-5, rtol=1e-5)
    assert prompts.points[0].tolist() == [[30, 20], [90, 60]]


def test_a_corrective_point_lies_where_the_mask_is_wrong(script: ModuleType) -> None:
    masks = torch.zeros(1, 56, 56, dtype=torch.bool)
    masks[0, 10:20, 10:20] = True
    logits = torch.where(masks, 1.0, -1.0)
    logits[0, 12, 15] = -1.0
    before = script.Prompts(torch.zeros(1, 2, 2), torch.tensor([[1, -1]]))
    after = script.corrected(before, logits, masks, 112, torch.Generator().manual_seed(0))
    assert after.points[0, 2].tolist() == [30, 24]
    assert after.labels.tolist() == [[1, -1, 1]]
    assert after.mask.shape == (1, 1, 56, 56)


def test_its_loss_falls_and_its_file_is_read_like_the_official_ones(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "HELD_OUT", 4)
    torch.manual_seed(0)
    sam = script.new_sam(width=16, depth=2, heads=2)
    images, layers = script.pictures(WORLD, 12, 0)
    assert images.shape[1:] == (3, 112, 112)
    lines: list[str] = []
    options = argparse.Namespace(
        device="cpu", seed=0, lr=1e-3, batch_size=4, steps=16, every=1, output=tmp_path / "sam.pth"
    )
    script.train(sam, images, layers, options, lines.append)
    losses = [float(line.split("loss ")[1].split(";")[0]) for line in lines if "loss" in line]
    assert sum(losses[-3:]) < sum(losses[:3])
    encoder = SamEncoder("from_weights", str(options.output))
    assert (encoder.image_size, encoder.grid, encoder.channels) == (112, 14, 256)
    parts = SamParts.read(str(options.output))
    decoder = Decoder(DecoderConfig())
    decoder.start_from(parts)
    assert decoder(encoder(torch.rand(1, 3, 112, 112)), torch.zeros(1, 1, 256), torch.zeros(1, 256, 14, 14)).shape == (
        1,
        56,
        56,
    )
