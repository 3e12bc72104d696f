"""`fssbench prepare` on tiny sets in the official layouts: from archives and folders, interrupted, repeated, spoilt."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules import recipes, recipes_coco, recipes_pascal
from datamodules.coco20i import COCO20iDataset
from datamodules.pascal5i import PASCAL5i, PASCAL5iDataset
from fssbench.cli import main, prepare
from fssbench.errors import UserError
from fssbench.images import read_index_mask
from fssbench.preparation.fetch import Source
from fssbench.preparation.seal import read_prepared
from fssbench.protocols.known import COCO_TRN_IMAGES, COCO_VAL_IMAGES, LISTS
from tests.data.coco import make_coco
from tests.data.davis import make_davis
from tests.data.fss1000 import CLASSES, make_fss1000
from tests.data.pascal import make_pascal
from tests.shared import SHARED, needs_shared


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two archives of PASCAL-5i."""
    tree, folder = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("archives")
    make_pascal(tree)
    with tarfile.open(folder / "VOCtrainval_11-May-2012.tar", "w") as file:
        file.add(tree / "VOCdevkit", "VOCdevkit")
    with tarfile.open(folder / "benchmark.tgz", "w:gz") as file:
        file.add(tree / "benchmark_RELEASE", "benchmark_RELEASE")
    return folder


