"""The plug-in test: objects and their prompts, the frozen decoder against SAM's own code, and the script as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from segment_anything.modeling import PromptEncoder

from datamodules.shapes import ShapesDataset
from fssbench.encoders.sam import SamEncoder
from methods.fsdino import Distillation
from methods.fsdino.adapter import AdapterConfig
from methods.fsdino.decoder import SamParts
from methods.fsdino.plug_in import PROMPTS, FrozenSam, Object, iou, objects
from methods.fsdino.stages import DistillConfig
from tests.methods.sam import SMALL, Sam
from tests.processes import REPOSITORY, python


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Sam:
    return Sam(tmp_path_factory.mktemp("sam"))


def block() -> Object:
    mask = np.zeros((40, 100), bool)
    mask[10:21, 30:61] = True  # 11 x 31 pixels
    return Object("picture", mask)


def test_prompts_are_the_box_and_the_pixel_farthest_from_the_border() -> None:
    assert block().box() == pytest.approx((0.30, 0.25, 0.61, 0.525))
    x, y = block().point()
    assert y == (15 + 0.5) / 40
    assert 0.35 <= x <= 0.56
    full = Object("picture", np.ones((3, 3), bool))
    assert full.point() == (0.5, 0.5), "the picture's edge is a border, too"


def test_objects_are_pieces_of_masks_in_a_fixed_order() -> None:
    dataset = ShapesDataset()
    found = list(objects(dataset, 6))
    assert [one.key for one in found] == [one.key for one in objects(dataset, 6)]
    assert len({one.key for one in objects(dataset, 6, seed=1)} - {one.key for one in found}) > 0
    for one in found:
        assert one.key.startswith("test/")
        assert one.mask.sum() >= 100
        assert any((one.mask <= (dataset.read_mask(one.key, c) == 1)).all() for c in dataset.class_names)
    assert len(list(objects(dataset, 10**6, least=100_000))) == 0


@pytest.mark.parametrize("grid", [64, 9])
def test_frozen_decoder_equals_sams_own_code(sam: Sam, grid: int) -> None:
    one, size = block(), 1024
    embedding = torch.randn(1, 256, grid, grid, generator=torch.Generator().manual_seed(0))
    reference = PromptEncoder(256, (grid, grid), (size, size), mask_in_chans=16).eval()
    reference.load_state_dict(sam.prompt_encoder.state_dict())
    frozen = FrozenSam(SamParts.read(str(sam.path)))
    pixels = size * torch.tensor([[one.point()]]) - 0.5, torch.ones(1, 1)
    given = {"box": (None, size * torch.tensor([one.box()]) - 0.5, None), "point": (pixels, None, None)}
    for prompt in PROMPTS:
        with torch.no_grad():
            sparse, dense = reference(*given[prompt])
            logits, _ = sam.mask_decoder(embedding, reference.get_dense_pe(), sparse, dense, multimask_output=False)
            expected = F.interpolate(logits, one.mask.shape, mode="bilinear")[0, 0]
        found = frozen(embedding, one, prompt)
        clear = (expected.abs() > 1e-4 * expected.abs().max()).numpy()
        assert (found == (expected > 0).numpy())[clear].all()
        assert 0 < found.mean() < 1, "the comparison means something"
    assert not any(p.requires_grad for p in frozen.parameters())


def test_iou() -> None:
    one = block().mask
    assert iou(one, one) == 1
    assert iou(one, ~one) == 0


def test_the_script_prints_all_three_embeddings(sam: Sam, tmp_path: Path) -> None:
    shape = replace(SMALL, channels=256)
    teacher = {f"image_encoder.{name}": value for name, value in shape.build().state_dict().items()}
    official = {n: t for n, t in torch.load(sam.path, weights_only=True).items() if not n.startswith("image_encoder.")}
    torch.save({**official, **teacher}, tmp_path / "sam.pth")
    small = AdapterConfig(hidden=32, width=32, depth=1, heads=4)
    module = Distillation(
        backbone="from_weights", backbone_weights="shapes_vit.safetensors", teacher="from_weights",
        teacher_weights=str(tmp_path / "sam.pth"), cache_dir=str(tmp_path), adapter=small,
        distill=DistillConfig(resolutions=(32,), epochs=(1,), batch=(2,)),
    )  # fmt: skip
    module.teacher_sha256 = SamEncoder("from_weights", str(tmp_path / "sam.pth")).sha256()
    facts = {"settings": module.settings(), "teacher_sha256": module.teacher_sha256}
    state = {name: value.contiguous() for name, value in module.adapter.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "adapter.safetensors", {"fssbench_distillation": json.dumps(facts)})
    options = ["--sam", "sam.pth", "--config", "data/shapes.yaml", "--objects", "3"]
    done = python(REPOSITORY / "benchmarks" / "plug_in.py", "adapter.safetensors", *options, folder=tmp_path)
    assert "3 objects" in done.stdout
    assert "note:" not in done.stderr, "the teacher is the one the adapter was made with"
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1].strip() for row in rows] == ["SAM", "SAM, shrunk to the adapter's grid", "adapter"]
