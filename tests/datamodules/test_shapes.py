"""Shapes: the same pictures everywhere, folds of new combinations, and an encoder that has seen none of them."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datamodules import shapes
from datamodules.shapes import WORLD, ShapesDataset
from fssbench.dataset import Split
from fssbench.encoders.vit import ViTEncoder
from fssbench.errors import UserError
from fssbench.images import resize_image, resize_mask
from fssbench.protocols.manifest import build_manifest
from methods.prototype.model import PrototypeNet

REPOSITORY = Path(__file__).resolve().parents[2]
WEIGHTS = REPOSITORY / "fssbench" / "assets" / "shapes_vit.safetensors"
SPLITS: tuple[Split, ...] = ("train", "test")

HASHES = {
    "train/000000": "6cc0b3a964aa1dad",
    "train/000799": "e421a23b0734de95",
    "test/000000": "2c376f1d1ac6d15c",
    "test/000123": "e37de48b6a7a6267",
}
"""SHA-256 of image and mask of the picture's primary class: another value is another data set (raise its name)."""


@pytest.fixture(scope="module")
def dataset() -> ShapesDataset:
    return ShapesDataset()


def primary(key: str) -> int:
    return 1 + int(key.partition("/")[2]) % 20


def digest(dataset: ShapesDataset, key: str) -> str:
    image, mask = dataset.read_image(key), dataset.read_mask(key, primary(key))
    return hashlib.sha256(image.tobytes() + mask.tobytes()).hexdigest()[:16]


def test_pictures_are_the_published_ones(dataset: ShapesDataset) -> None:
    assert {key: digest(dataset, key) for key in HASHES} == HASHES


