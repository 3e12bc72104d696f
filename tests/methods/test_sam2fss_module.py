"""SAM2FSS as a method: every setting, K supports, stored features, the shipped configs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

pytest.importorskip("sam2")


from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.store import FeatureStore
from fssbench.errors import UserError
from fssbench.losses import squared_dice_loss
from fssbench.method import FewShotMethod
from methods.sam2fss import SAM2FSS
from tests.methods.sam2 import SIDE, SMALL, encoded, episode, small_method

CONFIGS = Path(__file__).parents[2] / "configs" / "methods"


def logits(method: SAM2FSS, *parts: Any) -> Tensor:
    with torch.no_grad():
        return method.segment(*encoded(method, *parts))


@pytest.fixture(scope="module")
def base() -> SAM2FSS:
    return small_method()


# -- settings -----------------------------------------------------------------------------------------------------------

TABLE = {
    "sam2_size": "small", "sam2_version": 2.0, "image_size": 512, "dino_image_size": 560,
    "dino": "vit_base_patch14_dinov2.lvd142m", "pos_embed_resize": "original", "prior_precision": "fp32",
    "prior_renormalise": False, "pseudo_prompts": True, "imr_iterations": 3, "imr_normalise_weight": False,
    "imr_prior_minmax": True, "scma_alpha": 10, "scma_detach": True, "scma_keys": "rotated", "scma_shot_mode": "paper",
    "support_tokens": "keep", "drop_pointers": True, "object_score_gating": False, "empty_mask_fallback": "area",
    "trainable": "affine", "loss_ignore_255": False, "train_shot": 1, "precision": "bf16", "selection": "last",
    "upsample_align_corners": True,
}  # fmt: skip
"""Table 6.1 of the specification; `lr` follows `trainable`, and the order of episodes is the manifest's."""


def test_every_row_of_the_specifications_table_is_a_setting_with_its_default() -> None:
    parameters = inspect.signature(SAM2FSS).parameters
    assert {name: parameters[name].default for name in TABLE} == TABLE
    own = {"sam2_weights", "sam2_config", "backbone_weights", "lr", "recompute"}
    assert set(parameters) == set(TABLE) | own


@pytest.mark.parametrize(
    "change",
    [
        {"pseudo_prompts": False},
        {"prior_precision": "bf16"},
        {"prior_renormalise": True},
        {"imr_iterations": 0},
        {"imr_iterations": 2},
        {"imr_normalise_weight": True},
        {"imr_prior_minmax": False},
        {"scma_alpha": 0.0},
        {"scma_alpha": 30.0},
        {"scma_alpha": -5.0},
        {"scma_keys": "projected"},
        {"scma_shot_mode": "off"},
        {"scma_shot_mode": "released_5shot"},
        {"support_tokens": "drop"},
        {"precision": "bf16"},
        {"dino_image_size": 96},
        {"sam2_version": 2.1},
    ],
    ids=str,
)
def test_each_setting_changes_the_result(base: SAM2FSS, change: dict[str, Any]) -> None:
    parts = episode(shot=3)
    assert (logits(base, *parts) - logits(small_method(**change), *parts)).abs().max() > 1e-5


def test_dropping_the_pointers_is_a_choice_of_its_own() -> None:
    keep, drop = (small_method(support_tokens="drop", drop_pointers=value) for value in (False, True))
    assert (logits(keep) - logits(drop)).abs().max() > 1e-5


def test_positions_of_the_patches_are_resized_as_asked() -> None:
    original, timm = (small_method(pos_embed_resize=mode) for mode in ("original", "timm"))
    images = episode()[0]
    assert not torch.allclose(original.encode(images)["dino"], timm.encode(images)["dino"], atol=1e-4)


def test_the_calibration_lets_gradients_through_where_asked_to() -> None:
    def found(detach: bool) -> tuple[Tensor, Tensor]:
        method = small_method(scma_detach=detach)
        out = method.segment(*encoded(method))
        out.square().mean().backward()
        return out.detach(), method.net.sam2.model.memory_attention.layers[0].norm2.weight.grad

    (same, detached), (as_well, through) = found(True), found(False)
    assert torch.equal(same, as_well)
    assert not torch.allclose(detached, through, rtol=1e-3)


