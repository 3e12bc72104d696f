"""`fssbench episodes`: manifests of all folds in one command, and from published lists without data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.shapes import Shapes
from fssbench.cli import main
from fssbench.cli.episodes import file_name
from fssbench.protocols.manifest import load_manifest, verify_manifest
from tests.cli.run import error_line
from tests.protocols.toy import CompatToy
from tests.shared import SHARED, needs_shared

EMBEDDED = Path(__file__).parents[2] / "fssbench" / "assets" / "episodes"


def test_freeze_makes_all_folds_and_shots(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["episodes", "freeze", "--data", "tests.toy.AnyProtocol", "--shots", "1", "5", "6"]) == 0
    assert "6-shot left out: 4 of 4 classes of toy fold 0 have fewer images" in capsys.readouterr().out
    hashes = json.loads((here / "episodes" / "toy_clean-v1.json").read_text())
    assert len(hashes) == 4
    for name, entry in hashes.items():
        manifest = load_manifest(here / "episodes" / name)
        assert manifest.sha256 == entry["sha256"]
        assert verify_manifest(manifest, CompatToy()) == []
    first = {name: (here / "episodes" / name).read_bytes() for name in hashes}
    assert main(["episodes", "freeze", "--data", "tests.toy.AnyProtocol", "--shots", "1", "5"]) == 0
    assert first == {name: (here / "episodes" / name).read_bytes() for name in hashes}, "the same bytes every time"


def test_freeze_makes_all_seeds_of_bam(here: Path) -> None:
    options = ["--data.protocol", "bam-compat", "--data.episodes", "8"]
    assert main(["episodes", "freeze", "--data", "tests.toy.AnyProtocol", *options, "--shots", "1"]) == 0
    hashes = json.loads((here / "episodes" / "toy_bam-compat.json").read_text())
    assert len({entry["sha256"] for entry in hashes.values()}) == 2 * 5
    assert "toy_bam-compat.s988_fold1_shot1.jsonl.gz" in hashes


def test_nothing_to_freeze(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["episodes", "freeze", "--data", "tests.toy.AnyProtocol", "--shots", "9"]
    assert "No number of supports among [9]" in error_line(capsys, command)


def test_a_damaged_compressed_manifest_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["episodes", "freeze", "--data", "tests.toy.AnyProtocol", "--shots", "1"])
    path = here / "episodes" / "toy_clean-v1_fold0_shot1.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-30])
    assert "Cannot read the episode manifest" in error_line(capsys, ["episodes", "show", str(path)])


@pytest.mark.parametrize("fold", range(4))
def test_the_embedded_manifests_are_those_of_shapes(fold: int) -> None:
    data = Shapes()
    for shot in (1, 5, 10):
        built = data.manifest(fold, shot)
        assert load_manifest(EMBEDDED / f"{file_name(built)}.gz") == built


@needs_shared
def test_episodes_from_published_lists(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = SHARED / "splits/gf-sam/pascal/val/fold3.txt"
    assert main(["episodes", "build", "--lists", str(lists), "--shot", "5", "--out", "m.jsonl"]) == 0
    assert "7aeed47c9b8d010d48ba1092d877c6dfc7dbb25a263e1de399ec12d48e7f540b" in capsys.readouterr().out
    assert load_manifest("m.jsonl").header.image_filter == "hsnet-val"
