"""What would happen on a GPU, as far as that shows without one: devices, types and waits of all methods."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from datamodules.parallel import pins_memory
from fssbench.cli.trainer import progress_bar_on_cuda
from fssbench.encoders.ahead import as_input
from fssbench.encoders.cache import numerics
from fssbench.encoders.sam2 import rope_attentions
from fssbench.episode import EpisodeBatch
from fssbench.method import FewShotMethod
from fssbench.metrics.at_size import predicted_counts
from fssbench.timer import Timer
from fssbench.unlabelled import ImageBatch
from methods.fsdino.centre_pivot import _CentrePivot
from methods.prototype import Prototype
from methods.prototype.model import widest_float
from tests.fake_gpu import CUDA, Copies, fake_gpu, on_gpu
from tests.methods.test_fsdino_module import CORR, make_method
from tests.toy import ColourMethod, FreeMethod, Toy, on_process


def sam2(**settings: Any) -> FewShotMethod:
    from tests.methods.sam2 import small_method

    return small_method(**settings)


NEW = {"sam2_version": 2.1, "support_tokens": "drop", "object_score_gating": True, "recompute": True}
METHODS: dict[str, tuple[Callable[[], FewShotMethod], int]] = {
    "prototype": (lambda: Prototype("vit_tiny_patch16_224", "random", 64, block=3), 2),
    "fsdino_ce": (lambda: make_method(preset="fsdino_ce", corr=CORR, support_ignore="exclude"), 1),
    "vote": (lambda: make_method(kshot_merge="vote", dense="none"), 2),
    "sam2fss": (lambda: sam2(), 1),
    "sam2fss bf16": (lambda: sam2(precision="bf16", prior_precision="bf16", trainable="paper", **NEW), 1),
}
"""Name -> how it is made, and the supports of its episode."""


@pytest.mark.parametrize("name", METHODS)
def test_an_episode_stays_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode, segment, loss and counting mix no devices and types, need no value, and copy nothing."""
    if name.startswith("sam2") and not importlib.util.find_spec("sam2"):
        pytest.skip("needs sam2")
    make, shot = METHODS[name]
    method: Any = make()
    size = (shot + 1, 3, method.image_size, method.image_size)
    with fake_gpu(monkeypatch) as mode:
        on_gpu(method, mode).train(name != "vote")
        if name.startswith("sam2"):
            method.net.sam2._ready_tables(torch.zeros((), device=CUDA))  # which its first episode copies
        with Copies() as copies, torch.autocast("cuda", torch.float16):
            with torch.no_grad():
                features = method.encode(torch.rand(size, device=CUDA))
            query, support = ({n: v[part] for n, v in features.items()} for part in (slice(1), slice(1, None)))
            masks = torch.zeros(1, shot, *size[2:], dtype=torch.uint8, device=CUDA)
            logits = method.segment(query, {n: v[None] for n, v in support.items()}, masks)
            full = F.interpolate(logits[:, None], size[2:], mode="bilinear", align_corners=False)[:, 0]
            loss = method.loss(full, masks[:, 0])
            counts = predicted_counts(logits, [masks[0, 0, :20, :30]], method.upsample)
        assert {value.device for value in (*features.values(), logits, loss, counts)} == {CUDA}
        assert logits.dtype == loss.dtype == torch.float32
        assert loss.requires_grad == (name not in ("prototype", "vote"))
        assert copies.found == []


def test_the_gradient_of_a_4d_convolution_stays_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed outside autocast, from what was kept within it: GroupNorm's float32 before a float16 convolution."""
    with fake_gpu(monkeypatch), Copies() as copies:
        kept = torch.rand(2, 5, 5, 4, 4, 6, device=CUDA)
        query, support = torch.rand(2, 8, 6, 3, 3, device=CUDA, dtype=torch.float16)
        context = SimpleNamespace(saved_tensors=(kept, query, support), stride=2, again=torch.relu)
        grad = torch.rand(2, 3, 3, 4, 4, 8, device=CUDA, dtype=torch.float16)
        with torch.no_grad():
            found = [value for value in _CentrePivot.backward(context, grad) if value is not None]
    assert [tuple(value.shape) for value in found] == [(2, 5, 5, 4, 4, 6), (8, 6, 3, 3), (8, 6, 3, 3), (8,)]
    assert {(value.device, value.dtype) for value in found} == {(CUDA, torch.float16)}
    assert copies.found == []


