"""hsnet-compat reproduces every published hash; bam-compat follows its structure."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from fssbench.cli.provenance import left_out
from fssbench.errors import UserError
from fssbench.protocols import bam_compat, hsnet_compat
from fssbench.protocols.known import LISTS
from fssbench.protocols.list_dataset import ListDataset
from fssbench.protocols.lists import hsnet_text, read_list
from fssbench.protocols.manifest import Manifest, build_manifest, load_manifest, verify_manifest
from fssbench.protocols.profiles import PROFILES, profile_of, protocol_id
from tests.protocols.toy import CompatToy, ToyDataset
from tests.shared import SHARED, needs_shared

GF_SAM = SHARED / "splits/gf-sam"
HASHES = {  # protocols.md 2.3
    ("coco-20i", 1): ("b333e9b7c10cffae", "955519d3bfc6d88d", "c766395fbcb688e5", "45ac3354f2397ec2"),
    ("coco-20i", 5): ("4250016c8bce1c4f", "23d0d0b4ea8681c0", "c579a73e7df546dd", "2399589651a2aae1"),
    ("pascal-5i", 1): ("663a587a6228ed72", "dd7a35d51c62a24c", "97dac409cd31a82c", "d9f6a5d41850c41e"),
    ("pascal-5i", 5): ("d13523bda0bad9f3", "34e77044bcddea6b", "b2f93d7dd78528b9", "7aeed47c9b8d010d"),
    ("fss-1000", 1): ("8d510956dd47c0fc",),
    ("fss-1000", 5): ("7dfb2dd886170d8d",),
}
FILES = {"coco-20i": "coco/val/fold{}.txt.gz", "pascal-5i": "pascal/val/fold{}.txt", "fss-1000": "fss/test.txt"}


def published(dataset: str, shot: int, fold: int = 0) -> Manifest:
    path = GF_SAM / FILES[dataset].format(fold)
    return build_manifest(ListDataset.read(dataset, path), 0, shot, protocol="hsnet-compat")


@needs_shared
@pytest.mark.parametrize(("dataset", "shot"), HASHES)
def test_every_published_hash(dataset: str, shot: int) -> None:
    full = json.loads((SHARED / "splits/hsnet_compat_hashes.json").read_text())[dataset][f"{shot}-shot"]
    for fold, start in enumerate(HASHES[dataset, shot]):
        found = published(dataset, shot, fold).header.episodes_sha256
        assert found == full["test" if dataset == "fss-1000" else f"fold{fold}"]
        assert found.startswith(start)


@needs_shared
def test_first_episodes_and_counts_of_the_specification() -> None:
    coco = published("coco-20i", 1)
    first = [(e.class_id, e.query[-10:-4], e.supports[0][-10:-4]) for e in coco.episodes[:3]]
    assert first == [(73, "507081", "486122"), (45, "504005", "570465"), (33, "074951", "041212")]
    per_class = [49, 50, 49, 48, 40, 57, 47, 66, 47, 43, 40, 56, 52, 53, 50, 53, 42, 52, 53, 53]
    assert list(coco.episodes_per_class().values()) == per_class
    assert sum(coco.distinct_queries().values()) == 948
    pascal = published("pascal-5i", 1, 2)
    assert (pascal.episodes[0].class_id, pascal.episodes[0].query) == (15, "2007_000129")
    assert pascal.episodes[0].supports == ("2011_002498",)
    assert list(pascal.episodes_per_class().values()) == [99, 163, 103, 94, 541]
    fss = published("fss-1000", 5)
    assert sum(len(set(e.supports)) < 5 for e in fss.episodes) == 1793
    assert [e.query for e in fss.episodes[:2]] == ["1.jpg", "10.jpg"]


def test_pick_is_the_legacy_choice() -> None:
    """The whole stream is used: the generator moves as `choice` moves it, whatever the list's length."""
    mine, theirs = hsnet_compat.generator(), hsnet_compat.generator()
    for length in (1, 7, 20, 300, 7):
        items = [f"i{n}" for n in range(length)]
        assert hsnet_compat.pick(mine, items) == theirs.choice(items, 1, replace=False)[0]


