"""Images and masks from and to files, and the two resizes of the project.

Every pixel of the project is read here, so that a photograph and its mask are turned, flattened and scaled alike:

* EXIF orientation is applied to images and masks, so both have the size a viewer shows.
* Grey, palette, CMYK and 16-bit files become 8-bit RGB (16 bits are scaled by 1/257; colour profiles are not applied).
* Transparency is laid over white in an image (what most viewers show) and over black in a mask (transparent is
  background). Of an animation the first frame is read.

Both resizes are pinned by tests with literal values, since libraries disagree about them (protocols.md 5, item 8).
Their identifiers belong into every record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from fssbench.errors import UserError
from fssbench.files import written_whole

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Endings of the files in a folder that are taken for images or masks, in any case."""
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jxl", ".jp2", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf")
"""Endings of photographs that a folder may hold and that are not read: who has some is told so."""
IMAGE_INTERPOLATION = "pillow-bilinear-antialias"
"""Identifier of `resize_image`."""
MASK_INTERPOLATION = "numpy-nearest-centre"
"""Identifier of `resize_mask`."""

_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, upright, transparency over white.

    Raises `UserError` where the file is missing, empty, no image, damaged, cut off, or holds floating-point pixels.
    """
    with _opened(path) as image:
        return np.array(_rgb(_upright(image), path, background="white"))


def decode_image(content: bytes, name: str) -> np.ndarray:
    """The image in an encoded file's bytes as (H, W, 3) uint8 RGB, as `read_image` reads it from disk.

    Raises `UserError`, naming `name`, where the bytes are empty, no image, damaged, cut off or floating-point pixels.
    """
    with _opened(name, content) as image:
        return np.array(_rgb(_upright(image), name, background="white"))


def read_binary_mask(path: str | Path, threshold: int = 128) -> np.ndarray:
    """Read a two-valued mask as (H, W) uint8 {0, 1}, upright: luminance >= `threshold` is foreground.

    Anti-aliased edges are cut at the threshold (FSS-1000, protocols.md 1.3); transparent pixels are background. A mask
    whose largest luminance is 1 is taken as a 0/1 mask. Raises `UserError` as `read_image` does.
    """
    with _opened(path) as image:
        return two_valued(_grey(_upright(image), path), threshold)


def as_image(image: Image.Image) -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB with the pixels that it has in memory: as `read_image`, but never turned.

    Raises `UserError` where it holds floating-point pixels.
    """
    return np.array(_rgb(image, "The Pillow image", background="white"))


def as_binary_mask(image: Image.Image, threshold: int = 128) -> np.ndarray:
    """A Pillow image as a two-valued mask (H, W) uint8 {0, 1}: as `read_binary_mask`, but never turned."""
    return two_valued(_grey(image, "The Pillow image"), threshold)


def two_valued(grey: np.ndarray, threshold: int = 128) -> np.ndarray:
    """Grey values (H, W) uint8 as {0, 1}: 1 from `threshold` on, or as they are where the largest is 1."""
    return grey.copy() if grey.max(initial=0) == 1 else (grey >= threshold).astype(np.uint8)


def read_index_mask(path: str | Path) -> np.ndarray:
    """Read a mask whose pixel values are class or object ids as (H, W) uint8, upright.

    Colours of a palette are not looked up; a 1-bit mask holds the ids 0 and 1.
    Raises `UserError` for a colour mask (ids cannot be told from colours), for a JPEG (its compression changes ids),
    for values above 255, and as `read_image` does.
    """
    with _opened(path) as image:
        if image.format == "JPEG":
            raise UserError(
                f"{path} is a JPEG, whose compression changes class ids. Save the mask as an 8-bit PNG instead."
            )
        image = _upright(image)
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise UserError(
                f"{path} is a colour mask (mode {image.mode}), expected one value per pixel. Save it as a palette or "
                "8-bit grey PNG whose pixel values are the class ids (0 background, 255 ignore)."
            )
        values = np.asarray(image)
    if values.max() > 255 or values.min() < 0:
        raise UserError(
            f"{path} holds values from {values.min()} to {values.max()}, expected class ids 0..255. Save it as an "
            "8-bit PNG."
        )
    return values.astype(np.uint8)


def size_of(path: str | Path) -> tuple[int, int]:
    """(H, W) of the upright image, from the header where the format allows. Raises `UserError` as `read_image` does."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    return (width, height) if turned else (height, width)


def resize_image(
    image: np.ndarray, size: int | tuple[int, int], filter: Literal["bilinear", "bicubic"] = "bilinear"
) -> np.ndarray:
    """Resize (H0, W0, 3) uint8 to `size` = (H, W), or to a square of that side (the aspect ratio is not kept).

    Pillow's bilinear filter, antialiased when it shrinks (`IMAGE_INTERPOLATION`), is that of every image of an episode;
    distillation may ask for the bicubic one. Returns (H, W, 3) uint8.
    """
    height, width = _pair(size)
    resampling = Image.Resampling.BICUBIC if filter == "bicubic" else Image.Resampling.BILINEAR
    return np.array(Image.fromarray(image).resize((width, height), resampling))


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Resize (H0, W0) of any type to `size` = (H, W), or to a square of that side: the one mask resize of the project.

    Nearest neighbour by pixel centres: row i of the result is row floor((i + 0.5) * H0 / H) of the mask, columns alike
    (`MASK_INTERPOLATION`). Computed in integers, so no rounding depends on the machine.
    """
    height, width = _pair(size)
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    return mask[rows][:, columns]


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write an (H, W) bool or uint8 mask as an 8-bit grey PNG with exactly these values, whole or not at all.

    `read_index_mask` reads the same values back. Raises `UserError` where `path` cannot be written.
    """
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        raise ValueError(f"expected an (H, W) bool or uint8 mask, got {mask.shape} {mask.dtype}")
    with written_whole(path) as temporary:
        Image.fromarray(mask.astype(np.uint8)).save(temporary, format="PNG")


@contextmanager
def _opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The opened file (or the `content` that it had); whatever its decoder raises inside the block becomes a `UserError`
    that names the file."""
    path = Path(path)
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            yield image
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist. Check the path and the data folder, or copy it there.") from error
    except UnidentifiedImageError as error:
        size = path.stat().st_size if content is None else len(content)
        what = "is empty (0 bytes)" if size == 0 else "is not an image that Pillow can read"
        raise UserError(f"{path} {what}. Copy or download it again, or save it as PNG or JPEG.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is larger than Pillow opens ({error}). Scale it down.") from error
    except Exception as error:  # decoders raise what they like: SyntaxError, EOFError, struct.error, zlib.error, ...
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not a decoder's
            raise UserError(f"Cannot read {path}: {error.strerror}. Name an image file that you may read.") from error
        raise UserError(f"{path} is damaged or cut off ({error}). Copy or download it again.") from error


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _grey(image: Image.Image, path: str | Path) -> np.ndarray:
    return np.asarray(image if image.mode == "L" else _rgb(image, path, background="black").convert("L"))


def _rgb(image: Image.Image, path: str | Path, background: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{path} holds floating-point pixels of unknown range. Save it with 8 bits per channel.")
    if image.mode.startswith("I"):
        image = _eight_bits(image, path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{path} holds values from {values.min()} to {values.max()}, expected at most 16 bits. Save it with 8 bits."
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size