def test_what_would_be_waited_for_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above can fail."""
    with fake_gpu(monkeypatch), Copies() as copies:
        values = torch.rand(3, 4, device=CUDA)
        values * torch.tensor(2.0) + 1
        assert copies.found == []
        values[torch.zeros(2, dtype=torch.int64)]
        values + torch.zeros(4).to(CUDA)
        assert len(copies.found) == 2
        with pytest.raises(RuntimeError, match="same device"):
            values + torch.zeros(4)
        for waits in (lambda: values.sum().item(), lambda: values[values > 0], lambda: values.nonzero()):
            with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
                waits()
        with torch.autocast("cuda", torch.float16):
            assert (values @ values.T).dtype == torch.float16
            assert torch.nn.functional.layer_norm(values.half(), (4,)).dtype == torch.float32


# -- copies to the device -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "waits"), [("cuda", False), ("mps", True), ("cpu", True)])
def test_only_copies_to_cuda_are_not_waited_for(kind: str, waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To Apple's GPUs they would give wrong values (Lightning, too, excepts them)."""
    copies: list[bool] = []

    def recorded(tensor: Tensor, device: Any, non_blocking: bool) -> Tensor:
        copies.append(non_blocking)
        return tensor

    device = torch.device(kind)
    images = [torch.zeros(2, 2, 3, dtype=torch.uint8)]
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, value, device: full(size, value))
    monkeypatch.setattr(Tensor, "to", recorded)
    ImageBatch(*torch.zeros(3, 1)).to(device)
    an_episode().to(device)
    as_input(images, device)
    assert copies == [not waits] * (3 + 7 + 1)


def an_episode() -> EpisodeBatch:
    number, pixels = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 1, 3, 2, 2)
    masks = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    return EpisodeBatch(pixels[:, 0], masks[:, 0], pixels, masks, [masks[0, 0]], number, number, ["a"], [("b",)])


def test_memory_is_page_locked_only_for_a_network_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that is there, but not used, is left alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for kind in ("cpu", "cuda"):
        method, data = FreeMethod(), Toy(image_size=8)
        method._device = torch.device(kind, 0)  # where Lightning puts it before it asks for loaders
        data.trainer = on_process(0, 1, method)  # type: ignore[assignment]
        loaders = data.train_dataloader(), data.test_dataloader()
        assert [loader.pin_memory for loader in loaders] == [kind == "cuda"] * 2
        assert loaders[1].dataset.pinned == (kind == "cuda")  # type: ignore[attr-defined]
        assert pins_memory(data.trainer) == (kind == "cuda")
    assert not pins_memory(None)


def test_apples_gpus_have_no_float64() -> None:
    assert [widest_float(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


# -- what else a GPU changes --------------------------------------------------------------------------------------------


def test_building_sam2_touches_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take memory of the first one in every process of a training on several."""
    pytest.importorskip("sam2")
    from tests.encoders.test_sam2 import small

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is used"))
    assert {table.freqs_cis.device.type for table in rope_attentions(small())} == {"cpu"}
    assert torch.cuda.is_available()


def test_a_timer_waits_for_devices_that_have_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[int] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append(1))
    assert Timer(torch.device("cpu")).stop()() >= 0
    assert waits == []
    assert Timer(torch.device("mps")).stop()() >= 0
    assert waits == [1, 1]


def test_stored_features_know_how_convolutions_are_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    before = numerics(cpu, "32-true"), numerics(cuda, "32-true")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    after = numerics(cpu, "32-true"), numerics(cuda, "32-true")
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_a_progress_bar_on_cuda_waits_for_a_tenth_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    get_metrics = TQDMProgressBar.get_metrics

    def counted(self: TQDMProgressBar, trainer: Any, module: Any) -> Any:
        asked.append(trainer.global_step)
        return get_metrics(self, trainer, module)

    monkeypatch.setattr(TQDMProgressBar, "get_metrics", counted)
    bars = progress_bar_on_cuda([])
    assert progress_bar_on_cuda(bars) == []
    trainer = Trainer(
        max_epochs=1, limit_val_batches=0, callbacks=bars, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(ColourMethod(), datamodule=Toy(image_size=8, episodes_per_epoch=30, batch_size=1))
    assert 0 < len(asked) <= 5
