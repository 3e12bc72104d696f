"""The Python API for a user's own images: same masks as the method gives, clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from fssbench.errors import UserError
from fssbench.images import resize_image, resize_mask
from fssbench.segmenter import Segmenter
from tests.cli.run import CHECKPOINT, fitted, fitted_once  # noqa: F401  (fixtures)
from tests.toy import ColourMethod, FreeMethod

RED, GREY = (200, 30, 30), (120, 120, 120)


def picture(box: tuple[int, int, int, int], size: tuple[int, int] = (24, 40)) -> tuple[np.ndarray, np.ndarray]:
    """A red box (top, left, bottom, right) on grey, and its mask."""
    image = np.full((*size, 3), GREY, np.uint8)
    mask = np.zeros(size, np.uint8)
    top, left, bottom, right = box
    image[top:bottom, left:right] = RED
    mask[top:bottom, left:right] = 1
    return image, mask


def square(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(resize_image(image, 16)).permute(2, 0, 1)[None].float() / 255


def test_it_gives_what_the_method_gives() -> None:
    supports = [picture((2, 3, 20, 30)), picture((0, 0, 10, 12), (30, 20))]
    query, truth = picture((8, 20, 22, 38), (24, 40))
    method = FreeMethod(bias=0.2).eval()
    segmenter = Segmenter(method, "cpu")
    segmenter.learn([i for i, _ in supports], [m for _, m in supports])
    mask = segmenter(query)

    features = [method.encode(square(i))["colour"] for i, _ in supports]
    masks = torch.stack([torch.from_numpy(resize_mask(m, 16)) for _, m in supports])[None]
    logits = method.segment(method.encode(square(query)), {"colour": torch.stack(features, 1)}, masks)
    expected = torch.nn.functional.interpolate(logits[None], query.shape[:2], mode="bilinear", align_corners=False)
    np.testing.assert_array_equal(mask, expected[0, 0].detach().numpy() > 0)
    assert mask.shape == (24, 40)
    assert mask.dtype == np.bool_
    assert 0 < mask.sum() < mask.size
    assert (mask & (truth == 1)).sum() > 0.7 * truth.sum()  # the grid is 8 x 8


def test_files_arrays_and_pillow_images_are_the_same(tmp_path: Path) -> None:
    image, mask = picture((2, 3, 20, 30))
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(mask * 255).save(tmp_path / "m.png")
    kinds: list[tuple[Any, Any]] = [
        (image, mask),
        (image, mask.astype(bool)),
        (Image.fromarray(image), Image.fromarray(mask * 255)),
        (Image.fromarray(image), Image.fromarray(mask)),
        (tmp_path / "a.png", str(tmp_path / "m.png")),
    ]
    found = []
    for one, its_mask in kinds:
        segmenter = Segmenter(FreeMethod(), "cpu")
        segmenter.learn([one], [its_mask])
        found.append(segmenter.logits(one))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_pillow_images_are_flattened_as_files_are_but_not_turned(tmp_path: Path) -> None:
    image, mask = picture((2, 3, 20, 30))
    clear = Image.fromarray(np.dstack([image, np.where(mask == 1, 255, 0).astype(np.uint8)]))
    painted = Image.fromarray(
        np.dstack([np.full_like(image, 255), mask * 255])
    )  # white everywhere, opaque on the object
    clear.save(tmp_path / "a.png")
    painted.save(tmp_path / "m.png")
    found = []
    for one, its_mask in [(tmp_path / "a.png", tmp_path / "m.png"), (clear, painted)]:
        segmenter = Segmenter(FreeMethod(), "cpu")
        segmenter.learn([one], [its_mask])
        found.append(segmenter.logits(one))
    np.testing.assert_array_equal(*found)

    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    Image.fromarray(image).save(tmp_path / "turned.png", exif=sideways)
    with Image.open(tmp_path / "turned.png") as turned:
        assert segmenter(turned).shape == (turned.height, turned.width) == (24, 40)
    assert segmenter(tmp_path / "turned.png").shape == (40, 24)


def test_a_checkpoint_is_enough(fitted: Path) -> None:  # noqa: F811
    segmenter = Segmenter.load(CHECKPOINT, "cpu")
    content = torch.load(CHECKPOINT, weights_only=True)
    assert isinstance(segmenter.method, ColourMethod)
    assert segmenter.method.settings() == content["fssbench"]["settings"]
    assert segmenter.method.scale.item() == content["state_dict"]["scale"].item() != -4.0
    assert not segmenter.method.training
    image, mask = picture((2, 3, 20, 30))
    segmenter.learn([image], [mask])
    assert segmenter(image).shape == mask.shape


def test_a_checkpoint_of_other_frozen_weights_is_refused(fitted: Path) -> None:  # noqa: F811
    content = torch.load(CHECKPOINT, weights_only=True)
    content["fssbench"]["frozen_sha256"] = "0" * 64
    torch.save(content, "other.ckpt")
    with pytest.raises(UserError, match="other frozen encoder weights"):
        Segmenter.load("other.ckpt")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"method_class": "pathlib.Path", "settings": {}}, "no FewShotMethod"),
        ({"method_class": "no.such.Method", "settings": {}}, "cannot be imported"),
        ({"method_class": "tests.toy.ColourMethod", "settings": {"wrong": 1}}, "do not fit this version"),
        (None, "not made by `fssbench fit`"),
    ],
)
def test_foreign_checkpoints_are_refused(tmp_path: Path, entry: dict[str, Any] | None, message: str) -> None:
    torch.save({"state_dict": {}, **({"fssbench": entry} if entry else {})}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=message):
        Segmenter.load(tmp_path / "x.ckpt")


def test_an_untrained_method_is_refused() -> None:
    with pytest.raises(UserError, match="no trained weights"):
        Segmenter(ColourMethod())


def test_mistakes_are_named(tmp_path: Path) -> None:
    image, mask = picture((2, 3, 20, 30))
    segmenter = Segmenter(FreeMethod(), "cpu")
    with pytest.raises(UserError, match="Call learn"):
        segmenter(image)
    for images, masks, message in [
        ("a.jpg", "m.png", r"learn\(\[image\], \[mask\]\)"),
        (Image.fromarray(image), [mask], r"learn\(\[image\], \[mask\]\)"),
        ([], [], "give one mask for each image"),
        ([image, image], [mask], r"2 support image\(s\) and 1 mask"),
        ([image], [mask[:-1]], "support image 1 is 40x24 pixels, its mask is 40x23"),
        ([image], [np.zeros_like(mask)], "marks no pixel"),
        ([image], [mask * 7], r"mask of bool or \{0, 1, 255\}"),
        ([image[..., 0]], [mask], r"uint8 RGB image, got shape \(24, 40\)"),
        ([tmp_path / "none.jpg"], [mask], "none.jpg does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            segmenter.learn(images, masks)
