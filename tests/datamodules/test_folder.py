"""A user's own folder: both layouts, folds, separate training images, and an error for every usual mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

from datamodules.folder import FolderDataset
from fssbench.errors import UserError
from fssbench.protocols.manifest import build_manifest
from tests.data.folder import CLASSES, index_mask, make_folder

NAMES = dict(enumerate(CLASSES, start=1))


def save(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def shown(number: int) -> tuple[int, int]:
    """The class of image `number` and the smaller one beside it."""
    class_id = number % 4 + 1
    return class_id, class_id % 4 + 1


# --- layouts ---


@pytest.mark.parametrize("layout", ["binary", "index"])
def test_reads_both_layouts(tmp_path: Path, layout: str) -> None:
    make_folder(tmp_path, layout)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == NAMES
    assert dataset.skipped == []
    assert dataset.candidates(1, "test") == [f"images/photo{n:02d}.jpg" for n in (0, 3, 4, 7, 8, 11)]
    assert dataset.candidates(1, "train") == dataset.candidates(1, "test")
    for number in range(12):
        key = f"images/photo{number:02d}.jpg"
        ids = index_mask(number, *shown(number))
        assert dataset.read_image(key).shape == (*ids.shape, 3)
        for class_id in NAMES:
            mask = dataset.read_mask(key, class_id)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask == 1, ids == class_id)
            assert (mask[:, -1] == 255).all() == (layout == "index")
    assert dataset.mask_renderer.rpartition("-")[0] == {"binary": "threshold-128", "index": "index"}[layout]


def test_images_may_lie_in_class_folders(tmp_path: Path) -> None:
    make_folder(tmp_path, "nested")
    dataset = FolderDataset(tmp_path)
    assert dataset.candidates(2, "test") == [f"images/dog/photo{n:02d}.jpg" for n in (1, 5, 9)]
    assert dataset.read_mask("images/dog/photo05.jpg", 2).sum() == 400
    assert dataset.skipped == []


def test_same_names_in_class_folders_are_different_images(tmp_path: Path) -> None:
    for name, value in (("cat", 50), ("dog", 90)):
        save(tmp_path / "images" / name / "1.png", np.full((4, 4, 3), value))
        save(tmp_path / "masks" / name / "1.png", np.full((4, 4), 255))
    dataset = FolderDataset(tmp_path)
    assert dataset.read_image("images/cat/1.png")[0, 0, 0] == 50
    assert dataset.read_image("images/dog/1.png")[0, 0, 0] == 90


def test_the_image_in_the_class_folder_comes_first(tmp_path: Path) -> None:
    save(tmp_path / "masks" / "cat" / "1.png", np.full((4, 4), 255))
    save(tmp_path / "images" / "1.png", np.zeros((4, 4, 3)))
    save(tmp_path / "images" / "cat" / "1.png", np.zeros((4, 4, 3)))
    dataset = FolderDataset(tmp_path)
    assert dataset.candidates(1, "test") == ["images/cat/1.png"]
    assert "1 images in" in dataset.skipped[0]


def test_hidden_files_are_not_seen(tmp_path: Path) -> None:
    make_folder(tmp_path)
    for folder in ("images", "masks", "masks/cat"):
        (tmp_path / folder / "._photo00.png").write_bytes(b"resource fork")
    (tmp_path / "masks" / ".thumbnails").mkdir()
    assert FolderDataset(tmp_path).class_names == NAMES


def test_index_masks_without_names_and_in_a_palette(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg", np.zeros((4, 6, 3)))
    palette = Image.fromarray(np.array([[0, 7, 7, 7, 200, 255]] * 4, np.uint8), "P")
    palette.putpalette([0, 0, 0, 128, 0, 0] * 128)
    (tmp_path / "masks").mkdir()
    palette.save(tmp_path / "masks" / "a.png")
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == {7: "7", 200: "200"}
    assert dataset.read_mask("images/a.jpg", 7).tolist() == [[0, 1, 1, 1, 0, 255]] * 4
    assert dataset.label(200) == "200"


def test_exif_orientation_is_applied_to_image_and_mask(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (12, 6)).save(tmp_path / "images" / "a.jpg", exif=exif)
    save(tmp_path / "masks" / "cat" / "a.png", np.full((12, 6), 255))
    assert FolderDataset(tmp_path).read_image("images/a.jpg").shape == (12, 6, 3)
    save(tmp_path / "masks" / "cat" / "a.png", np.full((6, 12), 255))
    with pytest.raises(UserError, match=r"a\.png is 12x6 pixels, its image .*a\.jpg is 6x12\. One .* rotated"):
        FolderDataset(tmp_path)


# --- folds, filters, splits ---


def test_one_fold_tests_all_and_more_folds_interleave(tmp_path: Path) -> None:
    make_folder(tmp_path)
    dataset = FolderDataset(tmp_path)
    assert (dataset.novel_classes(0), dataset.base_classes(0)) == ((1, 2, 3, 4), ())
    assert (dataset.episodes_per_class, dataset.image_filter) == (20, "none")
    dataset = FolderDataset(tmp_path, n_folds=2, episodes_per_class=3)
    assert (dataset.novel_classes(0), dataset.base_classes(0)) == ((1, 3), (2, 4))
    assert (dataset.novel_classes(1), dataset.episodes_per_class) == ((2, 4), 3)
    for n_folds in (0, 5):
        with pytest.raises(UserError, match=rf"n_folds={n_folds} does not fit 4 classes .*expected 1\.\.4"):
            FolderDataset(tmp_path, n_folds=n_folds)


@pytest.mark.parametrize("layout", ["binary", "index"])
def test_min_pixels(tmp_path: Path, layout: str) -> None:
    make_folder(tmp_path, layout)
    dataset = FolderDataset(tmp_path, min_pixels=400)
    assert dataset.candidates(1, "test") == [f"images/photo{n:02d}.jpg" for n in (0, 4, 8)]
    assert dataset.image_filter == "min-pixels-400"
    assert len(dataset.skipped) == 1
    assert "12 masks with fewer than min_pixels=400 left out" in dataset.skipped[0]
    with pytest.raises(UserError, match=r"Class 1 \('cat'\) of .* has no mask with at least 401 pixels"):
        FolderDataset(tmp_path, min_pixels=401)


@pytest.mark.parametrize("layout", ["binary", "nested", "index"])
def test_separate_training_images(tmp_path: Path, layout: str) -> None:
    make_folder(tmp_path, layout, images_per_class=4, split=True)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == NAMES
    train, test = dataset.candidates(2, "train"), dataset.candidates(2, "test")
    assert train
    assert all(key.startswith("train/images/") for key in train)
    assert all(key.startswith("test/images/") for key in test)
    assert (test == []) == (layout == "nested")  # even numbers never show class 2 as the large one
    assert dataset.read_mask(train[0], 2).any()


# --- left out and reported ---


def test_images_without_mask_are_listed(tmp_path: Path) -> None:
    make_folder(tmp_path, "nested")
    (tmp_path / "masks" / "dog" / "photo01.png").unlink()
    save(tmp_path / "images" / "more.png", np.zeros((4, 4, 3)))
    save(tmp_path / "images" / "unknown" / "x.png", np.zeros((4, 4, 3)))
    dataset = FolderDataset(tmp_path)
    assert len(dataset.candidates(2, "test")) == 2
    assert len(dataset.skipped) == 1
    assert "3 images" in dataset.skipped[0]
    assert "images/dog/photo01.jpg, images/more.png, images/unknown/x.png" in dataset.skipped[0]


@pytest.mark.parametrize(("layout", "empty"), [("binary", 100), ("index", 255)])
def test_empty_masks_are_listed(tmp_path: Path, layout: str, empty: int) -> None:
    make_folder(tmp_path, layout)
    mask = tmp_path / "masks" / ("cat" if layout == "binary" else "") / "photo00.png"
    save(mask, np.full((48, 40), empty))
    dataset = FolderDataset(tmp_path)
    assert "images/photo00.jpg" not in dataset.candidates(1, "test")
    assert len(dataset.skipped) == 1
    assert f"1 empty masks left out: {mask.relative_to(tmp_path).as_posix()}." in dataset.skipped[0]


def test_umlauts_match_however_they_are_written(tmp_path: Path) -> None:
    apart, together = (normalize(form, "Größe_ü") for form in ("NFD", "NFC"))
    assert apart != together
    for number, (image, mask) in enumerate([(apart, together), (together, apart)]):
        save(tmp_path / "images" / f"{image}{number}.png", np.zeros((4, 4, 3)))
        save(tmp_path / "masks" / normalize("NFD", "Küche") / f"{mask}{number}.png", np.full((4, 4), 255))
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == {1: normalize("NFC", "Küche")}
    keys = [f"images/{together}{number}.png" for number in (0, 1)]  # the same on every machine
    assert dataset.candidates(1, "test") == keys
    assert all(dataset.read_mask(key, 1).all() and dataset.read_image(key).shape == (4, 4, 3) for key in keys)


def test_photographs_of_a_format_that_is_not_read_are_listed(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "images" / "IMG_1.HEIC").write_bytes(b"x")
    (skipped,) = FolderDataset(tmp_path).skipped
    assert "1 images in" in skipped
    assert "not read left out: images/IMG_1.HEIC. Save them as JPEG or PNG" in skipped
    save(tmp_path / "masks" / "cat" / "IMG_1.png", np.full((4, 4), 255))
    with pytest.raises(UserError, match=r"cat/IMG_1\.png has no image: .* Save IMG_1\.HEIC as JPEG or PNG\."):
        FolderDataset(tmp_path)


# --- mistakes ---


def _remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


BINARY: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / "images").rename(root / "photos"), r"images does not exist, expected images/ and masks/"),
    (lambda root: (root / "masks").rename(root / "labels"), r"masks does not exist, expected images/ and masks/"),
    (lambda root: _remove(root / "images"), r"images holds no images"),
    (lambda root: _remove(root / "masks" / "dog"), r"class folder .*dog holds no masks"),
    (
        lambda root: (root / "images" / "photo05.jpg").unlink(),
        r"masks/dog/photo05\.png has no image: expected .*photo05",
    ),
    (
        lambda root: save(root / "masks" / "cat" / "photo04.png", np.full((5, 9), 255)),
        r"masks/cat/photo04\.png is 9x5 pixels, its image .*images/photo04\.jpg is 44x48",
    ),
    (
        lambda root: save(root / "images" / "photo04.png", np.zeros((48, 44, 3))),
        r"photo04\.jpg and .*photo04\.png have",
    ),
    (lambda root: save(root / "masks" / "photo04.png", np.zeros((48, 44))), r"mask files and class folders.*Set mask"),
    (lambda root: (root / "masks" / "cat" / "photo04.png").write_bytes(b""), r"cat/photo04\.png is empty \(0 bytes\)"),
    (lambda root: (root / "images" / "photo04.jpg").write_text("x"), r"images/photo04\.jpg is not an image"),
    (
        lambda root: [save(f, np.zeros(Image.open(f).size[::-1])) for f in (root / "masks" / "dog").iterdir()],
        r"Class 2 \('dog'\) of .* has no mask with at least 1 pixels of it.*6 empty masks.*grey value 128",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), BINARY)
def test_mistakes_with_binary_masks(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    make_folder(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        FolderDataset(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def _colour(root: Path) -> None:
    with Image.open(root / "masks" / "photo03.png") as mask:
        mask.convert("RGB").save(root / "masks" / "photo03.png")


def _black_and_white(root: Path) -> None:
    for file in (root / "masks").iterdir():
        with Image.open(file) as mask:
            save(file, 255 * (np.asarray(mask) > 0))
    (root / "classes.txt").unlink()


INDEX: list[tuple[Callable[[Path], object], str]] = [
    (_colour, r"masks/photo03\.png is a colour mask \(mode RGB\).*palette or 8-bit grey PNG"),
    (lambda root: _remove(root / "masks"), r"masks holds no masks"),
    (lambda root: (root / "images" / "photo05.jpg").unlink(), r"masks/photo05\.png has no image"),
    (lambda root: save(root / "masks" / "photo05.png", np.ones((3, 4))), r"masks/photo05\.png is 4x3 pixels"),
    (
        lambda root: (root / "classes.txt").write_text("cat\ndog\nowl\n"),
        r"classes\.txt names 3 classes, but masks/photo02\.png holds class 4",
    ),
    (
        lambda root: (root / "classes.txt").write_text("cat\ndog\nowl\nrat\nyak\n"),
        r"Class 5 \('yak'\) of .* has no mask",
    ),
    (lambda root: (root / "classes.txt").write_text("Background\ncat\ndog\nowl\nrat\n"), r"starts with 'Background'"),
    (_black_and_white, r"hold no class id 1\.\.254.*black-and-white masks belong into masks/CLASS/"),
]


@pytest.mark.parametrize(("spoil", "message"), INDEX)
def test_mistakes_with_index_masks(tmp_path: Path, spoil: Callable[[Path], object], message: str) -> None:
    make_folder(tmp_path, "index")
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        FolderDataset(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_the_layout_can_be_said(tmp_path: Path) -> None:
    make_folder(tmp_path)
    save(tmp_path / "masks" / "overview.png", np.zeros((48, 44)))
    assert FolderDataset(tmp_path, mask="binary").class_names == NAMES
    with pytest.raises(UserError, match=r"overview\.png has no image"):
        FolderDataset(tmp_path, mask="index")
    (tmp_path / "masks" / "overview.png").unlink()
    with pytest.raises(UserError, match=r"masks holds no mask files, which mask=index expects"):
        FolderDataset(tmp_path, mask="index")
    with pytest.raises(UserError, match=r"Unknown mask layout 'indices'\. Did you mean 'index'"):
        FolderDataset(tmp_path, mask="indices")  # type: ignore[arg-type]


def test_wrong_roots_and_keys(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist\. Set root"):
        FolderDataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"images does not exist, expected images/ and masks/ in .*train/ and test/"):
        FolderDataset(tmp_path)
    make_folder(tmp_path)
    with pytest.raises(UserError, match=r"no image 'photo00\.jpg'"):
        FolderDataset(tmp_path).read_image("photo00.jpg")


@pytest.mark.parametrize("layout", ["binary", "index"])
def test_a_corrected_mask_makes_other_manifests(tmp_path: Path, layout: str) -> None:
    """The same keys and classes, but another ground truth: results of before must not be kept or ranked beside new ones."""
    make_folder(tmp_path, layout, split=True)
    before = build_manifest(FolderDataset(tmp_path), 0, 1)
    assert build_manifest(FolderDataset(tmp_path), 0, 1) == before
    name = "photo00.png" if layout == "index" else "cat/photo00.png"
    other = "photo01.png" if layout == "index" else "dog/photo01.png"
    for part, mask in (("train", other), ("test", name)):
        path = tmp_path / part / "masks" / mask
        values = np.array(Image.open(path))
        values[4:24, 6:8] = 0  # the object loses two columns
        save(path, values)
        after = build_manifest(FolderDataset(tmp_path), 0, 1)
        assert after.episodes == before.episodes
        assert (after.sha256 == before.sha256) is (part == "train")
