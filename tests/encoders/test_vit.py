"""ViTEncoder against the golden DINOv2 features, against timm itself, and against independent formulas."""

from __future__ import annotations

import copy
import pickle
import zlib
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from fssbench.encoders.vit import ViTEncoder, hub_file, resized_positions, vit_names
from fssbench.encoders.weights import save_vit
from fssbench.errors import UserError
from tests.shared import SHARED, needs_shared

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
SMALL = "vit_small_patch14_dinov2.lvd142m"
TINY = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def filled_by_rule(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor made from its own name, by the rule of the golden files' README."""
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name == "pos_embed":
        return 0.2 * r
    if len(shape) <= 1:
        base = 1.0 if name.endswith("weight") else 0.1 if name.endswith("gamma") else 0.0
        return base + 0.02 * r
    fan = int(np.prod(shape[1:]))
    return 0.02 * r if fan == 1 else r / fan**0.5


@pytest.fixture(scope="module")
def original_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ViT-S/14 in the names of the original DINOv2 release, mask token included."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, 1370, 384),
        "mask_token": (1, 384),
        "patch_embed.proj.weight": (384, 3, 14, 14),
        "patch_embed.proj.bias": (384,),
        "norm.weight": (384,),
        "norm.bias": (384,),
    }
    layers = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for block in (f"blocks.{i}." for i in range(12)):
        for layer, shape in layers.items():
            shapes |= {f"{block}{layer}.weight": shape, f"{block}{layer}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (384,), f"{block}{norm}.bias": (384,)}
        shapes |= {f"{block}ls1.gamma": (384,), f"{block}ls2.gamma": (384,)}
    state = {name: filled_by_rule(name, shape) for name, shape in shapes.items()}
    assert sum(t.numel() for t in state.values()) == 22_056_576  # the original's parameter count
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    return path


def tiny_model(**changes: object) -> tuple[VisionTransformer, dict[str, object]]:
    """A small ViT with weights large enough that every part of it changes its output, and its arguments."""
    args = {"img_size": 56, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, **changes}
    model = VisionTransformer(**args, dynamic_img_size=True, num_classes=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(filled_by_rule(name, tuple(parameter.shape)))
    return model, args


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A self-describing file: patch 8, 56 px (7 x 7), 4 blocks, width 48."""
    model, args = tiny_model()
    save_vit(tmp_path / "tiny.safetensors", model, args, MEAN, STD)
    return tmp_path / "tiny.safetensors"


def tiny(path: Path, **options: object) -> ViTEncoder:
    return ViTEncoder("from_weights", str(path), **{"blocks": (2, 4), **options})


def by_timm(model: VisionTransformer, images: Tensor, indices: list[int], norm: bool) -> list[Tensor]:
    """The same features through timm's own forward, which resizes positions in timm's way."""
    normalised = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return model.forward_intermediates(normalised, indices, norm=norm, intermediates_only=True)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


# ---- the golden features: conversion, normalisation, position resizing, blocks, norm ----


@needs_shared
def test_golden_dinov2_features(original_file: Path) -> None:
    golden = np.load(SHARED / "golden" / "dinov2_vits14_features.npz")
    query = np.load(SHARED / "golden" / "sam2fss_1shot_inputs.npz")["query_image"]
    query = torch.from_numpy(query).permute(2, 0, 1)[None].float()
    normed = ViTEncoder(SMALL, str(original_file), blocks=(3, 7, 12))
    raw = ViTEncoder(SMALL, str(original_file), blocks=(3,), final_norm=False)
    timms = ViTEncoder(SMALL, str(original_file), blocks=(3,), final_norm=False, pos_embed_resize="timm")
    checked = set()
    for size in (252, 518, 560):
        images = F.interpolate(query, size=(size, size), mode="bilinear", align_corners=True) / 255
        maps = {f"size{size}_{block}_norm": features for block, features in normed(images).items()}
        maps[f"size{size}_block3_raw"] = raw(images)["block3"]
        for key, features in maps.items():
            error = distance(features[:, ::8], torch.from_numpy(golden[key]))
            assert error < 1e-4, (key, error)
        checked |= maps.keys()
        other = distance(timms(images)["block3"], maps[f"size{size}_block3_raw"])
        assert other < 1e-6 if size == 518 else other > 0.01, (size, other)
    assert checked == set(golden.files)


@needs_shared
def test_shared_vit_tiny_at_other_than_its_native_size() -> None:
    path = SHARED / "weights" / "vit_tiny_patch16_224.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    encoder = ViTEncoder("vit_tiny_patch16_224", str(path), image_size=448, blocks=(-1,), pos_embed_resize="timm")
    assert encoder.mean.flatten().tolist() == encoder.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert (encoder.native_size, encoder.image_size, encoder.patch_size, encoder.depth) == (224, 448, 16, 12)
    images = torch.rand(1, 3, 448, 448)
    features = encoder(images)["block12"]
    assert features.shape == (1, 192, 28, 28)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    model.load_state_dict({k: v.float() for k, v in safetensors.torch.load_file(path).items() if k[:5] != "head."})
    with torch.no_grad():
        expected = model.forward_intermediates(images * 2 - 1, 1, norm=True, intermediates_only=True)[0]
    assert distance(features, expected) < 1e-5
    assert ViTEncoder("vit_tiny_patch16_224", str(path))(images)["block12"].isfinite().all()


# ---- features ----


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reg_tokens": 4, "no_embed_class": True},
        {"reg_tokens": 2},
        {"class_token": False, "global_pool": "map"},
        {"pre_norm": True, "init_values": 0.1, "qk_norm": True},
    ],
    ids=["plain", "registers", "positioned-registers", "no-class-token", "clip-like"],
)
def test_equal_to_timm(tmp_path: Path, changes: dict[str, object], norm: bool) -> None:
    model, args = tiny_model(**changes)
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    encoder = tiny(tmp_path / "vit.safetensors", blocks=(1, -1), final_norm=norm, pos_embed_resize="timm")
    for size in [(56, 56), (40, 96)]:
        images = torch.rand(2, 3, *size)
        features = encoder(images)
        expected = by_timm(model, images, [0, 3], norm)
        assert features.keys() == {"block1", "block4"}
        assert features["block1"].shape == (2, 48, size[0] // 8, size[1] // 8)
        assert distance(features["block1"], expected[0]) < 1e-5
        assert distance(features["block4"], expected[1]) < 1e-5


def test_registers_are_resized_in_the_way_they_were_released(tmp_path: Path) -> None:
    """DINOv2's register models were released with antialiasing and no offset: both modes are timm's."""
    model, args = tiny_model(reg_tokens=4, no_embed_class=True)
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    images = torch.rand(1, 3, 40, 40)
    features = tiny(tmp_path / "vit.safetensors", pos_embed_resize="original")(images)["block4"]
    assert distance(features, by_timm(model, images, [3], norm=True)[0]) < 1e-5


def test_blocks_above_the_highest_needed_are_not_run(tiny_file: Path) -> None:
    calls: list[int] = []

    def count(encoder: ViTEncoder) -> ViTEncoder:
        for number, block in enumerate(encoder.vit.blocks, start=1):
            block.register_forward_hook(lambda *_, n=number: calls.append(n))
        return encoder

    images = torch.rand(1, 3, 56, 56)
    early = count(tiny(tiny_file, blocks=(3,)))(images)
    assert calls == [1, 2, 3]
    calls.clear()
    all_blocks = count(tiny(tiny_file, blocks=(4, 3)))
    assert torch.equal(early["block3"], all_blocks(images)["block3"])
    assert calls == [1, 2, 3, 4]
    assert tiny(tiny_file, blocks=(3,)).depth == 4


def test_blocks_are_resolved_in_the_order_given(tiny_file: Path) -> None:
    encoder = tiny(tiny_file, blocks=(-1, 2, -3))
    assert encoder.blocks == (4, 2, 2)
    assert encoder(torch.rand(1, 3, 56, 56)).keys() == {"block2", "block4"}
    for wrong in [(0,), (5,), (-5,), (2, 9), ()]:
        with pytest.raises(UserError, match="choose from 1 to 4"):
            tiny(tiny_file, blocks=wrong)


def test_grids_and_sizes_that_do_not_fit(tmp_path: Path) -> None:
    model, args = tiny_model(img_size=518, patch_size=14, embed_dim=12, depth=1)
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    encoder = tiny(tmp_path / "vit.safetensors", blocks=(1,))
    for size, grid in [(518, 37), (252, 18), (126, 9), (14, 1)]:
        assert encoder(torch.rand(1, 3, size, size))["block1"].shape == (1, 12, grid, grid)
    with pytest.raises(UserError, match=r"250x250 pixels.*patch size 14\. Nearest: 238 or 252\."):
        encoder(torch.rand(1, 3, 250, 250))
    with pytest.raises(UserError, match=r"Nearest: 252 or 266 and 294 or 308\."):
        encoder(torch.rand(1, 3, 252, 300))
    with pytest.raises(UserError, match=r"5x5 pixels.*Nearest: 14\."):
        encoder(torch.rand(1, 3, 5, 5))
    with pytest.raises(UserError, match=r"Nearest: 504 or 518\."):
        tiny(tmp_path / "vit.safetensors", blocks=(1,), image_size=512)


# ---- positions ----


def bicubic_1d(values: np.ndarray, n: int) -> np.ndarray:
    """Keys' cubic convolution (a = -0.75) along axis 0 with a scale factor of (n + 0.1) / m, edges repeated."""
    m, a = len(values), -0.75
    out = np.zeros((n, *values.shape[1:]))
    for i in range(n):
        x = (i + 0.5) * m / (n + 0.1) - 0.5
        for j in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3):
            d = abs(x - j)
            inner = (a + 2) * d**3 - (a + 3) * d**2 + 1
            outer = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            out[i] += (inner if d <= 1 else outer) * values[min(max(j, 0), m - 1)]
    return out


@pytest.mark.parametrize("grid", [(3, 3), (9, 5), (14, 7)])
def test_original_resizing_against_the_formula(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 49, 6)
    rows = bicubic_1d(table[0].view(7, 7, 6).double().numpy(), grid[0])
    expected = bicubic_1d(rows.transpose(1, 0, 2), grid[1]).transpose(1, 0, 2)
    resized = resized_positions(table, *grid, "original")
    assert resized.shape == (1, grid[0] * grid[1], 6)
    np.testing.assert_allclose(resized[0].numpy(), expected.reshape(-1, 6), atol=1e-5)
    assert distance(resized_positions(table, *grid, "timm"), resized) > 0.01


@pytest.mark.parametrize("n", [1, 9, 18, 32, 40, 74])
def test_the_offset_always_gives_the_grid_asked_for(n: int) -> None:
    assert resized_positions(torch.randn(1, 37 * 37, 2), n, n + 1, "original").shape == (1, n * (n + 1), 2)


def test_tables_are_cached_but_no_state(tiny_file: Path) -> None:
    encoder = tiny(tiny_file)
    names = set(encoder.state_dict())
    with torch.inference_mode():  # as Lightning tests
        first = encoder(torch.rand(1, 3, 40, 40))["block4"]
    table = encoder._table(5, 5)
    assert first.is_inference()
    assert not table.is_inference()
    encoder(torch.rand(1, 3, 40, 48))
    assert encoder._table(5, 5) is table
    assert set(encoder.state_dict()) == names
    assert all(name.startswith("vit.") for name in names)
    # a head trained afterwards on the same grid must not meet a tensor of inference mode
    head = torch.nn.Conv2d(48, 1, 1)
    head(encoder(torch.rand(1, 3, 40, 40))["block4"]).sum().backward()
    assert head.weight.grad is not None


def test_other_weights_have_other_tables(tiny_file: Path) -> None:
    encoder, images = tiny(tiny_file), torch.rand(1, 3, 40, 40)
    before = encoder(images)["block4"]
    state = {name: t.clone() for name, t in encoder.state_dict().items()}
    state["vit.pos_embed"] += torch.randn_like(state["vit.pos_embed"])
    wrapped = torch.nn.ModuleDict({"encoder": encoder})
    wrapped.load_state_dict({f"encoder.{name}": t for name, t in state.items()})
    after = encoder(images)["block4"]
    assert distance(after, before) > 0.01
    fresh = tiny(tiny_file)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images)["block4"], after)