def test_hsnet_supports_may_repeat_but_never_the_query() -> None:
    drawn = list(hsnet_compat.sequential([(1, "a"), (1, "b"), (1, "c")], 30, 5))
    assert [query for _, query, _ in drawn[:4]] == ["a", "b", "c", "a"]
    assert all(query not in supports for _, query, supports in drawn)
    assert all(len(set(supports)) < 5 for _, _, supports in drawn)
    with pytest.raises(UserError, match="no other image"):
        list(hsnet_compat.sequential([(1, "a")], 1, 1))


def test_bam_draw_order() -> None:
    """By hand from the released order: a class index per episode, one lost draw per slot, then until it is new."""
    lists = {1: ["a", "b", "c", "d"], 2: ["b", "c", "e"]}
    present = {"a": [1], "b": [1, 2]}
    drawn = list(bam_compat.episodes(["a", "b"], lambda key: present[key], lists, 6, 2, 365))
    random = Random(365)
    for number, (class_id, query, supports) in enumerate(drawn):
        assert query == "ab"[number % 2]
        assert class_id == present[query][random.randint(1, len(present[query])) - 1]
        chosen: list[str] = []
        while len(chosen) < 2:
            random.randint(1, len(lists[class_id]))
            support = query
            while support == query or support in chosen:
                support = lists[class_id][random.randint(1, len(lists[class_id])) - 1]
            chosen.append(support)
        assert supports == tuple(reversed(chosen))


def test_bam_refuses_too_few_images() -> None:
    with pytest.raises(UserError, match=r"Class 1 has 1 candidate.*2-shot needs 2"):
        list(bam_compat.episodes(["a"], lambda key: [1], {1: ["a", "b"]}, 1, 2, 0))


@pytest.mark.parametrize("protocol", sorted(set(PROFILES) - {"one-shot-video"}))
def test_manifests_of_every_protocol_round_trip_and_verify(protocol: str, tmp_path: Path) -> None:
    number = None if protocol == "clean-v1" else 25
    manifest = build_manifest(CompatToy(), 1, 3, protocol=protocol, episodes=number)
    manifest.save(tmp_path / "m.jsonl")
    again = load_manifest(tmp_path / "m.jsonl")
    assert verify_manifest(again, CompatToy()) == []
    assert profile_of(again.header.protocol).name == protocol
    other = CompatToy({**CompatToy().images, 3: 9})
    assert verify_manifest(again, other) != []


def test_bam_lists_are_in_image_order_and_classes_are_those_present() -> None:
    manifest = build_manifest(CompatToy(), 0, 1, protocol="bam-compat", episodes=24)
    # ToyDataset shows every class in every image: each of the 4 novel classes of the fold may be drawn for a query
    by_query = Counter((e.query, e.class_id) for e in manifest.episodes)
    assert len({query for query, _ in by_query}) == 24
    assert {c for _, c in by_query} == {2, 4, 6, 8}
    assert all(e.supports[0].startswith(f"img{e.class_id:02d}") for e in manifest.episodes)


def test_bam_draws_supports_from_lists_in_image_order() -> None:
    """Whatever the order in which a data set gives the pairs of a class."""

    class Mixed(CompatToy):
        def ordered_pairs(self, fold: int) -> list[tuple[int, str]]:
            return super().ordered_pairs(fold)[::-1]

        def ordered_images(self, fold: int) -> list[str]:
            return CompatToy().ordered_images(fold)

    one, other = (build_manifest(data, 0, 2, protocol="bam-compat", episodes=24) for data in (CompatToy(), Mixed()))
    assert one.episodes == other.episodes


