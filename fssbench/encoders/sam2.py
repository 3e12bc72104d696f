"""SAM 2 from the public `sam2` package: packaged or own configurations, official checkpoints, nothing vendored.

The packaged YAML is read with OmegaConf and instantiated directly, so that neither a working directory nor another
application's Hydra configuration matters (sam2fss.md 7.1).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn

from fssbench.encoders.weights import find_weights, load_plain, load_strict
from fssbench.errors import UserError, nearest
from fssbench.files import weights_folder

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

SAM2Size = Literal["tiny", "small", "base_plus", "large"]
SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/"
SAM2_SIZES: dict[str, str] = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
"""Size as the checkpoints are named -> as the packaged configurations are named."""
SAM2_VERSIONS: dict[float, tuple[str, str]] = {2.0: ("sam2", "072824"), 2.1: ("sam2.1", "092824")}
"""Version -> beginning of the file names, and the folder of its checkpoints below `SAM2_URL`."""
INSTALL_SAM2 = "pip install 'setuptools>=70.1' && SAM2_BUILD_CUDA=0 pip install --no-build-isolation sam2==1.1.0"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Input normalisation of SAM 2, per RGB channel of images in [0, 1]."""
STRIDE = 16
"""Pixels per token of the coarsest map that SAM 2 uses."""


def build_sam2(
    size: str = "small",
    version: float = 2.0,
    weights: str = "stock",
    image_size: int = 512,
    config: str | Mapping[str, Any] | None = None,
    targets: Mapping[str, str] | None = None,
) -> SAM2Base:
    """A SAM 2 model in eval mode on the CPU, float32, for square images of one size.

    size        tiny, small, base_plus or large
    version     2.0 or 2.1
    weights     `stock` (the official checkpoint, found by its name, see `find_weights`), `random` (the same every time;
                the caller's random state is left as it was), or a checkpoint file: {"model": tensors}, every name and
                shape as in the configuration
    image_size  side of the images in pixels, a multiple of 32: the only change to the packaged configuration
    config      settings laid over those below `model` of the packaged YAML: a mapping, or a YAML file with a `model` key
    targets     places in the configuration (`memory_attention.layer`) -> import path of another class

    Raises `UserError` where sam2 is not installed, a name is unknown, or the weights are absent or do not fit.
    """
    settings = sam2_config(size, version, image_size, config)
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    for place, target in (targets or {}).items():
        OmegaConf.update(settings, f"{place}._target_", target)
    OmegaConf.resolve(settings)
    # hidden: sam2 would put tables on the first GPU in every process, whichever device the model is used on
    hidden = mock.patch.object(torch.cuda, "is_available", return_value=False)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), hidden:
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the GPUs too
        try:
            model: SAM2Base = instantiate(settings)
        except InstantiationException as error:
            if config is None:
                raise
            raise UserError(f"sam2_config describes no SAM 2 model: {' '.join(str(error).split())}") from error
    if weights != "random":
        path = _find(weights, size, version)
        what = f"SAM {float(version):.1f} Hiera {size}" + (" with the settings of sam2_config" if config else "")
        load_strict(model, read_sam2(path), path, what, f"Expected {checkpoint_url(size, version)}.")
    return model.eval()


