"""The `clean-v1` protocol: balanced, hash-ordered episodes that need no random generator (protocols.md 2.5).

Images are ordered by SHA-256 of a text that names the protocol, data set, class and image, so the episodes depend on
nothing but the candidate lists: not on library versions, workers, devices or call order.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator, Sequence

from fssbench.errors import TooFewImages

NAME = "clean-v1"


def prefix(seed: int = 0) -> str:
    """Prefix of every hashed text; a seed above 0 gives a further independent draw."""
    return NAME if seed == 0 else f"{NAME}.s{seed}"


def class_episodes(
    dataset: str, label: str, images: Sequence[str], episodes: int, shot: int, seed: int = 0
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield `episodes` pairs (query, supports) of one class.

    dataset   data set name, e.g. `coco-20i`
    label     two-digit class id, or class name where the data set says so
    images    the class's candidate images L(c), any order, distinct
    shot      number of distinct supports K; 1-shot supports are a prefix of 5-shot supports

    Raises `TooFewImages` where the class has no more than K candidates.
    """
    if len(images) <= shot:
        raise TooFewImages(
            f"Class '{label}' of {dataset} has {len(images)} candidate image(s), but {shot}-shot episodes need at least "
            f"{shot + 1}. Use fewer shots, add images, or leave such classes out with small_classes=leave-out."
        )
    start = f"{prefix(seed)}|{dataset}|{label}"
    done, turn = 0, 0
    while done < episodes:
        for query in _ordered(images, f"{start}|q|{turn}", len(images)):
            if done == episodes:
                return
            # K + 1 smallest, because the query itself may be among them
            drawn = _ordered(images, f"{start}|s|{turn}|{query}", shot + 1)
            yield query, tuple(image for image in drawn if image != query)[:shot]
            done += 1
        turn += 1


def _ordered(images: Sequence[str], start: str, count: int) -> list[str]:
    """The first `count` images by SHA-256 of `start|image`."""
    base = hashlib.sha256(f"{start}|".encode())

    def rank(image: str) -> bytes:
        digest = base.copy()
        digest.update(image.encode())
        return digest.digest()

    return sorted(images, key=rank) if count >= len(images) else heapq.nsmallest(count, images, key=rank)
