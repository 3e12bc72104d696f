"""The leaderboard: what is ranked, what is not and why, and that what is shown says the same in every format."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from dataclasses import replace
from typing import Any

import pytest

from fssbench.errors import UserError
from fssbench.files import sha256_text
from fssbench.results.fields import from_json
from fssbench.results.leaderboard import Row, Table, board
from fssbench.results.record import ResultRecord
from fssbench.results.rendering import FORMATS, Format, render
from fssbench.results.views import SHOWS, Show
from tests.results.make import make_record, make_rows

LONG_NAME = "a-method-with-a-long-name"


def _folds(method: str, shift: int = 0, folds: tuple[int, ...] = (0, 1, 2, 3), **changes: Any) -> list[ResultRecord]:
    """One record per fold; fold f scores f * 2 + shift pixels more in every episode."""
    rows = {fold: make_rows(2 * fold + shift, changes.get("shot", 1)) for fold in folds}
    return [make_record(rows[fold], fold=fold, method=method, **changes) for fold in folds]


def _trained(method: str, weights: list[str | None], **changes: Any) -> list[ResultRecord]:
    """A method trained on base classes, with the given weights per fold."""
    changes = {"track": "strict", "selection": "last", "training_policy": "keep-as-background"} | changes
    return [
        make_record(make_rows(), fold=fold, method=method, weights_sha256=name and sha256_text(name), **changes)
        for fold, name in enumerate(weights)
    ]


def _ranks(table: Table) -> list[tuple[int | None, str]]:
    return [(row.rank, row.method) for row in table.rows]


def _only_row(records: list[ResultRecord]) -> Row:
    (table,) = board(records)
    (row,) = table.rows
    return row


def test_means_over_folds_are_not_rounded() -> None:
    records = _folds("comp")
    row = _only_row(records[::-1])
    scores = [record.scores for record in records]
    assert row.fold_miou == tuple(s.miou for s in scores)
    assert row.miou == pytest.approx(sum(s.miou for s in scores) / 4, abs=1e-15)
    assert row.fb_iou == pytest.approx(sum(s.fb_iou for s in scores) / 4, abs=1e-15)
    assert row.fb_iou != round(row.fb_iou or 0, 6)
    assert (row.rank, row.note, row.episodes) == (1, "", 16)


def test_highest_mean_is_first_and_equal_means_share_a_rank() -> None:
    (table,) = board(_folds("low") + _folds("tie-b", 2) + _folds("tie-a", 2) + _folds("high", 5) + _folds("last", -1))
    assert _ranks(table) == [(1, "high"), (2, "tie-a"), (2, "tie-b"), (4, "low"), (5, "last")]


def test_difference_below_what_is_shown_still_decides() -> None:
    rows = make_rows()
    more = [
        replace(r, fg_union=r.fg_union * 10**6, fg_intersection=r.fg_intersection * 10**6, fg_target=None) for r in rows
    ]
    best = [replace(more[0], fg_intersection=more[0].fg_intersection + 1), *more[1:]]
    (table,) = board([make_record(more, n_folds=1, method="a"), make_record(best, n_folds=1, method="b")])
    assert _ranks(table) == [(1, "b"), (2, "a")]
    assert render([table]).count("24.50 24.50") == 2


def test_missing_folds_are_shown_but_not_ranked() -> None:
    (table,) = board(_folds("whole") + _folds("part", 9, folds=(0, 2)))
    assert _ranks(table) == [(1, "whole"), (None, "part")]
    part = table.rows[1]
    assert part.miou is part.fb_iou is None
    assert part.fold_miou == pytest.approx((0.335, None, 0.375, None))
    assert part.note == "2 of 4 folds; missing 1, 3"


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "coco-20i"},
        {"protocol": "hsnet-compat"},
        {"protocol_version": 2},
        {"resolution": "400"},
        {"shot": 5},
    ],
)
def test_other_tests_have_their_own_table(changes: dict[str, Any]) -> None:
    tables = board(_folds("one") + _folds("two", **changes))
    assert len(tables) == 2
    assert all(len(table.rows) == 1 and table.rows[0].rank == 1 for table in tables)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"method": "two"}, {"method_config": {"class_path": "x"}}])
def test_other_experiments_have_their_own_row(changes: dict[str, Any]) -> None:
    (table,) = board([make_record(fold=fold, **(changes if fold > 1 else {})) for fold in range(4)])
    assert {row.note for row in table.rows} == {"2 of 4 folds; missing 0, 1", "2 of 4 folds; missing 2, 3"}


def test_shots_are_ordered_as_numbers() -> None:
    tables = board([r for shot in (10, 5, 1) for r in _folds("m", shot=shot)])
    assert [table.shot for table in tables] == [1, 5, 10]


def test_other_manifests_are_never_ranked_together() -> None:
    """A difference on a single fold is enough; partial rows go where they do not contradict."""
    other = {fold: sha256_text(f"manifest {fold}") for fold in range(4)} | {2: sha256_text("another")}
    moved = [make_record(make_rows(9), fold=f, method="moved", manifest_sha256=other[f]) for f in range(4)]
    moved_part = [make_record(make_rows(9), fold=2, method="part-of-moved", manifest_sha256=other[2])]
    neither = [make_record(make_rows(9), fold=3, method="neither", manifest_sha256=sha256_text("third"))]
    records = _folds("one") + _folds("two", 1) + _folds("part", folds=(1,)) + moved + moved_part + neither
    expected = [
        [(1, "two"), (2, "one"), (None, "part")],
        [(1, "moved"), (None, "part-of-moved")],
        [(None, "neither")],
    ]
    for order in (records, records[::-1]):
        tables = board(order)
        assert sorted(map(_ranks, tables), key=len, reverse=True) == expected
        assert len({table.manifest_id for table in tables}) == 3
        for table in tables:
            assert all(row.manifests.items() <= table.manifests.items() for row in table.rows)


def test_other_pixels_of_the_same_episodes_are_never_ranked_together() -> None:
    """The manifests agree, but one folder of images and masks was scaled down: fewer pixels were counted."""
    small = [replace(row, bg_intersection=400, bg_union=500 - row.fg_intersection) for row in make_rows()]
    odd = [make_record(small, method="small"), *_folds("small", folds=(1, 2, 3))]
    tables = board(_folds("one") + _folds("two") + odd)
    assert sorted([row.method for row in table.rows] for table in tables) == [["one", "two"], ["small"]]
    assert len({table.manifest_id for table in tables}) == 2
    (one, two) = tables
    assert one.manifests == two.manifests
    assert {t.truth.split(",")[0] for t in tables} == {"16000 pixels counted", "14000 pixels counted"}
    assert render(tables).count("unlike another table of these manifests") == 2
    (alone,) = board(_folds("one") + _folds("two"))
    assert alone.truth == ""


def test_the_board_does_not_depend_on_the_order_of_records() -> None:
    records = _folds("one", folds=(0, 1)) + _folds("two", folds=(2, 3), seed=1)
    boards = [board(order) for order in itertools.permutations(records)]
    assert all(found == boards[0] for found in boards)


def test_weights_differ_where_folds_are_trained() -> None:
    row = _only_row(_trained("comp", ["w0", "w1", "w2", "w3"]))
    assert (row.rank, row.note) == (1, "")
    assert row.weights == {fold: sha256_text(f"w{fold}") for fold in range(4)}


@pytest.mark.parametrize(
    ("weights", "changes", "note"),
    [
        (["w", "w", "w", "w"], {}, "one checkpoint on several folds: novel classes were trained on"),
        (["w0", "w1", "w2", "w1"], {}, "one checkpoint on several folds: novel classes were trained on"),
        (["w0", None, "w2", "w3"], {}, "some folds have weights, others none"),
        (["w", "w", "w", "v"], {"selection": "not trained"}, "not trained, yet weights differ between folds"),
        (["w", "w", "w", "w"], {"selection": "not trained"}, ""),
        (["w", "w", "w", "w"], {"track": "generalist"}, ""),
        ([None, None, None, None], {"selection": "unknown"}, ""),
    ],
)
def test_weights_must_belong_together(weights: list[str | None], changes: dict[str, Any], note: str) -> None:
    row = _only_row(_trained("comp", weights, **changes))
    assert row.note == note
    assert (row.rank is None) == bool(note)
    assert (row.miou is None) == bool(note)


def test_precision_must_agree_between_folds() -> None:
    row = _only_row([*_folds("comp", folds=(0, 1, 2)), *_folds("comp", folds=(3,), dtype="bf16-mixed")])
    assert (row.rank, row.miou) == (None, None)
    assert row.note == "folds differ in precision (bf16-mixed, float32)"


def test_metadata_must_agree_between_folds() -> None:
    records = [make_record(fold=f, selection="last" if f else "best-on-test (legacy)") for f in range(4)]
    assert _only_row(records).note == "folds differ in selection"


def test_the_same_result_twice_is_one_and_two_results_of_a_fold_are_none() -> None:
    records = _folds("comp")
    assert _only_row(records + records).rank == 1
    for other in (
        make_record(make_rows(7), fold=1, method="comp"),
        make_record(make_rows(2), fold=1, method="comp", weights_sha256=sha256_text("w")),
    ):
        row = _only_row([*records, other])
        assert (row.rank, row.note) == (None, "fold 1 has 2 different results; keep one")
        assert row.fold_miou[1] is None


def _example() -> list[Table]:
    """A table of four rows with 1 shot, one with 5 shots that others published numbers for, and one of another track."""
    names = {"comp": 3, LONG_NAME: 5, "prototype": 0}
    legacy = {"selection": "best-on-test (legacy)"}
    records = [r for name, shift in names.items() for r in _folds(name, shift, **legacy)]
    records += _folds("part", folds=(1,), **legacy) + _folds("tuned", track="test-time-tuning")
    records += _folds("comp", dataset="fss-1000", folds=(0,), n_folds=1, shot=5)
    return board(records)


def test_tracks_are_kept_apart() -> None:
    found = {(t.dataset, t.shot, t.track): [row.method for row in t.rows] for t in _example()}
    assert found == {
        ("fss-1000", 5, "training-free"): ["comp"],
        ("pascal-5i", 1, "test-time-tuning"): ["tuned"],
        ("pascal-5i", 1, "training-free"): [LONG_NAME, "comp", "prototype", "part"],
    }


def _shown(format: Format, show: Show = "board") -> str:
    """The example without published numbers."""
    return render(_example(), format, show=show, reported=False)


@pytest.mark.parametrize("show", SHOWS)
def test_text_fits_100_columns_and_is_plain(show: Show) -> None:
    text = _shown("text", show)
    assert text.isascii()
    assert "\x1b" not in text
    if show == "board":
        assert max(map(len, text.splitlines())) <= 100
    assert not any(line != line.rstrip() for line in text.splitlines())
    assert "fss-1000, clean-v1 v1, 5-shot, scored at original size, track training-free, manifests " in text


def test_text_shows_score_and_cost_side_by_side() -> None:
    text = _shown("text")
    (line,) = (line for line in text.splitlines() if line.startswith("2 comp"))
    assert line.split()[3:] == ["27.50", "29.50", "31.50", "33.50", "30.50", "61.67", "86M", "0", "0.25", "1.00"]
    (line,) = (line for line in text.splitlines() if line.startswith("- part"))
    assert line.split()[3:] == ["-", "26.50", "-", "-", "-", "-", "86M", "0", "0.25", "1.00"]
    assert "part@111e31ae seed 0: not ranked, 1 of 4 folds; missing 0, 2, 3." in text
    assert "selection best-on-test (legacy); seed 0; device cpu" in text, "said once, for all rows"


def test_what_rows_do_not_share_becomes_a_column() -> None:
    (table,) = board(_folds("one") + _folds("one", seed=1))
    header = next(line for line in render([table]).splitlines() if line.startswith("#"))
    assert header.split()[:5] == ["#", "method", "config", "seed", "fold0"]


def test_folds_classes_and_cost_have_views_of_their_own() -> None:
    assert "27.50" in _shown("text", "folds")
    lines = [line for line in _shown("text", "classes").splitlines() if line.split()[:3] == ["0", "3", "bird"]]
    assert max(lines, key=len).split()[3:] == ["2", "25.50", "23.50", "20.50", "-"], "the incomplete row has no fold 0"
    assert "cpu" in _shown("text", "cost").split("GiB")[1]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_no_number_is_ever_cut(width: int) -> None:
    """A narrow terminal folds words; a table that still does not fit is wider than the terminal."""
    records = _folds("many-folds", folds=tuple(range(9)), n_folds=9) + _folds(
        LONG_NAME, folds=tuple(range(9)), n_folds=9
    )
    (table,) = board(records)
    line = next(line for line in render([table], width=width).splitlines() if line.startswith("1"))
    assert [cell for cell in line.split() if "." in cell][:9] == [
        f"{100 * miou:.2f}" for miou in table.rows[0].fold_miou if miou
    ]
    assert line.split()[-1] == "1.00"


def test_markdown_has_one_table_per_board() -> None:
    blocks = _shown("md").split("### ")[1:]
    assert len(blocks) == 3
    lines = [line for line in blocks[2].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(f"| 1 | {LONG_NAME} | 111e31ae | 29.50 |")
    assert "- part@111e31ae seed 0: not ranked" in blocks[2]


def test_latex_is_ready_to_paste() -> None:
    text = render(_example(), "latex")
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == text.count("\\toprule") == 5
    for block in text.split("\\begin{tabular}")[1:]:
        head, *rows = [line for line in block.splitlines() if line.endswith(" \\\\")]
        assert {line.count(" & ") for line in rows} == {head.count(" & ")}
        align = block[block.index("{") + 1 : block.index("}")]
        assert len(align) == head.count(" & ") + 1
    assert f"1 & {LONG_NAME} & " in text
    assert "\\textbf{32.50}" in text
    assert "\\textit{Matcher} & \\textit{DINOv2-L + SAM-H}" in text
    assert not re.search(r"(?<!\\)[_&%]", re.sub(" & |^%.*", "", text, flags=re.M))


def test_csv_is_unrounded_and_has_one_header() -> None:
    tables = _example()
    lines = list(csv.DictReader(io.StringIO(render(tables, "csv", reported=False))))
    rows = [row for table in tables for row in table.rows]
    assert [line["method"] for line in lines] == [row.method for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert line["kind"] == "measured"
        assert line["miou"] == ("" if row.miou is None else repr(row.miou))
        told = [line[f"miou_fold{fold}"] for fold in range(4)]
        assert told == ["" if v is None else repr(v) for v in (*row.fold_miou, None, None, None)[:4]]
        assert line["contamination"] == "unlabelled images"
        assert line["note"] == row.note
        assert line["peak_memory"] == str(2**30)


def test_json_is_unrounded_and_can_be_read_back() -> None:
    tables = _example()
    data = json.loads(render(tables, "json"))
    assert [r["miou"] for r in data[2]["rows"]] == [r.miou for r in tables[2].rows]
    assert data[2]["rows"][0]["metadata"]["contamination"] == ["unlabelled images"]
    assert data[2]["manifests"]["3"] == sha256_text("manifest 3")
    assert [from_json(Table, table, "table") for table in data] == tables


def test_reported_numbers_are_told_from_measured_ones() -> None:
    tables = _example()
    text = render(tables)
    assert text.index("reported by others: fss-1000, 5-shot") > text.index("fss-1000, clean-v1")
    assert "not measured here" in text
    assert "reported by others" not in _shown("text")
    lines = list(csv.DictReader(io.StringIO(render(tables, "csv"))))
    (line,) = (line for line in lines if line["method"] == "Matcher" and line["dataset"] == "fss-1000")
    assert (line["kind"], line["rank"], line["miou"], line["shot"]) == ("reported", "", "0.8961", "5")
    assert line["source"] == "arXiv 2305.13310; repository logs; verified"


def test_no_results() -> None:
    found = {format: render([], format) for format in FORMATS}
    assert found == {
        "text": "No results.\n",
        "md": "No results.\n",
        "latex": "% No results.\n",
        "csv": "",
        "json": "[]\n",
    }


def test_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match=r"'jsn' is not known. Did you mean 'json'"):
        render([], "jsn")  # type: ignore[arg-type]


def test_the_cost_of_a_row_is_that_of_all_its_episodes() -> None:
    """Folds may have different numbers of episodes, and needs of memory."""
    few, many = make_rows()[::2], make_rows()
    records = [
        make_record(few, fold=0, n_folds=2, seconds_per_episode=1.0, peak_memory=300),
        make_record(many, fold=1, n_folds=2, seconds_per_episode=0.25, peak_memory=200),
    ]
    row = _only_row(records)
    assert row.seconds_per_episode == pytest.approx((2 * 1.0 + 4 * 0.25) / 6)
    assert row.peak_memory == 300
    assert (row.parameters, row.trained_parameters) == (86_000_000, 0)
    unknown = make_record(many, fold=1, n_folds=2, seconds_per_episode=None, peak_memory=None, parameters=None)
    row = _only_row([records[0], unknown])
    assert row.seconds_per_episode is row.peak_memory is row.parameters is None


def test_one_fold_from_another_program_makes_the_row_external() -> None:
    records = [make_record(fold=fold, n_folds=2, origin=origin) for fold, origin in enumerate(("fssbench", "external"))]
    assert _only_row(records).external
    assert _only_row(records[::-1]).external
    assert not _only_row(records[:1]).external


def test_results_with_equal_means_but_other_classes_are_two_results() -> None:
    rows = make_rows()
    swapped = [replace(row, fg_intersection=other.fg_intersection, bg_union=other.bg_union, fg_target=None)
               for row, other in zip(rows, [*rows[2:], *rows[:2]], strict=True)]  # fmt: skip
    one, other = make_record(rows, n_folds=1), make_record(swapped, n_folds=1)
    assert (one.scores.miou, one.scores.fb_iou) == (other.scores.miou, other.scores.fb_iou)
    assert _only_row([one, other]).note == "fold 0 has 2 different results; keep one"


def test_an_incomplete_row_joins_the_largest_part_it_does_not_contradict() -> None:
    """Two sets of manifests share that of fold 0, the only one of the incomplete row."""
    few, many = sorted(map(sha256_text, ("one", "other")))
    second = {"single": few, "first-of-two": many, "second-of-two": many}
    records = [make_record(method="part", fold=0, n_folds=2)]
    for method, manifest in second.items():
        records.append(make_record(method=method, fold=0, n_folds=2))
        records.append(make_record(method=method, fold=1, n_folds=2, manifest_sha256=manifest))
    for order in (records, records[::-1]):
        assert sorted([row.method for row in table.rows] for table in board(order)) == [
            ["first-of-two", "second-of-two", "part"],
            ["single"],
        ]
