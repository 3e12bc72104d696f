"""SAM 2 as an episode's video: memories, bank and decoding against SAM 2's own functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sam2")

from methods.sam2fss.episode_sam2 import LEVELS, EpisodeSAM2, MemoryFrame
from tests.methods.sam2 import SIDE, encoded, episode, small_method

GRID = SIDE // 16


@pytest.fixture(scope="module")
def sam2() -> EpisodeSAM2:
    return small_method(pseudo_prompts=False).net.sam2


@pytest.fixture(scope="module")
def sam21() -> EpisodeSAM2:
    return small_method(pseudo_prompts=False, sam2_version=2.1).net.sam2


def pyramid(sam2: EpisodeSAM2, seed: int = 0, size: int = 2) -> dict[str, Tensor]:
    return sam2.encode_images(episode(seed, size)[0])


def frame(sam2: EpisodeSAM2, seed: int, size: int = 2) -> MemoryFrame:
    _, support, masks = episode(seed, size)
    with torch.no_grad():
        return sam2.encode_mask_memory(sam2.encode_images(support[:, 0]), masks.float())


def test_the_pyramid_is_what_sam2_prepares(sam2: EpisodeSAM2) -> None:
    images = episode()[0]
    found = sam2.encode_images(images)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        stock = sam2.model._prepare_backbone_features(sam2.model.forward_image(normalised))[1]
    assert [tuple(found[name].shape) for name in LEVELS] == [(2, 4, 16, 16), (2, 8, 8, 8), (2, 32, 4, 4)]
    for name, tokens in zip(LEVELS, stock, strict=True):
        assert torch.allclose(found[name].flatten(2).permute(2, 0, 1), tokens, atol=1e-6)
    assert not any(value.requires_grad for value in found.values())


# -- mask to memory -----------------------------------------------------------------------------------------------------


def test_masks_enter_the_memory_as_a_sharp_soft_threshold(sam2: EpisodeSAM2, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    forward = sam2.model.memory_encoder.forward
    monkeypatch.setattr(
        sam2.model.memory_encoder, "forward", lambda pix, masks, **kw: seen.append(masks) or forward(pix, masks, **kw)
    )
    levels = torch.tensor([0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0])
    for p in levels:
        sam2.encode_memory(pyramid(sam2, size=1), torch.full((1, 1, SIDE, SIDE), float(p)))
    values = torch.stack([mask.mean() for mask in seen])
    assert torch.allclose(values[:5], torch.tensor([-9.9991, -9.87, -7.62, 0.0, 7.62]), atol=5e-3)
    assert torch.allclose(values, -values.flip(0), atol=1e-4), "odd around 0.5"
    assert (values.diff() > 0).all()


def test_a_batch_of_frames_equals_single_frames(sam2: EpisodeSAM2) -> None:
    batch = frame(sam2, 3)
    assert [tuple(part.shape) for part in batch] == [(2, 8, GRID, GRID), (2, 8, GRID, GRID), (2, 32)]
    features, masks = pyramid(sam2, 3), episode(3)[2].float()
    with torch.no_grad():
        whole = sam2.encode_mask_memory(features, masks)
        single = [sam2.encode_mask_memory({n: v[[b]] for n, v in features.items()}, masks[[b]]) for b in range(2)]
    for part, pieces in zip(whole, zip(*single, strict=True), strict=True):
        assert torch.allclose(part, torch.cat(pieces), atol=1e-5)


def test_frames_are_those_of_sam2_itself(sam2: EpisodeSAM2, sam21: EpisodeSAM2) -> None:
    for model in (sam2, sam21):
        features, masks = pyramid(model), episode()[2].float()
        masks[0] = 0  # an absent object
        with torch.no_grad():
            ours = model.encode_mask_memory(features, masks)
            *_, high, pointer, score = model.model._use_mask_as_output(
                features["level2"], [features["level0"], features["level1"]], masks
            )
            tokens = features["level2"].flatten(2).permute(2, 0, 1)
            memory, (position,) = model.model._encode_new_memory([tokens], [(GRID, GRID)], high, score, False)
        for found, expected in zip(ours, (memory, position, pointer), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(ours.pointer[0], model.model.no_obj_ptr[0]), "an empty mask has the pointer of no object"


# -- bank and attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shot", [1, 5])
def test_the_bank_holds_spatial_memories_then_pointers(sam2: EpisodeSAM2, shot: int) -> None:
    frames = [frame(sam2, seed) for seed in range(shot + 1)]
    bank = sam2.build_bank(frames)
    number = GRID * GRID
    assert bank.memory.shape == bank.position.shape == ((shot + 1) * (number + 4), 2, 8)
    assert bank.pointer_tokens == 4 * (shot + 1)
    for i, one in enumerate(frames):
        block = slice(i * number, (i + 1) * number)
        assert torch.equal(bank.memory[block], one.memory.flatten(2).permute(2, 0, 1))
        expected = one.position.flatten(2).permute(2, 0, 1) + sam2.model.maskmem_tpos_enc[6]
        assert torch.equal(bank.position[block], expected)
        start = (shot + 1) * number + 4 * i
        assert torch.equal(bank.memory[start : start + 4], one.pointer.view(2, 4, 8).transpose(0, 1))
    assert not bank.position[-bank.pointer_tokens :].any()


def stock_attention(sam2: EpisodeSAM2, features: dict[str, Tensor], support: MemoryFrame) -> Tensor:
    """What SAM 2 itself makes of a video of two frames, the first with its mask."""
    position = sam2.model.image_encoder.neck.position_encoding(features["level2"])
    output = {"maskmem_features": support.memory, "maskmem_pos_enc": [support.position], "obj_ptr": support.pointer}
    found = sam2.model._prepare_memory_conditioned_features(
        frame_idx=1,
        is_init_cond_frame=False,
        current_vision_feats=[features["level2"].flatten(2).permute(2, 0, 1)],
        current_vision_pos_embeds=[position.flatten(2).permute(2, 0, 1)],
        feat_sizes=[(GRID, GRID)],
        output_dict={"cond_frame_outputs": {0: output}, "non_cond_frame_outputs": {}},
        num_frames=2,
    )
    return found.flatten(2).permute(2, 0, 1)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_single_support_is_stock_sam2_on_a_video_of_two_frames(
    version: str, sam2: EpisodeSAM2, sam21: EpisodeSAM2
) -> None:
    model = sam21 if version == "2.1" else sam2
    features, support = pyramid(model, 1), frame(model, 0)
    with torch.no_grad():
        ours = model.attend(features, model.build_bank([support]))
        assert torch.allclose(ours, stock_attention(model, features, support), atol=1e-6)


def test_version_21_gives_pointers_a_position(sam21: EpisodeSAM2) -> None:
    bank = sam21.build_bank([frame(sam21, 0), frame(sam21, 1)])
    positions = bank.position[-bank.pointer_tokens :]
    assert positions.abs().max() > 0
    assert torch.equal(positions, positions[:1].expand_as(positions)), "the same for all: their order does not matter"


def test_tables_of_a_validation_serve_training() -> None:
    method = small_method(pseudo_prompts=False)
    with torch.inference_mode():
        method.segment(*encoded(method))
    method.train()
    method.segment(*encoded(method)).sum().backward()


# -- decoding -----------------------------------------------------------------------------------------------------------


def decoded(sam2: EpisodeSAM2, score: float | None = None, gating: bool = False) -> tuple[Tensor, Any]:
    """Our logits, and the stock heads' output, with the object score set by its bias."""
    features = pyramid(sam2, 2)
    tokens = features["level2"].flatten(2).permute(2, 0, 1)
    last = sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1]
    before, sam2.object_score_gating = last.bias.detach().clone(), gating
    try:
        with torch.no_grad():
            if score is not None:
                last.bias.fill_(score)
            stock = sam2.model._forward_sam_heads(
                features["level2"], high_res_features=[features["level0"], features["level1"]], multimask_output=True
            )
            return sam2.decode(features, tokens), stock
    finally:
        with torch.no_grad():
            last.bias.copy_(before)
        sam2.object_score_gating = False


def test_decoding_is_sam2s_where_the_object_is_believed_present(sam2: EpisodeSAM2) -> None:
    ours, stock = decoded(sam2, score=1000.0)
    assert ours.shape == (2, SIDE, SIDE)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, stock[4][:, 0], atol=1e-5)


def test_the_object_score_changes_the_mask_only_with_gating(sam2: EpisodeSAM2) -> None:
    present, _ = decoded(sam2, score=1000.0)
    absent, _ = decoded(sam2, score=-1000.0)
    assert torch.equal(present, absent)
    gated, stock = decoded(sam2, score=-1000.0, gating=True)
    assert torch.equal(gated, stock[4][:, 0])
    assert gated.max() < -1000
    assert torch.equal(decoded(sam2, score=1000.0, gating=True)[0], present)


def test_the_mask_of_highest_predicted_quality_is_taken(sam2: EpisodeSAM2) -> None:
    _, stock = decoded(sam2, score=1000.0)
    ours, _ = decoded(sam2)
    best = stock[2].argmax(1)
    assert torch.allclose(ours, stock[1][torch.arange(2), best], atol=1e-5)
