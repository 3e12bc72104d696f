"""The network: what is trained and counted, K-shot merging, gradients, precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.fsdino.adapter import AdapterConfig
from methods.fsdino.correlation import CorrConfig
from methods.fsdino.decoder import DecoderConfig
from methods.fsdino.model import FSDINONet
from methods.fsdino.prompts import PCSConfig, PrototypeConfig, SVPConfig

SMALL = DecoderConfig(width=32, depth=1, heads=4, mlp_dim=64)


MATCHED = ("block10", "block11", "block12")
FULL: dict[str, Any] = {"dense": "both", "corr": CorrConfig(channels=(4, 8, 8), zero_init_head=False, ce=True)}
"""A full model whose 4D branch says something from the start."""


def make_net(channels: int = 24, decoder: DecoderConfig = SMALL, **kwargs: Any) -> FSDINONet:
    torch.manual_seed(0)
    settings = {"adapter": AdapterConfig(hidden=32, width=16, heads=4), "svp": SVPConfig(), "pcs": PCSConfig()}
    settings |= {"prototype": PrototypeConfig(), "decoder": decoder}
    return FSDINONet(channels, "block3", "block12", MATCHED, **{**settings, **kwargs}).eval()


def episode(shots: int = 1, batch: int = 2, channels: int = 24) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    g = torch.Generator().manual_seed(shots)
    query = {name: torch.randn(batch, channels, 5, 5, generator=g) for name in ("block3", *MATCHED)}
    support = {name: torch.randn(batch, shots, channels, 5, 5, generator=g) for name in query}
    masks = (torch.rand(batch, shots, 5, 5, generator=g) > 0.6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    return query, support, masks.to(torch.uint8)


def repeated(k: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    query, support, masks = episode()
    many = {name: tokens.expand(-1, k, -1, -1, -1) for name, tokens in support.items()}
    return query, many, masks.expand(-1, k, -1, -1)


@pytest.mark.parametrize(("channels", "prompts"), [(384, 45_964), (768, 70_540), (1024, 86_924)])
def test_trained_parameters_of_the_frozen_decoder(channels: int, prompts: int) -> None:
    net = make_net(channels, DecoderConfig(train=False), adapter=AdapterConfig())
    assert {n: sum(p.numel() for p in ps) for n, ps in net.trained_parameters().items()} == {"prompts": prompts + 2}
    raw = make_net(channels, DecoderConfig(train=False), adapter=AdapterConfig(), pcs=PCSConfig("raw"))
    assert sum(p.numel() for p in raw.parameters() if p.requires_grad) == prompts


def test_trained_parameters_of_the_trained_decoder() -> None:
    net = make_net(768, DecoderConfig(train=True), adapter=AdapterConfig())
    parts = [*net.svp.parameters(), *net.pcs.parameters(), *net.decoder.parameters()]
    assert sum(p.numel() for p in parts) == 4_128_880 + 2
    assert sum(p.numel() for ps in net.trained_parameters().values() for p in ps) == 3_996_268 + 2
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == 3_996_268 + 2


@pytest.mark.parametrize(("channels", "prompts"), [(384, 45_964), (768, 70_540), (1024, 86_924)])
def test_parameters_of_the_full_model(channels: int, prompts: int) -> None:
    net = FSDINONet(
        channels,
        "block3",
        "block12",
        [f"block{number}" for number in range(7, 13)],
        dense="both",
        adapter=AdapterConfig(),
        prototype=PrototypeConfig(),
        svp=SVPConfig(),
        pcs=PCSConfig(),
        decoder=DecoderConfig(),
    )
    counts = {name: sum(p.numel() for p in ps) for name, ps in net.trained_parameters().items()}
    assert counts == {"prompts": prompts + 2, "correlation": 1_238_400, "decoder": 4_058_340 - 132_612}
    if channels == 768:
        assert sum(counts.values()) == 5_234_668 + 2


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("train_decoder", "train_adapter"), [(False, False), (True, False), (False, True)])
def test_gradients_reach_what_is_trained_and_nothing_else(train_decoder: bool, train_adapter: bool, full: bool) -> None:
    decoder = DecoderConfig(train=train_decoder, width=32, depth=1, heads=4, mlp_dim=64)
    net = make_net(decoder=decoder, train_adapter=train_adapter, **(FULL if full else {})).train()
    assert net.adapter.training is train_adapter
    assert net.decoder.training is train_decoder
    net(*episode()).square().sum().backward()
    trained = {id(p) for ps in net.trained_parameters().values() for p in ps}
    # DDP waits for the gradient of every parameter that asks for one
    assert {id(p) for p in net.parameters() if p.requires_grad} == trained
    assert {id(p) for p in net.parameters() if p.grad is not None} == trained
    moved = {n.partition(".")[0] for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {"svp", "pcs"} | ({"corr"} if full else set()) | ({"decoder"} if train_decoder else set()) | (
        {"adapter"} if train_adapter else set()
    )


def test_frozen_parts_start_in_eval_mode() -> None:
    net = FSDINONet(
        8,
        "a",
        "a",
        adapter=AdapterConfig(),
        prototype=PrototypeConfig(),
        svp=SVPConfig(),
        pcs=PCSConfig(),
        decoder=SMALL,
    )
    assert not any(module.training for module in net.adapter.modules())
    assert net.decoder.training


def test_frozen_adapter_keeps_its_statistics() -> None:
    net = make_net().train()
    before = {name: value.clone() for name, value in net.adapter.state_dict().items()}
    net(*episode())
    assert all(torch.equal(value, before[name]) for name, value in net.adapter.state_dict().items())
    trained = make_net(train_adapter=True).train()
    trained(*episode())
    assert trained.adapter.squeeze[1].num_batches_tracked == 1


@pytest.mark.parametrize("model", [{}, FULL], ids=["compact", "full"])
@pytest.mark.parametrize("merge", ["feature", "logit", "vote"])
def test_identical_supports_equal_one(merge: Any, model: dict[str, Any]) -> None:
    net = make_net(kshot_merge=merge, **model)
    one, five = net(*repeated(1)), net(*repeated(5))
    if merge == "vote":
        one = torch.nn.functional.interpolate(one[:, None], (40, 40), mode="bilinear")[:, 0]
        assert torch.equal(five > 0, one > 0)
        assert 0 < (five > 0).float().mean() < 1
    else:
        torch.testing.assert_close(five, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", [{}, FULL], ids=["compact", "full"])
@pytest.mark.parametrize("merge", ["feature", "logit", "vote"])
def test_order_of_supports_does_not_matter(merge: Any, model: dict[str, Any]) -> None:
    net = make_net(kshot_merge=merge, **model)
    query, support, masks = episode(shots=3)
    expected = net(query, support, masks)
    order = [2, 0, 1]
    out = net(query, {n: t[:, order] for n, t in support.items()}, masks[:, order])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("merge", ["feature", "logit", "vote"])
def test_the_query_may_have_another_grid_than_the_supports(merge: Any) -> None:
    query, support, masks = episode(shots=2)
    wide = {name: torch.cat([tokens, tokens], -1)[..., :4, :] for name, tokens in query.items()}
    out = make_net(kshot_merge=merge, **FULL)(wide, support, masks)
    assert out.shape == ((2, 40, 40) if merge == "vote" else (2, 16, 40))
    if merge == "feature":
        net = make_net(dense="pcs")
        weights = net.token_weights(masks, (5, 5))
        prototypes = net.pooled(support["block12"], weights).mean(1)
        torch.testing.assert_close(
            net(wide, support, masks), net.decode(net.embed(wide["block3"]), wide, prototypes, None)
        )


def test_merges_differ_in_what_they_average() -> None:
    query, support, masks = episode(shots=3)
    one = make_net(**FULL)
    single = [one(query, {n: t[:, k : k + 1] for n, t in support.items()}, masks[:, k : k + 1]) for k in range(3)]
    logit = make_net(kshot_merge="logit", **FULL)(query, support, masks)
    torch.testing.assert_close(logit, torch.stack(single).mean(0), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(one(query, support, masks), logit, atol=1e-4)


def test_feature_merge_averages_what_the_4d_part_found_before_its_head() -> None:
    net = make_net(dense="corr", svp=SVPConfig(tokens=0), corr=FULL["corr"])
    query, support, masks = episode(shots=3)
    found: list[Tensor] = []
    net.corr.head.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    net(query, support, masks)
    for k in range(3):
        net(query, {n: t[:, k : k + 1] for n, t in support.items()}, masks[:, k : k + 1])
    torch.testing.assert_close(found[0], torch.stack(found[1:]).mean(0), atol=1e-6, rtol=1e-5)


def test_full_model_starts_exactly_at_the_compact_one() -> None:
    compact, full = make_net(), make_net(dense="both", corr=CorrConfig(channels=(4, 8, 8), ce=True))
    state = compact.state_dict()
    assert all(torch.equal(value, full.state_dict()[name]) for name, value in state.items()), "one seed, one start"
    assert torch.equal(full(*episode(shots=2)), compact(*episode(shots=2)))


def test_every_part_can_be_left_out() -> None:
    none = SVPConfig(tokens=0)
    nets = [make_net(), make_net(svp=none), make_net(**FULL), make_net(**FULL, svp=none)]
    nets += [make_net(**{**FULL, "dense": "corr"}), make_net(**{**FULL, "dense": "corr"}, svp=none)]
    nets.append(make_net(dense="both", corr=CorrConfig(channels=(4, 8, 8), zero_init_head=False, ce=False)))
    nets += [make_net(dense="none"), make_net(dense="none", svp=none)]
    outputs = [net(*episode()) for net in nets]
    for i, one in enumerate(outputs):
        assert one.isfinite().all()
        assert not any(torch.allclose(one, other, atol=1e-5) for other in outputs[:i])
    assert [net.corr is None for net in nets] == [True, True, False, False, False, False, False, True, True]
    assert [net.pcs is None for net in nets] == [False, False, False, False, True, True, False, True, True]
    assert not list(nets[1].svp.parameters())


def test_settings_of_the_correlation_change_the_output() -> None:
    query, support, masks = episode()
    masks[:, :, 8:16, :20] = 255
    masks[:, :, 2:5, 9:30] = 1 - masks[:, :, 2:5, 9:30].clamp(max=1)  # tokens that are covered in part
    base: dict[str, Any] = {"channels": (4, 8, 8), "zero_init_head": False, "ce": True}
    changes: list[dict[str, Any]] = [{}, {"channels": (8, 8, 8)}, {"groups": 2}, {"mask": "soft"}, {"eps": 3.0}]
    changes += [{"ce": False}, {"zero_init_head": True}, {"init": "random"}]
    nets = [make_net(dense="corr", svp=SVPConfig(tokens=0), corr=CorrConfig(**{**base, **c})) for c in changes]
    corr = CorrConfig(**base)
    nets += [
        make_net(dense="corr", svp=SVPConfig(tokens=0), corr=corr, support_ignore="exclude"),
        make_net(dense="corr", svp=SVPConfig(tokens=0), corr=corr, mask_threshold=0.9),
        make_net(dense="corr", svp=SVPConfig(tokens=0), corr=corr, decoder=replace(SMALL, grid=8)),
    ]
    outputs = [net(query, support, masks) for net in nets]
    for i, one in enumerate(outputs):
        assert not any(one.shape == o.shape and torch.allclose(one, o, atol=1e-6) for o in outputs[:i]), i


def test_excluded_pixels_have_no_weight_in_the_correlation() -> None:
    query, support, masks = episode()
    masks[..., :16, :] = 255
    nets = [make_net(**FULL, support_ignore=ignore) for ignore in ("exclude", "background")]
    before = [net(query, support, masks) for net in nets]
    for tokens in support.values():
        tokens[..., :2, :] += 1
    after = [net(query, support, masks) for net in nets]
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-5)


def test_training_on_several_shots_has_gradients_with_vote() -> None:
    net = make_net(kshot_merge="vote").train()
    out = net(*episode(shots=2))
    assert out.shape == (2, 20, 20)
    assert out.requires_grad


def test_background_token_follows_the_background() -> None:
    net = make_net(svp=SVPConfig(tokens=2))
    query, support, masks = episode()
    masks[:, :, :8] = 255
    background = net.prototypes(support["block12"], masks)[:, :, 1]
    excluded = make_net(svp=SVPConfig(tokens=2), support_ignore="exclude").prototypes(support["block12"], masks)
    assert torch.equal(net.prototypes(support["block12"], masks)[:, :, 0], excluded[:, :, 0])
    outside = (masks[..., ::8, ::8] == 0)[:, :, None]
    expected = (support["block12"] * outside).sum((-2, -1)) / outside.sum((-2, -1))
    torch.testing.assert_close(excluded[:, :, 1], expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(background, expected, atol=1e-3)
    assert not torch.allclose(net(query, support, masks), make_net()(query, support, masks), atol=1e-4)


def test_fallback_is_a_setting() -> None:
    query, support, masks = episode()
    masks[:] = 0
    masks[..., :4, :8] = 1  # half of one patch ...
    masks[..., 8, 8] = 1  # ... and a pixel of another
    nets = [make_net(mask_threshold=0.6), make_net(mask_threshold=0.5)]
    nets.append(make_net(mask_threshold=0.6, prototype=PrototypeConfig(fallback="none")))
    pooled, averaged, never = (net.prototypes(support["block12"], masks) for net in nets)
    assert torch.equal(averaged, never)
    assert not torch.allclose(pooled, averaged, atol=1e-3)
    assert nets[0](query, support, masks).isfinite().all()


@pytest.mark.parametrize("model", [{}, FULL], ids=["compact", "full"])
def test_bfloat16_stays_close_and_half_features_are_taken(model: dict[str, Any]) -> None:
    net, (query, support, masks) = make_net(**model), episode()
    expected = net(query, support, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(query, support, masks)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, atol=0.05, rtol=0.1)
    half = net({n: t.half() for n, t in query.items()}, {n: t.half() for n, t in support.items()}, masks)
    torch.testing.assert_close(half, expected, atol=0.01, rtol=0.05)
