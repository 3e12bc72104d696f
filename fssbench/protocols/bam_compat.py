"""The episodes of PFENet, BAM and the methods built on them (protocols.md 2.4).

Historical runs drew inside loader workers and cannot be replayed. Here one `random.Random(seed)` draws in the order of
the released code, so a manifest per seed is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from fssbench.errors import TooFewImages

EPISODES = 1000
"""Episodes per run: BAM's number; 4000, 10000 and 20000 occur in other papers."""


def episodes(
    images: Sequence[str],
    classes_in: Callable[[str], Sequence[int]],
    lists: Mapping[int, Sequence[str]],
    count: int,
    shot: int,
    seed: int,
) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Yield (class id, query, supports) `count` times.

    images      the fold's image list in PFENet order; query t is image t mod n
    classes_in  image -> its novel classes, ascending, however few pixels they have (the released code's loophole)
    lists       novel class -> its images with enough pixels, in PFENet order; supports are distinct and not the query

    Supports stand as the released code stacks them: the last one drawn comes first.
    Raises `TooFewImages` where a class has too few images for `shot`.
    """
    random = Random(seed)
    for number in range(count):
        query = images[number % len(images)]
        classes = classes_in(query)
        class_id = classes[_index(random, len(classes))]  # drawn even if there is one class only
        yield class_id, query, _supports(random, lists.get(class_id, ()), query, shot, class_id)


def _index(random: Random, count: int) -> int:
    return random.randint(1, count) - 1


def _supports(random: Random, items: Sequence[str], query: str, shot: int, class_id: int) -> tuple[str, ...]:
    others = len(items) - (query in items)
    if others < shot:
        raise TooFewImages(
            f"Class {class_id} has {others} candidate image(s) besides query '{query}', but {shot}-shot needs {shot}. "
            "Use fewer shots or complete the lists."
        )
    chosen: list[int] = []
    for _ in range(shot):
        _index(random, len(items))  # the released code draws once before its loop and forgets the draw
        index = _index(random, len(items))
        while items[index] == query or index in chosen:
            index = _index(random, len(items))
        chosen.append(index)
    return tuple(items[index] for index in reversed(chosen))