def sam2_config(size: str, version: float, image_size: int, config: str | Mapping[str, Any] | None = None) -> Any:
    """The `model` part of the packaged configuration (an OmegaConf node) for `image_size`, with `config` laid over it.

    Raises `UserError` as `build_sam2` does.
    """
    _check_name(size, version)
    if image_size % 32 or image_size < 64:
        lower = max(64, image_size // 32 * 32)
        raise UserError(
            f"SAM 2 cannot take images of {image_size} pixels: the side must be a multiple of 32, e.g. {lower}."
        )
    packaged = _package() / "configs" / SAM2_VERSIONS[float(version)][0] / _config_name(size, version)
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    settings: Any = OmegaConf.select(OmegaConf.load(packaged), "model")
    grid = image_size // STRIDE
    attention, table = "memory_attention.layer", {"feat_sizes": [grid, grid]}
    changes = {"image_size": image_size, f"{attention}.self_attention": table, f"{attention}.cross_attention": table}
    # else position tables would be put on the first GPU, whichever the model is used on
    changes |= {
        f"{part}.position_encoding": {"warmup_cache": False} for part in ("image_encoder.neck", "memory_encoder")
    }
    try:
        if config is not None:
            settings = OmegaConf.merge(settings, OmegaConf.create(own_settings(config)))
        for place, value in changes.items():
            OmegaConf.update(settings, place, value, merge=True)
    except OmegaConfBaseException as error:
        raise UserError(f"sam2_config does not fit SAM 2's configuration: {str(error).splitlines()[0]}.") from error
    return settings


def own_settings(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """A `sam2_config` setting as a plain dictionary; raises `UserError` where a file is missing or no such YAML."""
    if isinstance(config, Mapping):
        return {str(name): value for name, value in config.items()}
    import yaml

    path = Path(config).expanduser()
    if not path.is_file():
        raise UserError(
            f"sam2_config {path} does not exist. Give a YAML file with a `model` key, or the settings themselves."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"sam2_config {path} is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f"sam2_config {path} has no `model` key with settings, as the configurations of sam2 have.")
    return dict(content["model"])


def read_sam2(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a SAM 2 checkpoint {"model": {name: tensor}}, float32 on the CPU; never runs code.

    Raises `UserError` where the file is absent, damaged, or something else.
    """
    content = load_plain(path, "SAM 2 checkpoint")
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} is no SAM 2 checkpoint: expected {{'model': tensors by name}}, as sam2_hiera_small.pt has."
        )
    # copied, because the tensors lie in the mapped file: overwriting it later would change the model
    return {name: tensor.detach().float().clone() for name, tensor in state.items()}


def checkpoint_name(size: str, version: float) -> str:
    """File name of an official checkpoint, e.g. `sam2_hiera_small.pt`."""
    return f"{SAM2_VERSIONS[float(version)][0]}_hiera_{size}.pt"


def checkpoint_url(size: str, version: float) -> str:
    """Where an official checkpoint is published."""
    return f"{SAM2_URL}{SAM2_VERSIONS[float(version)][1]}/{checkpoint_name(size, version)}"


def rope_attentions(model: nn.Module) -> list[nn.Module]:
    """The modules of a SAM 2 model that hold a table of rotations."""
    return [module for module in model.modules() if hasattr(module, "freqs_cis")]


def _config_name(size: str, version: float) -> str:
    return f"{SAM2_VERSIONS[float(version)][0]}_hiera_{SAM2_SIZES[size]}.yaml"


def _check_name(size: str, version: float) -> None:
    if size not in SAM2_SIZES:
        raise UserError(f"sam2_size '{size}' is unknown.{nearest(size, SAM2_SIZES)}")
    if float(version) not in SAM2_VERSIONS:
        raise UserError(f"sam2_version {version} is unknown. Valid: 2.0 (default), 2.1.")


def _package() -> Path:
    """The folder of the sam2 package, found without importing it."""
    spec = importlib.util.find_spec("sam2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"SAM 2 needs the package sam2, which is not installed. Run: {INSTALL_SAM2}")
    return Path(next(iter(spec.submodule_search_locations)))


def _find(weights: str, size: str, version: float) -> Path:
    name = checkpoint_name(size, version) if weights == "stock" else weights
    found = find_weights(name)
    if found is not None:
        return found
    url = checkpoint_url(size, version)
    raise UserError(
        f"SAM 2 weights {name} exist neither at that path nor in {weights_folder()} (environment variable FSSBENCH_WEIGHTS). "
        f"Download {url} into that folder, or set sam2_weights to a file."
    )
