"""The published numbers: consistent in themselves, with a source for each."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

import pytest

import datamodules
from fssbench.dataset import FewShotDataset
from fssbench.results.published import CONFIDENCE, Published, all_published, published
from fssbench.results.record import UNKNOWN, VOCABULARY


def test_every_number_has_a_source_and_known_words() -> None:
    results = all_published()
    assert len(results) > 150
    assert {r.confidence for r in results} == set(CONFIDENCE)
    for result in results:
        assert result.paper
        assert result.read_in
        assert result.protocol
        assert result.track in (*VOCABULARY["track"], UNKNOWN)
        assert set(result.contamination) <= {*VOCABULARY["contamination"], UNKNOWN}
        assert all(0 < float(v) < 100 for v in (result.miou, result.fb_iou, *result.fold_miou) if v)


@pytest.mark.parametrize(
    "result", [r for r in all_published() if all(r.fold_miou)], ids=lambda r: f"{r.method}-{r.dataset}"
)
def test_folds_average_to_the_printed_mean_or_a_remark_says_so(result: Published) -> None:
    """protocols.md section 8, item 7."""
    mean = sum(map(float, result.fold_miou)) / 4
    assert abs(mean - float(result.miou)) <= 0.08 or "not the printed" in result.remark


def test_data_sets_go_by_the_names_they_have_on_the_board() -> None:
    """A number under another name would never be shown."""
    for module in pkgutil.iter_modules(datamodules.__path__):
        import_module(f"datamodules.{module.name}")
    ours = {cls.name for cls in _subclasses(FewShotDataset)} | {"coco-to-pascal"}
    assert {"coco-20i", "isic-2018"} < ours
    assert {r.dataset for r in all_published()} <= ours


def _subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        if "name" in vars(below):
            yield below
        yield from _subclasses(below)


def test_a_result_without_a_miou_says_what_it_is() -> None:
    assert {r.dataset for r in all_published() if not r.miou} == {"davis-17"}
    assert all("no mIoU; J&F" in r.remark for r in all_published() if not r.miou)


def test_no_result_stands_twice() -> None:
    keys = [(r.dataset, r.shot, r.method, r.backbone) for r in all_published()]
    assert len(set(keys)) == len(keys)


def test_a_table_gets_the_numbers_of_its_data_set_shot_and_track() -> None:
    found = published("coco-20i", 1, "training-free")
    assert {"Matcher", "GF-SAM"} <= {r.method for r in found}
    assert {(r.dataset, r.shot, r.track) for r in found} == {("coco-20i", 1, "training-free")}
    assert [float(r.miou) for r in found] == sorted((float(r.miou) for r in found), reverse=True)
    assert published("shapes", 1, "strict") == ()
