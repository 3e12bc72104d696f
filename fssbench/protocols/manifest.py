"""Episode manifests: the episodes of one evaluation as data, identified by SHA-256.

A manifest is a JSON-lines file: a header line, then one line per episode. Its bytes are a pure function of the data
set's lists, the protocol and the seed. No torch is needed to make, check or show one.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fssbench.dataset import FewShotDataset
from fssbench.errors import TooFewImages, UserError, nearest
from fssbench.files import sha256_text, write_text_whole, written_whole
from fssbench.protocols import clean_v1, draw
from fssbench.protocols.draw import ClassGroup, Episode, SmallClasses
from fssbench.protocols.profiles import is_base, profile_of, protocol_id

__all__ = [
    "ClassGroup",
    "Episode",
    "Manifest",
    "ManifestHeader",
    "SmallClasses",
    "build_manifest",
    "canonical_text",
    "check_manifest",
    "load_manifest",
    "verify_manifest",
]

FORMAT = "fssbench-episodes"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ManifestHeader:
    """What the episodes are: enough to make them again and to keep unlike results apart."""

    dataset: str
    protocol: str
    fold: int
    n_folds: int
    shot: int
    seed: int
    episodes: int
    episodes_per_class: int
    """0 where the protocol does not draw equally many per class."""
    split: str
    image_filter: str
    mask_renderer: str
    classes: dict[str, str]
    """Class id -> name of every class that has episodes."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Class id -> name of novel classes without episodes."""
    episodes_sha256: str = ""
    """SHA-256 of the canonical episode text (protocols.md 2.3), comparable across code bases."""
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def why_left_out(self) -> str:
        """What the classes in `left_out` lack, in words."""
        return f"fewer than {self.shot + 1} images" if profile_of(self.protocol).name == clean_v1.NAME else "no episode"


@dataclass(frozen=True)
class Manifest:
    """A header and its episodes."""

    header: ManifestHeader
    episodes: tuple[Episode, ...]

    def text(self) -> str:
        """The file's whole content (UTF-8, LF, one JSON object per line)."""
        lines = [_dump(asdict(self.header))]
        for number, episode in enumerate(self.episodes):
            lines.append(
                _dump(
                    {
                        "id": number,
                        "class": episode.class_id,
                        "query": episode.query,
                        "supports": list(episode.supports),
                    }
                )
            )
        return "\n".join(lines) + "\n"

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the file; part of every result."""
        return sha256_text(self.text())

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Class ids that have episodes, ascending."""
        return tuple(sorted(int(c) for c in self.header.classes))

    def episodes_per_class(self) -> dict[int, int]:
        """Class id -> number of episodes."""
        return dict(sorted(Counter(e.class_id for e in self.episodes).items()))

    def distinct_queries(self) -> dict[int, int]:
        """Class id -> number of distinct query images."""
        seen = Counter(class_id for class_id, _ in {(e.class_id, e.query) for e in self.episodes})
        return dict(sorted(seen.items()))

    def images(self) -> list[str]:
        """Keys of all images used, sorted."""
        return sorted({key for e in self.episodes for key in (e.query, *e.supports)})

    def save(self, path: str | Path) -> None:
        """Write the manifest, whole or not at all; compressed where the name ends in `.gz`. The hash is that of the text."""
        if Path(path).suffix == ".gz":
            with written_whole(path) as temporary:
                temporary.write_bytes(gzip.compress(self.text().encode(), mtime=0))
        else:
            write_text_whole(path, self.text())


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def canonical_text(dataset: FewShotDataset, episodes: tuple[Episode, ...] | list[Episode]) -> str:
    """`LABEL QUERY S1 ... SK` per episode, joined by newlines, without a trailing one (protocols.md 2.3)."""
    return "\n".join(
        " ".join([dataset.label(e.class_id), *map(dataset.episode_name, (e.query, *e.supports))]) for e in episodes
    )


