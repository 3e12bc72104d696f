"""Episode manifests: the clean-v1 procedure against published vectors, files, and what is refused."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fssbench.dataset import FewShotDataset, Split
from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.protocols.clean_v1 import class_episodes
from fssbench.protocols.manifest import Episode, build_manifest, canonical_text, load_manifest, verify_manifest
from tests.protocols.toy import ToyDataset
from tests.shared import SHARED, needs_shared

# protocols.md 2.5: DATASET toy, LABEL 07, images img01..img06, N = 8, K = 3
TOY_EPISODES = ["02: 05 06 03", "05: 06 02 03", "06: 02 05 03", "03: 06 05 01", "04: 03 06 02", "01: 04 03 02",
                "05: 02 06 01", "03: 01 04 02"]  # fmt: skip
TOY_HASH = "a6fb9cade4cf971ab9ede37e4a11f97d2d70272bdbd939091cf28c1b5e58a19d"


def test_the_published_toy_vector_in_any_order_of_the_images() -> None:
    images = [f"img{i:02d}" for i in (4, 1, 6, 3, 5, 2)]
    episodes = list(class_episodes("toy", "07", images, 8, 3))
    assert [f"{q[3:]}: {' '.join(s[3:] for s in supports)}" for q, supports in episodes] == TOY_EPISODES
    assert sha256_text("\n".join(" ".join(["07", q, *s]) for q, s in episodes)) == TOY_HASH


class ListDataset(FewShotDataset):
    """Candidate lists alone, as in the published files."""

    n_folds = 1
    episodes_per_class = 1

    def __init__(self, name: str, lists: dict[str, list[str]], label: Callable[[int], str]) -> None:
        self.name = name  # type: ignore[misc]
        self.lists = {number: lists[key] for number, key in enumerate(lists)}
        self.names = list(lists)
        self.class_names = dict(enumerate(self.names))

    def label(self, class_id: int) -> str:
        return self.names[class_id]

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        return tuple(self.lists)

    def candidates(self, class_id: int, split: Split) -> list[str]:
        return self.lists[class_id]

    def read_image(self, key: str) -> None:  # type: ignore[override]
        raise AssertionError("lists only")

    read_mask = read_image  # type: ignore[assignment]


def _published(path: Path) -> dict[str, list[str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    lists: dict[str, list[str]] = {}
    with opener(path, "rt") as lines:
        for line in lines:
            label, name = line.split()
            lists.setdefault(label, []).append(name)
    return lists


@needs_shared
@pytest.mark.parametrize("shot", [1, 5])
def test_published_hashes(shot: int) -> None:
    vectors = json.loads((SHARED / "splits/clean_v1_test_vectors.json").read_text())
    splits = SHARED / "splits"
    names = (splits / "gf-sam/fss/test.txt").read_text().split()
    fss = {name: [f"{i}.jpg" for i in range(1, 11)] for name in names}
    cases = [("fss-1000", "fss-1000", "test", fss, 10)]
    for fold in range(4):
        pairs = _published(splits / f"vrp-sam/pascal/val/pairs_fold{fold}.txt")
        cases.append(("pascal-5i", "pascal-5i", f"fold{fold}", pairs, 200))
    # one COCO fold is enough: the smallest, to save time
    coco = _published(splits / "gf-sam/coco/val/fold3.txt.gz")
    cases.append(("coco-20i", "coco-20i-legacy-lists", "fold3", coco, 100))
    for name, group, fold_name, lists, per_class in cases:
        dataset = ListDataset(name, lists, str)
        manifest = build_manifest(dataset, 0, shot, episodes_per_class=per_class)
        assert manifest.header.episodes_sha256 == vectors[group][f"{shot}-shot"][fold_name], (name, fold_name)


def test_one_shot_supports_are_a_prefix_and_queries_agree() -> None:
    dataset = ToyDataset()
    one, five = (build_manifest(dataset, 0, shot) for shot in (1, 5))
    assert [e.query for e in one.episodes] == [e.query for e in five.episodes]
    assert [e.supports[0] for e in one.episodes] == [e.supports[0] for e in five.episodes]
    assert {e.class_id for e in one.episodes} == {2, 4, 6, 8}
    assert all(e.query not in e.supports and len(set(e.supports)) == 5 for e in five.episodes)


def test_a_further_seed_draws_other_episodes() -> None:
    dataset = ToyDataset()
    drawn = [build_manifest(dataset, 1, 2, seed).header.episodes_sha256 for seed in (0, 1, 1)]
    assert drawn[0] != drawn[1] == drawn[2]


def test_base_episodes_hold_no_novel_class() -> None:
    manifest = build_manifest(ToyDataset(), 0, 1, classes="base")
    assert {e.class_id for e in manifest.episodes} == {1, 3, 5, 7}
    assert manifest.header.protocol == "clean-v1-base"


def test_file_round_trip_and_hash(tmp_path: Path) -> None:
    manifest = build_manifest(ToyDataset(), 0, 2)
    manifest.save(tmp_path / "m.jsonl")
    again = load_manifest(tmp_path / "m.jsonl")
    assert again == manifest
    assert again.sha256 == manifest.sha256 == sha256_text((tmp_path / "m.jsonl").read_text())
    assert verify_manifest(again, ToyDataset()) == []


def test_the_same_bytes_in_another_process() -> None:
    code = (
        "from tests.protocols.toy import ToyDataset; from fssbench.protocols.manifest import build_manifest; "
        "print(build_manifest(ToyDataset(), 1, 3).sha256)"
    )
    repository = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=repository)
    assert out.stdout.strip() == build_manifest(ToyDataset(), 1, 3).sha256


def test_verify_names_what_differs(tmp_path: Path) -> None:
    manifest = build_manifest(ToyDataset(), 0, 1)
    other = ToyDataset({**ToyDataset().images, 2: 9})
    problems = verify_manifest(manifest, other)
    assert any("episodes differ" in p for p in problems)
    assert any("episodes_sha256" in p for p in problems)


def test_small_classes_are_an_error_or_left_out_and_listed() -> None:
    dataset = ToyDataset({1: 6, 2: 3, 3: 6, 4: 6})
    with pytest.raises(UserError, match=r"4 that 3-shot episodes need: thing 2 \(3\)"):
        build_manifest(dataset, 0, 3)
    header = build_manifest(dataset, 0, 3, small_classes="leave-out").header
    assert header.left_out == {"2": "thing 2"}
    assert list(header.classes) == ["4"]
    with pytest.raises(UserError, match="No novel class"):
        build_manifest(ToyDataset({1: 2, 2: 2}), 0, 5, small_classes="leave-out")


def test_classes_follow_each_other_by_id_and_not_by_text() -> None:
    """protocols.md 2.5, step 5; LVIS-92i and PACO-Part have ids of three digits and more."""
    manifest = build_manifest(ToyDataset(dict.fromkeys((8, 20, 100, 1000), 4)), 0, 1)
    assert list(dict.fromkeys(e.class_id for e in manifest.episodes)) == [8, 20, 100, 1000]
    assert list(manifest.header.classes) == ["8", "20", "100", "1000"]


@pytest.mark.parametrize(("fold", "shot"), [(2, 1), (-1, 1), (0, 0)])
def test_impossible_requests(fold: int, shot: int) -> None:
    with pytest.raises(UserError):
        build_manifest(ToyDataset(), fold, shot)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "announces"),
        (lambda lines: [lines[0], lines[2], *lines[2:]], "episode id"),
        (lambda lines: [lines[0].replace("fssbench-episodes", "other"), *lines[1:]], "format"),
        (lambda lines: [lines[0].replace('"format_version":1', '"format_version":9'), *lines[1:]], "version 9"),
        (lambda lines: ["not json", *lines[1:]], "not an episode manifest"),
        (lambda lines: [], "not an episode manifest"),
        (lambda lines: [lines[0], lines[1].replace('"class":2', '"class":77'), *lines[2:]], "does not name"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Callable[[list[str]], list[str]], message: str) -> None:
    lines = build_manifest(ToyDataset(), 0, 1).text().splitlines()
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message) as error:
        load_manifest(path)
    assert str(path) in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl"):
        load_manifest(tmp_path / "none.jsonl")


def test_canonical_text_has_no_trailing_newline() -> None:
    dataset = ToyDataset()
    episodes = build_manifest(dataset, 0, 1).episodes
    text = canonical_text(dataset, replace(build_manifest(dataset, 0, 1)).episodes)
    assert text.splitlines()[0] == f"02 {episodes[0].query} {episodes[0].supports[0]}"
    assert not text.endswith("\n")


def test_verifying_takes_the_seed_of_the_manifest() -> None:
    assert verify_manifest(build_manifest(ToyDataset(), 0, 1, 3), ToyDataset()) == []


@pytest.mark.parametrize("number", [0, 9])
def test_verify_sees_a_single_support_that_was_exchanged(number: int) -> None:
    """The header, its hash of the episodes included, was left as it was."""
    manifest = build_manifest(ToyDataset(), 0, 2)
    episodes = list(manifest.episodes)
    episodes[number] = replace(episodes[number], supports=episodes[number].supports[::-1])
    problems = verify_manifest(replace(manifest, episodes=tuple(episodes)), ToyDataset())
    assert problems == [f"1 episodes differ, the first is number {number}"]


@pytest.mark.parametrize(
    ("supports", "message"),
    [
        (lambda e: (e.supports[0], e.query), "episode 0 has its query among its supports"),
        (lambda e: (e.supports[0], e.supports[0]), "episode 0 repeats a support"),
        (lambda e: e.supports[:1], "episode 0 has 1 supports instead of 2"),
    ],
)
def test_impossible_supports_are_refused(
    supports: Callable[[Episode], tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    manifest = build_manifest(ToyDataset(), 0, 2)
    first = replace(manifest.episodes[0], supports=supports(manifest.episodes[0]))
    replace(manifest, episodes=(first, *manifest.episodes[1:])).save(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=message):
        load_manifest(tmp_path / "m.jsonl")


def test_bytes_follow_from_the_episodes_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a compressed file is written; names of classes are UTF-8, as they are read."""
    dataset, contents = ToyDataset({2: 6, 4: 6}), set()
    dataset.class_names[2] = "größer"
    manifest = build_manifest(dataset, 0, 1)
    for seconds in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda seconds=seconds: seconds)
        manifest.save(tmp_path / "m.jsonl.gz")
        contents.add((tmp_path / "m.jsonl.gz").read_bytes())
    (content,) = contents
    assert '"2":"größer"'.encode() in gzip.decompress(content)
    assert load_manifest(tmp_path / "m.jsonl.gz") == manifest
