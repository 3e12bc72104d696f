"""`fssbench segment`: from photographs and a painted example to mask files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fssbench.cli import main
from tests.cli.run import CHECKPOINT, error_line
from tests.test_segmenter import picture

Output = pytest.CaptureFixture[str]


def photographs(folder: Path) -> list[str]:
    """Three photographs, one in a subfolder, and a painted example; the arguments that name the example."""
    for name, box in (("a.jpg", (2, 3, 20, 30)), ("b.png", (5, 5, 15, 20)), ("more/c.jpg", (0, 0, 10, 10))):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(box)[0]).save(folder / "photos" / name)
    image, mask = picture((2, 3, 20, 30))
    Image.fromarray(image).save(folder / "one.png")
    Image.fromarray(mask * 255).save(folder / "one_mask.png")
    return ["--support", "one.png", "one_mask.png"]


def test_a_checkpoint_and_a_folder(fitted: Path, capsys: Output) -> None:
    support = photographs(fitted)
    assert main(["segment", "--ckpt_path", CHECKPOINT, *support, "--images", "photos", "--overlays"]) == 0
    assert "3 mask(s) in masks" in capsys.readouterr().out
    made = sorted(str(p.relative_to("masks")) for p in Path("masks").rglob("*.*"))
    assert made == ["a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg", "more/c.png", "more/c_overlay.jpg"]
    mask = np.asarray(Image.open("masks/a.png"))
    assert mask.shape == (24, 40)
    assert set(np.unique(mask)) == {0, 255}


def test_a_training_free_method(here: Path, capsys: Output) -> None:
    support = photographs(here)
    command = ["segment", "--model", "tests.toy.FreeMethod", "--model.bias", "0.1", *support, "--device", "cpu"]
    assert main([*command, "--images", "photos/a.jpg", "photos/b.png", "--out", "found"]) == 0
    assert sorted(p.name for p in Path("found").iterdir()) == ["a.png", "b.png"]


def test_a_damaged_image_is_named_and_the_others_get_their_masks(here: Path, capsys: Output) -> None:
    support = photographs(here)
    (here / "photos" / "b.png").write_bytes(b"no picture")
    command = ["segment", "--model", "tests.toy.FreeMethod", "--model.bias", "0.1", *support, "--device", "cpu"]
    assert main([*command, "--images", "photos"]) == 1
    printed = capsys.readouterr()
    assert "2 mask(s) in masks" in printed.out
    assert "b.png" in printed.err
    assert sorted(p.name for p in Path("masks").rglob("*.png")) == ["a.png", "c.png"]


def test_formats_that_are_not_read_are_named_and_the_others_get_their_masks(here: Path, capsys: Output) -> None:
    support = photographs(here)
    for name in ("IMG_1.HEIC", "more/IMG_2.heic", "clip.mov", ".hidden/d.jpg", "._a.jpg"):
        (here / "photos" / name).parent.mkdir(exist_ok=True)
        (here / "photos" / name).write_bytes(b"x")
    command = ["segment", "--model", "tests.toy.FreeMethod", *support, "--device", "cpu", "--images"]
    assert main([*command, "photos"]) == 1
    printed = capsys.readouterr()
    assert "3 mask(s) in masks" in printed.out
    said = (
        "2 image(s) of a format that is not read: photos/IMG_1.HEIC, photos/more/IMG_2.heic. Save them as JPEG or PNG."
    )
    assert f"fssbench: {said}" in printed.err
    for file in [*Path("photos").glob("*.jpg"), *Path("photos").glob("*.png")]:
        file.unlink()
    Path("photos/more/c.jpg").unlink()
    assert said in error_line(capsys, [*command, "photos"])


def test_masks_of_an_earlier_run_are_no_images(here: Path, capsys: Output) -> None:
    support = photographs(here)
    command = ["segment", "--model", "tests.toy.FreeMethod", *support, "--device", "cpu", "--images", "photos"]
    for _ in range(2):
        assert main([*command, "--out", "photos/more/masks"]) == 0
        assert "3 mask(s) in photos/more/masks" in capsys.readouterr().out


def test_mistakes_are_answered_in_one_line(fitted: Path, capsys: Output) -> None:
    support = photographs(fitted)
    (fitted / "empty").mkdir()
    load = ["segment", "--ckpt_path", CHECKPOINT, *support, "--images"]
    assert "nothing.jpg does not exist" in error_line(capsys, [*load, "nothing.jpg"])
    assert "empty holds no image" in error_line(capsys, [*load, "empty"])
    assert "would replace an image" in error_line(capsys, [*load, "photos", "--out", "photos"])
    assert "leave --config out" in error_line(capsys, [*load, "photos", "--config", "methods/prototype.yaml"])
    assert "--ckpt_path FILE" in error_line(capsys, ["segment", *support, "--images", "photos"])
    assert "no trained weights" in error_line(
        capsys, ["segment", "--model", "tests.toy.ColourMethod", *support, "--images", "photos"]
    )
    assert "Device 'gpu9' cannot be used here" in error_line(capsys, [*load, "photos", "--device", "gpu9"])
    assert not (fitted / "masks").exists()


def test_the_config_of_a_whole_run_names_the_method(fitted: Path, capsys: Output) -> None:
    support = photographs(fitted)
    Path("own.yaml").write_text("model: {class_path: tests.toy.FreeMethod}\ntrainer: {gradient_clip_val: 1.0}\n")
    assert main(["segment", "--config", "own.yaml", *support, "--images", "photos/a.jpg", "--device", "cpu"]) == 0
    Path("own.yaml").write_text("model: {class_path: tests.toy.ColourMethod}\ntrainer: {gradient_clip_val: 1.0}\n")
    assert "no trained weights" in error_line(
        capsys, ["segment", "--config", "own.yaml", *support, "--images", "photos"]
    )


def test_two_images_of_one_name_are_refused(fitted: Path, capsys: Output) -> None:
    support = photographs(fitted)
    Image.open("photos/a.jpg").save("photos/a.png")
    line = error_line(capsys, ["segment", "--ckpt_path", CHECKPOINT, *support, "--images", "photos"])
    assert "would both write masks/a.png" in line
