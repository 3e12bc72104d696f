"""SAM 2 from the public package: official and own configurations, strict checkpoints, no trace in Hydra or random state."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fssbench.encoders.sam2 import (
    SAM2_SIZES,
    build_sam2,
    checkpoint_name,
    checkpoint_url,
    own_settings,
    read_sam2,
    sam2_config,
)
from fssbench.errors import UserError

pytest.importorskip("sam2")

from tests.methods.sam2 import SIDE, TINY_SAM2
from tests.processes import python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSSBENCH_WEIGHTS", str(tmp_path))
    return tmp_path


def small(weights: str = "random", **kwargs: Any) -> torch.nn.Module:
    return build_sam2(weights=weights, image_size=SIDE, config=TINY_SAM2, **kwargs)


def save(model: torch.nn.Module, path: Path) -> Path:
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.mark.parametrize("version", [2.0, 2.1])
@pytest.mark.parametrize("size", SAM2_SIZES)
def test_every_official_configuration_is_packaged_for_our_image_size(size: str, version: float) -> None:
    config = sam2_config(size, version, 512)
    assert config.image_size == 512
    assert config.memory_attention.layer.cross_attention.feat_sizes == [32, 32]
    assert config.get("no_obj_embed_spatial", False) == (version == 2.1)
    assert checkpoint_name(size, version) == {2.0: "sam2", 2.1: "sam2.1"}[version] + f"_hiera_{size}.pt"


def test_the_main_model_has_the_published_sizes(folder: Path) -> None:
    model = build_sam2(weights="random")
    assert len(model.state_dict()) == 516
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["image_encoder"] == 34_316_992
    assert count["memory_attention"] == 5_922_304
    assert count["memory_encoder"] == 1_384_608
    assert count["sam_mask_decoder"] == 4_215_109
    assert sum(p.numel() for p in model.parameters()) == 46_043_842
    assert {tuple(m.freqs_cis.shape) for m in model.modules() if hasattr(m, "freqs_cis")} == {(1024, 128)}
    save(model, folder / "sam2_hiera_small.pt")
    loaded = build_sam2().state_dict()  # found by its official name
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


def test_only_the_image_size_differs_from_the_stock_model() -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    config = sam2_config("tiny", 2.0, 512)
    package = Path(importlib.util.find_spec("sam2").submodule_search_locations[0])
    stock = OmegaConf.load(package / "configs" / "sam2" / "sam2_hiera_t.yaml").model
    assert stock.image_size == 1024
    stock.image_size = 512
    table = instantiate(stock.memory_attention.layer.cross_attention)
    table.forward(torch.zeros(1, 1024, 256), torch.zeros(1, 1024, 64), torch.zeros(1, 1024, 64))  # makes it for 32 x 32
    ours = instantiate(config.memory_attention.layer.cross_attention)
    assert torch.equal(ours.freqs_cis, table.freqs_cis)
    for part in (stock.memory_attention.layer.self_attention, stock.memory_attention.layer.cross_attention):
        part.feat_sizes = [32, 32]
    for part in (stock.image_encoder.neck, stock.memory_encoder):
        part.position_encoding.warmup_cache = False
    assert stock == config


def test_version_21_has_its_own_weights(tmp_path: Path) -> None:
    new, old = small(version=2.1), small()
    extra = set(new.state_dict()) - set(old.state_dict())
    assert {name.partition(".")[0] for name in extra} == {"no_obj_embed_spatial", "obj_ptr_tpos_proj"}
    assert small(str(save(new, tmp_path / "new.pt")), version=2.1).no_obj_embed_spatial is not None
    with pytest.raises(UserError, match="unexpected: no_obj_embed_spatial"):
        small(str(tmp_path / "new.pt"))


def test_random_weights_are_the_same_every_time_and_leave_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = small().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert all(torch.equal(value, one[name]) for name, value in small().state_dict().items())


def test_own_classes_keep_names_and_shapes(tmp_path: Path) -> None:
    from methods.sam2fss.module import TARGETS

    ours, stock = small(targets=TARGETS), small()
    kinds = {type(layer.cross_attn_image).__name__ for layer in ours.memory_attention.layers}
    assert kinds == {"CalibratedRoPEAttention"}
    assert type(ours.memory_attention).__name__ == "CalibratedMemoryAttention"
    small(str(save(stock, tmp_path / "stock.pt")), targets=TARGETS)
    assert {n: v.shape for n, v in ours.state_dict().items()} == {n: v.shape for n, v in stock.state_dict().items()}


def test_own_settings_come_from_a_mapping_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"model": TINY_SAM2}))
    assert own_settings(str(path)) == TINY_SAM2
    assert small().hidden_dim == build_sam2(weights="random", image_size=SIDE, config=str(path)).hidden_dim == 32


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": "smal"}, "Did you mean 'small'"),
        ({"version": 2.2}, "Valid: 2.0"),
        ({"image_size": 500}, "multiple of 32, e.g. 480"),
        ({"config": "absent.yaml"}, "does not exist"),
        ({"weights": "stock"}, r"072824/sam2_hiera_small\.pt"),
        ({"weights": "absent.pt"}, "absent.pt exist neither"),
    ],
)
def test_user_mistakes_are_named(kwargs: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        build_sam2(**{"weights": "random", **kwargs})


def test_foreign_files_are_refused(folder: Path) -> None:
    flat = folder / "flat.pt"
    torch.save({"weight": torch.zeros(1)}, flat)
    with pytest.raises(UserError, match="no SAM 2 checkpoint"):
        read_sam2(flat)
    other = save(torch.nn.Linear(2, 2), folder / "other.pt")
    with pytest.raises(UserError, match=r"missing: .*072824"):
        small(str(other))
    (folder / "own.yaml").write_text("image_size: 3")
    with pytest.raises(UserError, match="no `model` key"):
        build_sam2(weights="random", config=str(folder / "own.yaml"))


def test_half_precision_files_are_read_as_float32(tmp_path: Path) -> None:
    path = save(small().half(), tmp_path / "half.pt")
    assert {value.dtype for value in small(str(path)).state_dict().values()} == {torch.float32}


def test_every_official_checkpoint_has_an_address() -> None:
    assert checkpoint_url("base_plus", 2.0).endswith("/072824/sam2_hiera_base_plus.pt")
    assert checkpoint_url("large", 2.1).endswith("/092824/sam2.1_hiera_large.pt")


HYDRA = """
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
initialize_config_dir({folder!r}, version_base="1.2")
from fssbench.encoders.sam2 import build_sam2
build_sam2("tiny", weights="random")
assert compose("application").answer == 42
"""


def test_an_application_that_uses_hydra_keeps_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "application.yaml").write_text("answer: 42\n")
    python("-c", HYDRA.format(folder=str(tmp_path)), folder=tmp_path)


def test_without_sam2_the_user_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--no-build-isolation sam2==1.1.0"):
        build_sam2(weights="random")


WITHOUT = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("sam2", "hydra", "omegaconf"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import methods
for name in methods.__all__:
    getattr(methods, name)
"""


def test_every_method_can_be_imported_without_sam2(tmp_path: Path) -> None:
    python("-c", WITHOUT, folder=tmp_path)