def test_a_lost_mask_is_saved_by_the_fallback() -> None:
    query, support, masks = episode(size=1)
    masks.zero_()
    masks[0, 0, 8:13, 22:27] = 1  # between the points of every sampling
    parts = encoded(small_method(), query, support, masks)
    without, with_area = (small_method(empty_mask_fallback=name).net for name in ("none", "area"))
    with torch.no_grad():
        lost, saved = without.trace(*parts), with_area.trace(*parts)
    assert lost.priors is not None
    assert lost.refined is not None
    assert saved.priors is not None
    assert saved.refined is not None
    assert not lost.priors.fg.any(), "no prototype, no likeness"
    assert saved.priors.fg.max() > 0.9
    assert not lost.refined.affinity.any()
    assert saved.refined.affinity.max() > 0.9
    for net, empty in ((without, True), (with_area, False)):
        calibration = net.calibration(masks, lost.refined.memory)
        assert calibration is not None
        assert calibration.support_masks.any() != empty
    found = {
        name: logits(small_method(empty_mask_fallback=name), query, support, masks) for name in ("none", "area", "max")
    }
    assert all(torch.isfinite(value).all() for value in found.values())
    assert not torch.allclose(found["none"], found["area"], atol=1e-5)
    assert not torch.allclose(found["max"], found["area"], atol=1e-5)


def test_gating_empties_the_mask_of_an_absent_object() -> None:
    free, gated = small_method(), small_method(object_score_gating=True)
    with torch.no_grad():
        for method in (free, gated):
            method.net.sam2.model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-1e4)
    assert logits(gated).max() < -1000
    assert logits(free).min() > -1000


def test_scaling_to_the_original_size(base: SAM2FSS) -> None:
    small = torch.randn(8, 8)
    up = base.upsample(small, (15, 15))
    assert torch.allclose(up[::2, ::2], small, atol=1e-5), "corners and every second pixel are kept"
    other = small_method(upsample_align_corners=False)
    assert not torch.allclose(up, other.upsample(small, (15, 15)), atol=1e-2)
    assert (base.upsampling[-4:], other.upsampling) == ("true", FewShotMethod.upsampling)


def test_the_loss_counts_ignored_pixels_as_the_setting_says(base: SAM2FSS) -> None:
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[:, :20], mask[:, 40:] = 1, 255
    x = torch.randn(1, SIDE, SIDE)
    p, t = x.sigmoid(), (mask == 1).float()
    expected = 1 - 2 * (p * t).sum() / ((p**2).sum() + (t**2).sum())
    assert torch.allclose(base.loss(x, mask), expected)
    without = small_method(loss_ignore_255=True).loss(x, mask)
    assert torch.allclose(without, base.loss(x[:, :40], mask[:, :40]))
    assert squared_dice_loss(torch.full((1, 4, 4), -200.0), torch.zeros(1, 4, 4, dtype=torch.uint8)) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"imr_iterations": -1}, "imr_iterations is -1, expected 0"),
        ({"train_shot": 0}, "train_shot is 0, expected 1"),
        ({"lr": 0.0}, "lr is 0.0, expected a number above 0"),
        ({"trainable": "afine"}, "trainable is 'afine'.*Did you mean 'affine'"),
        ({"sam2_size": "base"}, "sam2_size is 'base'"),
        ({"sam2_weights": "absent.pt"}, "absent.pt exist neither"),
        ({"sam2_config": {"no_such_part": 1, "memory_attention": 3}}, "sam2_config"),
        ({"dino_image_size": 81}, "multiple of its patch size"),
    ],
)
def test_user_mistakes_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SAM2FSS(**{**SMALL, **kwargs})


# -- an episode ---------------------------------------------------------------------------------------------------------


def test_features_can_be_cached(base: SAM2FSS) -> None:
    features = base.encode(episode(size=3)[0])
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        "dino": (3, 96, 10, 10), "level0": (3, 4, 16, 16), "level1": (3, 8, 8, 8), "level2": (3, 32, 4, 4),
    }  # fmt: skip
    assert not any(value.requires_grad for value in features.values())
    assert set(small_method(pseudo_prompts=False).encode(episode()[0])) == {"level0", "level1", "level2"}
    with pytest.raises(UserError, match="96x96 pixels, model.image_size is 64"):
        base.encode(episode(side=96)[0])


