"""What a fit selects on: nothing by default, base classes on request, test episodes only with their label."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fssbench.cli import main
from fssbench.cli.selection import BestCheckpoint
from fssbench.results.store import ResultStore
from tests.cli.run import SHORT, TRAINED
from tests.toy import FreeMethod, Toy


def fit_and_test(folder: Path, monkeypatch: pytest.MonkeyPatch, selection: str) -> tuple[dict[str, object], str]:
    monkeypatch.chdir(folder)
    assert main(["fit", *TRAINED, *SHORT, "--data.selection", selection]) == 0
    run = folder / "runs/colourmethod/toy/fold0"
    facts = torch.load(run / "best.ckpt", weights_only=True)["fssbench"]["training"]
    last = torch.load(run / "last.ckpt", weights_only=True)["fssbench"]["training"]
    assert last["selection"] == "last"
    assert main(["test", *TRAINED, "--ckpt_path", str(run / "best.ckpt")]) == 0
    (record,) = ResultStore(folder / "results").read_all().records
    return facts, record.metadata.selection


@pytest.mark.parametrize(
    ("selection", "label", "validation"),
    [("base", "base-selected", "base classes"), ("novel", "best-on-test (legacy)", "test episodes")],
)
def test_a_selected_checkpoint_says_how(
    selection: str, label: str, validation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, recorded = fit_and_test(tmp_path, monkeypatch, selection)
    assert facts["selection"] == recorded == label
    assert facts["validation"] == validation


def test_nothing_is_selected_by_default(fitted: Path) -> None:
    assert not list(fitted.rglob("best.ckpt"))
    assert Toy(image_size=8).val_manifest.class_ids == (1, 3, 5, 7)


def test_only_novel_looks_at_the_test_episodes() -> None:
    novel = Toy(image_size=8, selection="novel")
    assert novel.val_manifest == novel.test_manifest
    assert Toy(image_size=8, selection="base").val_manifest.class_ids == (1, 3, 5, 7)


@pytest.mark.parametrize(("selection", "label"), [("novel", "best-on-test (legacy)"), ("last", "base-selected")])
def test_a_checkpoint_callback_of_ones_own_is_a_selection_too(here: Path, selection: str, label: str) -> None:
    own = "{class_path: ModelCheckpoint, init_args: {monitor: val_miou, mode: max, dirpath: own, filename: best}}"
    arguments = ["fit", *TRAINED, *SHORT, "--data.selection", selection, "--trainer.callbacks", f"[{own}]"]
    assert main(arguments) == 0
    assert torch.load("own/best.ckpt", weights_only=True)["fssbench"]["training"]["selection"] == label


class Validations:
    """A trainer that does nothing but validate; remembers the mIoU of each checkpoint that it is asked to save."""

    sanity_checking = False

    def __init__(self) -> None:
        self.method: Any = FreeMethod()
        self.state = SimpleNamespace(fn="fit")
        self.saved: list[tuple[float, str]] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append((self.method.scores["miou"], self.method.training_facts["selection"]))

    def validate(self, callback: BestCheckpoint, *mious: float) -> None:
        for miou in mious:
            self.method.scores, self.method.training_facts = {"miou": miou}, {"selection": "last"}
            callback.on_validation_end(self, self.method)  # type: ignore[arg-type]
            assert self.method.training_facts == {"selection": "last"}


def test_only_a_higher_score_than_all_before_is_kept(tmp_path: Path) -> None:
    trainer, callback = Validations(), BestCheckpoint(tmp_path, "base-selected")
    trainer.validate(callback, 0.0, 0.3, 0.3, 0.2, 0.4)
    assert trainer.saved == [(0.0, "base-selected"), (0.3, "base-selected"), (0.4, "base-selected")]


def test_a_fit_that_goes_on_remembers_its_best_score(tmp_path: Path) -> None:
    first, second = (BestCheckpoint(tmp_path, "base-selected") for _ in range(2))
    Validations().validate(first, 0.5)
    second.load_state_dict(first.state_dict())
    trainer = Validations()
    trainer.validate(second, 0.4, 0.6)
    assert [miou for miou, _ in trainer.saved] == [0.6]


def test_a_look_before_training_and_the_verb_validate_keep_nothing(tmp_path: Path) -> None:
    trainer, callback = Validations(), BestCheckpoint(tmp_path, "base-selected")
    trainer.sanity_checking = True
    trainer.validate(callback, 0.9)
    trainer.sanity_checking, trainer.state.fn = False, "validate"
    trainer.validate(callback, 0.9)
    assert trainer.saved == []
    assert callback.best < 0
