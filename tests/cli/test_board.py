"""`fssbench leaderboard` with its formats, filters and the page with a gallery."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from fssbench.cli import leaderboard, main
from fssbench.cli.gallery import chosen_episodes
from fssbench.results.store import ResultStore
from tests.cli.run import FREE, LOADED, error_line
from tests.results.make import make_record, make_rows

Output = pytest.CaptureFixture[str]


@pytest.fixture
def results(here: Path) -> Path:
    store = ResultStore(here / "results")
    for shot in (1, 5):
        for fold in range(4):
            rows = make_rows(fold, shot)
            store.write(make_record(rows, fold=fold, shot=shot), rows)
    return here / "results"


def test_every_format_holds_the_mean(results: Path, capsys: Output) -> None:
    assert main(["leaderboard", "--format", "csv", "--no-reported"]) == 0
    first = next(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    mean = f"{100 * float(first['miou']):.2f}"
    assert float(first["miou_low"]) < float(first["miou"]) < float(first["miou_high"])
    for style in ("text", "md", "latex", "html"):
        assert main(["leaderboard", "--format", style, "--out", f"board.{style}"]) == 0
        assert mean in Path(f"board.{style}").read_text()
    assert main(["leaderboard", "--format", "json"]) == 0
    capsys.readouterr()


def test_filters(results: Path, capsys: Output) -> None:
    assert main(["leaderboard", "--shot", "5", "--format", "json"]) == 0
    assert [table["shot"] for table in json.loads(capsys.readouterr().out)] == [5]
    assert "No table of dataset 'pascal-5'. Did you mean 'pascal-5i'?" in error_line(
        capsys, ["leaderboard", "--dataset", "pascal-5"]
    )


def test_the_folder_is_a_word_or_an_option(results: Path, capsys: Output) -> None:
    shown = set()
    for where in ([], ["results"], ["--results", "results"]):
        assert main(["leaderboard", *where, "--format", "csv"]) == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1
    assert "results and --results other: give one" in error_line(
        capsys, ["leaderboard", "results", "--results", "other"]
    )


def test_a_record_is_found_below_the_results_folder(results: Path, capsys: Output) -> None:
    path = next(results.rglob("*.json"))
    assert main(["explain", str(path)]) == 0
    told = capsys.readouterr().out
    below = str(path.relative_to(results))
    assert main(["explain", below]) == 0
    assert capsys.readouterr().out == told.replace(str(path), f"results/{below}")
    results.rename("others")
    assert main(["explain", below, "--results", "others"]) == 0
    assert f"fssbench replay others/{below}" in capsys.readouterr().out
    assert f"Cannot read {below}" in error_line(capsys, ["explain", below])


def test_damaged_records_are_named_and_the_board_is_shown(results: Path, capsys: Output) -> None:
    broken = next(results.rglob("fold3_shot5*.json"))
    broken.write_text("{")
    assert main(["leaderboard", "--no-reported"]) == 0
    out, err = capsys.readouterr()
    assert f"left out {broken.relative_to(results.parent)}" in err
    assert "3 of 4 folds; missing 3" in out


def test_mistakes_are_refused(here: Path, capsys: Output) -> None:
    assert "is missing" in error_line(capsys, ["leaderboard"])
    assert "--format html" in error_line(capsys, ["leaderboard", ".", "--gallery", "x.json"])


def test_the_page_shows_a_gallery_of_a_run(fitted: Path, capsys: Output) -> None:
    assert main(["test", *LOADED]) == 0
    record = next(Path("results").rglob("*.json"))
    assert main(["leaderboard", "--format", "html", "--gallery", str(record), "--out", "board.html"]) == 0
    text = Path("board.html").read_text()
    assert len(text) < 10 * 2**20
    assert text.count('src="data:image/jpeg') == 3 * 4 * 4, "best, median, worst; support, query, truth, prediction"
    rows = ResultStore("results").rows_of(record)
    best = max(row.fg_intersection / max(1, row.fg_union) for row in rows)
    captions = re.findall(r"<figcaption>.*?IoU ([\d.]+)", text)
    assert captions[0] == f"{100 * best:.1f}"


def test_a_page_that_is_too_large_is_not_made_in_silence(
    fitted: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["test", *LOADED]) == 0
    record = next(Path("results").rglob("*.json"))
    assert main(["leaderboard", "--format", "html"]) == 0
    monkeypatch.setattr(leaderboard, "PAGE_BYTES", Path("board.html").stat().st_size - 1)
    capsys.readouterr()
    assert main(["leaderboard", "--format", "html"]) == 0
    assert "choose tables with --dataset, --shot or --track" in capsys.readouterr().err
    message = error_line(capsys, ["leaderboard", "--format", "html", "--gallery", str(record)])
    assert "give fewer records to --gallery" in message


def test_a_gallery_needs_what_the_record_names(fitted: Path, capsys: Output) -> None:
    assert main(["test", *FREE, "--name", "free"]) == 0
    record = next(Path("results").rglob("free@*/*.json"))
    page = ["leaderboard", "--format", "html", "--gallery", str(record)]
    assert main(page) == 0
    changed = record.read_text().replace('"images_per_class": 6', '"images_per_class": 7')
    record.write_text(changed)
    assert "give other episodes than the recorded ones" in error_line(capsys, page)


def test_a_gallery_of_a_record_that_is_named_from_its_own_folder(
    here: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["test", *FREE, "--name", "free"]) == 0
    record = next(Path("results").rglob("free@*/*.json"))
    monkeypatch.chdir(record.parent)
    capsys.readouterr()
    page = ["leaderboard", str(here / "results"), "--format", "html", "--gallery", record.name, "--out", "board.html"]
    assert main(page) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, ""), "where the page is, and nothing about files made on the way"
    (name,) = re.findall(r'<a href="#([^"]+)">its record', Path("board.html").read_text())
    assert f'id="{name}"' in Path("board.html").read_text()


@pytest.mark.parametrize(("episodes", "each"), [(4, 1), (7, 2), (12, 4), (100, 4)])
def test_best_median_and_worst_do_not_overlap(episodes: int, each: int) -> None:
    from dataclasses import replace

    base = make_rows()[0]
    rows = [replace(base, episode_id=i, fg_intersection=i, fg_target=None) for i in range(episodes)]
    chosen = chosen_episodes(rows)
    ids = [row.episode_id for part in chosen.values() for row in part]
    assert [len(part) for part in chosen.values()] == [each] * 3
    assert len(set(ids)) == len(ids)
    assert chosen["best"][0].episode_id == episodes - 1
    assert chosen["worst"][-1].episode_id == 0
    assert abs(sum(r.episode_id for r in chosen["median"]) / each - (episodes - 1) / 2) <= 1.5
