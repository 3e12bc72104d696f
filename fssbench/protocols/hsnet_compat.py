"""The episodes of HSNet and of the many methods that share its loaders, exactly (protocols.md 2.3).

One NumPy legacy generator with seed 0 per (data set, fold, K), and one primitive, `pick`. The legacy stream is frozen,
so the episodes depend on nothing but the lists, their length and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from fssbench.errors import TooFewImages, UserError

T = TypeVar("T")
Drawn = tuple[int, str, tuple[str, ...]]
"""(class id, query, supports)."""


def generator() -> np.random.RandomState:
    """The generator of one (data set, fold, K)."""
    return np.random.RandomState(0)


def pick(random: np.random.RandomState, items: Sequence[T]) -> T:
    """One item, as the legacy `choice(n, 1, replace=False)`: a whole permutation is drawn and its first entry taken."""
    return items[int(random.permutation(len(items))[0])]


def supports(random: np.random.RandomState, items: Sequence[str], query: str, shot: int) -> tuple[str, ...]:
    """`shot` picks that are not the query; **the same image may be picked twice**, as in the released code.

    Raises `UserError` where the list holds nothing but the query.
    """
    if not set(items) - {query}:
        raise UserError(f"The class of query '{query}' has no other image. Complete the lists.")
    found: list[str] = []
    while len(found) < shot:
        support = pick(random, items)
        if support != query:  # a rejected draw has moved the generator, too
            found.append(support)
    return tuple(found)


def class_uniform(lists: Mapping[int, Sequence[str]], episodes: int, shot: int) -> Iterator[Drawn]:
    """COCO-20i: a class, then a query of its list, then supports of its list."""
    random, classes = generator(), sorted(lists)
    for _ in range(episodes):
        class_id = pick(random, classes)
        query = pick(random, lists[class_id])
        yield class_id, query, supports(random, lists[class_id], query, shot)


def class_cycle(lists: Mapping[int, Sequence[str]], episodes: int, shot: int) -> Iterator[Drawn]:
    """The cross-domain sets: the classes in turn, a query of the class's list, then supports of it (protocols.md 1.5)."""
    random, classes = generator(), sorted(lists)
    for number in range(episodes):
        class_id = classes[number % len(classes)]
        query = pick(random, lists[class_id])
        yield class_id, query, supports(random, lists[class_id], query, shot)


def sequential(pairs: Sequence[tuple[int, str]], episodes: int, shot: int) -> Iterator[Drawn]:
    """PASCAL-5i: query and class are pair t mod n of the list; only supports are drawn, from the class's own pairs."""
    random = generator()
    lists: dict[int, list[str]] = {}
    for class_id, name in pairs:
        lists.setdefault(class_id, []).append(name)
    for number in range(episodes):
        class_id, query = pairs[number % len(pairs)]
        yield class_id, query, supports(random, lists[class_id], query, shot)


def every_image(pairs: Sequence[tuple[int, str]], pools: Mapping[int, Sequence[str]], shot: int) -> Iterator[Drawn]:
    """FSS-1000: each pair is a query once; supports are picked from the class's `pools` entry."""
    random = generator()
    for class_id, query in pairs:
        yield class_id, query, supports(random, pools[class_id], query, shot)


def objects(
    photographs: Mapping[int, Sequence[str]],
    objects_in: Callable[[int, str], Sequence[tuple[str, bool]]],
    episodes: int,
    shot: int,
    in_turn: bool,
) -> Iterator[Drawn]:
    """Parts of objects (Matcher's PASCAL-Part and PACO-Part): a photograph is picked, then one of its objects, and both again
    until the object shows the part (protocols.md 1.5).

    photographs  class -> names of the photographs with the part
    objects_in   (class, photograph) -> (key, whether it shows the part) of its objects
    in_turn      PASCAL-Part: class t mod n and distinct supports; else PACO-Part: a class at random, and a support may come
                 twice. A support's photograph is never the query's, and rejected photographs have no object drawn.

    Raises `TooFewImages` where a class has too few photographs.
    """
    random, classes = generator(), sorted(photographs)
    usable = {c: {p for p in photographs[c] if any(shows for _, shows in objects_in(c, p))} for c in classes}
    for class_id in classes:
        need = shot + 1 if in_turn else 2
        if len(usable[class_id]) < need:
            raise TooFewImages(
                f"Class {class_id} has {len(usable[class_id])} candidate image(s) with its part, but {shot}-shot episodes need at "
                f"least {need}. Use fewer shots or complete the data set."
            )
    for number in range(episodes):
        class_id = classes[number % len(classes)] if in_turn else pick(random, classes)
        taken: set[str] = set()
        keys: list[str] = []
        while len(keys) < shot + 1:
            photograph = pick(random, photographs[class_id])
            if photograph in taken:
                continue
            key, shows = pick(random, objects_in(class_id, photograph))
            if shows:
                keys.append(key)
                taken |= {photograph} if in_turn or len(keys) == 1 else set()
        yield class_id, keys[0], tuple(keys[1:])
