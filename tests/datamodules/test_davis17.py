"""DAVIS-17: episodes from the first frame, void as background, and J&F of objects merged per frame."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.davis17 import DAVIS17, DAVIS17Dataset
from fssbench.cli import main
from fssbench.errors import UserError
from fssbench.metrics.davis import davis_scores, merge_objects, sequence_scores
from fssbench.protocols.manifest import build_manifest, load_manifest, verify_manifest
from fssbench.results.store import ResultStore
from tests.cli.run import FREE, QUIET
from tests.data.davis import make_davis
from tests.test_method import make_trainer
from tests.toy import FreeMethod


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    make_davis(root)
    return root


def test_episodes_follow_the_first_frame(official: Path, tmp_path: Path) -> None:
    data = DAVIS17Dataset(official)
    assert data.class_names == {1: "bear:1", 2: "bear:2", 3: "boat:1"}
    manifest = build_manifest(data, 0, 1, protocol="one-shot-video")
    assert len(manifest.episodes) == 5 * 3
    first = [(e.class_id, e.query, e.supports) for e in manifest.episodes[:3]]
    assert first == [(1, "bear/00001", ("bear/00000",)), (2, "bear/00001", ("bear/00000",)),
                     (1, "bear/00002", ("bear/00000",))]  # fmt: skip
    manifest.save(tmp_path / "m.jsonl")
    assert verify_manifest(load_manifest(tmp_path / "m.jsonl"), data) == []


def test_void_is_background_and_objects_may_be_gone(official: Path) -> None:
    data = DAVIS17Dataset(official)
    mask = data.read_mask("bear/00000", 1)
    assert set(np.unique(mask)) == {0, 1}
    assert mask.sum() == 20 * 20
    assert data.read_mask("bear/00003", 2).sum() == 0
    assert data.read_mask("bear/00003", 3).sum() == 0, "an object of another sequence"
    assert data.read_image("boat/00002").shape == (48, 64, 3)


def test_scores_are_those_of_the_merged_sequences(official: Path, tmp_path: Path) -> None:
    """Against the definition: all logits of a sequence, merged frame by frame, scored by `sequence_scores`."""
    data = DAVIS17(root=str(official), eval_batch_size=4)
    method = FreeMethod()
    make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    found = data.video.compute()
    logits: dict[str, dict[int, np.ndarray]] = {}
    data.setup("test")
    for batch in data.test_dataloader():
        with torch.no_grad():
            out = method(batch)
        for b, key in enumerate(batch.query_key):
            _, number = data.dataset.object_of(int(batch.class_id[b]))
            full = method.upsample(out[b], tuple(batch.query_mask_full[b].shape)).numpy()
            logits.setdefault(key, {})[number] = full
    frames = {}
    for name in ("bear", "boat"):
        truth = [data.dataset.sequences.index_map(name, f"{t:05d}") for t in range(6)]
        predicted = [truth[0], *(merge_objects(logits[f"{name}/{t:05d}"]) for t in range(1, 6))]
        for number, values in sequence_scores(predicted, truth).items():
            frames[f"{name}:{number}"] = values
    assert found == davis_scores(frames)
    assert 0 < found.jf < 1
    assert len(data.video.csv().splitlines()) == 1 + 3 * 4, "first and last frame are not scored"


def test_the_command_writes_record_and_frames(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["test", *FREE[:2], "--config", "data/davis17.yaml", "--data.root", str(official), *QUIET]) == 0
    (record,) = ResultStore(tmp_path / "results").read_all().records
    assert (record.key.dataset, record.key.protocol) == ("davis-17", "one-shot-video")
    assert len(list((tmp_path / "results").rglob("*.video.csv"))) == 1
    assert ResultStore(tmp_path / "results").read_all().damaged == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "Annotations/480p/boat/00002.png").unlink(), "frame 00002 is in one of them only"),
        (lambda root: shutil.rmtree(root / "JPEGImages/480p/boat"), "do not fit"),
        (
            lambda root: shutil.copy(root / "JPEGImages/480p/boat/00002.jpg", root / "JPEGImages/480p/boat/9.jpg"),
            "frame 9",
        ),
        (lambda root: (root / "ImageSets/2017/val.txt").write_text("bear\nbear\n"), "twice"),
        (lambda root: (root / "ImageSets/2017/val.txt").unlink(), "list .* is missing"),
        (lambda root: shutil.rmtree(root / "JPEGImages"), "holds no DAVIS"),
        (
            lambda root: shutil.copy(
                root / "Annotations/480p/bear/00003.png", root / "Annotations/480p/boat/00000.png"
            ),
            "",
        ),
    ],
)
def test_wrong_files_are_named(spoil: Callable[[Path], object], message: str, official: Path, tmp_path: Path) -> None:
    shutil.copytree(official, tmp_path / "DAVIS")
    spoil(tmp_path / "DAVIS")
    if not message:  # another object in the first frame is a change, not a damage
        DAVIS17Dataset(tmp_path)
        return
    with pytest.raises(UserError, match=message):
        DAVIS17Dataset(tmp_path)


def test_more_shots_are_refused(official: Path) -> None:
    with pytest.raises(UserError, match="one support, the first frame"):
        _ = DAVIS17(root=str(official), shot=2).test_manifest
    with pytest.raises(UserError, match="no frame 'bear/7'"):
        DAVIS17Dataset(official).read_image("bear/7")
