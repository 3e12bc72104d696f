"""Episodes of a data set under each protocol: the lists go in, the drawn episodes come out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fssbench.dataset import FewShotDataset, ObjectDataset
from fssbench.errors import TooFewImages, UserError, some
from fssbench.protocols import bam_compat, clean_v1, hsnet_compat

SmallClasses = Literal["error", "leave-out"]
ClassGroup = Literal["novel", "base"]


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode: segment `class_id` in `query`, given `supports` (image keys)."""

    class_id: int
    query: str
    supports: tuple[str, ...]


def in_order(dataset: FewShotDataset, classes: Iterable[int]) -> list[int]:
    """Classes as they follow each other: ascending, or by code point where their labels are names (protocols.md 2.5)."""
    return sorted(classes, key=lambda c: (c if dataset.label(c) == f"{c:02d}" else 0, dataset.label(c)))


def clean(
    dataset: FewShotDataset,
    fold: int,
    shot: int,
    seed: int,
    per_class: int,
    classes: ClassGroup,
    small_classes: SmallClasses,
) -> tuple[list[Episode], list[int]]:
    """`clean-v1` episodes, classes `in_order`, and the ids of classes that were left out."""
    episodes: list[Episode] = []
    wanted = dataset.novel_classes(fold) if classes == "novel" else dataset.val_classes or dataset.base_classes(fold)
    named = {
        class_id: {dataset.episode_name(key): key for key in dataset.candidates(class_id, "test")}
        for class_id in in_order(dataset, wanted)
    }
    left_out = [class_id for class_id, keys in named.items() if len(keys) <= shot]
    if left_out and small_classes == "error":
        counts = some(f"{dataset.class_names[class_id]} ({len(named[class_id])})" for class_id in left_out)
        raise TooFewImages(
            f"{len(left_out)} of {len(named)} classes of {dataset.name} fold {fold} have fewer images than the {shot + 1} "
            f"that {shot}-shot episodes need: {counts}. Add images, use fewer shots, or leave such classes out with "
            "--data.small_classes leave-out."
        )
    for class_id, keys in named.items():
        if class_id in left_out:
            continue
        drawn = clean_v1.class_episodes(dataset.draw_name, dataset.label(class_id), list(keys), per_class, shot, seed)
        episodes += [Episode(class_id, keys[query], tuple(keys[s] for s in supports)) for query, supports in drawn]
    return episodes, left_out


def compat(
    protocol: str, dataset: FewShotDataset, fold: int, shot: int, seed: int, episodes: int | None
) -> list[Episode]:
    """Episodes of every other protocol; `episodes` None = the protocol's own number.

    Raises `UserError` where a class of the fold has no candidate, or too few.
    """
    pairs = dataset.ordered_pairs(fold)
    empty = sorted(set(dataset.novel_classes(fold)) - {class_id for class_id, _ in pairs})
    if empty:
        raise UserError(
            f"Class {dataset.label(empty[0])} ({dataset.class_names[empty[0]]}) of {dataset.name} fold {fold} has no "
            f"candidate image, but {protocol} needs all of the fold. Use the complete data set."
        )
    if protocol == "one-shot-video":
        return _video(dataset, shot, episodes, pairs)
    if protocol == "bam-compat":
        return _bam(dataset, fold, shot, seed, episodes, pairs)
    return [Episode(*drawn) for drawn in _hsnet(dataset, fold, shot, episodes, pairs)]


def _video(dataset: FewShotDataset, shot: int, episodes: int | None, pairs: list[tuple[int, str]]) -> list[Episode]:
    if shot != 1:
        raise TooFewImages(f"one-shot-video has one support, the first frame: shot 1, not {shot}.")
    if episodes not in (None, len(pairs)):
        raise UserError("one-shot-video tests all frames but the first: leave episodes out.")
    first = {c: dataset.candidates(c, "test")[0] for c in dataset.class_names}
    return [Episode(c, key, (first[c],)) for c, key in pairs]


def _hsnet(
    dataset: FewShotDataset, fold: int, shot: int, episodes: int | None, pairs: list[tuple[int, str]]
) -> Iterable[hsnet_compat.Drawn]:
    count = episodes or dataset.hsnet_count(fold)
    if dataset.hsnet_queries == "sequential":
        return hsnet_compat.sequential(pairs, count, shot)
    if isinstance(dataset, ObjectDataset):
        photographs = {c: dataset.photographs(c) for c in dataset.novel_classes(fold)}
        in_turn = dataset.hsnet_queries == "object-cycle"
        return hsnet_compat.objects(photographs, dataset.objects_in, count, shot, in_turn)
    pools = {c: dataset.support_pool(c) for c in dataset.novel_classes(fold)}
    if dataset.hsnet_queries == "class-uniform":
        return hsnet_compat.class_uniform(pools, count, shot)
    if dataset.hsnet_queries == "class-cycle":
        return hsnet_compat.class_cycle(pools, count, shot)
    if episodes not in (None, len(pairs)):
        raise UserError(f"hsnet-compat tests each image of {dataset.name} once: leave episodes out, not {episodes}.")
    return hsnet_compat.every_image(pairs, pools, shot)


def _bam(
    dataset: FewShotDataset, fold: int, shot: int, seed: int, episodes: int | None, pairs: list[tuple[int, str]]
) -> list[Episode]:
    images = dataset.ordered_images(fold)
    position = {key: number for number, key in enumerate(images)}
    lists: dict[int, list[str]] = {}
    for class_id, key in sorted(pairs, key=lambda pair: (pair[0], position[pair[1]])):
        lists.setdefault(class_id, []).append(key)
    novel = set(dataset.novel_classes(fold))

    def classes_in(key: str) -> list[int]:
        return [c for c in dataset.classes_in(key) if c in novel]

    count = bam_compat.EPISODES if episodes is None else episodes
    return [Episode(*drawn) for drawn in bam_compat.episodes(images, classes_in, lists, count, shot, seed)]
