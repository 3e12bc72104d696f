"""Checkpoint files: read without ever running code, compared name by name, and a ViT file that describes itself."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fssbench.errors import UserError, some
from fssbench.files import weights_folder, written_whole

HEADER_KEY = "fssbench_vit"
"""Key of the safetensors metadata that holds a `ViTHeader` as JSON."""

_MAKE_ONE = "Self-describing files are written by fssbench.encoders.weights.save_vit."


def find_weights(name: str | Path) -> Path | None:
    """The file that a `weights` setting means: an existing path, else a file of that name in `FSSBENCH_WEIGHTS`
    (default `~/.cache/fssbench/weights`), else one that ships with fssbench; None where there is none."""
    name = Path(name).expanduser()
    for path in (name, weights_folder() / name, Path(__file__).resolve().parents[1] / "assets" / name):
        if path.is_file():
            return path
    return None


def read_tensors(path: str | Path, hint: str = "") -> dict[str, Tensor]:
    """Read a flat state dict `{name: tensor}` from a .safetensors, .pth or .pt file, on the CPU, never running code.

    Floating-point tensors come back as float32, whatever the file stores.
    Raises `UserError` (ending in `hint`: which file is expected and where to get it) where the file is absent, damaged,
    of another kind, holds something else than tensors, or holds pickled code, which is refused.
    """
    path = find_weights(path) or Path(path).expanduser()
    if not path.is_file():
        found = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"Weights file {path} {found}. {hint}".rstrip())
    readers = {".safetensors": _read_safetensors, ".pth": _read_pickle, ".pt": _read_pickle}
    if path.suffix not in readers:
        raise UserError(f"Weights file {path} is of an unknown kind: expected {', '.join(readers)}. {hint}".rstrip())
    state = readers[path.suffix](path, hint)
    return {name: t.detach().float() if t.is_floating_point() else t.detach() for name, t in state.items()}


def _read_safetensors(path: Path, hint: str) -> dict[str, Tensor]:
    try:
        # copied, because the tensors are views of the mapped file: overwriting it later would change or crash the model
        return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"Weights file {path} is damaged, cut off or unreadable ({error}). {hint}".rstrip()) from error


def load_plain(path: str | Path, what: str, hint: str = "") -> Any:
    """What a file written by `torch.save` holds, on the CPU, never running code; tensors stay on disk until used.

    Raises `UserError` (beginning with `what` the file is, ending in `hint`) where it is absent, damaged or holds code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise UserError(f"{what} {path} {found}. {hint}".rstrip())
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files in the format before torch 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{what} {path} is refused: it is damaged, or holds pickled code instead of plain tensors, which is "
            f"never run. {hint}".rstrip()
        ) from error
    except Exception as error:  # torch.load has no exception of its own: a damaged file raises nearly anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{what} {path} is damaged, cut off or unreadable ({reason}). {hint}".rstrip()) from error


def _read_pickle(path: Path, hint: str) -> dict[str, Tensor]:
    state = load_plain(path, "Weights file", hint)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"a dictionary of {some(map(str, state), 3)}" if isinstance(state, dict) else type(state).__name__
        raise UserError(
            f"Weights file {path} holds {found}: expected a flat state dict of tensors, without optimiser or other "
            f"training state. {hint}".rstrip()
        )
    return state


def load_strict(module: nn.Module, state: Mapping[str, Tensor], path: str | Path, what: str, hint: str = "") -> None:
    """Put `state` into `module`, which may live on the meta device; every name and every shape must agree.

    `what` names the expected model. Raises `UserError` with the first names that differ, leaving `module` unchanged.
    """
    expected = module.state_dict()
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in state and state[name].shape != tensor.shape
        ],
    }
    found = "; ".join(f"{kind}: {some(names, 3)}" for kind, names in differences.items() if names)
    if found:
        raise UserError(f"{path} does not hold the weights of {what} ({found}). {hint}".rstrip())
    module.load_state_dict(dict(state), assign=True)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of tensors, by name; the same on every device."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the classification head (`head.*`): an encoder has no use for it."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


