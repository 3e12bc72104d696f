"""What the board needs of one record: a flat excerpt, cheap to keep for very many results."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fssbench.results.record import Key, Metadata, ResultRecord

KEY_NAMES = tuple(field.name for field in fields(Key))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record's key, scores, cost and origin; the names and meanings are those of `ResultRecord`."""

    dataset: str
    protocol: str
    protocol_version: int
    fold: int
    shot: int
    manifest_sha256: str
    method: str
    config_hash: str
    weights_sha256: str | None
    resolution: str
    seed: int
    miou: float
    fb_iou: float
    episodes: int
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    class_ious: tuple[float, ...]
    class_episodes: tuple[int, ...]
    class_pixels: tuple[int, ...]
    """Pixels that were counted in the class's episodes: the same for every method that was scored on the same masks."""
    parameters: int | None
    trained_parameters: int | None
    seconds_per_episode: float | None
    peak_memory: int | None
    device: str
    dtype: str
    origin: str
    finished: str
    metadata: Metadata
    path: str = ""
    """Of the JSON file below the results folder; empty for a record that is in none."""

    @classmethod
    def of(cls, record: ResultRecord, path: str = "") -> Entry:
        """The excerpt of a record."""
        classes = record.scores.class_iou
        scores = classes.values()
        return cls(
            **vars(record.key),
            miou=record.scores.miou,
            fb_iou=record.scores.fb_iou,
            episodes=record.scores.episodes,
            class_ids=tuple(classes),
            class_names=tuple([score.name for score in scores]),
            class_ious=tuple([score.iou for score in scores]),
            class_episodes=tuple([score.episodes for score in scores]),
            class_pixels=tuple([score.fg_union + score.bg_intersection for score in scores]),
            **vars(record.cost),
            device=record.provenance.device,
            dtype=record.provenance.dtype,
            origin=record.provenance.origin,
            finished=record.provenance.finished,
            metadata=record.metadata,
            path=path,
        )

    def same_result(self, other: Entry) -> bool:
        """Whether two entries are one result, found in two stores perhaps: same key, same scores."""
        names = (*KEY_NAMES, "miou", "fb_iou", "class_ids", "class_ious", "class_episodes")
        return all(getattr(self, name) == getattr(other, name) for name in names)