def test_a_class_that_no_episode_is_drawn_of_is_listed() -> None:
    """As hair drier among the first 1000 images of COCO-20i's fold 2 (protocols.md section 0, item 6)."""

    class Late(CompatToy):
        def classes_in(self, key: str) -> tuple[int, ...]:
            return (int(key[3:5]),)

    data = Late({1: 2, 2: 600, 4: 600, 6: 3})
    assert not build_manifest(data, 0, 1, protocol="bam-compat", episodes=1203).header.left_out
    short = build_manifest(data, 0, 1, protocol="bam-compat", episodes=8)
    assert (list(short.header.classes), short.header.left_out) == (["2"], {"4": "thing 4", "6": "thing 6"})
    manifest = build_manifest(data, 0, 1, protocol="bam-compat")
    assert manifest.header.left_out == {"6": "thing 6"}
    assert left_out(manifest) == ["class thing 6 left out: no episode"]
    assert verify_manifest(manifest, data) == verify_manifest(short, data) == []


def test_names_keep_draws_apart() -> None:
    assert protocol_id("clean-v1", 0) == "clean-v1"
    assert protocol_id("clean-v1", 2, "base") == "clean-v1.s2-base"
    assert protocol_id("hsnet-compat", 0) == "hsnet-compat"
    assert protocol_id("bam-compat", 510) == "bam-compat.s510"
    assert protocol_id("bam-compat", 0) == "bam-compat.s0"
    with pytest.raises(UserError, match="seed 0 only"):
        protocol_id("hsnet-compat", 1)
    with pytest.raises(UserError, match="Did you mean 'hsnet-compat'"):
        profile_of("hsnet-compt")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "hsnet-compat"}, "not defined for toy"),
        ({"protocol": "clean-v1", "episodes": 3}, "episodes_per_class, not episodes"),
        ({"protocol": "clean-v1", "seed": -1}, "0 or more"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_manifest(ToyDataset(), 0, 1, **arguments)
    with pytest.raises(UserError, match="does not draw per class"):
        build_manifest(CompatToy(), 0, 1, protocol="bam-compat", episodes_per_class=3)
    with pytest.raises(UserError, match="has no candidate"):
        build_manifest(CompatToy({1: 4, 2: 4, 4: 0}), 0, 1, protocol="hsnet-compat")


@needs_shared
def test_a_list_is_the_same_in_any_format(tmp_path: Path) -> None:
    source = read_list(GF_SAM / "pascal/val/fold1.txt")
    other = tmp_path / "fold1.txt"
    other.write_text("\r\n".join(f"{c:02d} {name}" for c, name in source.pairs) + "\r\n")
    assert read_list(other).sha256 == source.sha256
    assert len(source.pairs) == 451
    assert len(read_list(SHARED / "splits/repri/coco/val.txt.gz").names) == 40137


@needs_shared
def test_the_known_hashes_are_those_of_the_published_lists() -> None:
    """The canonical text of a list is that of the reference files, so their recorded hashes can be compared too."""
    for fold in range(4):
        for name, path in (
            (("coco-20i", "hsnet-val"), f"gf-sam/coco/val/fold{fold}.txt.gz"),
            (("pascal-5i", "hsnet-val"), f"gf-sam/pascal/val/fold{fold}.txt"),
            (("pascal-5i", "pfenet-val"), f"vrp-sam/pascal/val/pairs_fold{fold}.txt"),
        ):
            found = read_list(SHARED / "splits" / path)
            assert LISTS[name][fold] == (len(found.pairs), found.sha256)
    manifest = (SHARED / "splits/MANIFEST.csv").read_text()
    assert all(known.sha256 in manifest for known in LISTS["coco-20i", "hsnet-val"])
    assert all(known.sha256 in manifest for known in LISTS["pascal-5i", "bam-trn"])
    val = SHARED / "splits/gf-sam/pascal/val/fold0.txt"
    assert hsnet_text(read_list(val).pairs) == val.read_text()


def test_seed_0_of_bam_compat_is_a_draw_of_its_own() -> None:
    zero, usual = (build_manifest(CompatToy(), 0, 1, seed, protocol="bam-compat", episodes=20) for seed in (0, None))
    assert (zero.header.protocol, usual.header.protocol) == ("bam-compat.s0", "bam-compat.s510")
    assert zero.episodes != usual.episodes
