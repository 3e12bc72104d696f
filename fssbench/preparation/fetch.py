"""Downloads that resume, try mirrors in turn, and are nothing until their hash is right."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fssbench.errors import UserError

_BLOCK = 1 << 20
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Source:
    """One official file.

    file    its name on disk
    makes   patterns below the data set's root, one of which is there once the file is unpacked (or is the file itself)
    urls    mirrors in the order in which they are tried; empty where the source allows no download
    digest  (algorithm, hex) as its publisher or the field states it; None where nobody does
    page    where a person gets it
    """

    file: str
    makes: tuple[str, ...]
    urls: tuple[str, ...] = ()
    digest: tuple[str, str] | None = None
    page: str = ""

    def is_in(self, root: Path) -> bool:
        """Whether what the file makes is in a folder."""
        return any(next(root.glob(pattern), None) for pattern in self.makes)


def verify(path: Path, source: Source) -> str:
    """`algorithm:hex` of a file, checked against its source (SHA-256 where the source states nothing).

    Raises `UserError` where the file is missing or has another hash.
    """
    algorithm, expected = source.digest or ("sha256", "")
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}. Check the path and permissions.") from None
    if expected and found != expected:
        raise UserError(
            f"{path} is damaged, cut off or another file: its {algorithm.upper()} is {found}, expected {expected}. "
            "Delete it and get it again."
        )
    return f"{algorithm}:{found}"


def fetch(source: Source, folder: Path) -> Path:
    """Download a source into `folder`, going on where an earlier try stopped; a file that is there and right is kept.

    Raises `UserError` where no mirror gives a file with the right hash; what came so far stays in `FILE.part`.
    """
    path = folder / source.file
    if path.is_file():
        verify(path, source)
        return path
    if not source.urls:
        raise UserError(
            f"{source.file} cannot be downloaded by a program. Get it from {source.page} and name it with --from FILE."
        )
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{source.file}.part"
    problems = []
    for url in source.urls:
        try:
            _download(url, part)
            verify(part, source)
        except UserError as error:
            part.unlink(missing_ok=True)  # complete, and wrong: nothing to go on from
            problems.append(f"{url}: {str(error).split(': ', 1)[-1]}")
        except (OSError, urllib.error.URLError) as error:
            problems.append(f"{url}: {getattr(error, 'reason', error)}")
        else:
            part.replace(path)
            return path
    raise UserError(
        f"Cannot download {source.file} ({'; '.join(problems)}). Try again, it goes on where it stopped, or get the file "
        f"from {source.page or source.urls[0]} and name it with --from FILE."
    )


def _download(url: str, part: Path) -> None:
    """Append what is missing of `url` to `part`; starts anew where the server cannot resume."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing after what is there
            return
        raise
    with answer:
        resumed = answer.status == 206
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, delay=1) as bar,
        ):
            while block := answer.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the connection broke after {part.stat().st_size} of {total} bytes")