def from_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the original DINOv2 release turned into timm's.

    Three differences: the mask token serves only DINOv2's own training; ViT-g's gated MLP is `w12`, `w3` instead of
    `fc1`, `fc2`; and with registers timm keeps the class token's position inside the class token.
    """
    renamed = {n.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): t for n, t in state.items()}
    renamed.pop("mask_token", None)
    if "register_tokens" in renamed and {"cls_token", "pos_embed"} <= renamed.keys():
        renamed["reg_token"] = renamed.pop("register_tokens")
        renamed["cls_token"] = renamed["cls_token"] + renamed["pos_embed"][:, :1]
        renamed["pos_embed"] = renamed["pos_embed"][:, 1:]
    return renamed


@dataclass(frozen=True)
class ViTHeader:
    """What a self-describing ViT file says about itself.

    vit_args  arguments of `timm.models.vision_transformer.VisionTransformer`, plain JSON values
    mean, std  input normalisation per RGB channel, of images in [0, 1]
    """

    vit_args: dict[str, Any]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def build(self, source: str) -> VisionTransformer:
        """The described model without memory for its weights (meta device), without head, for any image size.

        Raises `UserError` naming `source` where the arguments describe no VisionTransformer.
        """
        args = {**self.vit_args, "num_classes": 0, "dynamic_img_size": True, "weight_init": "skip"}
        try:
            with torch.device("meta"):
                return VisionTransformer(**args)
        except Exception as error:  # any argument of any type may stand in the header: timm answers with any exception
            raise UserError(
                f"The vit_args of {source} describe no timm VisionTransformer ({type(error).__name__}: {error}). "
                f"Correct them where the file is made."
            ) from error


def save_vit(
    path: str | Path, model: nn.Module, vit_args: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Write a plain timm VisionTransformer as one self-describing .safetensors file, whole or not at all.

    `ViTEncoder(name="from_weights", weights=path)` reads it back. The head is left out; tensors keep their dtype (a
    float16 model makes a file of half the size). Equal input gives equal bytes.
    Raises `UserError` where `vit_args` do not describe `model`, or the suffix is not .safetensors.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"Cannot write {path}: a self-describing ViT file must end in .safetensors.")
    header = _checked_header({"vit_args": dict(vit_args), "mean": list(mean), "std": list(std)}, str(path))
    state = without_head({name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()})
    load_strict(header.build(str(path)), state, "The model to be saved", f"the vit_args meant for {path}")
    # one metadata key only: safetensors writes several in an order that changes from run to run
    metadata = {HEADER_KEY: json.dumps(asdict(header), sort_keys=True)}
    with written_whole(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(state, metadata))


def read_vit_header(path: str | Path) -> ViTHeader:
    """The header of a file written by `save_vit`; raises `UserError` where it is absent, damaged or incomplete."""
    path = find_weights(path) or Path(path).expanduser()
    if not path.is_file() or path.suffix != ".safetensors":
        raise UserError(
            f"Weights file {path} is no existing .safetensors file, as name: from_weights needs. {_MAKE_ONE}"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"Weights file {path} is damaged, cut off or unreadable ({error}). {_MAKE_ONE}") from error
    if text is None:
        raise UserError(f"Weights file {path} does not describe its model (no {HEADER_KEY} header). {_MAKE_ONE}")
    try:
        return _checked_header(json.loads(text), str(path))
    except json.JSONDecodeError as error:
        raise UserError(f"The {HEADER_KEY} header of {path} is no JSON ({error}). {_MAKE_ONE}") from error


def _checked_header(values: Any, source: str) -> ViTHeader:
    """A `ViTHeader` from decoded JSON, or `UserError` naming `source`."""
    keys = {"vit_args", "mean", "std"}
    if not isinstance(values, dict) or values.keys() != keys or not isinstance(values["vit_args"], dict):
        raise UserError(f"The {HEADER_KEY} header of {source} must hold {sorted(keys)}. {_MAKE_ONE}")
    try:
        json.dumps(values["vit_args"])
        mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
    except (TypeError, ValueError) as error:
        raise UserError(f"The {HEADER_KEY} header of {source} holds other than plain values ({error}).") from error
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise UserError(f"mean and std of {source} must be three numbers each, std above 0: found {mean} and {std}.")
    return ViTHeader(values["vit_args"], mean, std)
