"""What a protocol changes in the data module: episodes, void pixels, training images, and where pixels are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.policies import for_training, training_lists
from fssbench.errors import UserError
from fssbench.images import resize_mask
from fssbench.metrics.boundary import boundary_iou, hausdorff95
from fssbench.metrics.iou import episode_counts
from fssbench.metrics.scores import COUNTS
from fssbench.metrics.square import counted_size, square_target
from fssbench.protocols.manifest import build_manifest
from fssbench.results.record import counted_at
from fssbench.results.store import ResultStore
from tests.cli.run import FREE, QUIET
from tests.protocols.toy import CompatToy, ToyDataset
from tests.test_method import make_trainer
from tests.toy import AnyProtocol, FreeMethod


@pytest.mark.parametrize("protocol", ["hsnet-compat", "bam-compat"])
def test_test_episodes_are_the_protocols_and_validation_is_clean(protocol: str) -> None:
    data = AnyProtocol(protocol=protocol, episodes=20, shot=2, image_size=16)
    assert data.test_manifest == build_manifest(data.dataset, 0, 2, protocol=protocol, episodes=20)
    assert data.val_manifest.header.protocol == "clean-v1-base"
    assert {e.class_id for e in data.val_manifest.episodes} == {1, 3, 5, 7}


class Late(CompatToy):
    """The first 1000 images of `bam-compat`'s list hold nothing of class 6."""

    def __init__(self) -> None:
        super().__init__({2: 600, 4: 600, 6: 3})

    def classes_in(self, key: str) -> tuple[int, ...]:
        return (int(key[3:5]),)


def test_a_full_test_without_episodes_of_a_class_is_refused(tmp_path: Path) -> None:
    """Its mIoU would silently be that of the other classes; the manifest lists the class, and masks can be predicted."""

    class Data(AnyProtocol):
        def make_dataset(self) -> Late:
            return Late()

    full = Data(protocol="bam-compat", image_size=16)
    message = r"None of the 1000 episodes that bam-compat .* class thing 6, .*data\.episodes.*small_classes leave-out"
    with pytest.raises(UserError, match=message):
        full.setup("test")
    full.setup("predict")
    path = tmp_path / "episodes.jsonl"
    full.test_manifest.save(path)
    for chosen in ({"small_classes": "leave-out"}, {"episodes": 8}, {"manifest": str(path)}):
        data = Data(protocol="bam-compat", image_size=16, **chosen)
        data.setup("test")
        assert data.test_manifest.header.left_out["6"] == "thing 6"


@pytest.mark.parametrize("protocol", ["clean-v1", "hsnet-compat", "bam-compat"])
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_void_pixels_of_supports(protocol: str, stage: str) -> None:
    episodes = {} if protocol == "clean-v1" else {"episodes": 4}
    data = AnyProtocol(protocol=protocol, image_size=20, training_policy="keep-as-background", **episodes)
    data.setup(stage)
    batch = next(iter(data.train_dataloader() if stage == "fit" else data.test_dataloader()))
    assert (batch.query_mask == 255).any()
    assert (batch.support_masks == 255).any() == (protocol != "hsnet-compat")


def test_squares_are_counted_from_the_same_logits(tmp_path: Path) -> None:
    data = AnyProtocol(protocol="hsnet-compat", episodes=12, squares=(16, 7), eval_batch_size=5)
    method = FreeMethod()
    make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    assert data.squares == (16, 7)
    assert list(method.square_rows) == [16, 7]
    data.setup("test")
    for batch in data.test_dataloader():
        with torch.no_grad():
            logits = method(batch)
        for b, number in enumerate(batch.episode_id.tolist()):
            for side, rows in method.square_rows.items():
                target = torch.from_numpy(resize_mask(batch.query_mask_full[b].numpy(), side))
                counts = episode_counts(method.upsample(logits[b], (side, side)) > 0, target)
                assert [rows[number][name] for name in COUNTS] == counts.tolist()
    assert all("squares" not in row for row in method.episode_rows)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (31, 8)])