def build_manifest(
    dataset: FewShotDataset,
    fold: int,
    shot: int,
    seed: int | None = None,
    episodes_per_class: int | None = None,
    classes: ClassGroup = "novel",
    small_classes: SmallClasses = "error",
    protocol: str = clean_v1.NAME,
    episodes: int | None = None,
) -> Manifest:
    """Make the episodes of a fold.

    seed                None = the protocol's own
    episodes_per_class  `clean-v1` only; None = the data set's own number
    classes             `novel` for testing; `base` (`clean-v1` only) for honest validation during training
    small_classes       `clean-v1`: a class with fewer than K + 1 candidates is an `error`, or is left out and listed in
                        the header
    protocol            a name in `PROFILES`
    episodes            compat protocols only: episodes of the fold; None = the protocol's own number. Classes that are in
                        none of them are listed in the header

    Raises `UserError` for an unknown fold or protocol, a bad number, or too small a class.
    """
    if not 0 <= fold < dataset.n_folds:
        raise UserError(f"{dataset.name} has folds 0 to {dataset.n_folds - 1}, not {fold}.")
    if shot < 1:
        raise UserError(f"The number of supports must be at least 1, not {shot}.")
    for name, number in (("episodes_per_class", episodes_per_class), ("episodes", episodes)):
        if number is not None and number < 1:
            raise UserError(f"{name} must be at least 1, not {number}.")
    dataset = dataset.for_shot(shot)
    profile = profile_of(protocol)
    if profile.name not in dataset.protocols:
        raise UserError(
            f"{profile.name} is not defined for {dataset.name}.{nearest(profile.name, dataset.protocols)} "
            "Choose one of these protocols."
        )
    seed = profile.default_seed if seed is None else seed
    identity = protocol_id(profile.name, seed, classes)
    if profile.name == clean_v1.NAME:
        if episodes is not None:
            raise UserError("clean-v1 draws equally many episodes per class: give episodes_per_class, not episodes.")
        per_class = dataset.episodes_per_class if episodes_per_class is None else episodes_per_class
        drawn, left_out = draw.clean(dataset, fold, shot, seed, per_class, classes, small_classes)
    else:
        if episodes_per_class is not None or classes == "base":
            raise UserError(f"{profile.name} does not draw per class: give episodes, not episodes_per_class.")
        per_class = 0
        drawn = draw.compat(profile.name, dataset, fold, shot, seed, episodes)
        left_out = sorted(set(dataset.novel_classes(fold)) - {episode.class_id for episode in drawn})
    if not drawn:
        raise TooFewImages(
            f"No {classes} class of {dataset.name} fold {fold} has the {shot + 1} images that {shot}-shot needs. Use fewer "
            "shots, or add images."
        )
    used = dict.fromkeys(episode.class_id for episode in drawn)
    header = ManifestHeader(
        dataset=dataset.name,
        protocol=identity,
        fold=fold,
        n_folds=dataset.n_folds,
        shot=shot,
        seed=seed,
        episodes=len(drawn),
        episodes_per_class=per_class,
        split="test",
        image_filter=dataset.image_filter,
        mask_renderer=dataset.mask_renderer,
        classes={str(c): dataset.class_names[c] for c in draw.in_order(dataset, used)},
        left_out={str(c): dataset.class_names[c] for c in left_out},
        episodes_sha256=sha256_text(canonical_text(dataset, drawn)),
    )
    return Manifest(header, tuple(drawn))


def load_manifest(path: str | Path) -> Manifest:
    """Read and check a manifest file.

    Raises `UserError`, naming the file and line, where it is missing, damaged, of another version, or inconsistent.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        lines = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(
            f"Cannot read the episode manifest {path}: {error}. Make one with `fssbench episodes build`."
        ) from None
    number = 0
    try:
        header = _header(json.loads(lines[0]))
        episodes = []
        for number, line in enumerate(lines[1:], start=1):
            row = json.loads(line)
            if row["id"] != number - 1:
                raise ValueError(f"episode id {row['id']} where {number - 1} was expected")
            episodes.append(Episode(int(row["class"]), str(row["query"]), tuple(map(str, row["supports"]))))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{path}, line {number + 1}: not an episode manifest ({error}). Make it again with `fssbench episodes build`."
        ) from None
    manifest = Manifest(header, tuple(episodes))
    problems = check_manifest(manifest)
    if problems:
        raise UserError(f"{path}: {problems[0]}. Make it again with `fssbench episodes build`.")
    return manifest


def _header(row: dict[str, Any]) -> ManifestHeader:
    if row.get("format") != FORMAT:
        raise ValueError(f"the first line lacks format '{FORMAT}'")
    if row.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"format version {row.get('format_version')}, this fssbench reads {FORMAT_VERSION}")
    known = {f.name for f in fields(ManifestHeader)}
    if set(row) != known:
        raise ValueError(f"header keys differ: {sorted(set(row) ^ known)}")
    return ManifestHeader(**row)


def check_manifest(manifest: Manifest) -> list[str]:
    """What is inconsistent inside a manifest, one sentence each; empty if nothing is."""
    header, problems = manifest.header, []
    distinct = profile_of(header.protocol).distinct_supports
    if header.episodes != len(manifest.episodes):
        problems.append(f"the header announces {header.episodes} episodes, the file holds {len(manifest.episodes)}")
    for number, episode in enumerate(manifest.episodes):
        if len(episode.supports) != header.shot:
            problems.append(f"episode {number} has {len(episode.supports)} supports instead of {header.shot}")
        elif episode.query in episode.supports:
            problems.append(f"episode {number} has its query among its supports")
        elif distinct and len(set(episode.supports)) < len(episode.supports):
            problems.append(f"episode {number} repeats a support")
        elif str(episode.class_id) not in header.classes:
            problems.append(f"episode {number} is of class {episode.class_id}, which the header does not name")
    return problems


def verify_manifest(manifest: Manifest, dataset: FewShotDataset) -> list[str]:
    """Differences between a manifest and the one that `dataset` gives now, one sentence each; empty if identical."""
    header = manifest.header
    problems = check_manifest(manifest)
    if header.dataset != dataset.name:
        return [*problems, f"it is of {header.dataset}, the data set is {dataset.name}"]
    per_class = header.episodes_per_class or None
    expected = build_manifest(
        dataset,
        header.fold,
        header.shot,
        header.seed,
        per_class,
        classes="base" if is_base(header.protocol) else "novel",
        small_classes="leave-out" if header.left_out else "error",
        protocol=header.protocol,
        episodes=None if per_class else header.episodes,
    )
    for name in (f.name for f in fields(ManifestHeader)):
        mine, theirs = getattr(header, name), getattr(expected.header, name)
        if mine != theirs:
            problems.append(f"{name} is {mine!r}, the data give {theirs!r}")
    different = [i for i, (a, b) in enumerate(zip(manifest.episodes, expected.episodes, strict=False)) if a != b]
    if different:
        problems.append(f"{len(different)} episodes differ, the first is number {different[0]}")
    return problems
