"""SAM2FSS against ground-truth values of a reference implementation: full size, float32, weights filled by rule."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.shared import SHARED, needs_shared

pytest.importorskip("sam2")

from methods.sam2fss import SAM2FSS
from methods.sam2fss.model import SAM2FSSNet, Trace
from tests.methods.sam2 import fill, filled

pytestmark = needs_shared
GOLDEN = SHARED / "golden"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def method(tmp_path_factory: pytest.TempPathFactory) -> SAM2FSS:
    """The default settings, DINOv2 from a file in the format of the original release."""
    path = tmp_path_factory.mktemp("weights") / "dinov2_vitb14_pretrain.pth"
    with torch.device("meta"):
        names = timm.create_model("vit_base_patch14_dinov2.lvd142m", num_classes=0).state_dict()
    state = {name: filled(name, tuple(value.shape)) for name, value in names.items()}
    torch.save({**state, "mask_token": torch.zeros(1, 768)}, path)
    made = SAM2FSS(backbone_weights=str(path), sam2_weights="random", precision="fp32", trainable="none").eval()
    fill(made.net.sam2.model)
    path.unlink()
    return made


@pytest.fixture(scope="module")
def episode(method: SAM2FSS) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    inputs = np.load(GOLDEN / "sam2fss_1shot_inputs.npz")
    images = [torch.from_numpy(inputs[f"{name}_image"]).permute(2, 0, 1) / 255 for name in ("query", "support")]
    with torch.no_grad():
        features = method.encode(torch.stack(images))
    mask = torch.from_numpy(inputs["support_mask"])[None, None]
    return {n: v[:1] for n, v in features.items()}, {n: v[1:, None] for n, v in features.items()}, mask


@pytest.fixture(scope="module")
def trace(method: SAM2FSS, episode: tuple[dict[str, Tensor], dict[str, Tensor], Tensor]) -> Trace:
    with torch.no_grad():
        return method.net.trace(*episode)


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(GOLDEN / "sam2fss_1shot_outputs.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def test_every_value(trace: Trace, expected: dict[str, Tensor]) -> None:
    assert trace.priors is not None
    assert trace.query is not None
    assert trace.refined is not None
    assert trace.memory_fg is not None
    found = {
        "prior_fg": trace.priors.fg,
        "prior_disc": trace.priors.disc,
        "memory_support": trace.support.memory,
        "memory_query_fg": trace.memory_fg,
        "memory_query_disc": trace.query.memory,
        "pointer_support": trace.support.pointer,
        "pointer_query_disc": trace.query.pointer,
        "affinity_query_support": trace.refined.affinity,
        "memory_query_refined": trace.refined.memory,
        "prior_refined": trace.refined.prior,
        "memory_attention": trace.attended,
        "logits": trace.logits,
    }
    assert found.keys() == expected.keys()
    errors = {name: error(value, expected[name]) for name, value in found.items()}
    assert {name: e for name, e in errors.items() if e > TOLERANCE} == {}
    assert ((trace.logits > 0) != (expected["logits"] > 0)).float().mean() <= 1e-3


def test_typical_faults_would_be_seen(
    method: SAM2FSS, episode: tuple[dict[str, Tensor], dict[str, Tensor], Tensor], expected: dict[str, Tensor]
) -> None:
    for change, attention, logits in (({"scma_alpha": 0.0}, 1e-2, 3e-3), ({"scma_keys": "projected"}, 9e-3, 1.4e-3)):
        with torch.no_grad():
            wrong = SAM2FSSNet(method.net.sam2, **change).trace(*episode)
        assert error(wrong.attended, expected["memory_attention"]) == pytest.approx(attention, rel=0.25)
        assert error(wrong.logits, expected["logits"]) == pytest.approx(logits, rel=0.25)