def test_the_square_resize_is_that_of_masks(size: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for side in (1, 4, 8, 23):
        np.testing.assert_array_equal(square_target(torch.from_numpy(mask), side).numpy(), resize_mask(mask, side))


def test_a_padded_square_keeps_the_aspect_ratio_in_steps_of_8() -> None:
    """protocols.md 3.2: 375 x 500 becomes 352 x 472 in a square of 473 pixels; the padding is 255, so it counts nothing."""
    assert counted_size(375, 500, "473-pad") == (352, 472)
    assert counted_size(500, 375, "473-pad") == (472, 352)
    assert counted_size(480, 640, "641-pad") == (480, 640)
    assert counted_size(1, 500, "473-pad") == (8, 472)
    assert counted_size(372, 500, "473-pad") == (344, 472), "351.9 pixels are cut, not rounded"
    mask = np.random.default_rng(0).integers(0, 2, (30, 50), dtype=np.uint8)
    part = square_target(torch.from_numpy(mask), "41-pad")
    np.testing.assert_array_equal(part.numpy(), resize_mask(mask, (24, 40)))
    whole = torch.full((41, 41), 255, dtype=torch.uint8)
    whole[:24, :40] = part
    predicted = torch.rand(41, 41, generator=torch.Generator().manual_seed(0)) > 0.5
    assert episode_counts(predicted, whole).tolist() == episode_counts(predicted[:24, :40], part).tolist()


def test_padded_squares_are_counted_and_recorded(tmp_path: Path) -> None:
    data = AnyProtocol(protocol="bam-compat", episodes=6, squares=("33-pad", 12))
    method = FreeMethod()
    make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    for batch in data.test_dataloader():
        with torch.no_grad():
            logits = method(batch)
        for b, number in enumerate(batch.episode_id.tolist()):
            target = square_target(batch.query_mask_full[b], "33-pad")
            counts = episode_counts(method.upsample(logits[b], tuple(target.shape)) > 0, target)
            assert [method.square_rows["33-pad"][number][name] for name in COUNTS] == counts.tolist()
    assert counted_at("473-pad") == "473 px padded square"


@pytest.mark.parametrize("square", [0, -4, "473", "pad", "0-pad", "473-padded"])
def test_a_square_that_is_none(square: Any) -> None:
    with pytest.raises(UserError, match="expected a side of at least one pixel such as 400, or 473-pad"):
        AnyProtocol(squares=(square,))


class Overlapping(ToyDataset):
    """Class 1's images 0 and 1 also show novel class 2, in one void and one plain pixel row."""

    def classes_in(self, key: str) -> tuple[int, ...]:
        own = int(key[3:5])
        return (1, 2) if own == 1 and key[-1] in "01" else (own,)

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        mask = super().read_mask(key, class_id)
        if int(key[3:5]) != class_id:
            mask[:] = 0
            if class_id in self.classes_in(key):
                mask[15:18] = 1
        return mask


def test_training_policies() -> None:
    dataset = Overlapping()
    kept = training_lists(dataset, 0, "keep-as-background")
    assert (
        kept == training_lists(dataset, 0, "ignore-pixels") == {c: dataset.candidates(c, "train") for c in (1, 3, 5, 7)}
    )
    dropped = training_lists(dataset, 0, "drop-image")
    assert dropped[1] == kept[1][2:]
    assert {c: dropped[c] for c in (3, 5, 7)} == {c: kept[c] for c in (3, 5, 7)}
    ignoring = for_training(dataset, 0, "ignore-pixels")
    plain, masked = (d.read_mask("img01_0", 1) for d in (dataset, ignoring))
    assert (masked[16:18] == 255).all()
    np.testing.assert_array_equal(masked[15, 5:17], 1)  # the class asked for wins
    np.testing.assert_array_equal(masked[:15], plain[:15])
    np.testing.assert_array_equal(ignoring.read_mask("img03_0", 3), dataset.read_mask("img03_0", 3))
    assert for_training(dataset, 0, "drop-image") is dataset


def test_the_protocol_decides_on_the_policy_and_a_key_on_the_other_one() -> None:
    assert AnyProtocol(protocol="bam-compat", image_size=8).training_policy == "drop-image"
    assert AnyProtocol(image_size=8).training_facts()["training_policy"] == "keep-as-background"
    data = AnyProtocol(image_size=8, training_policy="ignore-pixels")
    assert data.training_facts()["training_policy"] == "ignore-pixels"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "hsnet-compt"}, "Did you mean 'hsnet-compat'"),
        ({"squares": (0,)}, "data.squares holds 0"),
        ({"protocol": "hsnet-compat", "manifest_seed": 4}, "seed 0 only"),
        ({"protocol": "bam-compat", "episodes_per_class": 4}, "give episodes"),
    ],
)
def test_bad_values(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = AnyProtocol(image_size=8, **arguments).test_manifest


def test_a_protocol_that_the_data_set_lacks() -> None:
    from tests.toy import Toy

    with pytest.raises(UserError, match=r"hsnet-compat is not defined for toy, only clean-v1"):
        _ = Toy(protocol="hsnet-compat").dataset


def test_a_manifest_of_another_protocol_is_refused(tmp_path: Path) -> None:
    build_manifest(CompatToy(), 0, 1, protocol="hsnet-compat", episodes=4).save(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match=r"of protocol hsnet-compat, data\.protocol is clean-v1"):
        _ = AnyProtocol(manifest=str(tmp_path / "m.jsonl")).test_manifest


def test_records_of_protocols_and_squares_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fssbench.cli import main

    monkeypatch.chdir(tmp_path)
    base = ["test", *FREE[:2], "--data", "tests.toy.AnyProtocol", *QUIET]
    assert main([*base, "--data.episodes_per_class", "2"]) == 0
    compat = [*base, "--data.protocol", "hsnet-compat", "--data.episodes", "12", "--data.squares", "[9]"]
    assert main(compat) == 0
    records = ResultStore(tmp_path / "results").read_all().records
    found = {(r.key.protocol, r.key.resolution, r.metadata.support_sampling) for r in records}
    again = "with replacement"
    assert found == {
        ("clean-v1", "original", "distinct"),
        ("hsnet-compat", "original", again),
        ("hsnet-compat", "16", again),
        ("hsnet-compat", "9", again),
    }
    assert main(compat) == 0, "the very same results are kept"
    assert main([*compat, "--overwrite", "never"]) == 2
    assert main([*compat[:-1], "[9,5]"]) == 0, "a square that is new is counted, the other results are kept"
    assert len(ResultStore(tmp_path / "results").read_all().records) == 5


def test_boundary_numbers_of_each_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fssbench.cli import main

    monkeypatch.chdir(tmp_path)
    assert main(["test", *FREE, "--data.boundary", "true", "--data.episodes_per_class", "2"]) == 0
    (path,) = (tmp_path / "results").rglob("*.boundary.csv")
    lines = path.read_text().splitlines()
    assert lines[0] == "episode_id,class_id,boundary_iou,hausdorff95"
    data = AnyProtocol(image_size=16, episodes_per_class=2)
    data.setup("test")
    method = FreeMethod()
    for line, batch in zip(lines[1:], data.test_dataloader(), strict=True):
        truth = batch.query_mask_full[0].numpy()
        with torch.no_grad():
            predicted = method.predict_masks(batch)[0].numpy()
        values = boundary_iou(predicted, truth == 1, truth == 255), hausdorff95(predicted, truth == 1, truth == 255)
        assert line == f"{int(batch.episode_id)},{int(batch.class_id)},{values[0]!r},{values[1]!r}"


def test_ignored_novel_pixels_stay_ignored_where_void_is_background() -> None:
    """`hsnet-compat` takes void in supports for background; the pixels that `ignore-pixels` marks are none."""
    data = AnyProtocol(protocol="hsnet-compat", image_size=20, training_policy="ignore-pixels", episodes=4)
    data.setup("fit")
    assert (next(iter(data.train_dataloader())).support_masks == 255).any()
    data.setup("test")
    assert not (next(iter(data.test_dataloader())).support_masks == 255).any()


def test_void_of_a_novel_class_is_ignored_too() -> None:
    class Crowded(Overlapping):
        def read_mask(self, key: str, class_id: int) -> np.ndarray:
            mask = super().read_mask(key, class_id)
            if class_id == 2 and 2 in self.classes_in(key):
                mask[18:20] = 255
            return mask

    masked = for_training(Crowded(), 0, "ignore-pixels").read_mask("img01_0", 1)
    assert (masked[16:20] == 255).all()


def test_void_alone_does_not_make_a_class_present() -> None:
    class OwnClassOnly(ToyDataset):
        def read_mask(self, key: str, class_id: int) -> np.ndarray:
            mask = super().read_mask(key, class_id)
            mask[mask == 1] = int(key[3:5]) == class_id
            return mask

    dataset = OwnClassOnly()
    assert (dataset.read_mask("img03_0", 5) == 255).any()
    assert dataset.classes_in("img03_0") == (3,)