def test_another_process_in_another_order_draws_the_same(dataset: ShapesDataset) -> None:
    keys = [f"{split}/{index:06d}" for split in SPLITS for index in (3, 77, 250)]
    code = (
        "import hashlib, sys\n"
        "from datamodules.shapes import ShapesDataset\n"
        "d = ShapesDataset()\n"
        "for key in sys.argv[1:]:\n"
        "    mask = d.read_mask(key, 1 + int(key[-6:]) % 20)\n"
        "    print(hashlib.sha256(d.read_image(key).tobytes() + mask.tobytes()).hexdigest()[:16])"
    )
    command = [sys.executable, "-c", code, *reversed(keys)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split()[::-1] == [digest(dataset, key) for key in keys]


def test_images_and_masks_fit_and_classes_do_not_overlap(dataset: ShapesDataset) -> None:
    sizes = set()
    for index in range(40):
        key = f"test/{index:06d}"
        image = dataset.read_image(key)
        masks = np.stack([dataset.read_mask(key, c) for c in dataset.class_names])
        sizes.add(image.shape[:2])
        assert image.dtype == masks.dtype == np.uint8
        assert masks.shape[1:] == image.shape[:2]
        assert masks[primary(key) - 1].any()
        assert masks.sum(0).max() == 1
    assert len(sizes) > 3


def test_a_read_image_is_the_callers_own(dataset: ShapesDataset) -> None:
    before = digest(dataset, "test/000000")
    dataset.read_image("test/000000")[:] = 0
    dataset.read_mask("test/000000", 1)[:] = 1
    assert digest(dataset, "test/000000") == before


def test_each_class_is_novel_once_and_only_its_combination_is_new(dataset: ShapesDataset) -> None:
    folds = [dataset.novel_classes(fold) for fold in range(dataset.n_folds)]
    assert [len(novel) for novel in folds] == [5, 5, 5, 5]
    assert sorted(c for novel in folds for c in novel) == sorted(dataset.class_names) == list(range(1, 21))
    for fold, novel in enumerate(folds):
        base = [WORLD.classes[c - 1] for c in dataset.base_classes(fold)]
        for shape, texture in (WORLD.classes[c - 1] for c in novel):
            assert (shape, texture) not in base
            assert [s for s, _ in base].count(shape) == 1
            assert [t for _, t in base].count(texture) == 1
    assert dataset.class_names[7] == "ring-bricks"
    with pytest.raises(UserError, match="Fold 4 does not exist"):
        dataset.novel_classes(4)


@pytest.mark.parametrize("split", SPLITS)
def test_candidates_show_enough_of_their_class(dataset: ShapesDataset, split: Split) -> None:
    for class_id in (1, 8, 20):
        keys = dataset.candidates(class_id, split)
        shares = {key: dataset.read_mask(key, class_id).mean() for key in map(f"{split}/{{:06d}}".format, range(120))}
        assert [key for key in keys if key in shares] == [key for key, share in shares.items() if share >= 0.01]
    fewest = min(len(dataset.candidates(c, split)) for c in dataset.class_names)
    assert fewest > {"train": 60, "test": 25}[split]


def test_distractors_share_shape_or_texture(dataset: ShapesDataset) -> None:
    """In most pictures neither shape nor texture alone finds the class."""
    layouts = [shapes._layout("test", index) for index in range(100)]
    kinds = [[(piece.shape, piece.texture) for piece in layout.pieces] for layout in layouts]
    same_shape = sum(any(s == first[0] and t != first[1] for s, t in rest) for first, *rest in kinds)
    same_texture = sum(any(s != first[0] and t == first[1] for s, t in rest) for first, *rest in kinds)
    neither = sum(all(s != first[0] and t != first[1] for s, t in rest) for first, *rest in kinds)
    assert min(same_shape, same_texture) > 40
    assert neither == 0


def test_no_picture_is_in_both_splits(dataset: ShapesDataset) -> None:
    images = [dataset.read_image(f"{split}/{index:06d}").tobytes() for split in SPLITS for index in range(40)]
    assert len(set(images)) == 80


@pytest.mark.parametrize("key", ["test/000400", "test/1", "val/000000", "train/-00001", "cat.jpg"])
def test_unknown_keys_are_refused(dataset: ShapesDataset, key: str) -> None:
    with pytest.raises(UserError, match=r"shapes has no image .* expected train/000000 to train/000799"):
        dataset.read_image(key)


# -- the shipped encoder ---------------------------------------------------------------------------------------------


def prototype_iou(dataset: ShapesDataset, encoder: ViTEncoder) -> float:
    """Foreground IoU (in percent, all episodes together) of the training-free baseline on 15 episodes of fold 0."""
    side = encoder.image_size
    manifest = build_manifest(dataset, 0, 1, 0, 3, "novel", "error")
    inside = either = 0

    def read(key: str, class_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(resize_image(dataset.read_image(key), side)).permute(2, 0, 1)[None] / 255
        return encoder(image)[f"block{encoder.depth}"], torch.from_numpy(dataset.read_mask(key, class_id))

    for episode in manifest.episodes:
        query, target = read(episode.query, episode.class_id)
        support, mask = read(episode.supports[0], episode.class_id)
        small = torch.from_numpy(resize_mask(mask.numpy(), side))
        score = PrototypeNet()(query, support[None], small[None, None])
        found = F.interpolate(score[None], target.shape, mode="bilinear", align_corners=False)[0, 0] > 0
        inside += int((found & (target == 1)).sum())
        either += int((found | (target == 1)).sum())
    return 100 * inside / either


def test_the_shipped_encoder_is_small_and_useful(dataset: ShapesDataset) -> None:
    assert WEIGHTS.stat().st_size < 3_000_000
    trained = ViTEncoder("from_weights", str(WEIGHTS), blocks=(-1,))
    assert trained.image_size == 112
    random = ViTEncoder("from_weights", str(WEIGHTS), blocks=(-1,))
    torch.manual_seed(0)
    for parameter in random.parameters():
        parameter.data.normal_(std=0.05)
    assert prototype_iou(dataset, trained) > prototype_iou(dataset, random) + 8


@pytest.fixture
def likeness(monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks" / "encoders"))
    import other_world

    assert other_world.MOST_ALIKE == {"shape": 0.8, "texture": 0.5}

    def measure(kind: str, pattern: shapes.Pattern) -> float:
        bank = {"shape": shapes.SHAPES, "texture": shapes.TEXTURES}[kind]
        return getattr(other_world, f"{kind}_likeness")(pattern, list(bank.values()))

    return measure


@pytest.mark.parametrize("kind", ["shape", "texture"])
def test_the_encoders_world_keeps_the_benchmarks_patterns_out(likeness: Callable[..., float], kind: str) -> None:
    """Turned, scaled and moved, every pattern of the benchmark is still recognised as one of it."""
    limit = {"shape": 0.8, "texture": 0.5}[kind]
    c, s = np.cos(np.pi * 2 / 9), np.sin(np.pi * 2 / 9)  # 40 degrees: the search goes in steps of ten
    bank = {"shape": shapes.SHAPES, "texture": shapes.TEXTURES}[kind]
    alike = {
        name: likeness(kind, lambda x, y, known=known: known(0.83 * (c * x - s * y) + 0.06, 0.83 * (s * x + c * y)))
        for name, known in bank.items()
        if name != "speckle"  # noise has no scale and turn to find
    }
    assert min(alike.values()) > limit, alike
