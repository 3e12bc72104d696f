"""Reading every kind of file that turns up in users' folders, and the two pinned resizes."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from fssbench.errors import UserError
from fssbench.images import (
    read_binary_mask,
    read_image,
    read_index_mask,
    resize_image,
    resize_mask,
    size_of,
    write_mask,
)

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # what a viewer shows for each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def save(path: Path, image: np.ndarray | Image.Image, **options: object) -> Path:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


def oriented(path: Path, image: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return save(path, image, exif=exif)


def check_rgb(image: np.ndarray, expected: np.ndarray) -> None:
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, expected)


# --- read_image ---


def test_reads_rgb(tmp_path: Path) -> None:
    check_rgb(read_image(save(tmp_path / "a.png", RGB)), RGB)
    check_rgb(read_image(str(tmp_path / "a.png")), RGB)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_turns_image_masks_and_size_alike(tmp_path: Path, orientation: int) -> None:
    upright = UPRIGHT[orientation]
    mask = (RGB[..., 0] > 100).astype(np.uint8)
    check_rgb(read_image(oriented(tmp_path / "a.png", RGB, orientation)), upright(RGB))
    np.testing.assert_array_equal(
        read_binary_mask(oriented(tmp_path / "b.png", 255 * mask, orientation)), upright(mask)
    )
    np.testing.assert_array_equal(
        read_index_mask(oriented(tmp_path / "c.png", 7 * mask, orientation)), upright(7 * mask)
    )
    assert size_of(tmp_path / "a.png") == upright(mask).shape


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    path = oriented(tmp_path / "a.jpg", np.zeros((8, 24, 3), np.uint8), 6)
    assert read_image(path).shape == (24, 8, 3)
    assert size_of(path) == (24, 8)


def test_reads_grey_and_1_bit(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    check_rgb(read_image(save(tmp_path / "a.png", grey)), np.stack([grey] * 3, -1))
    check_rgb(read_image(save(tmp_path / "b.png", grey > 99)), np.stack([255 * (grey > 99)] * 3, -1))


def test_reads_cmyk(tmp_path: Path) -> None:
    # cyan, magenta, yellow, key at 0..255: red is (255 - cyan) scaled by (255 - key)
    cmyk = Image.new("CMYK", (16, 8), (0, 255, 255, 0))
    image = read_image(save(tmp_path / "a.jpg", cmyk, quality=100))
    assert image.shape == (8, 16, 3)
    assert np.abs(image.astype(int) - (255, 0, 0)).max() <= 3


def test_reads_palette(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 255])
    expected = [[(10, 20, 30), (200, 0, 0)], [(0, 0, 255), (200, 0, 0)]]
    check_rgb(read_image(save(tmp_path / "a.png", image)), np.array(expected))
    clear = read_image(save(tmp_path / "b.png", image, transparency=1))
    check_rgb(clear, np.array([[(10, 20, 30), (255, 255, 255)], [(0, 0, 255), (255, 255, 255)]]))


def test_alpha_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.array([[(10, 20, 30, 255), (10, 20, 30, 0), (10, 20, 30, 51)]], np.uint8)
    # 51 / 255 = 0.2: 0.2 * 10 + 0.8 * 255 = 206
    check_rgb(read_image(save(tmp_path / "a.png", rgba)), np.array([[(10, 20, 30), (255, 255, 255), (206, 208, 210)]]))
    grey = np.array([[(10, 255), (10, 0)]], np.uint8)
    check_rgb(read_image(save(tmp_path / "b.png", grey)), np.array([[(10, 10, 10), (255, 255, 255)]]))


def test_16_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 400, 32896, 65535]], np.uint16)
    expected = np.stack([[[0, 1, 1, 2, 128, 255]]] * 3, -1)
    check_rgb(read_image(save(tmp_path / "a.png", values)), expected)
    check_rgb(read_image(save(tmp_path / "a.tif", values)), expected)


def test_reads_16_bit_colour(tmp_path: Path) -> None:
    # Pillow cannot write these: one row of two pixels, put together by hand (PNG specification)
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">6H", 0, 32896, 65535, 65535, 257, 0)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    check_rgb(read_image(tmp_path / "a.png"), np.array([[(0, 128, 255), (255, 1, 0)]]))


def test_takes_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    check_rgb(read_image(tmp_path / "a.gif"), np.tile(np.array([255, 0, 0]), (3, 4, 1)))


def _cut(path: Path) -> None:
    save(path, np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8), format="PNG")
    path.write_bytes(path.read_bytes()[:1500])


def _damaged_png(path: Path) -> None:
    save(path, RGB, format="PNG")
    content = bytearray(path.read_bytes())
    content[45:60] = bytes(15)
    path.write_bytes(content)


UNREADABLE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, r"does not exist.*copy it there"),
    (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\).*download it again"),
    (lambda path: path.write_text("<html>not found</html>"), r"is not an image.*download it again"),
    (_cut, r"is damaged or cut off \(.*download it again"),
    (_damaged_png, r"is damaged or cut off.*download it again"),
    (lambda path: path.mkdir(), r"Cannot read .*directory.*Name an image file"),
]


@pytest.mark.parametrize(("make", "message"), UNREADABLE)
@pytest.mark.parametrize("read", [read_image, read_binary_mask, read_index_mask])
def test_unreadable_files_are_named_with_a_remedy(
    tmp_path: Path, make: Callable[[Path], object], message: str, read: Callable[[Path], np.ndarray]
) -> None:
    path = tmp_path / "photo.png"
    make(path)
    with pytest.raises(UserError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_off_jpeg_is_refused_not_filled_with_grey(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:1500])
    assert size_of(path) == (64, 64)
    with pytest.raises(UserError, match=r"photo\.jpg is damaged or cut off \(.*truncated"):
        read_image(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "depth.tif", np.full((2, 2), 0.5, np.float32))
    with pytest.raises(UserError, match=r"depth\.tif holds floating-point pixels"):
        read_image(path)


def test_32_bit_values_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "big.tif", np.array([[70000, 1]], np.int32))
    with pytest.raises(UserError, match=r"big\.tif holds values from 1 to 70000, expected at most 16 bits"):
        read_image(path)
    with pytest.raises(UserError, match=r"big\.tif holds values from 1 to 70000, expected class ids"):
        read_index_mask(path)


def test_too_many_pixels_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "huge.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"huge\.png is larger than Pillow opens"):
        read_image(path)


# --- masks ---


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA"])
def test_binary_mask_cuts_soft_edges_at_the_threshold(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 1, 127, 128, 254, 255]], np.uint8))
    mask = read_binary_mask(save(tmp_path / "a.png", grey.convert(mode)))
    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert read_binary_mask(tmp_path / "a.png", threshold=1).tolist() == [[0, 1, 1, 1, 1, 1]]


def test_transparent_pixels_of_a_mask_are_background(tmp_path: Path) -> None:
    rgba = np.array([[(255, 255, 255, 255), (255, 255, 255, 0), (255, 255, 255, 127), (255, 255, 255, 128)]], np.uint8)
    assert read_binary_mask(save(tmp_path / "a.png", rgba)).tolist() == [[1, 0, 0, 1]]


def test_binary_mask_of_ones_1_bits_16_bits_and_palettes(tmp_path: Path) -> None:
    bits = np.array([[0, 1], [1, 0]], np.uint8)
    assert read_binary_mask(save(tmp_path / "a.png", bits)).tolist() == bits.tolist()
    assert read_binary_mask(save(tmp_path / "b.png", bits.astype(bool))).tolist() == bits.tolist()
    assert read_binary_mask(save(tmp_path / "c.png", bits.astype(np.uint16) * 65535)).tolist() == bits.tolist()
    palette = Image.fromarray(1 - bits, "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])
    assert read_binary_mask(save(tmp_path / "d.png", palette)).tolist() == bits.tolist()
    assert read_binary_mask(save(tmp_path / "e.png", 0 * bits)).tolist() == [[0, 0], [0, 0]]


def test_index_mask_reads_raw_values(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 38, 254, 255]], np.uint8)
    palette = Image.fromarray(ids, "P")
    palette.putpalette(list(range(255, -1, -1)) * 3)
    for number, image in enumerate((palette, ids, ids.astype(np.uint16))):
        mask = read_index_mask(save(tmp_path / f"{number}.png", image))
        assert mask.dtype == np.uint8
        assert mask.tolist() == ids.tolist()
    assert read_index_mask(save(tmp_path / "bits.png", ids > 1)).tolist() == [[0, 0, 1, 1, 1]]


def test_index_mask_of_few_colours_keeps_its_ids(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    path = save(tmp_path / "a.png", palette, bits=2)  # 2 bits per pixel, as many tools write
    assert read_index_mask(path).tolist() == [[0, 1, 2, 1]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_index_mask_refuses_colours(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "mask.png", Image.fromarray(RGB).convert(mode))
    with pytest.raises(
        UserError, match=rf"^{re.escape(str(path))} is a colour mask \(mode {mode}\).*palette or 8-bit grey PNG"
    ):
        read_index_mask(path)


def test_index_mask_refuses_jpeg_and_large_values(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mask\.jpg is a JPEG.*8-bit PNG"):
        read_index_mask(save(tmp_path / "mask.jpg", RGB[..., 0]))
    with pytest.raises(UserError, match=r"mask\.png holds values from 0 to 300.*8-bit PNG"):
        read_index_mask(save(tmp_path / "mask.png", np.array([[0, 300]], np.uint16)))


@pytest.mark.parametrize("values", [np.array([[0, 1, 255]], np.uint8), np.array([[True, False, True]])])
def test_a_written_mask_is_read_back(tmp_path: Path, values: np.ndarray) -> None:
    write_mask(tmp_path / "new" / "mask.png", values)
    np.testing.assert_array_equal(read_index_mask(tmp_path / "new" / "mask.png"), values.astype(np.uint8))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mask.png"]


def test_a_mask_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"Cannot write .*mask\.png: No space left"):
        write_mask(tmp_path / "mask.png", np.zeros((2, 2), np.uint8))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="expected an"):
        write_mask(tmp_path / "mask.png", np.zeros((2, 2), np.int64))


# --- resizes ---


def test_mask_resize_golden() -> None:
    # floor((i + 0.5) * H0 / H); e.g. 6 -> 3 takes 1, 3, 5, where OpenCV's floor rule takes 0, 2, 4
    line = np.arange(7, dtype=np.uint8)[None]
    assert resize_mask(line[:, :6], (1, 3)).tolist() == [[1, 3, 5]]
    assert resize_mask(line[:, :5], (1, 3)).tolist() == [[0, 2, 4]]
    assert resize_mask(line[:, :7], (1, 4)).tolist() == [[0, 2, 4, 6]]
    assert resize_mask(line[:, :2], (1, 5)).tolist() == [[0, 0, 1, 1, 1]]
    assert resize_mask(line[:, :3], (1, 7)).tolist() == [[0, 0, 1, 1, 1, 2, 2]]
    assert resize_mask(line[:, :4], (2, 4)).tolist() == [[0, 1, 2, 3]] * 2
    grid = np.array([[0, 1, 2], [3, 255, 5], [6, 7, 8]], np.uint8)
    assert resize_mask(grid, 2).tolist() == [[0, 2], [6, 8]]
    assert resize_mask(grid, 5).tolist() == [
        [0, 0, 1, 2, 2],
        [0, 0, 1, 2, 2],
        [3, 3, 255, 5, 5],
        [6, 6, 7, 8, 8],
        [6, 6, 7, 8, 8],
    ]
    assert resize_mask(grid, 3).tolist() == grid.tolist()
    assert resize_mask(grid, 3).dtype == np.uint8


def test_image_resize_golden() -> None:
    line = np.array([0, 40, 80, 200, 240, 0, 120, 10], np.uint8)
    image = np.repeat(line[None, :, None], 2, 0).repeat(3, 2) // np.array([1, 2, 4], np.uint8)
    smaller = resize_image(image, (1, 3))
    assert (smaller.shape, smaller.dtype) == ((1, 3, 3), np.uint8)
    # triangle of half width 8 / 3 around 4 / 3: (40 * 0.9375 + 80 * 0.5625 + 200 * 0.1875) / 2.375 = 50.5
    assert smaller[0].tolist() == [[51, 25, 13], [153, 77, 38], [69, 35, 17]]
    larger = resize_image(image[:, :3], (2, 5))
    assert larger[1].tolist() == [[0, 0, 0], [16, 8, 4], [40, 20, 10], [64, 32, 16], [80, 40, 20]]
    np.testing.assert_array_equal(resize_image(RGB, (5, 7)), RGB)
    assert resize_image(RGB, 4).shape == (4, 4, 3)


def test_reading_needs_no_torch() -> None:
    code = "import sys, fssbench.images, fssbench.dataset; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
