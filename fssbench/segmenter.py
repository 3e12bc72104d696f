"""Masks on your own images, from Python: a few examples with masks, then any number of images without.

from fssbench.segmenter import Segmenter

segmenter = Segmenter.load("runs/comp/folder/fold0/last.ckpt")
segmenter.learn(["one.jpg", "two.jpg"], ["one_mask.png", "two_mask.png"])
mask = segmenter("three.jpg")                   # (H0, W0) bool
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torch import Tensor

from fssbench.encoders.ahead import as_input
from fssbench.encoders.weights import load_plain
from fssbench.errors import UserError, user_error_in
from fssbench.images import as_binary_mask, as_image, read_binary_mask, read_image, resize_image, resize_mask
from fssbench.method import Features, FewShotMethod

ImageLike: TypeAlias = str | Path | np.ndarray | Image.Image
"""A file (turned as its EXIF says), an (H0, W0, 3) uint8 RGB array, or a Pillow image (taken as it is, not turned)."""
MaskLike: TypeAlias = str | Path | np.ndarray | Image.Image
"""A file or Pillow image (white is the object), or an (H0, W0) array of bool or {0, 1, 255 = neither}."""


class Segmenter:
    """A trained (or training-free) method, ready for images outside any data set.

    Args:
        method: the method; raises `UserError` where it is a trained one without trained weights.
        device: where it runs; None = a GPU where there is one, else the CPU. Raises `UserError` where it is none.
    """

    def __init__(self, method: FewShotMethod, device: str | torch.device | None = None) -> None:
        method.require_trained("segment")
        self.device = _device(device)
        self.method = method.to(self.device).eval()
        self._support: Features | None = None
        self._masks: Tensor | None = None

    @classmethod
    def load(cls, checkpoint: str | Path, device: str | torch.device | None = None, **settings: Any) -> Segmenter:
        """A segmenter from a checkpoint of `fssbench fit`, which names its method and settings.

        `settings` may replace what does not change the method: `backbone_weights`, where the file lies elsewhere now.
        Raises `UserError` where the checkpoint is missing, damaged or foreign, or its encoder weights are not found.
        """
        hint = "Train one with `fssbench fit`, or give another checkpoint."
        content = load_plain(checkpoint, "Checkpoint", hint)
        facts = content.get("fssbench") if isinstance(content, dict) else None
        if facts is None:
            raise UserError(f"{checkpoint} was not made by `fssbench fit` (it lacks the 'fssbench' entry). {hint}")
        method = _make(facts["method_class"], {**facts["settings"], **settings}, checkpoint)
        method.train(False)  # frozen parts are told apart before their weights are compared
        method.on_load_checkpoint(content)
        method.load_state_dict(content["state_dict"])
        return cls(method, device)

    def learn(self, images: Sequence[ImageLike], masks: Sequence[MaskLike]) -> None:
        """Take K >= 1 images and the masks of one class in them as the support of all images to come.

        Raises `UserError` where a mask marks nothing or has not the size of its image.
        """
        if any(isinstance(given, str | Path | Image.Image) for given in (images, masks)):
            raise UserError(
                "learn takes a list of images and a list of masks: learn([image], [mask]) for a single pair."
            )
        if len(images) == 0 or len(images) != len(masks):
            raise UserError(f"{len(images)} support image(s) and {len(masks)} mask(s): give one mask for each image.")
        side = self.method.image_size
        pictures, small = [], []
        for number, (image, mask) in enumerate(zip(images, masks, strict=True), 1):
            pixels, values = _image(image), _mask(mask)
            name = str(image) if isinstance(image, str | Path) else f"support image {number}"
            if values.shape != pixels.shape[:2]:
                raise UserError(
                    f"{name} is {pixels.shape[1]}x{pixels.shape[0]} pixels, its mask is "
                    f"{values.shape[1]}x{values.shape[0]}. Make both the same size."
                )
            if not (values == 1).any():
                raise UserError(f"The mask of {name} marks no pixel. Paint the object white, or leave the image out.")
            pictures.append(pixels)
            small.append(torch.from_numpy(resize_mask(values, side)))
        features = [self._encode(pixels) for pixels in pictures]
        self._support = {name: torch.cat([f[name] for f in features])[None] for name in features[0]}
        self._masks = torch.stack(small)[None].to(self.device)

    def __call__(self, image: ImageLike) -> np.ndarray:
        """The class's mask in an image: (H0, W0) bool at its original size."""
        return self.logits(image) > 0

    @torch.inference_mode()
    def logits(self, image: ImageLike) -> np.ndarray:
        """The method's logits for an image: (H0, W0) float32 at its original size; above 0 is the class."""
        if self._support is None or self._masks is None:
            raise UserError("There is no support yet. Call learn(images, masks) with at least one example first.")
        pixels = _image(image)
        logits = self.method.segment(self._encode(pixels), self._support, self._masks)
        return self.method.upsample(logits[0], pixels.shape[:2]).cpu().numpy()

    @torch.inference_mode()
    def _encode(self, pixels: np.ndarray) -> Features:
        square = torch.from_numpy(resize_image(pixels, self.method.image_size))
        return self.method.encode(as_input([square], self.device))  # the same bits as in a test, on a GPU too


def _make(class_path: str, settings: dict[str, Any], source: str | Path) -> FewShotMethod:
    package, _, name = class_path.rpartition(".")
    try:
        cls = getattr(import_module(package), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{source} is of {class_path}, which cannot be imported ({error}). Install it first."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, FewShotMethod)):
        raise UserError(f"{source} names {class_path}, which is no FewShotMethod. Give a checkpoint of `fssbench fit`.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, "method")
    try:
        return parser.instantiate(parser.parse_object({"method": settings})).method
    except ArgumentError as error:
        raise UserError(f"{source}: the settings of {class_path} do not fit this version: {error}") from error
    except ValueError as error:  # jsonargparse wraps what a constructor raises
        raise user_error_in(error) or error from None


def _device(device: str | torch.device | None) -> torch.device:
    """A device that works; raises `UserError` where it does not."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # unknown name; no driver; torch without CUDA
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"Device '{device}' cannot be used here ({reason}). `fssbench doctor` names those that can."
        ) from error
    return found


def _image(image: ImageLike) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(image)
    pixels = as_image(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"Expected an (H, W, 3) uint8 RGB image, got shape {pixels.shape} of {pixels.dtype}.")
    return pixels


def _mask(mask: MaskLike) -> np.ndarray:
    if isinstance(mask, str | Path):
        return read_binary_mask(mask)
    if isinstance(mask, Image.Image):
        return as_binary_mask(mask)
    values = np.asarray(mask)
    if values.ndim != 2 or not np.isin(np.unique(values), (0, 1, 255)).all():
        raise UserError(
            f"Expected an (H, W) mask of bool or {{0, 1, 255}}, got shape {values.shape} with values from "
            f"{values.min() if values.size else '-'} to {values.max() if values.size else '-'}."
        )
    return values.astype(np.uint8)