def test_copies_and_pickles_behave_alike(tiny_file: Path) -> None:
    encoder, images = tiny(tiny_file), torch.rand(1, 3, 40, 40)
    expected = encoder(images)["block4"]
    assert torch.equal(copy.deepcopy(encoder)(images)["block4"], expected)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(images)["block4"], expected)


# ---- frozen ----


def test_frozen_whatever_the_trainer_does(tmp_path: Path) -> None:
    model, args = tiny_model(pos_drop_rate=0.5, proj_drop_rate=0.5, drop_path_rate=0.5)
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    encoder = tiny(tmp_path / "vit.safetensors")
    method = torch.nn.ModuleDict({"encoder": encoder})
    images = torch.rand(1, 3, 56, 56, requires_grad=True)
    expected = encoder(images)["block4"]
    method.train()
    assert not any(m.training for m in encoder.modules())
    features = encoder(images)["block4"]
    assert torch.equal(features, expected)
    assert not features.requires_grad
    assert not any(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_autocast(tiny_file: Path, dtype: torch.dtype) -> None:
    encoder, images = tiny(tiny_file), torch.rand(2, 3, 40, 40)
    with torch.autocast("cpu", dtype):
        features = encoder(images)["block4"]
    assert features.dtype == torch.float32  # the residual stream stays in full precision
    assert 0 < distance(features, encoder(images)["block4"]) < 0.05


def test_random_weights_are_the_same_every_time() -> None:
    before = torch.get_rng_state()
    first = ViTEncoder(TINY, "random", blocks=(1,))
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(10)
    second = ViTEncoder(TINY, "random", blocks=(1,))
    weight = first.vit.blocks[0].attn.qkv.weight
    assert torch.equal(weight, second.vit.blocks[0].attn.qkv.weight)
    assert weight.std() > 0.001


# ---- names and weights ----


def test_unknown_names_and_other_models(tiny_file: Path) -> None:
    with pytest.raises(UserError, match=r"is unknown to timm.*vit_base_patch14_dinov2"):
        ViTEncoder("vit_base_patch14_dino2", "random")
    with pytest.raises(UserError, match="is unknown to timm"):
        ViTEncoder("hf-hub:someone/model", "random")
    for name in ("resnet50", "swin_tiny_patch4_window7_224", "deit_tiny_distilled_patch16_224", "vit_base_r50_s16_224"):
        with pytest.raises(UserError, match=f"'{name}' is no plain ViT"):
            ViTEncoder(name, "random")
    with pytest.raises(UserError, match=r"unknown pretrained tag.*lvd142m"):
        ViTEncoder("vit_small_patch14_dinov2.lvd42m", "random")
    with pytest.raises(UserError, match=r"'timms' is unknown.*Did you mean 'timm'"):
        tiny(tiny_file, pos_embed_resize="timms")
    assert SMALL in vit_names(pretrained=True)
    assert SMALL.partition(".")[0] in vit_names()


@pytest.mark.parametrize(
    "changes", [{"img_size": (56, 64)}, {"patch_size": (8, 4)}, {"in_chans": 4}, {"pos_embed": "none"}], ids=str
)
def test_models_that_cannot_be_used(tmp_path: Path, changes: dict[str, object]) -> None:
    model, args = tiny_model(**changes)
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    with pytest.raises(UserError, match="RGB images with square patches on a square grid and a learned position table"):
        tiny(tmp_path / "vit.safetensors")


def test_a_model_that_pools_before_its_norm(tmp_path: Path) -> None:
    model, args = tiny_model(class_token=False, global_pool="avg")
    save_vit(tmp_path / "vit.safetensors", model, args, MEAN, STD)
    with pytest.raises(UserError, match="Set final_norm: false"):
        tiny(tmp_path / "vit.safetensors")
    images = torch.rand(1, 3, 56, 56)
    features = tiny(tmp_path / "vit.safetensors", final_norm=False)(images)["block4"]
    assert distance(features, by_timm(model, images, [3], norm=False)[0]) < 1e-5


def test_an_absent_file_names_the_official_one(tmp_path: Path) -> None:
    for size in ("small", "base", "large"):
        short = f"dinov2_vit{size[0]}14"
        url = f"https://dl.fbaipublicfiles.com/dinov2/{short}/{short}_pretrain.pth"
        with pytest.raises(UserError, match=f"none.pth does not exist.*{url}"):
            ViTEncoder(f"vit_{size}_patch14_dinov2", str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match=r"https://huggingface.co/timm/vit_tiny_patch16_224\.augreg_in21k_ft_in1k"):
        ViTEncoder("vit_tiny_patch16_224", str(tmp_path / "none.pth"))


def test_weights_of_another_model_are_refused(original_file: Path, tiny_file: Path) -> None:
    with pytest.raises(UserError) as error:
        ViTEncoder("vit_base_patch14_dinov2", str(original_file))
    for part in (original_file.name, "of vit_base_patch14_dinov2", "(1, 1, 384) instead of (1, 1, 768)", "vitb14"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="missing: reg_token"):
        ViTEncoder("vit_small_patch14_reg4_dinov2", str(original_file))
    plain_file = tiny_file.with_name("plain.safetensors")
    safetensors.torch.save_file(safetensors.torch.load_file(tiny_file), plain_file)
    with pytest.raises(UserError, match="does not describe its model"):
        ViTEncoder("from_weights", str(plain_file))


def test_a_pretrained_head_is_ignored_and_nothing_else(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=10).state_dict()
    torch.save(state, tmp_path / "vit.pth")
    encoder = ViTEncoder("vit_tiny_patch16_224", str(tmp_path / "vit.pth"))
    assert torch.equal(encoder.vit.pos_embed, state["pos_embed"])
    torch.save({**state, "head_dist.weight": torch.ones(1)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"unexpected: head_dist\.weight"):
        ViTEncoder("vit_tiny_patch16_224", str(tmp_path / "vit.pth"))


# ---- hub ----


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No internet, and a download cache of its own; returns where TINY's file lies once downloaded."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / f"models--timm--{TINY}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    return repository / "snapshots" / "abc" / "model.safetensors"


def test_a_download_that_fails_says_what_to_do(offline: Path) -> None:
    for size, short in [("small", "dinov2_vits14"), ("large", "dinov2_vitl14")]:
        name = f"vit_{size}_patch14_dinov2.lvd142m"
        url = f"https://dl.fbaipublicfiles.com/dinov2/{short}/{short}_pretrain.pth"
        with pytest.raises(UserError, match=f"'{name}' could not be downloaded.*{url}.*path of that file as weights"):
            ViTEncoder(name)
    with pytest.raises(UserError, match="timm has no weights for 'vit_base_patch16_reg4_gap_256'"):
        ViTEncoder("vit_base_patch16_reg4_gap_256", final_norm=False)


def test_downloaded_weights_are_used_without_the_network(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # it would ask the network first, for half a minute
    assert hub_file(TINY) is None
    model = timm.create_model(TINY).eval()
    safetensors.torch.save_file(model.state_dict(), offline)
    assert hub_file(TINY) == offline
    before = torch.get_rng_state()
    encoder = ViTEncoder("vit_tiny_patch16_224")  # the same weights: TINY's tag is the default one
    assert torch.equal(torch.get_rng_state(), before)
    state = model.state_dict()
    assert all(torch.equal(t, state[name.removeprefix("vit.")]) for name, t in encoder.state_dict().items())
    offline.unlink()
    offline.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be used.*Delete the file"):
        ViTEncoder(TINY)
    with pytest.raises(UserError, match="choose from 1 to 12"):  # found before the weights are touched
        ViTEncoder(TINY, blocks=(13,))
