"""SAM's image encoder: the three official files, smaller ones of its shape, its input, and that it never changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

from fssbench.encoders.sam import SAM_FILES, SamEncoder, SamShape
from fssbench.errors import UserError
from methods.fsdino.decoder import SAM_FILES as DECODER_FILES
from methods.fsdino.decoder import SamParts
from tests.methods.sam import SMALL, official_layout, small_sam

PARAMETERS = {"vit_h": 637_026_048, "vit_l": 308_278_272, "vit_b": 89_670_912}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SamEncoder:
    return SamEncoder("from_weights", str(small_sam(tmp_path_factory.mktemp("sam"))))


@pytest.mark.parametrize("variant", SAM_FILES)
def test_the_official_layouts_load(variant: str, tmp_path: Path) -> None:
    path = official_layout(variant, tmp_path)
    encoder = SamEncoder(variant, str(path))
    assert sum(p.numel() for p in encoder.net.parameters()) == PARAMETERS[variant]
    assert (encoder.image_size, encoder.grid, encoder.channels) == (1024, 64, 256)
    parts = SamParts.read(str(path))
    assert sum(t.numel() for t in parts.mask_decoder.values()) == 4_058_340
    assert set(SAM_FILES.values()) == set(DECODER_FILES)


@pytest.mark.parametrize("variant", SAM_FILES)
def test_the_shape_is_read_off_the_weights(variant: str, tmp_path: Path) -> None:
    path = str(official_layout(variant, tmp_path))
    named, found = SamEncoder(variant, path).net, SamEncoder("from_weights", path).net
    assert [(n, p.shape) for n, p in named.named_parameters()] == [(n, p.shape) for n, p in found.named_parameters()]
    assert [b.window_size for b in named.blocks] == [b.window_size for b in found.blocks]
    assert [b.attn.num_heads for b in named.blocks] == [b.attn.num_heads for b in found.blocks]


def test_a_small_encoder_equals_the_module_it_came_from(small: SamEncoder) -> None:
    assert SamShape.of(small.net.state_dict()) == SMALL
    reference = SMALL.build()
    reference.load_state_dict(small.net.state_dict())
    images = torch.rand(2, 3, 64, 64)
    out = small(images)
    assert out.shape == (2, 8, 4, 4)
    torch.testing.assert_close(out, reference((images - small.mean) / small.std))


def test_normalisation_is_that_of_sams_own_code(small: SamEncoder) -> None:
    rest = (
        PromptEncoder(8, (4, 4), (64, 64), 16),
        MaskDecoder(transformer_dim=8, transformer=TwoWayTransformer(1, 8, 1, 8)),
    )
    sam = Sam(small.net, *rest)
    levels = torch.arange(256.0).repeat(3, 64, 1)[:, :, :64]
    torch.testing.assert_close((levels / 255 - small.mean) / small.std, sam.preprocess(levels), atol=1e-6, rtol=0)


def test_it_is_frozen_and_stays_as_it_is(small: SamEncoder) -> None:
    before = small.sha256()
    module = nn.ModuleList([small]).train()
    assert not any(m.training for m in small.modules())
    assert module.training
    assert not any(p.requires_grad for p in small.parameters())
    assert not small(torch.rand(1, 3, 64, 64, requires_grad=True)).requires_grad
    assert small.sha256() == before


def test_random_weights_are_the_same_every_time_and_leave_the_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sam(SMALL.build(), nn.Identity(), nn.Identity())  # type: ignore[arg-type]

    def build() -> Sam:
        whole.image_encoder = SMALL.build()
        return whole

    monkeypatch.setitem(__import__("segment_anything").sam_model_registry, "vit_b", build)
    state = torch.get_rng_state()
    assert SamEncoder("vit_b", "random").sha256() == SamEncoder("vit_b", "random").sha256()
    assert torch.equal(torch.get_rng_state(), state)


def test_mistakes_are_named(small: SamEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'vit_h'"):
        SamEncoder("vith", "random")
    with pytest.raises(UserError, match="needs a file"):
        SamEncoder("from_weights", "random")
    with pytest.raises(UserError, match="Download https://.*sam_vit_l_0b3195.pth"):
        SamEncoder("vit_l", "sam_vit_l_0b3195.pth")
    with pytest.raises(UserError, match="SAM's image encoder vit_b .*of another shape"):
        SamEncoder("vit_b", str(small_sam(tmp_path)))
    torch.save({"mask_decoder.x": torch.ones(1)}, tmp_path / "none.pth")
    with pytest.raises(UserError, match="no SAM image encoder"):
        SamEncoder("from_weights", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"takes \(M, 3, 64, 64\)"):
        small(torch.rand(1, 3, 60, 64))