def error_of(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["prepare", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_pascal_from_archives(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "PASCAL"
    assert main(["prepare", "pascal5i", "--root", str(root), "--from", str(archives), "--subset"]) == 0
    prepared = read_prepared(root)
    assert prepared is not None
    assert prepared["counts"]["training images"] == 80
    assert len(prepared["lists"]) == 4 * 6
    masks = sorted((root / "VOCdevkit/VOC2012/SegmentationClassAug").iterdir())
    assert len(masks) == 40 + 20 * 4
    data = PASCAL5iDataset(root)
    np.testing.assert_array_equal(read_index_mask(masks[-1]) == 20, data.read_mask(masks[-1].stem, 20) == 1)
    assert main(["prepare", "pascal5i", "--root", str(root), "--check"]) == 0
    assert "as prepared on" in capsys.readouterr().out
    assert {p.name for p in root.iterdir()} == {"VOCdevkit", "benchmark_RELEASE", "prepared.json"}


def test_converted_masks_change_no_list(archives: Path, tmp_path: Path) -> None:
    make_pascal(tmp_path / "plain")
    main(["prepare", "pascal5i", "--root", str(tmp_path / "made"), "--from", str(archives), "--subset"])
    plain, made = (PASCAL5iDataset(tmp_path / name, protocol="bam-compat") for name in ("plain", "made"))
    for c in (1, 7, 20):
        assert plain.candidates(c, "train") == made.candidates(c, "train")
        key = plain.candidates(c, "train")[0]
        np.testing.assert_array_equal(plain.read_mask(key, c), made.read_mask(key, c))


def test_an_interrupted_preparation_goes_on_and_is_never_used(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "PASCAL"
    command = ["prepare", "pascal5i", "--root", str(root), "--from", str(archives), "--subset"]
    done: list[str] = []

    def stops(folders: object, name: str) -> str:
        if len(done) == 30:
            raise KeyboardInterrupt
        done.append(name)
        return convert(folders, name)  # type: ignore[arg-type]

    convert = recipes_pascal._convert
    monkeypatch.setattr(recipes_pascal, "_convert", stops)
    assert main(command) == 130
    assert not (root / "prepared.json").exists()
    assert "is half prepared" in error_of(capsys, "pascal5i", "--root", root, "--check")
    with pytest.raises(ValueError, match="is half prepared"):
        PASCAL5i(root=str(root)).make_dataset()
    monkeypatch.undo()
    shutil.rmtree(root / "VOCdevkit/VOC2012/JPEGImages")  # would be noticed, were the archive unpacked again
    assert "photographs are missing" in error_of(capsys, *command[1:])
    assert main(["prepare", "pascal5i", "--root", str(root), "--subset"]) == 2, "still unfinished"
    (root / "preparing.json").unlink()
    assert main(command) == 0
    assert PASCAL5i(root=str(root)).make_dataset().candidates(1, "test")


@pytest.mark.parametrize("step", ["unpack", "convert", "finish"])
def test_a_killed_preparation_goes_on(step: str, archives: Path, tmp_path: Path) -> None:
    """A real process that is killed (no clean-up of any kind) in the middle of a step; the same command then ends well."""
    root = tmp_path / "PASCAL"
    command = ["prepare", "pascal5i", "--root", str(root), "--from", str(archives), "--subset"]
    script = f"""
import os, signal, sys, tarfile
from datamodules import recipes_pascal
from fssbench.cli import main
from fssbench.preparation import seal

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def after(function, calls):
    seen = []
    def counted(*arguments, **options):
        seen.append(0)
        return kill() if len(seen) > calls else function(*arguments, **options)
    return counted

if {step!r} == "unpack":
    tarfile.TarFile.extract = after(tarfile.TarFile.extract, 30)
elif {step!r} == "convert":
    recipes_pascal._convert = after(recipes_pascal._convert, 30)
else:
    seal.write_text_whole = after(seal.write_text_whole, 3)
sys.exit(main({command!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (root / "prepared.json").exists()
    with pytest.raises(ValueError, match="is half prepared"):
        PASCAL5i(root=str(root)).make_dataset()
    assert main(command) == 0
    assert main(["prepare", "pascal5i", "--root", str(root), "--check"]) == 0
    assert {p.name for p in root.iterdir()} == {"VOCdevkit", "benchmark_RELEASE", "prepared.json"}
    assert main(command) == 0, "and once more"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "benchmark_RELEASE/dataset/cls/2008_003001.mat").unlink(), "2008_003001.mat does not exist"),
        (
            lambda r: (r / "benchmark_RELEASE/dataset/cls/2008_003001.mat").write_bytes(b"x" * 400),
            "no class mask of SBD",
        ),
        (
            lambda r: (r / "VOCdevkit/VOC2012/SegmentationClass/2007_003000.png").unlink(),
            "2007_003000.png does not exist",
        ),
        (lambda r: (r / "VOCdevkit/VOC2012/JPEGImages/2009_003001.jpg").unlink(), "2009_003001.jpg. Unpack VOC"),
        (lambda r: (r / "benchmark_RELEASE/dataset/train.txt").unlink(), "train.txt is missing"),
    ],
)
def test_what_is_missing_is_named(
    spoil: Callable[[Path], object], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pascal(tmp_path)
    spoil(tmp_path)
    assert message in error_of(capsys, "pascal5i", "--root", tmp_path, "--subset")
    assert not (tmp_path / "prepared.json").exists()


def test_masks_from_elsewhere_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pascal(tmp_path)
    assert main(["prepare", "pascal5i", "--root", str(tmp_path), "--subset"]) == 0
    folder = tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug"
    shutil.copy(folder / "2008_003001.png", folder / "2008_004001.png")
    assert "2008_004001.png. Move the folder away" in error_of(capsys, "pascal5i", "--root", tmp_path, "--subset")


def test_without_subset_the_official_counts_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pascal(tmp_path / "p")
    assert "VOC train 40, expected 1464" in error_of(capsys, "pascal5i", "--root", tmp_path / "p")
    make_coco(tmp_path / "c")
    assert "COCO 2014 has 40504" in error_of(capsys, "coco20i", "--root", tmp_path / "c")
    make_davis(tmp_path / "d")
    assert "sequences val 2, expected 30" in error_of(capsys, "davis17", "--root", tmp_path / "d", "--without-training")
    make_fss1000(tmp_path / "f" / "fewshot_data")
    assert "FSS-1000 has 1000" in error_of(capsys, "fss1000", "--root", tmp_path / "f")


def test_missing_sources_say_where_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Get VOCtrainval_11-May-2012.tar from http" in error_of(capsys, "pascal5i", "--root", tmp_path / "a")
    assert "does not exist" in error_of(capsys, "pascal5i", "--root", tmp_path / "b", "--from", tmp_path / "none")
    assert "Did you mean 'pascal5i'" in error_of(capsys, "pascal5")
    assert "lvis92i needs no preparation" in error_of(capsys, "lvis92i")
    assert not list(tmp_path.iterdir()), "a mistake marks no folder as half prepared"


def test_a_wrong_or_cut_archive(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "PASCAL"
    page = tmp_path / "page" / "benchmark.tgz"
    page.parent.mkdir()
    page.write_text("<html>this link has moved</html>")
    message = error_of(capsys, "pascal5i", "--root", root, "--from", page, archives / "VOCtrainval_11-May-2012.tar")
    assert "benchmark.tgz is no zip or tar archive" in message
    assert not root.exists(), "a mistake marks no folder as half prepared"
    message = error_of(capsys, "pascal5i", "--root", root, "--from", archives)
    assert "its MD5 is" in message
    assert "expected 6cd6e144f989b92b3379bac3b3de84fd" in message
    assert not (root / "VOCdevkit").exists()
    cut = tmp_path / "VOCtrainval_11-May-2012.tar"
    cut.write_bytes((archives / cut.name).read_bytes()[:20000])
    assert "damaged or cut off" in error_of(capsys, "pascal5i", "--root", root, "--from", cut, "--subset")
    assert {p.name for p in root.iterdir()} == {"preparing.json"}


def test_a_hand_made_statement_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_davis(tmp_path)
    command = ["davis17", "--root", tmp_path, "--subset"]
    assert main(["prepare", *map(str, command)]) == 0
    path = tmp_path / "prepared.json"
    good = path.read_text()
    path.write_text(good.replace('"complete": false', '"complete": true'))
    assert "changed after it was signed off" in error_of(capsys, "davis17", "--root", tmp_path, "--check")
    path.write_text(good)
    (tmp_path / "ImageSets/2017/val.txt").write_text("bear\n")
    assert "changed since it was prepared" in error_of(capsys, "davis17", "--root", tmp_path, "--check")
    assert "was not prepared as fss1000" in error_of(capsys, "fss1000", "--root", tmp_path, "--check")
    (tmp_path / "preparing.json").write_text(json.dumps({"dataset": "coco20i", "unpacked": {}}))
    assert "belongs to a preparation of coco20i" in error_of(capsys, *command)


def test_coco_and_fss1000(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_coco(tmp_path / "coco")
    (tmp_path / "coco/lists/hsnet-compat").mkdir(parents=True)
    names = sorted(p.name for p in (tmp_path / "coco/val2014").iterdir())
    (tmp_path / "coco/lists/hsnet-compat/val.txt").write_text("".join(f"val2014/{n} x\n" for n in names[::-1]))
    assert main(["prepare", "coco20i", "--root", str(tmp_path / "coco"), "--subset"]) == 0
    prepared = read_prepared(tmp_path / "coco")
    assert prepared is not None
    assert prepared["counts"] == {"images val2014": 24, "images train2014": 24}
    assert prepared["lists"]["hsnet-compat test fold0"]["entries"] == 6
    assert any("bam-compat" in line for line in prepared["notes"])
    next((tmp_path / "coco/val2014").iterdir()).unlink()
    assert "lacks 1 of the 24 images" in error_of(capsys, "coco20i", "--root", tmp_path / "coco", "--subset")
    make_fss1000(tmp_path / "fss")
    (tmp_path / "fss/test.txt").write_text("\n".join(CLASSES[:3]))
    assert main(["prepare", "fss1000", "--root", str(tmp_path / "fss"), "--subset"]) == 0


def test_a_list_that_cannot_be_fetched_leaves_the_users_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_coco(tmp_path)
    mine = tmp_path / "lists/hsnet-compat/fold0.txt"
    mine.parent.mkdir(parents=True)
    data = COCO20iDataset(tmp_path)
    mine.write_text("".join(f"{c:02d} {key}\n" for c in (1, 5) for key in data.candidates(c, "test")))

    def broken(source: Source, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{source.file}.part").write_text("half a li")
        raise UserError(f"Cannot download {source.file}.")

    monkeypatch.setattr(prepare, "fetch", broken)
    assert main(["prepare", "coco20i", "--root", str(tmp_path), "--subset", "--download"]) == 0
    out = capsys.readouterr().out
    assert out.count("note: Cannot download val.txt.") == 2
    assert "hsnet-compat fold 1 cannot run: The lists hold folds [0], not fold 1. Add its file." in out
    assert sorted((tmp_path / "lists").rglob("*")) == [mine.parent, mine]


def test_differences_from_the_published_coco_lists_are_told_by_class(tmp_path: Path) -> None:
    make_coco(tmp_path)
    data = COCO20iDataset(tmp_path)
    counts = [3] * 8 + [0] * 72
    assert recipes_coco.by_class(data, "test", counts).endswith("as many as in the published lists, in all 80 classes.")
    counts[0], counts[9] = 5, 1
    told = recipes_coco.by_class(data, "train", counts)
    assert told.endswith("78 of 80 classes as published; person -2 of 5, traffic light -1 of 1.")
    assert (sum(COCO_VAL_IMAGES), sum(COCO_TRN_IMAGES)) == (82573, 170491)
    assert [sum(COCO_VAL_IMAGES[fold::4]) for fold in range(4)] == [k.entries for k in LISTS["coco-20i", "hsnet-val"]]


def test_every_recipe_names_its_sources() -> None:
    for name, recipe in recipes.RECIPES.items():
        for source in (*recipe.sources, *recipe.extras):
            assert source.page.startswith("http"), (name, source)
            assert all(url.startswith("http") for url in source.urls)
        assert set(recipe.training) <= {source.file for source in recipe.sources}
        assert replace(recipe, folder=recipe.folder) == recipe


@needs_shared
@pytest.mark.parametrize(
    ("name", "folder"), [("coco20i", "coco328"), ("fss1000", "fss1000_sample"), ("davis17", "davis4")]
)
def test_the_real_samples(name: str, folder: str, tmp_path: Path) -> None:
    shutil.copytree(SHARED / "data" / folder, tmp_path / folder, copy_function=shutil.copyfile)
    arguments = ["--without-training"] if name == "davis17" else []
    assert main(["prepare", name, "--root", str(tmp_path / folder), "--subset", *arguments]) == 0
    prepared = read_prepared(tmp_path / folder)
    assert prepared is not None
    if name == "coco20i":
        sizes = [prepared["lists"][f"clean-v1 interleaved test fold{fold}"]["entries"] for fold in range(4)]
        assert sizes == [313, 138, 121, 115]
