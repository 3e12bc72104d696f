"""Published image lists: reading the formats in circulation, and data sets made of lists alone.

Formats, plain or gzipped (protocols.md 1.6):

* pairs     `NAME__CC` (PASCAL-5i, iSAID-5i), or `CC NAME` with CC the class id from 1
* pickle    HSNet's COCO files: a dictionary of class number from 0 -> list of names; only plain containers are read
* order     `IMAGE MASK` or `IMAGE` per line: which images there are, and their order
* classes   one class name per line (FSS-1000); read as an order

A list is identified by the SHA-256 of its canonical text: a line `CC NAME` per pair (or the name alone), each ended by
a newline.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fssbench.errors import UserError
from fssbench.files import sha256_text

_JOINED = re.compile(r"(.+)__(\d{1,4})")
_NUMBER = re.compile(r"\d{1,4}")


@dataclass(frozen=True)
class PublishedList:
    """The content of a list file, in file order: `pairs` of (class id, name), or `names` without classes."""

    path: Path
    pairs: tuple[tuple[int, str], ...] = ()
    names: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """SHA-256 of the canonical text; does not depend on file format, compression or line ends."""
        return list_sha256(self.pairs) if self.pairs else names_sha256(self.names)

    def by_class(self) -> dict[int, list[str]]:
        """Class id, ascending -> names in file order."""
        lists: dict[int, list[str]] = {}
        for class_id, name in self.pairs:
            lists.setdefault(class_id, []).append(name)
        return dict(sorted(lists.items()))


def list_sha256(pairs: Iterable[tuple[int, str]]) -> str:
    """SHA-256 of a line `CC NAME` per pair: the identity of an image list in any format."""
    return sha256_text("".join(f"{class_id:02d} {name}\n" for class_id, name in pairs))


def names_sha256(names: Iterable[str]) -> str:
    """SHA-256 of one name per line: the identity of a list without classes."""
    return sha256_text("".join(f"{name}\n" for name in names))


def hsnet_text(pairs: Iterable[tuple[int, str]]) -> str:
    """The pairs as a file in HSNet's format, `NAME__CC` per line, whose bytes can be compared with the published one."""
    return "".join(f"{name}__{class_id:02d}\n" for class_id, name in pairs)


def read_list(path: str | Path) -> PublishedList:
    """Read a list file in any of the formats above.

    Raises `UserError` where it is missing, empty, damaged, of another format, or lists a pair or image twice.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        found = _unpickled(path, content) if content[:1] == b"\x80" else _lines(path, content.decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"The list {path} does not exist. Correct its path.") from None
    except (OSError, EOFError, UnicodeDecodeError, pickle.UnpicklingError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read as an image list ({error}). Download it again.") from None
    entries: tuple[Any, ...] = found.pairs or found.names
    if not entries:
        raise UserError(f"The list {path} is empty. Download it again.")
    if len(set(entries)) < len(entries):
        double = Counter(entries).most_common(1)[0][0]
        raise UserError(f"{path} lists {double} twice. Remove one of the lines.")
    return found


def _lines(path: Path, text: str) -> PublishedList:
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if rows and all(len(row) == 1 and _JOINED.fullmatch(row[0]) for row in rows):
        matches = [_JOINED.fullmatch(row[0]) for row in rows]
        return PublishedList(path, pairs=tuple((int(m[2]), m[1]) for m in matches if m))
    if rows and all(len(row) == 2 and _NUMBER.fullmatch(row[0]) for row in rows):
        return PublishedList(path, pairs=tuple((int(class_id), name) for class_id, name in rows))
    odd = next((number for number, row in enumerate(rows, 1) if len(row) not in (1, 2) or len(row) != len(rows[0])), 0)
    if odd:
        raise UserError(
            f"{path}, entry {odd}: '{' '.join(rows[odd - 1])[:60]}' is not like the first, expected NAME__CC, CC NAME, "
            "IMAGE MASK or IMAGE on every line. Download the list again."
        )
    return PublishedList(path, names=tuple(row[0] for row in rows))


class _PlainUnpickler(pickle.Unpickler):
    """Containers, text and numbers only: a pickle that asks for any class or function is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which no list needs")


def _unpickled(path: Path, content: bytes) -> PublishedList:
    data = _PlainUnpickler(io.BytesIO(content)).load()
    if not isinstance(data, dict) or not all(isinstance(c, int) and isinstance(n, list) for c, n in data.items()):
        raise ValueError("expected a dictionary of class number -> list of names")
    return PublishedList(path, pairs=tuple((c + 1, str(name)) for c, names in sorted(data.items()) for name in names))
