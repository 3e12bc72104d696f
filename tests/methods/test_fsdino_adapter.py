"""The adapter: shapes on any grid, published parameter counts, settings that matter, weights that fit or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fssbench.errors import UserError
from methods.fsdino.adapter import Adapter, AdapterConfig, AttentionBlock


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("channels", "count"), [(384, 1_151_744), (768, 1_250_048), (1024, 1_315_584)])
def test_parameter_counts_of_the_three_sizes(channels: int, count: int) -> None:
    assert parameters(Adapter(channels)) == count


@pytest.mark.parametrize("norm", ["ln2d", "gn"])
def test_other_norms_keep_the_count(norm: Any) -> None:
    assert parameters(Adapter(768, config=AdapterConfig(norm=norm))) == 1_250_048


@pytest.mark.parametrize("n", [9, 18, 37])
def test_grid_is_kept(n: int) -> None:
    with torch.no_grad():
        assert Adapter(384).eval()(torch.randn(2, 384, n, n)).shape == (2, 256, n, n)


def test_settings_change_the_output() -> None:
    x, outputs = torch.randn(2, 8, 4, 4), []
    changes: list[dict[str, Any]] = [{}, {"norm": "ln2d"}, {"act": "relu"}, {"pre_norm": False}, {"heads": 4}]
    for change in [*changes, {"depth": 1}, {"dropout": 0.5}, {"final_ln": True}, {"pos_enc": "fourier"}]:
        torch.manual_seed(0)
        outputs.append(Adapter(8, 16, AdapterConfig(**{"hidden": 32, "width": 32, "heads": 8, **change}))(x))
    for i, one in enumerate(outputs):
        assert not any(torch.allclose(one, other) for other in outputs[:i])


def test_convolutions_start_as_kaiming_says() -> None:
    torch.manual_seed(0)
    adapter = Adapter(384)
    convolutions = [module for module in adapter.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4
    for conv in convolutions:
        assert conv.weight.std().item() == pytest.approx((2 / conv.weight[0].numel()) ** 0.5, rel=0.02)
    assert [conv.bias is None for conv in convolutions] == [True, True, True, False]
    assert not adapter.expand.bias.any()


def test_final_norm_is_over_channels() -> None:
    torch.manual_seed(0)
    out = Adapter(8, 16, AdapterConfig(final_ln=True))(torch.randn(2, 8, 5, 5))
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 5, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(2, 5, 5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_attention_blocks_compute_what_pytorchs_layer_does(norm_first: bool, activation: str) -> None:
    settings = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
    torch.manual_seed(0)
    ours, theirs = (
        block(16, 4, activation=activation, norm_first=norm_first, **settings)
        for block in (AttentionBlock, nn.TransformerEncoderLayer)
    )
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randn(2, 9, 16)
    for training in (True, False):
        torch.testing.assert_close(ours.train(training)(tokens), theirs.train(training)(tokens))


def test_positions_tell_equal_tokens_apart() -> None:
    x = torch.ones(1, 8, 7, 7)
    for pos_enc, alike in (("none", True), ("fourier", False)):
        inner = Adapter(8, 16, AdapterConfig(pos_enc=pos_enc)).eval()(x)[..., 2:5, 2:5]  # off the padded border
        assert torch.allclose(inner, inner[..., :1, :1].expand_as(inner), atol=1e-5) is alike


def test_starts_from_a_file_or_refuses_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, target = Adapter(8, 16), Adapter(8, 16)
    save_file(source.state_dict(), tmp_path / "adapter.safetensors")
    target.start_from(str(tmp_path / "adapter.safetensors"))
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(target.eval()(x), source.eval()(x))
    with pytest.raises(UserError, match=r"adapter\.safetensors.*of another shape"):
        Adapter(9, 16).start_from(str(tmp_path / "adapter.safetensors"))
    with pytest.raises(UserError, match="does not exist"):
        Adapter(8, 16).start_from(str(tmp_path / "absent.safetensors"))


@pytest.mark.parametrize(
    ("change", "key"),
    [({"heads": 7}, "adapter.heads"), ({"heads": 0}, "adapter.heads"), ({"norm": "gn", "width": 40}, "adapter.width")],
)
def test_widths_that_do_not_fit_are_refused(change: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Adapter(8, 16, AdapterConfig(**change))
