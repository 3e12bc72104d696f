"""The result record: what one test run on one fold leaves behind, as one JSON file (documented in docs/records.md).

Every field is required, so a record either says where its numbers come from or does not exist. Reading needs neither
torch nor pyarrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar

from fssbench.errors import UserError, nearest
from fssbench.files import sha256_text
from fssbench.metrics.scores import COUNTS, iou_scores
from fssbench.results.fields import Checked, check_plain, from_json, shown, to_json
from fssbench.results.migration import migrated

SCHEMA_VERSION = 2
"""Version of the record and of the episode table; raised whenever a field is added, removed or changes its meaning.
Files of older versions are brought up to it when they are read (`fssbench.results.migration`)."""

UNKNOWN = "unknown"
"""What a metadata field says where its author does not know; leaving the field out is not possible."""

VOCABULARY: dict[str, tuple[str, ...]] = {
    "track": ("strict", "training-free", "test-time-tuning", "in-domain", "generalist", "text", "vos-memory"),
    "contamination": (
        "none",
        "unlabelled images",
        "image labels",
        "class-agnostic masks",
        "class-labelled other classes",
        "in-domain",
    ),
    "selection": ("best-on-test (legacy)", "base-selected", "val-split", "last", "not trained"),
    "training_policy": ("keep-as-background", "drop-image", "ignore-pixels", "not trained"),
    "kshot_mode": ("joint", "vote", "average", "separate-model"),
    "support_sampling": ("distinct", "with replacement"),
}
"""Words allowed in the metadata fields that the board compares (protocols.md section 7), besides `unknown`."""

ORIGINS = ("fssbench", "external")
"""Who made the predictions: fssbench itself, or another program whose masks `fssbench score` counted."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")

pixel_counts = attrgetter(*COUNTS)
"""The four counts of a `ClassScore` or `EpisodeRow`, in the order of `COUNTS`."""


def counted_at(resolution: str) -> str:
    """A resolution of a key in words: `original size`, `400 px square`, `473 px padded square`."""
    if resolution == "original":
        return "original size"
    side = resolution.removesuffix("-pad")
    return f"{side} px square" if side == resolution else f"{side} px padded square"


@dataclass(frozen=True, kw_only=True)
class Key(Checked):
    """What identifies a result: two results with the same key are the same experiment."""

    group: ClassVar[str] = "key"
    dataset: str
    protocol: str
    """Protocol profile, e.g. `clean-v1`."""
    protocol_version: int
    """Version of the protocol's definition."""
    fold: int
    shot: int
    """Number of supports K."""
    manifest_sha256: str
    """SHA-256 of the episode manifest file."""
    method: str
    """Display name, e.g. `comp`."""
    config_hash: str
    """`config_hash` of `provenance.method_config`."""
    weights_sha256: str | None
    """SHA-256 over names, types, shapes and bytes of all weights under test, frozen ones included; null where there are
    none (predictions of another code base)."""
    resolution: str
    """Where pixels are counted: `original`, the side of a legacy square such as `400`, or a padded one such as `473-pad`."""
    seed: int
    """Seed of the run (training and whatever the method draws); the episodes' own seed is part of the manifest."""

    def _check(self) -> None:
        for name in ("dataset", "protocol", "method", "resolution"):
            self.require(
                _NAME.fullmatch(getattr(self, name)) is not None,
                name,
                "letters, digits, '.', '_', '+' and '-' only (it becomes a file name)",
            )
        for name, least in (("protocol_version", 0), ("fold", 0), ("shot", 1), ("seed", 0)):
            self.require(getattr(self, name) >= least, name, f"at least {least}")
        _require_sha256(self, "manifest_sha256", "config_hash", "weights_sha256")


@dataclass(frozen=True, kw_only=True)
class ClassScore(Checked):
    """One novel class: its IoU and the pixel counts it follows from, summed over its episodes."""

    group: ClassVar[str] = "class_iou"
    name: str
    iou: float
    episodes: int
    distinct_queries: int
    """Different query images among the episodes; smaller than `episodes` where a class has few images."""
    fg_intersection: int
    fg_union: int
    bg_intersection: int
    bg_union: int

    def _check(self) -> None:
        counted = 0 <= self.fg_intersection <= self.fg_union and 0 <= self.bg_intersection <= self.bg_union
        if counted and 1 <= self.distinct_queries <= self.episodes:
            return  # a board reads millions of these: what is wrong is only asked where something is
        self.require(self.episodes >= 1, "episodes", "at least 1 (an mIoU over fewer classes is not comparable)")
        self.require(1 <= self.distinct_queries <= self.episodes, "distinct_queries", f"1 to {self.episodes}")
        for part in ("fg", "bg"):
            union = getattr(self, f"{part}_union")
            self.require(0 <= getattr(self, f"{part}_intersection") <= union, f"{part}_intersection", f"0 to {union}")


