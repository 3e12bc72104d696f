"""Encoding ahead: each image once, in order of first use; a bounded memory with the farthest next use dropped first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fssbench.encoders.ahead import EncodeAhead, Load, as_input, plan
from fssbench.encoders.cache import FeatureCache, Features


def episodes(count: int, images: int, shot: int, seed: int = 0) -> list[tuple[str, ...]]:
    generator = np.random.default_rng(seed)
    return [tuple(f"i{n}" for n in generator.choice(images, shot + 1, replace=False)) for _ in range(count)]


def replayed(uses: Sequence[Sequence[str]], loads: Sequence[Load], known: Sequence[str] = ()) -> tuple[int, int]:
    """Runs a plan as `EncodeAhead` does; returns the images encoded and the largest number kept."""
    kept, encoded, largest, waiting = set(known), 0, len(known), list(loads)
    for keys in uses:
        while not kept.issuperset(keys):
            load = waiting.pop(0)
            assert kept.issuperset(load.drop)
            kept -= set(load.drop)
            assert not kept.intersection(load.images), "encoded while it is there"
            kept |= set(load.images)
            encoded += len(load.images)
            largest = max(largest, len(kept))
    assert not waiting
    return encoded, largest


@pytest.mark.parametrize("group", [1, 4, 32])
def test_with_room_each_image_is_encoded_once_in_order_of_first_use(group: int) -> None:
    uses = episodes(60, 20, 2)
    loads = list(plan(uses, 20, group))
    assert [key for load in loads for key in load.images] == list(dict.fromkeys(key for keys in uses for key in keys))
    assert all(not load.drop for load in loads)
    assert all(len(load.images) <= group for load in loads)
    assert len(loads) <= -(-20 // max(1, group - 2)), "groups are full but for the last images of an episode"
    assert replayed(uses, loads) == (20, 20)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("room", [3, 5, 8, 13])
def test_a_small_memory_is_kept_to_and_used_as_well_as_possible(room: int, group: int) -> None:
    uses = episodes(80, 20, 2, seed=room)
    encoded, largest = replayed(uses, list(plan(uses, room, min(group, room))))
    assert largest <= room
    assert encoded <= least_recently_used(uses, room), "knowing the future is no worse than remembering the past"


def least_recently_used(uses: Sequence[Sequence[str]], room: int) -> int:
    kept: dict[str, None] = {}
    encoded = 0
    for keys in uses:
        for key in keys:
            encoded += key not in kept
            kept.pop(key, None)
            kept[key] = None
        while len(kept) > room:
            del kept[next(iter(kept))]
    return encoded


def test_one_batch_may_need_more_than_there_is_room_for() -> None:
    uses = [("a", "b", "c"), ("c", "d"), ("a", "e")]
    assert replayed(uses, list(plan(uses, 1, 1))) == (6, 3)


def test_what_is_known_is_not_encoded_again_and_what_is_never_used_goes_first() -> None:
    uses = [("a", "b"), ("c", "a")]
    assert list(plan(uses, 4, 8, known=["a", "x", "y"])) == [Load(("b", "c"), ("x",))] or list(
        plan(uses, 4, 8, known=["a", "x", "y"])
    ) == [Load(("b", "c"), ("y",))]
    assert list(plan(uses, 4, 8, known=["a", "b", "c"])) == []


@pytest.mark.parametrize("seed", range(40))
def test_more_may_be_known_than_there_is_room_for(seed: int) -> None:
    """A batch larger than the room leaves more than fits, and the next validation begins with it."""
    generator = np.random.default_rng(seed)
    uses = episodes(12, 9, 2, seed=seed)
    room, group = int(generator.integers(0, 7)), int(generator.choice([1, 2, 4]))
    known = [f"i{n}" for n in generator.choice(9, min(9, room + 2), replace=False)]
    replayed(uses, list(plan(uses, room, min(group, max(1, room)), known)), known)


class Source:
    """Images of one pixel whose value is their number, and an encoder that counts."""

    def __init__(self) -> None:
        self.read_keys: list[str] = []
        self.groups: list[int] = []

    def read(self, keys: Sequence[str]) -> Iterator[Tensor]:
        for key in keys:
            self.read_keys.append(key)
            yield torch.full((1, 1, 3), int(key[1:]), dtype=torch.uint8)

    def encode(self, images: Tensor) -> Features:
        self.groups.append(len(images))
        return {"mean": images.mean((1, 2, 3)), "map": images}


@pytest.mark.parametrize("room", [20, 6, 1])
def test_features_are_those_of_the_images_whatever_is_forgotten(room: int) -> None:
    source, uses = Source(), episodes(40, 20, 2)
    cache = FeatureCache(room * 16 / 2**20)  # a feature is four float32
    ahead = EncodeAhead(cache, uses, source.read, source.encode, torch.device("cpu"))
    for keys in uses:
        found = ahead.features([*keys, keys[0]])
        assert (found["mean"] * 255).round().tolist() == [int(key[1:]) for key in (*keys, keys[0])]
        assert len(cache.keys()) <= max(room, 3)
    assert cache.encoded == len(source.read_keys) == sum(source.groups)
    assert cache.passes == len(source.groups)
    assert cache.encoded == 20 or room < 20


def test_a_memory_that_is_too_small_is_told(caplog: pytest.LogCaptureFixture) -> None:
    source, uses = Source(), [("i1", "i2"), ("i3", "i4"), ("i1", "i2")]
    with caplog.at_level("INFO"):
        for room, expected in ((4, ""), (2, "6 images are encoded. --feature_cache 1 avoids")):
            cache = FeatureCache(room * 16 / 2**20)
            ahead = EncodeAhead(cache, uses, source.read, source.encode, torch.device("cpu"))
            for keys in uses:
                ahead.features(keys)
            assert expected in caplog.text
            assert bool(caplog.text) == bool(expected)


def test_groups_are_full_where_there_are_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureCache, "group_on", lambda self, device: 8)
    source, uses = Source(), episodes(40, 20, 2)
    ahead = EncodeAhead(FeatureCache(), uses, source.read, source.encode, torch.device("cpu"))
    for keys in uses:
        ahead.features(keys)
    assert source.groups[0] == 1, "the first image tells how large features are"
    assert sum(source.groups) == 20
    assert len(source.groups) <= 5


def test_pixels_are_scaled_as_in_episodes() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    expected = pixels.permute(0, 3, 1, 2).float().div_(255)
    assert torch.equal(as_input(list(pixels), torch.device("cpu")), expected)
