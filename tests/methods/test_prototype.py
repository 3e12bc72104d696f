"""The training-free baseline: pooling, scores, Otsu's threshold against OpenCV's, and a whole test run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor

from fssbench.errors import UserError
from methods.prototype import Prototype
from methods.prototype.model import PrototypeNet, otsu, prototypes
from tests.toy import Toy


def episode(shots: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(shots)
    query, support = torch.randn(2, 8, 4, 4, generator=g), torch.randn(2, shots, 8, 4, 4, generator=g)
    masks = (torch.rand(2, shots, 4, 4, generator=g) > 0.5).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return query, support, masks.to(torch.uint8)


def test_otsu_equals_opencv_on_8_bit_images() -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6, 40, 30)).astype(np.float64)
    pixels[1:] = np.where(pixels[1:] > 180, 0.3 * pixels[1:] + 150, 0.4 * pixels[1:])  # two modes, off the middle
    images = pixels.astype(np.uint8)
    images[:, 0, :2] = 0, 255  # the whole range, so that bins are grey values
    scores = torch.from_numpy(images).float()
    ours = scores > otsu(scores)[:, None, None]
    for image, mask in zip(images, ours.numpy(), strict=True):
        _, expected = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        assert np.array_equal(mask, expected)


def test_otsu_is_per_image_and_follows_scale_and_shift() -> None:
    scores = torch.rand(3, 9, 9, generator=torch.Generator().manual_seed(0)).double().square().float()
    both = otsu(scores)
    assert torch.equal(both, torch.cat([otsu(image[None]) for image in scores]))
    torch.testing.assert_close(otsu(3 * scores - 5), 3 * both - 5)
    assert not torch.any(torch.full((9, 9), 0.7) > otsu(torch.full((1, 9, 9), 0.7)))


def test_prototypes_are_the_pooled_tokens() -> None:
    _, tokens, masks = episode()
    masks[:, :, :4, :4] = 255  # patch (0, 0) belongs to neither
    out = prototypes(tokens, masks)
    for value, k in ((1, 0), (0, 1)):
        inside = (masks[..., ::4, ::4] == value)[:, 0, None]
        mean = (tokens[:, 0] * inside).sum((-2, -1)) / inside.sum((-2, -1))
        torch.testing.assert_close(out[:, k], F.normalize(mean, dim=1), atol=1e-5, rtol=1e-5)
    assert prototypes(tokens, torch.zeros_like(masks)).isfinite().all()


def test_scores() -> None:
    query, tokens, masks = episode()
    class_, other = prototypes(tokens, masks).unbind(1)
    cosine = [F.cosine_similarity(query, p[:, :, None, None]) for p in (class_, other)]
    torch.testing.assert_close(PrototypeNet(False, 0.25)(query, tokens, masks), cosine[0] - 0.25)
    difference = cosine[0] - cosine[1]
    torch.testing.assert_close(PrototypeNet(True, 0.0)(query, tokens, masks), difference)
    out = PrototypeNet()(query, tokens, masks)
    torch.testing.assert_close(out, difference - otsu(difference)[:, None, None])
    assert 0 < (out > 0).float().mean() < 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PrototypeNet()(query, tokens, masks), out)


def test_supports_count_equally_in_any_order() -> None:
    query, support, masks = episode(shots=3)
    out = PrototypeNet()(query, support, masks)
    torch.testing.assert_close(PrototypeNet()(query, support[:, [2, 0, 1]], masks[:, [2, 0, 1]]), out)
    louder = support * torch.tensor([1.0, 5.0, 20.0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(PrototypeNet()(query, louder, masks), out, atol=1e-5, rtol=1e-5)
    one, many = (x[:, :1].expand(-1, 5, *x.shape[2:]) for x in (support, masks))
    torch.testing.assert_close(PrototypeNet()(query, one, many), PrototypeNet()(query, support[:, :1], masks[:, :1]))


def make_method(**kwargs: Any) -> Prototype:
    return Prototype("vit_tiny_patch16_224", "random", image_size=64, **kwargs)


def test_runs_without_a_checkpoint(tmp_path: Path) -> None:
    method, trainer = make_method(), Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, enable_checkpointing=False, default_root_dir=str(tmp_path),
    )  # fmt: skip
    trainer.test(method, datamodule=Toy(shot=2, episodes_per_class=2), verbose=False)
    assert method.complete
    assert 0 < method.scores["miou"] < 1
    with pytest.raises(UserError, match="training-free"):
        trainer.fit(method, datamodule=Toy())


def test_block_is_a_setting() -> None:
    images = torch.rand(1, 3, 64, 64)
    last, sixth = (make_method(block=block).encode(images)["tokens"] for block in (-1, 6))
    assert last.shape == sixth.shape == (1, 192, 4, 4)
    assert not torch.allclose(last, sixth, atol=1e-2)
