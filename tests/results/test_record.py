"""The record: what it accepts, what it refuses by name, and that it survives the way to JSON and back."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fssbench.errors import UserError
from fssbench.metrics.scores import mean
from fssbench.results.record import Cost, ResultRecord, config_hash, read_record
from fssbench.results.table import recompute
from tests.results.make import make_record, make_rows

Edit = Callable[[dict[str, Any]], Any]


def _read_edited(folder: Path, edit: Edit) -> ResultRecord:
    data = json.loads(make_record().to_text())
    edit(data)
    path = folder / "result.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return read_record(path)


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    record = make_record(
        command=("fssbench", "tést"), checkpoint="a.ckpt", checkpoint_sha256="0" * 64, uses_text="unknown"
    )
    path = tmp_path / "result.json"
    path.write_text(record.to_text(), encoding="utf-8")
    assert read_record(path) == record
    assert read_record(path).to_text() == record.to_text()


def test_json_is_grouped_and_class_ids_are_text() -> None:
    data = json.loads(make_record().to_text())
    assert list(data) == ["schema_version", "key", "scores", "cost", "metadata", "provenance"]
    assert data["schema_version"] == 2
    assert data["scores"]["class_iou"]["3"] == {
        "name": "bird",
        "iou": 0.205,
        "episodes": 2,
        "distinct_queries": 1,
        "fg_intersection": 41,
        "fg_union": 200,
        "bg_intersection": 1800,
        "bg_union": 1959,
    }
    assert data["scores"]["miou"] == (0.205 + 0.285) / 2


def test_a_whole_number_where_a_fraction_is_expected_is_read(tmp_path: Path) -> None:
    """Other programs write 2.0 as 2."""
    assert _read_edited(tmp_path, lambda d: d["provenance"].update(seconds=2)).provenance.seconds == 2.0


REFUSED: dict[str, tuple[Edit, str]] = {
    "newer version": (lambda d: d.update(schema_version=3), "schema_version is 3.*reads up to 2: update"),
    "no version": (lambda d: d.pop("schema_version"), "record.schema_version is missing"),
    "version zero": (lambda d: d.update(schema_version=0), "record.schema_version is 0"),
    "missing group": (lambda d: d.pop("metadata"), "record.metadata is missing"),
    "missing field": (lambda d: d["key"].pop("seed"), "record.key.seed is missing"),
    "extra field": (lambda d: d["key"].update(sed=1), r"record.key.sed is not a known field. Did you mean 'seed'\?"),
    "text for a number": (lambda d: d["key"].update(fold="0"), r"key.fold is '0' \(str\), expected a whole number"),
    "true for a number": (lambda d: d["key"].update(fold=True), "key.fold is True, expected a whole number"),
    "fraction for a number": (lambda d: d["key"].update(shot=1.5), "key.shot is 1.5"),
    "text for a flag": (lambda d: d["metadata"].update(uses_text="no"), "metadata.uses_text is 'no'.*'unknown'"),
    "list for a group": (lambda d: d.update(key=[]), r"record.key is \[\]"),
    "null for a text": (lambda d: d["metadata"].update(backbone=None), "metadata.backbone is None, expected text"),
    "empty text": (lambda d: d["metadata"].update(supervision=""), "metadata.supervision is ''.*'unknown' where"),
    "path in a name": (lambda d: d["key"].update(method="../x"), "key.method is '../x'"),
    "negative fold": (lambda d: d["key"].update(fold=-1), "key.fold is -1"),
    "fold that is not there": (lambda d: d["key"].update(fold=4), "key.fold is 4, expected 0 to 3"),
    "upper-case hash": (lambda d: d["key"].update(manifest_sha256="A" * 64), "key.manifest_sha256.*lower-case hex"),
    "hash of a list": (
        lambda d: d["provenance"]["image_lists"].update(test="1"),
        r"provenance.image_lists\[test\] is '1'",
    ),
    "unknown word": (lambda d: d["metadata"].update(track="strikt"), "metadata.track is 'strikt'.*mean 'strict'"),
    "none and another": (
        lambda d: d["metadata"].update(contamination=["none", "image labels"]),
        "metadata.contamination.*only alone",
    ),
    "no contamination": (lambda d: d["metadata"].update(contamination=[]), "metadata.contamination"),
    "NaN score": (
        lambda d: d["scores"].update(miou=float("nan")),
        r"scores.miou is nan \(float\), expected a finite number",
    ),
    "NaN in config": (lambda d: d["provenance"]["config"].update(lr=float("nan")), "provenance.config.*lr.* is nan"),
    "rounded mIoU": (
        lambda d: d["scores"].update(miou=0.25),
        "scores.miou is 0.25.*0.245, which the class counts give",
    ),
    "other FB-IoU": (lambda d: d["scores"].update(fb_iou=0.9), "scores.fb_iou is 0.9"),
    "other class IoU": (lambda d: d["scores"]["class_iou"]["7"].update(iou=0.5), r"class_iou\[7\].iou is 0.5.*0.285"),
    "other count": (lambda d: d["scores"]["class_iou"]["7"].update(fg_union=201), r"class_iou\[7\].iou is 0.285"),
    "other background": (lambda d: d["scores"]["class_iou"]["7"].update(bg_union=1999), "scores.fb_iou"),
    "other episodes": (lambda d: d["scores"].update(episodes=5), "scores.episodes is 5.*expected 4"),
    "lost class": (lambda d: d["scores"]["class_iou"].pop("7"), "scores.miou"),
    "no class": (lambda d: d["scores"].update(class_iou={}), "scores.class_iou"),
    "class without episodes": (
        lambda d: d["scores"]["class_iou"]["7"].update(episodes=0, distinct_queries=0),
        "class_iou.episodes is 0",
    ),
    "more queries than episodes": (
        lambda d: d["scores"]["class_iou"]["7"].update(distinct_queries=3),
        "distinct_queries is 3",
    ),
    "intersection above union": (
        lambda d: d["scores"]["class_iou"]["7"].update(fg_intersection=201),
        "fg_intersection is 201",
    ),
    "class without a count": (
        lambda d: d["scores"]["class_iou"]["7"].pop("bg_union"),
        r"record.scores.class_iou\[7\].bg_union is missing",
    ),
    "class with another field": (
        lambda d: d["scores"]["class_iou"]["7"].update(fg_unoin=1),
        r"class_iou\[7\].fg_unoin is not a known field. Did you mean 'fg_union'",
    ),
    "class with a field for another": (
        lambda d: d["scores"]["class_iou"]["7"].update(fg_unoin=d["scores"]["class_iou"]["7"].pop("fg_union")),
        r"class_iou\[7\].fg_union is missing",
    ),
    "text for a count": (
        lambda d: d["scores"]["class_iou"]["7"].update(fg_union="200"),
        r"class_iou.fg_union is '200' \(str\), expected a whole number",
    ),
    "true for a count": (lambda d: d["scores"]["class_iou"]["7"].update(episodes=True), "class_iou.episodes is True"),
    "NaN in a class": (
        lambda d: d["scores"]["class_iou"]["7"].update(iou=float("nan")),
        r"class_iou.iou is nan \(float\), expected a finite number",
    ),
    "list for a class": (lambda d: d["scores"]["class_iou"].update({"7": [1]}), r"class_iou\[7\] is \[1\]"),
    "class id that is no number": (
        lambda d: d["scores"]["class_iou"].update(car=d["scores"]["class_iou"].pop("7")),
        "class_iou has the key 'car'",
    ),
    "another configuration": (
        lambda d: d["provenance"]["method_config"]["init_args"].update(threshold=0.6),
        "key.config_hash is .* but provenance.method_config gives",
    ),
    "local time": (lambda d: d["provenance"].update(started="2026-11-21T01:20:29"), "provenance.started.*UTC"),
    "end before start": (
        lambda d: d["provenance"].update(finished="2026-11-21T01:20:28+00:00"),
        "provenance.finished.*not before",
    ),
    "checkpoint without hash": (lambda d: d["provenance"].update(checkpoint="a.ckpt"), "provenance.checkpoint_sha256"),
    "one side of the input": (lambda d: d["provenance"].update(network_input=[518]), "provenance.network_input"),
    "number in a list of texts": (lambda d: d["provenance"].update(command=["x", 1]), r"provenance.command\[1\] is 1"),
    "trained more than there is": (
        lambda d: d["cost"].update(trained_parameters=10**9),
        "cost.trained_parameters is 1000000000",
    ),
    "negative memory": (lambda d: d["cost"].update(peak_memory=-1), "cost.peak_memory is -1"),
    "unknown origin": (lambda d: d["provenance"].update(origin="web"), "provenance.origin is 'web'.*external"),
    "no processes": (lambda d: d["provenance"].update(processes=0), "provenance.processes is 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_file_and_field(tmp_path: Path, name: str) -> None:
    edit, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        _read_edited(tmp_path, edit)
    assert str(tmp_path / "result.json") in str(error.value)
    assert "\n" not in str(error.value)


def _as_version_1(data: dict[str, Any]) -> None:
    """What version 1 wrote: no cost, no origin."""
    data["schema_version"] = 1
    del data["cost"], data["provenance"]["origin"]


def test_a_record_of_version_1_is_migrated(tmp_path: Path) -> None:
    record = _read_edited(tmp_path, _as_version_1)
    unknown = Cost(parameters=None, trained_parameters=None, seconds_per_episode=None, peak_memory=None)
    assert record == dataclasses.replace(make_record(), cost=unknown)
    assert json.loads(record.to_text())["schema_version"] == 2
    assert json.loads((tmp_path / "result.json").read_text())["schema_version"] == 1, "the file is not touched"
    recompute(record, make_rows())


def test_a_damaged_record_of_version_1_is_named(tmp_path: Path) -> None:
    def edit(data: dict[str, Any]) -> None:
        _as_version_1(data)
        del data["provenance"]["device"]

    with pytest.raises(UserError, match=r"record\.provenance\.device is missing"):
        _read_edited(tmp_path, edit)
    for group in ("provenance", "key"):
        with pytest.raises(UserError, match=f"record.{group} is "):
            _read_edited(tmp_path, lambda data, group=group: (_as_version_1(data), data.update({group: 1})))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"schema_version": 1', b"[" * 100_000])
def test_damaged_json_is_refused_by_file_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"result\.json is not JSON"):
        read_record(path)


@pytest.mark.parametrize("content", ["[]", "1", "null", '"text"'])
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"result\.json: record is .*expected an object"):
        read_record(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Cannot read .*absent\.json: No such file"):
        read_record(tmp_path / "absent.json")


def test_checks_hold_on_construction_too() -> None:
    record = make_record()
    with pytest.raises(UserError, match=r"key\.shot is 0"):
        dataclasses.replace(record.key, shot=0)
    with pytest.raises(UserError, match=r"provenance\.config\[path\] is PosixPath"):
        dataclasses.replace(record.provenance, config={"path": Path("x")})
    with pytest.raises(UserError, match=r"provenance\.processes is None"):
        dataclasses.replace(record.provenance, processes=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"record\.key is"):
        dataclasses.replace(record, key={"fold": 0})  # type: ignore[arg-type]


def test_config_hash_is_the_sha256_of_canonical_json() -> None:
    canonical = '{"a":[1,2.5,null,true],"b":{"c":"é"}}'
    config = {"b": {"c": "é"}, "a": [1, 2.5, None, True]}
    assert config_hash(config) == hashlib.sha256(canonical.encode()).hexdigest()


def test_config_hash_sees_values_but_not_the_order_of_keys() -> None:
    assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
    different: list[dict[str, Any]] = [
        {"a": 1},
        {"a": 1.0},
        {"a": "1"},
        {"a": True},
        {"a": [1, 2]},
        {"a": [2, 1]},
        {"a": None},
        {},
    ]
    assert len({config_hash(config) for config in different}) == len(different)


@pytest.mark.parametrize("value", [float("inf"), (1, 2), {1: "a"}, {1, 2}, Path("x"), b"x"])
def test_config_hash_refuses_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(UserError, match=r"config\.model\.x"):
        config_hash({"model": {"x": value}})


def test_recompute_gives_the_record_back() -> None:
    rows = make_rows()
    record = make_record(rows)
    assert recompute(record, rows) == record.scores
    assert recompute(record, rows[::-1]) == record.scores


def test_recompute_refuses_another_table() -> None:
    rows = make_rows()
    record = make_record(rows)
    with pytest.raises(UserError, match="differ in seconds_per_episode"):
        recompute(record, [dataclasses.replace(rows[0], seconds=1.0), *rows[1:]])
    with pytest.raises(UserError, match="differ in episodes: 4 against 3"):
        recompute(record, rows[:1] + rows[2:])
    with pytest.raises(UserError, match="differ in class_iou of class 3, 7"):
        recompute(record, make_rows(shift=1))
    with pytest.raises(UserError, match="differ in class_iou of class 7"):
        recompute(record, [*rows[:3], dataclasses.replace(rows[3], query_key="b")])
    with pytest.raises(UserError, match="Episode 0 was counted twice"):
        recompute(record, [*rows, rows[0]])
    with pytest.raises(UserError, match="Episode 3 is of class 8"):
        recompute(record, [*rows[:3], dataclasses.replace(rows[3], class_id=8)])
    with pytest.raises(UserError, match="No episode of class 7"):
        recompute(record, rows[:2])
    with pytest.raises(UserError, match="Episode 0 has 5 supports, the record says 1"):
        recompute(record, make_rows(shot=5))


def test_means_do_not_depend_on_the_order() -> None:
    values = [1e16, 1.0, -1e16]
    assert {mean(order) for order in itertools.permutations(values)} == {1 / 3}
