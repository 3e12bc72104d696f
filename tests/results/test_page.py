"""The page: one file that asks nobody for anything, and does in a real browser what it promises."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fssbench.results.boards import Board, load_board
from fssbench.results.heat import colour, heat_maps
from fssbench.results.page import Gallery, Shown, page
from fssbench.results.plots import cost_plot
from fssbench.results.store import ResultStore
from tests.results.make import make_record, make_rows

PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Measured rows of two data sets, one unranked, one external, with published numbers beside the second."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSSBENCH_CACHE", str(folder / "cache"))
        store = ResultStore(folder / "results")
        for method, shift, seconds in (("alpha", 0, 0.02), ("beta", 6, 0.4), ("gamma", 3, 0.1)):
            for fold in range(4 if method != "gamma" else 2):
                rows = [replace(row, seconds=seconds) for row in make_rows(shift + fold)]
                store.write(make_record(rows, fold=fold, method=method, seconds_per_episode=seconds), rows)
        rows = make_rows(4)
        store.write(make_record(rows, dataset="fss-1000", n_folds=1, method="delta", origin="external"), rows)
        store.write(make_record(rows, dataset="fss-1000", n_folds=1, method="broken"), rows)
        next((folder / "results").rglob("broken@*/*.json")).write_text("{")
        return load_board(folder / "results")


@pytest.fixture(scope="module")
def text(board: Board) -> str:
    table = board.tables[1]
    shown = [Shown(group, f"bird, IoU {iou}", (("query", PIXEL), ("truth", PIXEL)))
             for group, iou in (("best", 90), ("median", 50), ("worst", 1))]  # fmt: skip
    return page("results", board, [Gallery("Episodes of beta", table.rows[0].records[0], tuple(shown))])


class _Elements(HTMLParser):
    """All elements, and whether they close in the order in which they open."""

    VOID = ("meta", "input", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_elements_are_closed_and_names_unique(text: str) -> None:
    elements = _Elements(text)
    assert elements.open == []
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(ids)) == len(ids)


def test_nothing_is_loaded_from_anywhere(text: str) -> None:
    elements = _Elements(text).found
    sources = [a[name] for _, a in elements for name in ("src", "href", "action") if name in a]
    assert all(source and source.startswith(("#", "data:")) for source in sources)
    assert not [tag for tag, _ in elements if tag in ("link", "iframe", "object", "base")]
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_every_number_leads_to_its_record_and_its_command(text: str, board: Board) -> None:
    elements = _Elements(text).found
    ids = {attributes.get("id") for _, attributes in elements}
    links = [a["href"] for tag, a in elements if tag == "a" and a.get("href")]
    assert links
    assert {str(link)[1:] for link in links} <= ids
    for table in board.tables:
        for row in table.rows:
            for path in row.records.values():
                assert f'href="#record/{path.removesuffix(".json")}"' in text
                assert (f"fssbench replay results/{path}" in text) == (not row.external)
                assert f"fssbench explain results/{path}" in text


def test_heat_maps_lead_to_the_records_of_their_fold(text: str, board: Board) -> None:
    maps = re.findall(r'<table class="heat">.*?</table>', text)
    rows = [(row, fold) for table in board.tables for row in table.rows for fold in row.records]
    assert sum(part.count("<a href=") for part in maps) == len(rows)
    for row, fold in rows:
        assert f'<a href="#record/{row.records[fold].removesuffix(".json")}">{row.name}</a>' in "".join(maps)


def test_runs_that_differ_in_their_seed_are_told_apart(board: Board) -> None:
    (one,) = (row for table in board.tables for row in table.rows if row.method == "alpha")
    table = replace(board.tables[1], rows=(one, replace(one, seed=7)))
    for drawn in (heat_maps(table), cost_plot(table)):
        assert f"{one.name} seed 7" in drawn
        assert "seed 0" not in drawn


def test_reported_rows_are_told_from_measured_ones(text: str, board: Board) -> None:
    assert text.count('<tr class="reported">') == sum(len(table.reported) for table in board.tables) > 0
    assert "arXiv 2305.13310; repository logs; verified" in text
    assert '<tr class="reported">' not in page("results", board, reported=False)


def test_damaged_and_unranked_are_named(text: str) -> None:
    assert "damaged records" in text
    assert "broken@" in text.split("damaged records")[1]
    assert "not ranked, 2 of 4 folds; missing 2, 3" in text
    assert "external masks" in text


def test_what_a_record_says_is_text_and_never_code(tmp_path: Path) -> None:
    rows = make_rows()
    evil = '<script>alert("x")</script>'
    ResultStore(tmp_path).write(make_record(rows, n_folds=1, backbone=evil, device=evil, method_class=evil), rows)
    text = page("results", load_board(tmp_path))
    assert evil not in text
    assert "&lt;script&gt;" in text


def test_a_page_without_results_says_so() -> None:
    assert "No results." in page("results", Board([], [], []))


def test_colours_of_the_heat_map_can_be_read_with_black_text() -> None:
    """Contrast of black text at least 7:1 (WCAG AAA) on every colour, which gets darker with the score."""

    def luminance(text: str) -> float:
        channels = [int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    found = [luminance(colour(value / 20)) for value in range(21)]
    assert min(found) > 7 * 0.055 - 0.05
    assert found == sorted(found, reverse=True)


# -- in a browser -----------------------------------------------------------------------------------------------------


def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs a browser: pip install playwright")
    if not _chromium():
        pytest.skip("needs a browser: no chromium or google-chrome on PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, text: str, tmp_path: Path) -> Iterator[Any]:
    """The page in a tab; at the end there was no error, and no request but the one for the file."""
    file = tmp_path / "board.html"
    file.write_text(text, encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    problems: list[str] = []
    requests: list[str] = []
    tab.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())
    yield tab
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    tab.close()


def _column(tab: Any, table: str, number: int) -> list[str]:
    """Texts of a column of the measured rows that are shown."""
    rows = f"{table} .board tbody tr:not(.hidden):not(.reported)"
    cells: list[str] = tab.locator(f"{rows} > :nth-child({number})").all_inner_texts()
    return cells


def _methods(tab: Any, table: str) -> list[str]:
    return [text.split()[0] for text in _column(tab, table, 2)]


def test_sorting(opened: Any) -> None:
    assert _methods(opened, "#table1") == ["beta", "alpha", "gamma"]
    head = opened.locator("#table1 th").nth(2)  # fold 0
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert _methods(opened, "#table1") == ["beta", "gamma", "alpha"]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert _methods(opened, "#table1") == ["alpha", "gamma", "beta"]
    opened.locator("#table1 th", has_text="mIoU").get_by_role("button").click()
    assert _methods(opened, "#table1")[-1] == "gamma", "rows without a mean are last in both directions"
    assert "Sorted by mIoU" in opened.locator("#status").inner_text()


def test_reported_rows_stay_below_measured_ones(opened: Any) -> None:
    opened.locator("#table0 th", has_text="mIoU").get_by_role("button").click()
    kinds = opened.locator("#table0 .board tbody tr").evaluate_all(
        "rows => rows.map(r => r.classList.contains('reported'))"
    )
    assert kinds == sorted(kinds)
    assert kinds.count(True) > 0


def test_filtering(opened: Any) -> None:
    opened.get_by_label("words in a row").fill("alpha")
    assert _methods(opened, "#table1") == ["alpha"]
    assert not opened.locator("#table0").is_visible()
    opened.get_by_label("words in a row").fill("")
    opened.get_by_label("dataset").select_option("fss-1000")
    assert not opened.locator("#table1").is_visible()
    assert opened.locator("#table0 tr.reported:not(.hidden)").count() > 0
    opened.get_by_label("numbers reported by others").uncheck()
    assert opened.locator("#table0 tr.reported:not(.hidden)").count() == 0
    assert _methods(opened, "#table0") == ["delta"]
    assert opened.locator("#status").inner_text() == "1 rows shown."


def test_a_row_leads_to_its_record(opened: Any) -> None:
    opened.locator("#table1 tbody tr").first.locator("td a").nth(2).click()  # beta on fold 2
    record = opened.locator("details:target")
    assert record.get_attribute("open") is not None
    assert "fold 2" in record.locator("summary").inner_text()
    assert record.get_by_text("fssbench replay results/pascal-5i/").is_visible()
    assert record.locator("code", has_text="fold2_shot1_seed0.json").first.is_visible()


def test_plots_heat_maps_and_gallery_can_be_opened(opened: Any) -> None:
    opened.get_by_text("Score against cost").first.click()
    assert opened.locator(".plot circle").count() == 2
    opened.locator("#table1").get_by_text("IoU of each class").click()
    assert opened.locator("#table1 .heat td").first.is_visible()
    assert opened.locator("figure img").count() == 6
    assert all(opened.locator("figure img").evaluate_all("images => images.map(i => i.alt.length > 0)"))


def test_a_phone_scrolls_tables_and_never_the_page(opened: Any) -> None:
    opened.set_viewport_size({"width": 360, "height": 740})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_phone_keeps_the_method_and_its_head_in_sight(opened: Any) -> None:
    opened.set_viewport_size({"width": 360, "height": 740})
    opened.locator("#table1 .wide").first.evaluate("wide => wide.scrollLeft = 150")
    head, cell = (opened.locator(f"#table1 .board {part} th >> nth={n}") for part, n in (("thead", 1), ("tbody", 0)))
    edge = opened.locator("#table1 .wide").first.bounding_box()["x"]
    assert head.bounding_box()["x"] == cell.bounding_box()["x"] == edge


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(opened: Any, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    paper, ink = opened.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )
    light = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (light[0] > light[1]) == (scheme == "light")
    opened.locator("#theme").select_option("dark" if scheme == "light" else "light")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") != paper


def test_the_keyboard_reaches_everything_in_the_order_it_is_read(opened: Any) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "Skip to the tables"
    assert opened.locator("a.skip").first.is_visible(), "it is seen once it has the focus"
    places = []
    for _ in range(40):
        opened.keyboard.press("Tab")
        places.append(opened.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    assert places == sorted(places)
    assert len(set(places)) == 40
    opened.locator("details summary").last.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("details").last.get_attribute("open") is not None


def test_a_screen_reader_finds_its_way(opened: Any) -> None:
    assert opened.get_by_role("main").count() == 1
    assert opened.get_by_role("heading", level=1).count() == 1
    assert opened.get_by_role("search").count() == 1
    assert opened.get_by_role("rowheader", name=re.compile("beta")).count() >= 1
    unnamed = opened.evaluate(
        "[...document.querySelectorAll('input, select, button')].filter(e => !(e.labels?.length || e.textContent.trim())).length"
    )
    assert unnamed == 0