@dataclass(frozen=True, kw_only=True)
class Scores(Checked):
    """The numbers; all IoUs are unrounded fractions in [0, 1]."""

    group: ClassVar[str] = "scores"
    miou: float
    fb_iou: float
    episodes: int
    class_iou: dict[int, ClassScore]
    """Class id -> class score, for every novel class of the fold; ids are text in JSON."""

    def _check(self) -> None:
        self.require(bool(self.class_iou), "class_iou", "at least one class")
        follows = iou_scores(
            {c: pixel_counts(score) for c, score in self.class_iou.items()},
            {c: score.episodes for c, score in self.class_iou.items()},
        )
        for c, score in self.class_iou.items():
            if score.iou != follows["class_iou"][c]:
                expected = follows["class_iou"][c]
                raise UserError(f"scores.class_iou[{c}].iou is {score.iou!r}, but its counts give {expected!r}")
        self.require(self.miou == follows["miou"], "miou", f"{follows['miou']!r}, which the class counts give")
        self.require(self.fb_iou == follows["fb_iou"], "fb_iou", f"{follows['fb_iou']!r}, which the class counts give")
        episodes = sum(follows["episodes_per_class"].values())
        self.require(self.episodes == episodes, "episodes", f"{episodes}, the sum over the classes")


@dataclass(frozen=True, kw_only=True)
class Cost(Checked):
    """What the numbers cost; null where it is not known (older records, predictions of another program)."""

    group: ClassVar[str] = "cost"
    parameters: int | None
    """Weights of the whole method, frozen ones included."""
    trained_parameters: int | None
    """Those of them that training changes; 0 without training."""
    seconds_per_episode: float | None
    """Mean of the episode table's `seconds`: forward pass to counted mask, without reading the data."""
    peak_memory: int | None
    """Largest memory in bytes during the test, of one process: allocated on the GPU, or resident without one."""

    def _check(self) -> None:
        for name, value in vars(self).items():
            self.require(value is None or value >= 0, name, "0 or more, or null")
        if self.parameters is not None and self.trained_parameters is not None:
            self.require(self.trained_parameters <= self.parameters, "trained_parameters", f"up to {self.parameters}")


@dataclass(frozen=True, kw_only=True)
class Metadata(Checked):
    """What a reader must know before comparing two numbers (protocols.md section 7); the same on all folds of a row.

    Text fields may say `unknown`; those in `VOCABULARY` are otherwise limited to its words.
    """

    group: ClassVar[str] = "metadata"
    n_folds: int
    """Folds of the data set: a board row is complete with this many."""
    class_partition: str
    """How classes are dealt to folds, e.g. `interleaved` or `contiguous` for COCO-20i."""
    method_class: str
    """Import path of the method's class."""
    track: str
    contamination: tuple[str, ...]
    """What the pre-training data have in common with the test data; several where several apply."""
    supervision: str
    """Annotations used beyond the fold's base classes, or `none`."""
    selection: str
    """How the checkpoint was chosen."""
    training_policy: str
    """What was done with novel-class pixels in training images."""
    base_knowledge_at_test: bool | str
    """Whether the method uses the fold's base classes while testing."""
    kshot_mode: str
    """How K supports are used: read by one model (`joint`), votes or averages of 1-shot runs, or a separate model."""
    support_sampling: str
    hyper_parameters: str
    """One setting for all data sets, or per data set and shot, and how it was chosen."""
    uses_text: bool | str
    """Whether class names or a language model are an input."""
    backbone: str
    backbone_pretraining: str

    def _check(self) -> None:
        self.require(self.n_folds >= 1, "n_folds", "at least 1")
        for name in ("base_knowledge_at_test", "uses_text"):
            flag = getattr(self, name)
            self.require(isinstance(flag, bool) or flag == UNKNOWN, name, "true, false or 'unknown'")
        for name, words in VOCABULARY.items():
            value = getattr(self, name)
            for word in (value,) if isinstance(value, str) else value:
                if word not in (*words, UNKNOWN):
                    raise UserError(f"metadata.{name} is {shown(word)}, not a known word.{_valid(word, words)}")
        for name, value in vars(self).items():
            self.require(value != "", name, "some text, 'unknown' where it is not known")
        several = bool(self.contamination) and not {"none", UNKNOWN} & set(self.contamination)
        self.require(several or len(self.contamination) == 1, "contamination", "words; 'none' and 'unknown' only alone")


