"""Masks of another program: counted like our own, refused by name where they do not fit, and marked as external."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from fssbench.cli import main
from fssbench.images import write_mask
from fssbench.protocols.manifest import load_manifest
from fssbench.results.record import ResultRecord
from fssbench.results.store import ResultStore
from tests.cli.run import FREE, TRAINED, error_line
from tests.toy import Toy

Output = pytest.CaptureFixture[str]
MASKS = Path("runs/freemethod/toy/fold0/predictions")
DATA = ["--data", "tests.toy.Toy"]
SCORE = ["score", str(MASKS), "--name", "theirs", *DATA]


@pytest.fixture
def predicted(here: Path) -> Path:
    """Predictions of the toy method, standing in for those of another program, and our own record of the same."""
    assert main(["predict", *FREE]) == 0
    return here / MASKS


def records() -> dict[str, ResultRecord]:
    contents = ResultStore("results").read_all()
    assert contents.damaged == []
    return {record.key.method: record for record in contents.records}


def _as_rle(folder: Path, target: Path, compressed: bool) -> None:
    entries: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.png")):
        mask = (np.asarray(Image.open(path)) > 0).astype(np.uint8)
        if compressed:
            encoded = coco_mask.encode(np.asfortranarray(mask))
            runs: Any = encoded["counts"].decode()
        else:
            flat = mask.flatten(order="F")
            edges = np.flatnonzero(np.diff(np.r_[0, flat])) if flat.any() else np.array([], int)
            runs = np.diff(np.r_[0, edges, flat.size]).tolist()
        entries.append({"episode": int(path.stem), "size": list(mask.shape), "counts": runs})
    target.write_text(json.dumps(entries))


@pytest.mark.parametrize("kind", ["png", "compressed", "runs"])
def test_the_same_masks_give_the_same_counts(predicted: Path, kind: str, capsys: Output) -> None:
    assert main(["test", *FREE]) == 0
    score = list(SCORE)
    if kind != "png":
        _as_rle(predicted, Path("masks.json"), kind == "compressed")
        score[1:2] = ["masks.json", "--manifest", str(predicted / "episodes.jsonl")]
    assert main([*score, "--metadata", "track=strict", "contamination=image labels; in-domain", "uses_text=false"]) == 0
    theirs, ours = records()["theirs"], records()["freemethod"]
    assert theirs.scores == ours.scores
    assert theirs.key.manifest_sha256 == ours.key.manifest_sha256
    assert theirs.provenance.origin == "external"
    assert theirs.provenance.network_input is None
    assert theirs.metadata.track == "strict"
    assert theirs.metadata.contamination == ("image labels", "in-domain")
    assert theirs.metadata.uses_text is False
    assert theirs.metadata.selection == "unknown"
    ResultStore("results").verify(theirs)
    assert main(["leaderboard"]) == 0
    assert "masks of another program" in capsys.readouterr().out


def _missing(folder: Path) -> str:
    (folder / "000003.png").unlink()
    (folder / "000005.png").unlink()
    return "no mask for episode 3, 5."


def _extra(folder: Path) -> str:
    shutil.copy(folder / "000000.png", folder / "000099.png")
    return "000099.png beyond the 16 episodes"


def _wrong_size(folder: Path) -> str:
    write_mask(folder / "000002.png", np.zeros((3, 5), np.uint8))
    return "000002.png (5x3 instead of "


def _twice(folder: Path) -> str:
    shutil.copy(folder / "000000.png", folder / "0.png")
    return "are both for episode 0"


def _strange_name(folder: Path) -> str:
    shutil.copy(folder / "000000.png", folder / "cat.png")
    return "cat.png not named by an episode's number"


def _grey(folder: Path) -> str:
    write_mask(folder / "000001.png", np.full((4, 4), 7, np.uint8))
    return "000001.png holds the values 7"


def _colour(folder: Path) -> str:
    Image.new("RGB", (4, 4)).save(folder / "000001.png")
    return "000001.png holds several channels"


def _broken(folder: Path) -> str:
    (folder / "000004.png").write_bytes(b"no png")
    return "000004.png cannot be read"


def test_hidden_files_are_no_masks(predicted: Path) -> None:
    (predicted / "._000001.png").write_bytes(b"left by macOS")
    assert main(SCORE) == 0


PROBLEMS = [_missing, _extra, _wrong_size, _twice, _strange_name, _grey, _colour, _broken]


@pytest.mark.parametrize("spoil", PROBLEMS, ids=lambda f: f.__name__)
def test_masks_that_do_not_fit_are_named(predicted: Path, capsys: Output, spoil: Callable[[Path], str]) -> None:
    expected = spoil(predicted)
    assert expected in error_line(capsys, SCORE)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("{", "is no list of"),
        ([{"episode": 0}], "is no list of"),
        ([{"episode": 0, "size": [2, 2], "counts": [4]}] * 2, "are both for episode 0"),
        ([{"episode": 0, "size": [2, 2], "counts": [4]}], "no mask for episode 1, 2, 3, 4, 5 and 10 more"),
        ([{"episode": i, "size": [2, 2], "counts": [3]} for i in range(16)], "cover 3 of 4 pixels"),
        ([{"episode": i, "size": [2], "counts": "x"} for i in range(16)], "is no COCO run-length encoding"),
    ],
)
def test_run_lengths_that_do_not_fit_are_named(predicted: Path, capsys: Output, entries: Any, expected: str) -> None:
    Path("m.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    arguments = ["score", "m.json", "--name", "x", "--manifest", str(predicted / "episodes.jsonl"), *DATA]
    assert expected in error_line(capsys, arguments)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--metadata", "trak=strict"], "Did you mean 'track'?"),
        (["--metadata", "track"], "is not KEY=VALUE"),
        (["--metadata", "track=fast"], "metadata.track is 'fast'"),
        (["--manifest", "none.jsonl"], "Cannot read the episode manifest none.jsonl"),
        (["--data.n_classes", "4"], "does not fit the data"),
    ],
)
def test_other_mistakes_are_refused(predicted: Path, capsys: Output, words: list[str], expected: str) -> None:
    assert expected in error_line(capsys, [*SCORE, *words])


def test_the_true_masks_are_needed(predicted: Path, capsys: Output) -> None:
    assert "add --config data/" in error_line(capsys, SCORE[:4])
    assert "do not exist" in error_line(
        capsys, ["score", "nowhere", "--name", "x", "--manifest", str(predicted / "episodes.jsonl"), *DATA]
    )


def test_an_external_record_is_explained_and_not_replayed(predicted: Path, capsys: Output) -> None:
    assert main(SCORE) == 0
    (path,) = Path("results").rglob("*.json")
    assert main(["explain", str(path)]) == 0
    assert "another program" in capsys.readouterr().out
    assert "made by another program" in error_line(capsys, ["replay", str(path)])


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(here: Path) -> Path:
    path = here / "toy.jsonl"
    Toy(shot=2).test_manifest.save(path)
    return path


def test_csv_and_json_hold_the_episodes(manifest: Path) -> None:
    episodes = load_manifest(manifest).episodes
    assert main(["episodes", "export", str(manifest)]) == 0
    rows = list(csv.DictReader(manifest.with_suffix(".csv").open()))
    assert [(r["query"], r["support_1"], r["support_2"]) for r in rows] == [(e.query, *e.supports) for e in episodes]
    assert [int(r["episode"]) for r in rows] == list(range(len(episodes)))
    assert main(["episodes", "export", str(manifest), "--format", "json", "--out", "x.json"]) == 0
    content = json.loads(Path("x.json").read_text())
    assert content["manifest_sha256"] == load_manifest(manifest).sha256
    assert [(e["class_id"], tuple(e["supports"])) for e in content["episodes"]] == [
        (e.class_id, e.supports) for e in episodes
    ]


def test_masks_are_exported_with_the_data(manifest: Path) -> None:
    assert main(["episodes", "export", str(manifest), "--masks", "masks", *DATA]) == 0
    data = Toy(shot=2)
    for episode in data.test_manifest.episodes:
        for key in (episode.query, *episode.supports):
            mask = np.asarray(Image.open(f"masks/{episode.class_id}/{key}.png"))
            assert (mask == data.dataset.read_mask(key, episode.class_id)).all()


def test_export_refuses_half_a_request(manifest: Path, capsys: Output) -> None:
    assert "add --masks" in error_line(capsys, ["episodes", "export", str(manifest), *DATA])
    assert "--masks needs the data" in error_line(capsys, ["episodes", "export", str(manifest), "--masks", "m"])
    line = error_line(capsys, ["episodes", "export", str(manifest), "--out", str(manifest)])
    assert "is the manifest itself" in line


def test_masks_are_not_counted_on_the_episodes_of_another_manifest(predicted: Path, capsys: Output) -> None:
    """All images of a set may have one size: nothing else would tell."""
    other = ["episodes", "build", *DATA, "--data.manifest_seed", "1", "--out", "other.jsonl"]
    assert main(other) == 0
    assert "holds masks of the episodes in" in error_line(capsys, [*SCORE, "--manifest", "other.jsonl"])
    shutil.copy(predicted / "episodes.jsonl", "same.jsonl")
    assert main([*SCORE, "--manifest", "same.jsonl"]) == 0


def test_a_prediction_that_is_cut_off_leaves_no_masks_of_an_earlier_one(
    predicted: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fssbench.cli.recording import PredictionWriter

    write = PredictionWriter.on_predict_batch_end

    def stop(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, number: int, *rest: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        write(self, trainer, module, outputs, batch, number, *rest)

    monkeypatch.setattr(PredictionWriter, "on_predict_batch_end", stop)
    assert main(["predict", *FREE, "--model.bias", "9"]) == 130
    assert not (predicted / "episodes.jsonl").exists()
    assert len(list(predicted.glob("*.png"))) == 2


def test_a_prediction_that_is_refused_takes_nothing_away(predicted: Path, capsys: Output) -> None:
    assert "no trained weights" in error_line(capsys, ["predict", *TRAINED, "--run_dir", str(predicted.parent)])
    assert (predicted / "episodes.jsonl").exists()
    assert len(list(predicted.glob("*.png"))) == 16
