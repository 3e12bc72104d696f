"""`fssbench doctor`: what is there, what is not, and that each thing that is missing says what to do."""

from __future__ import annotations

import re
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest

from fssbench.cli import doctor, doctor_data, main
from fssbench.encoders.sam import SAM_FILES as ENCODER_FILES
from fssbench.encoders.sam2 import INSTALL_SAM2, SAM2_SIZES, SAM2_VERSIONS, checkpoint_name, checkpoint_url
from fssbench.files import sha256_file
from methods.fsdino.decoder import SAM_FILES, SAM_URL
from tests.data.davis import make_davis
from tests.data.fss1000 import make_fss1000
from tests.data.pascal import make_pascal


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("FSSBENCH_WEIGHTS", "FSSBENCH_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def test_everything_that_is_missing_says_what_to_do_next(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    missing = [number for number, line in enumerate(lines) if line.startswith(("  missing", "  wrong"))]
    assert len(missing) >= 10, "4 weight files, the other sizes, 4 pieces of COCO, FSS-1000, results"
    assert all(lines[number + 1].strip().startswith("next: ") for number in missing)
    assert not any(line.startswith("  wrong") for line in lines)
    assert any("torch" in line and "belong together" in line for line in lines)


def test_weights_that_are_there_are_found(empty: Path) -> None:
    (empty / "FSSBENCH_WEIGHTS").mkdir()
    (empty / "FSSBENCH_WEIGHTS" / "dinov2_vits14_pretrain.pth").write_bytes(b"x" * 2**20)
    states = {re.split("[, :]", what)[0]: state for state, what, _ in doctor.weights()}
    assert states["dinov2_vits14_pretrain.pth"] == "ok"
    assert states["sam_vit_h_4b8939.pth"] == "missing"
    assert states["other"] == "missing"
    assert doctor.DEFAULTS.keys() <= {*doctor.WEIGHT_FILES, *doctor.HUB_MODELS}


def test_a_gpu_without_bfloat16_of_its_own_is_named() -> None:
    facts = {major: SimpleNamespace(name="T4", total_memory=16 * 2**30, major=major) for major in (7, 8)}
    assert doctor.gpu(0, facts[8], nvidia=True) == ("ok", "cuda:0: T4, 16 GiB", "")
    assert doctor.gpu(0, facts[7], nvidia=False).then == ""
    old = doctor.gpu(1, facts[7], nvidia=True)
    assert old.what == "cuda:1: T4, 16 GiB, no bfloat16 of its own"
    assert "16-mixed" in old.then


def test_sams_files_must_be_the_published_ones(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = empty / "sam_vit_b_01ec64.pth"
    path.write_bytes(b"half a download")
    assert doctor.weight_file(path, "again").state == "wrong"
    assert "has 15 bytes, the published file 375042383" in doctor.weight_file(path, "again").what
    for digest, state in ((sha256_file(path), "ok"), ("0" * 64, "wrong")):
        monkeypatch.setitem(doctor.SAM_FACTS, path.name, (15, digest))
        assert doctor.weight_file(path, "again").state == state


def test_the_urls_are_those_the_method_gives() -> None:
    assert set(SAM_FILES) == set(ENCODER_FILES.values()) == set(doctor.SAM_FACTS)
    sam2 = {
        checkpoint_name(size, version): checkpoint_url(size, version)
        for size in SAM2_SIZES
        for version in SAM2_VERSIONS
    }
    assert ({name: SAM_URL + name for name in SAM_FILES} | sam2).items() <= doctor.WEIGHT_FILES.items()
    assert doctor.INSTALL_SAM2 == INSTALL_SAM2


def test_sam2_is_reported_with_the_way_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", absent)
    found = doctor.installed(doctor.SAM2_PACKAGE, doctor.INSTALL_SAM2)
    assert found.state == "missing"
    assert "--no-build-isolation" in found.then


def test_coco_counts_its_images(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_data, "COCO_IMAGES", {"train2014": 3, "val2014": 2})
    root = empty / "COCO2014"
    for folder in ("train2014", "val2014", "annotations"):
        (root / folder).mkdir(parents=True)
    for name in ("train2014/a.jpg", "val2014/a.jpg", "val2014/b.jpg", "annotations/instances_val2014.json"):
        (root / name).touch()
    assert [finding.state for finding in doctor_data.coco(root)] == ["wrong", "ok", "missing", "ok"]


def test_fss1000_is_read_by_its_own_reader(empty: Path) -> None:
    root = empty / "FSS-1000"
    assert doctor_data.fss1000(root).state == "missing"
    root.mkdir()
    assert "holds no FSS-1000 class folders" in doctor_data.fss1000(root).then
    make_fss1000(root)
    assert "classes" in doctor_data.fss1000(root).what


def test_prepared_sets_are_checked_again(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = empty / "FSSBENCH_DATA"
    make_davis(data / "DAVIS")
    make_pascal(data / "PASCAL")
    found = {f.what.split(" ")[0]: f for f in doctor.datasets() if "not prepared" in f.what}
    assert set(found) == {"DAVIS-17", "PASCAL-5i"}
    for name in ("davis17", "pascal5i"):
        assert main(["prepare", name, "--subset"]) == 0
    found = {f.what.split(" ")[0]: f for f in doctor.datasets() if " as prepared on " in f.what}
    assert set(found) == {"davis17", "pascal5i"}
    assert found["pascal5i"].what.endswith("(a part of the data set; 24 lists)")
    (data / "DAVIS/ImageSets/2017/val.txt").write_text("bear\n")
    (data / "PASCAL/preparing.json").write_text("{}")
    wrong = [f for f in doctor.datasets() if f.state == "wrong"]
    assert ["changed since it was prepared" in f.what for f in wrong] == [True, False]
    assert "is half prepared" in wrong[1].what
    assert wrong[1].then == f"fssbench prepare pascal5i --root {data / 'PASCAL'}"
    (data / "DAVIS/prepared.json").write_text("{}")
    assert any("prepared.json is of version None" in f.what for f in doctor_data.datasets())


def test_unprepared_sets_are_read(empty: Path) -> None:
    assert [f.state for f in (*doctor_data.pascal(empty / "p"), *doctor_data.davis(empty / "d"))] == [
        "missing",
        "missing",
    ]
    for name in ("p", "d"):
        (empty / name).mkdir()
    assert "holds no VOC 2012" in doctor_data.pascal(empty / "p")[0].then
    assert "holds no DAVIS" in doctor_data.davis(empty / "d")[0].then
    make_pascal(empty / "voc")
    next((empty / "voc/VOCdevkit/VOC2012/JPEGImages").glob("2007*")).unlink()
    shutil.rmtree(empty / "voc/benchmark_RELEASE")
    voc, sbd = doctor_data.pascal(empty / "voc")
    assert (voc.state, sbd.state) == ("wrong", "missing")
    assert "1 of 40 images in val, 40 in train lack image or mask (2007_" in voc.what


@pytest.mark.parametrize(
    ("torch", "torchvision", "state", "then"),
    [
        ("2.6.0", "0.21.0", "ok", ""),
        ("2.14.1+cu130", "0.29.1+cpu", "ok", ""),
        ("2.7.0", "0.21.0", "wrong", "pip install 'torchvision==0.22.*'"),
    ],
)
def test_torch_and_torchvision_must_belong_together(
    torch: str, torchvision: str, state: str, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", {"torch": torch, "torchvision": torchvision}.__getitem__)
    finding = doctor.torch_pair()
    assert (finding.state, finding.then) == (state, then)


def test_libraries_outside_the_declared_range_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.installed("surely-not-installed>=1").state == "missing"
    monkeypatch.setattr(doctor, "version", {"lightning": "2.6.2"}.__getitem__)
    found = doctor.installed("lightning<3,>=2.6.4")
    assert found.state == "wrong"
    assert "pip install 'lightning" in found.then