@dataclass(frozen=True, kw_only=True)
class Provenance(Checked):
    """How to make the numbers again."""

    group: ClassVar[str] = "provenance"
    origin: str
    """One of `ORIGINS`."""
    command: tuple[str, ...]
    """The command line, word by word."""
    config: dict[str, Any]
    """The full resolved configuration."""
    method_config: dict[str, Any]
    """The part of it that defines the method (class and settings); `key.config_hash` is its hash."""
    checkpoint: str | None
    checkpoint_sha256: str | None
    backbone_sha256: str | None
    """SHA-256 of the backbone's weights file, null where it is not known."""
    code_version: str
    git_commit: str | None
    libraries: dict[str, str]
    """Distribution name -> version."""
    python: str
    platform: str
    device: str
    dtype: str
    """Precision of the forward pass, e.g. `float32` or `bf16-mixed`; counting is always int64."""
    processes: int
    """Processes that shared the episodes; must not change any number."""
    started: str
    finished: str
    """ISO 8601 with the offset of UTC, e.g. `2026-11-21T01:20:29+00:00`."""
    seconds: float
    """Wall-clock time of the test."""
    image_lists: dict[str, str]
    """Name of an image list -> SHA-256, e.g. of the test candidates and of the training images."""
    episodes_sha256: str | None
    """SHA-256 of the canonical episode text (protocols.md 2.3), null for a protocol without one."""
    mask_renderer: str
    image_filter: str
    network_input: tuple[int, int] | None
    """Height and width of the network input in pixels; None where it is not known (predictions of another program)."""
    interpolation: dict[str, str]
    """What was resized (image, mask, logits, ...) -> identifier of the rule and its implementation."""
    skipped: tuple[str, ...]
    """Episodes that failed or were patched, and other events that a reader must know; empty for a clean run."""

    def _check(self) -> None:
        self.require(self.origin in ORIGINS, "origin", " or ".join(ORIGINS))
        self.require(self.processes >= 1, "processes", "at least 1")
        self.require(self.seconds >= 0, "seconds", "0 or more")
        sides = self.network_input
        self.require(
            sides is None or (len(sides) == 2 and min(sides) > 0), "network_input", "height and width in pixels"
        )
        paired = (self.checkpoint is None) == (self.checkpoint_sha256 is None)
        self.require(paired, "checkpoint_sha256", "a hash where there is a checkpoint, null where there is none")
        _require_sha256(self, "checkpoint_sha256", "backbone_sha256", "episodes_sha256")
        for name, value in self.image_lists.items():
            if not _SHA256.fullmatch(value):
                raise UserError(f"provenance.image_lists[{name}] is {shown(value)}, expected a lower-case SHA-256")
        for name in ("started", "finished"):
            self.require(_is_utc(getattr(self, name)), name, "ISO 8601 in UTC such as 2026-11-21T01:20:29+00:00")
        ordered = datetime.fromisoformat(self.finished) >= datetime.fromisoformat(self.started)
        self.require(ordered, "finished", f"not before started, {self.started}")


@dataclass(frozen=True, kw_only=True)
class ResultRecord(Checked):
    """One test run on one fold."""

    group: ClassVar[str] = "record"
    schema_version: int = SCHEMA_VERSION
    key: Key
    scores: Scores
    cost: Cost
    metadata: Metadata
    provenance: Provenance

    def _check(self) -> None:
        self.require(self.schema_version == SCHEMA_VERSION, "schema_version", str(SCHEMA_VERSION))
        if self.key.fold >= self.metadata.n_folds:
            last = self.metadata.n_folds - 1
            raise UserError(f"key.fold is {self.key.fold}, expected 0 to {last} (metadata.n_folds)")
        expected = config_hash(self.provenance.method_config)
        if self.key.config_hash != expected:
            raise UserError(f"key.config_hash is {self.key.config_hash}, but provenance.method_config gives {expected}")

    def to_text(self) -> str:
        """The JSON file's content."""
        return json.dumps(to_json(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_record(path: str | Path) -> ResultRecord:
    """Read and check a record; one of an older schema version comes back as one of the present version.

    Raises:
        UserError: the file is missing, is not JSON, or breaks the schema; names the file and the field.
    """
    try:
        data = json.loads(Path(path).read_bytes().decode("utf-8"))
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise UserError(f"schema_version is {version}, this fssbench reads up to {SCHEMA_VERSION}: update fssbench")
        return from_json(ResultRecord, migrated(data), "record")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}. Check the path and permissions.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore it or run the test again.") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a configuration's canonical JSON: keys sorted, no spaces, UTF-8, numbers as Python writes them.

    The order of keys does not matter; `1` and `1.0` differ, as do a list in another order.

    Raises:
        UserError: a value that plain JSON cannot hold, by key.
    """
    config = dict(config)
    check_plain(config, "config")
    return sha256_text(json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def _require_sha256(group: Checked, *names: str) -> None:
    for name in names:
        value = getattr(group, name)
        group.require(value is None or _SHA256.fullmatch(value) is not None, name, "a SHA-256 in lower-case hex")


def _is_utc(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta(0)
    except ValueError:
        return False


def _valid(word: str, words: tuple[str, ...]) -> str:
    hint = nearest(word, (*words, UNKNOWN))
    return hint if "Valid" in hint else f"{hint} Valid: {', '.join(words)}, {UNKNOWN}."
