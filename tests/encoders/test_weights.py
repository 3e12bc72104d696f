"""Checkpoint files: what is read, what is refused, and the self-describing ViT file."""

from __future__ import annotations

import json
import pickle
import resource
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from fssbench.encoders.weights import (
    HEADER_KEY,
    from_dinov2,
    load_strict,
    read_tensors,
    read_vit_header,
    save_vit,
)
from fssbench.errors import UserError

ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 1e-5}
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


class Attack:
    """Pickled code that creates a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


@pytest.fixture
def model() -> VisionTransformer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return VisionTransformer(**ARGS, num_classes=5)


def test_tensors_come_back_as_float32(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 4).half(), "b": torch.randn(2).double(), "steps": torch.tensor(7)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    for name in ("w.safetensors", "w.pth"):
        read = read_tensors(tmp_path / name)
        assert read.keys() == state.keys()
        assert read["a"].dtype == read["b"].dtype == torch.float32
        assert read["steps"].dtype == torch.int64
        assert all(torch.equal(read[k], state[k].float() if k != "steps" else state[k]) for k in state)


def test_overwriting_the_file_later_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(10_000)}, path)
    read = read_tensors(path)
    with open(path, "r+b") as file:
        file.seek(1_000)
        file.write(bytes(10_000))
    assert read["a"].min() == 1


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, zipped: bool) -> None:
    proof, touched, path = tmp_path / "proof", tmp_path / "touched", tmp_path / "attack.pth"
    pickle.loads(pickle.dumps(Attack(proof)))
    assert proof.exists()  # the attack works where a pickle is trusted
    payload = {"weight": torch.ones(1), "extra": Attack(touched)}
    if zipped:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(UserError, match=r"refused.*never run.*THE HINT"):
        read_tensors(path, "THE HINT")
    assert not touched.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.95])
def test_a_file_cut_off_is_a_user_error(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"w{suffix}"
    state = {"a": torch.randn(50, 50)}
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UserError, match=f"w{suffix} is (damaged|refused).*THE HINT"):
        read_tensors(path, "THE HINT")


def test_absent_folder_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth does not exist\. THE HINT"):
        read_tensors(tmp_path / "none.pth", "THE HINT")
    with pytest.raises(UserError, match="is a folder"):
        read_tensors(tmp_path, "THE HINT")
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"expected \.safetensors, \.pth, \.pt"):
        read_tensors(tmp_path / "w.npz", "THE HINT")


def test_a_training_checkpoint_is_no_state_dict(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="dictionary of model, epoch: expected a flat state dict"):
        read_tensors(tmp_path / "w.pth")
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(UserError, match="holds list"):
        read_tensors(tmp_path / "w.pth")


def test_every_name_and_shape_must_agree(model: VisionTransformer) -> None:
    state = model.state_dict()
    state["norm.wight"] = state.pop("norm.weight")
    state["pos_embed"] = torch.zeros(1, 5, 48)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        load_strict(model, state, "some.pth", "vit_tiny", "THE HINT")
    message = str(error.value)
    for part in ("some.pth", "vit_tiny", "missing: norm.weight", "unexpected: norm.wight", "THE HINT"):
        assert part in message
    assert "pos_embed (1, 5, 48) instead of (1, 17, 48)" in message
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with pytest.raises(UserError, match=r"missing: cls_token, pos_embed, patch_embed\.proj\.weight and 33 more\)"):
        load_strict(model, {}, "some.pth", "vit_tiny")


def test_load_strict_fills_a_model_without_memory(model: VisionTransformer) -> None:
    with torch.device("meta"):
        empty = VisionTransformer(**ARGS, num_classes=5)
    load_strict(empty, model.state_dict(), "some.pth", "vit_tiny")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(empty.eval()(images), model.eval()(images))


def test_dinov2_names_of_a_model_with_registers() -> None:
    state = {"cls_token": torch.randn(1, 1, 8), "pos_embed": torch.randn(1, 10, 8), "mask_token": torch.zeros(1, 8)}
    state["register_tokens"] = torch.randn(1, 4, 8)
    converted = from_dinov2(state)
    assert converted.keys() == {"cls_token", "pos_embed", "reg_token"}
    # the original adds positions to class token and patches, then puts the registers between them, without positions
    original = torch.cat([state["cls_token"], torch.zeros(1, 9, 8)], dim=1) + state["pos_embed"]
    assert torch.equal(converted["cls_token"], original[:, :1])
    assert torch.equal(converted["pos_embed"], original[:, 1:])
    assert torch.equal(converted["reg_token"], state["register_tokens"])


def test_dinov2_names_of_the_giant_model() -> None:
    with torch.device("meta"):
        giant = timm.create_model("vit_giant_patch14_dinov2", num_classes=0, depth=2)
    # in the original release the gated MLP of width 4096 is w12 (both halves in one) and w3
    original = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for name, t in giant.state_dict().items()
    }
    assert original["blocks.1.mlp.w12.weight"].shape == (8192, 1536)
    assert original["blocks.1.mlp.w3.bias"].shape == (1536,)
    load_strict(giant, from_dinov2({**original, "mask_token": torch.zeros(1, 1536)}), "g.pth", "ViT-g")


def test_self_describing_file_round_trip(tmp_path: Path, model: VisionTransformer) -> None:
    path = tmp_path / "new folder" / "vit.safetensors"
    save_vit(path, model.half(), ARGS, MEAN, STD)
    header = read_vit_header(path)
    assert (header.vit_args, header.mean, header.std) == (ARGS, MEAN, STD)
    stored = safetensors.torch.load_file(path)
    assert set(model.state_dict()) - set(stored) == {"head.weight", "head.bias"}
    assert all(torch.equal(stored[name], model.state_dict()[name]) for name in stored)
    first = path.read_bytes()
    save_vit(path, model, ARGS, MEAN, STD)
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_wrong_descriptions_are_not_saved(tmp_path: Path, model: VisionTransformer) -> None:
    path = tmp_path / "vit.safetensors"
    with pytest.raises(UserError, match="does not hold the weights of the vit_args"):
        save_vit(path, model, {**ARGS, "depth": 3}, MEAN, STD)
    with pytest.raises(UserError, match=r"describe no timm VisionTransformer.*depht"):
        save_vit(path, model, {**ARGS, "depht": 2}, MEAN, STD)
    with pytest.raises(UserError, match="other than plain values"):
        save_vit(path, model, {**ARGS, "norm_layer": torch.nn.LayerNorm}, MEAN, STD)
    with pytest.raises(UserError, match="std above 0"):
        save_vit(path, model, ARGS, MEAN, (1.0, 0.0, 1.0))
    with pytest.raises(UserError, match="three numbers each"):
        save_vit(path, model, ARGS, (0.5,), STD)
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        save_vit(tmp_path / "vit.pth", model, ARGS, MEAN, STD)
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_file(tmp_path: Path, model: VisionTransformer) -> None:
    path = tmp_path / "vit.safetensors"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # stands for a full disk
    try:
        with pytest.raises(UserError, match="Cannot write"):
            save_vit(path, model, ARGS, MEAN, STD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        (None, "does not describe its model"),
        ({"format": "pt"}, "does not describe its model"),
        ({HEADER_KEY: "{"}, "is no JSON"),
        ({HEADER_KEY: json.dumps({"vit_args": ARGS, "mean": MEAN})}, "must hold"),
        ({HEADER_KEY: json.dumps({"vit_args": [1], "mean": MEAN, "std": STD})}, "must hold"),
        ({HEADER_KEY: json.dumps({"vit_args": ARGS, "mean": ["a", 1, 1], "std": STD})}, "other than plain values"),
    ],
)
def test_a_header_is_checked(tmp_path: Path, metadata: dict[str, str] | None, complaint: str) -> None:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1)}, path, metadata)
    with pytest.raises(UserError, match=f"vit.safetensors {complaint}|{complaint}"):
        read_vit_header(path)


def test_header_of_an_absent_or_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no existing \.safetensors file"):
        read_vit_header("hub")
    (tmp_path / "vit.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="is damaged"):
        read_vit_header(tmp_path / "vit.safetensors")
