"""The decoder against segment-anything's own, and SAM's checkpoint: found, loaded strictly, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fssbench.errors import UserError
from methods.fsdino.decoder import BatchedMaskDecoder, Decoder, DecoderConfig, SamParts
from tests.methods.sam import Sam


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Sam:
    return Sam(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def decoder(sam: Sam) -> Decoder:
    decoder = Decoder(DecoderConfig())
    decoder.start_from(SamParts.read(str(sam.path)))
    return decoder.eval().requires_grad_(False)


def inputs(batch: int, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = ((batch, 256, grid, grid), (batch, 1, 256), (batch, 256, grid, grid))
    embedding, sparse, dense = (torch.randn(shape, generator=g) for shape in shapes)
    return embedding, sparse, dense


def test_parameter_counts() -> None:
    decoder = Decoder(DecoderConfig())
    assert sum(p.numel() for p in decoder.parameters()) == 4_058_340
    assert sum(p.numel() for p in decoder.trained_parameters()) == 4_058_340 - 132_612


def test_equals_the_reference_with_sams_prompts(sam: Sam, decoder: Decoder) -> None:
    embedding = torch.randn(1, 256, 64, 64)
    with torch.no_grad():
        points = (torch.tensor([[[300.0, 500.0]]]), torch.tensor([[1]]))
        sparse, dense = sam.prompt_encoder(points, boxes=None, masks=None)
        positions = sam.prompt_encoder.get_dense_pe()
        expected, _ = sam.mask_decoder(embedding, positions, sparse, dense, multimask_output=False)
    assert torch.equal(decoder.position((64, 64)), positions)
    out = decoder(embedding, sparse, dense)
    assert out.shape == (1, 256, 256)
    torch.testing.assert_close(out, expected[:, 0], atol=1e-5, rtol=1e-5)


def test_predicted_quality_and_other_masks_equal_the_reference(sam: Sam, decoder: Decoder) -> None:
    assert isinstance(decoder.mask_decoder, BatchedMaskDecoder)
    embedding, sparse, dense = inputs(1, 5)
    with torch.no_grad():
        args = (embedding, decoder.position((5, 5)), sparse, dense)
        for ours, theirs in zip(decoder.mask_decoder(*args, True), sam.mask_decoder(*args, True), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_batch_equals_the_loop_over_images(decoder: Decoder) -> None:
    embedding, sparse, dense = inputs(3, 37)
    batch = decoder(embedding, sparse, dense)
    assert batch.shape == (3, 148, 148)
    loop = [decoder(embedding[i : i + 1], sparse[i : i + 1], dense[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(batch, torch.cat(loop), atol=1e-5, rtol=1e-5)


def test_images_do_not_see_each_other(decoder: Decoder) -> None:
    embedding, sparse, dense = inputs(3, 6)
    before = decoder(embedding, sparse, dense)
    embedding[1] += 1
    after = decoder(embedding, sparse, dense)
    torch.testing.assert_close(after[::2], before[::2], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(after[1], before[1], atol=1e-3)


def test_position_of_the_centre(decoder: Decoder) -> None:
    centre = decoder.position((37, 37))[0, :, 18, 18]
    torch.testing.assert_close(centre[128:], torch.ones(128), atol=1e-6, rtol=0)
    torch.testing.assert_close(centre[:128], torch.zeros(128), atol=1e-5, rtol=0)


def test_position_stays_in_full_precision_under_autocast(decoder: Decoder) -> None:
    expected = decoder.position((9, 9))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(decoder.position((9, 9)), expected)


def test_other_grid_resizes_embedding_and_dense_prompt(decoder: Decoder) -> None:
    torch.manual_seed(0)
    small = DecoderConfig(grid=8, width=32, depth=1, heads=4, mlp_dim=64)
    resizing = Decoder(small)
    own = Decoder(DecoderConfig(width=32, depth=1, heads=4, mlp_dim=64))
    own.load_state_dict(resizing.state_dict())
    embedding, dense = torch.randn(2, 32, 4, 4), torch.randn(2, 32, 4, 4)
    sparse = torch.randn(2, 1, 32)
    large = [torch.nn.functional.interpolate(x, (8, 8), mode="bilinear") for x in (embedding, dense)]
    out = resizing(embedding, sparse, dense)
    assert out.shape == (2, 32, 32)
    torch.testing.assert_close(out, own(large[0], sparse, large[1]))
    assert own(embedding, sparse, dense).shape == (2, 16, 16)


def test_width_must_fit_the_heads() -> None:
    with pytest.raises(UserError, match=r"decoder\.width is 48 and decoder\.heads is 5"):
        Decoder(DecoderConfig(width=48, heads=5))
    with pytest.raises(UserError, match=r"decoder\.heads is 0"):
        Decoder(DecoderConfig(heads=0))
    with pytest.raises(UserError, match=r"decoder\.grid is 0"):
        Decoder(DecoderConfig(grid=0))


def test_checkpoint_is_found_by_name(sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSBENCH_WEIGHTS", str(sam.path.parent))
    parts = SamParts.read("sam_vit_h_4b8939.pth")
    assert parts.mask_decoder.keys() == sam.mask_decoder.state_dict().keys()
    assert torch.equal(parts.prompt_encoder.no_mask_embed.weight, sam.prompt_encoder.no_mask_embed.weight)


def test_missing_checkpoint_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSSBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError) as error:
        SamParts.read("sam_vit_l_0b3195.pth")
    for part in (str(tmp_path), "segment_anything/sam_vit_l_0b3195.pth", "sam_weights: random"):
        assert part in str(error.value)


def test_other_checkpoints_are_refused(sam: Sam, tmp_path: Path) -> None:
    state = torch.load(sam.path, weights_only=True)
    torch.save({n: t for n, t in state.items() if not n.startswith("prompt_encoder.")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth does not hold the weights of SAM's prompt encoder"):
        SamParts.read(str(tmp_path / "a.pth"))
    torch.save({n: t for n, t in state.items() if n != "mask_decoder.iou_token.weight"}, tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"SAM's mask decoder \(missing: iou_token\.weight\)"):
        Decoder(DecoderConfig()).start_from(SamParts.read(str(tmp_path / "b.pth")))