def test_stored_features_are_those_of_the_encoders_and_come_back_as_they_were(tmp_path: Path) -> None:
    method = small_method(precision="bf16")
    images = episode(size=3)[0]

    def features(count: int) -> dict[str, Tensor]:
        cache = FeatureCache(store=FeatureStore(tmp_path, 1), kinds=method.feature_kinds())
        with torch.no_grad():
            return cache.features(["a", "b", "c"][:count], images[:count], method.encode)

    cold, _, mixed = features(1), features(2), features(3)  # at last two from disk, one made
    with torch.no_grad():
        fresh = [method.encode(image[None]) for image in images]
    for name in fresh[0]:
        assert {value[name].dtype for value in (cold, mixed, *fresh)} == {fresh[0][name].dtype}
        assert torch.equal(mixed[name], torch.cat([one[name] for one in fresh]))

    def changed(**kwargs: Any) -> set[str]:
        kinds, other = method.feature_kinds(), small_method(**{"precision": "bf16", **kwargs}).feature_kinds()
        return {name for name in kinds if kinds[name] != other.get(name)}

    pyramid = {"level0", "level1", "level2"}
    assert changed(trainable="paper", lr=1.0, train_shot=5, imr_iterations=0, scma_alpha=0.0) == set()
    assert changed(pseudo_prompts=False) == {"dino"}
    assert changed(prior_precision="bf16") == changed(dino_image_size=96) == {"dino"}
    assert changed(precision="fp32") == changed(sam2_version=2.1) == pyramid
    state = method.net.sam2.model.state_dict()
    for name, expected in (
        ("sam_mask_decoder.conv_s1.bias", pyramid),
        ("image_encoder.trunk.pos_embed", pyramid),
        ("memory_attention.norm.weight", set()),
    ):
        before = method.feature_kinds()
        state[name].add_(1)
        assert {n for n, kind in method.feature_kinds().items() if kind != before[n]} == expected


@pytest.mark.parametrize("shot", [1, 3])
def test_a_batch_equals_single_episodes_and_is_deterministic(base: SAM2FSS, shot: int) -> None:
    query, support, masks = episode(size=3, shot=shot)
    batch = logits(base, query, support, masks)
    assert batch.shape == (3, SIDE, SIDE)
    assert batch.dtype == torch.float32
    assert torch.isfinite(batch).all()
    single = [logits(base, query[[b]], support[[b]], masks[[b]]) for b in range(3)]
    assert torch.allclose(batch, torch.cat(single), atol=1e-4)
    assert torch.equal(batch, logits(base, query, support, masks))


def test_supports_in_any_order_give_the_same_mask(base: SAM2FSS) -> None:
    query, support, masks = episode(shot=5)
    order = [3, 0, 4, 2, 1]
    expected = logits(base, query, support, masks)
    assert torch.allclose(logits(base, query, support[:, order], masks[:, order]), expected, atol=1e-4)


def test_ignored_pixels_of_a_support_are_background(base: SAM2FSS) -> None:
    query, support, masks = episode()
    ignored = masks.clone()
    ignored[masks == 0] = 255
    assert torch.equal(logits(base, query, support, ignored), logits(base, query, support, masks))


def test_naive_sam2_has_no_dinov2_and_none_of_its_parts() -> None:
    method = small_method(pseudo_prompts=False)
    assert method.encoder is None
    other = small_method(pseudo_prompts=False, imr_iterations=1, scma_alpha=3.0)
    assert torch.equal(logits(method), logits(other))


# -- configs ------------------------------------------------------------------------------------------------------------

PRESETS: dict[str, dict[str, Any]] = {
    "sam2_naive": {"pseudo_prompts": False},
    "sam2_ppg": {"imr_iterations": 0, "scma_alpha": 0.0},
    "sam2_ppg_imr": {"scma_alpha": 0.0},
    "sam2_ppg_scma": {"imr_iterations": 0},
    "sam2fss": {},
}


@pytest.mark.parametrize("name", PRESETS)
def test_shipped_configs_are_the_rows_of_the_ablation(name: str) -> None:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FewShotMethod, "model")
    parsed = parser.parse_object({"model": config["model"]})
    assert parsed.model.class_path == "methods.sam2fss.SAM2FSS"
    defaults = {n: p.default for n, p in inspect.signature(SAM2FSS).parameters.items()}
    assert {n: v for n, v in parsed.model.init_args.as_dict().items() if v != defaults[n]} == PRESETS[name]


def test_the_rows_of_the_ablation_differ() -> None:
    found = [logits(small_method(**kwargs)) for kwargs in PRESETS.values()]
    for i, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-5 for other in found[:i])


def test_versions_in_yaml_and_on_the_command_line() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FewShotMethod, "model")
    chosen = ["--model=methods.sam2fss.SAM2FSS", "--model.sam2_version=2.1", "--model.sam2_config={num_maskmem: 7}"]
    parsed = parser.parse_args(chosen).model.init_args
    assert parsed.sam2_version == 2.1
    assert parsed.sam2_config == {"num_maskmem": 7}
