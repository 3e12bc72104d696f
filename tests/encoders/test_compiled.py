"""The compiled encoder: the same numbers in few shapes, and its features on disk are never mixed with others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.compiled import CompiledEncoder
from fssbench.encoders.store import FeatureStore
from fssbench.encoders.vit import ViTEncoder
from tests.test_method import make_trainer
from tests.toy import FreeMethod, Toy


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the last step, writing and building C++ or Triton code, which takes minutes."""

    def compiled(function: object, mode: str, dynamic: bool) -> object:
        return original(function, backend="aot_eager", dynamic=dynamic, fullgraph=True)

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compiled)


def test_smaller_groups_are_filled_up() -> None:
    shapes: list[int] = []

    def encode(images: Tensor) -> dict[str, Tensor]:
        return {"mean": images.mean((1, 2, 3))}

    encoder = CompiledEncoder(encode, "default")
    inner = encoder._compiled
    encoder._compiled = lambda images: shapes.append(len(images)) or inner(images)
    for count in (1, 2, 3, 5, 8, 7):
        images = torch.rand(count, 3, 4, 4)
        torch.testing.assert_close(encoder(images)["mean"], images.mean((1, 2, 3)))
    assert shapes == [1, 2, 4, 8, 8, 8]


def test_a_vision_transformer_is_one_graph_and_gives_the_same() -> None:
    vit = ViTEncoder("vit_tiny_patch16_224", "random", 32, (1, 2))
    images = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        expected, found = vit(images), CompiledEncoder(vit.forward, "default")(images)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


class Graphs:
    """A backend that compiles nothing and remembers what it was given: number of results and shape of the images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[int, int]] = []
        original = torch._dynamo.optimize
        monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: original(self, dynamic=dynamic)(function))
        torch._dynamo.reset()

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        (output,) = graph.graph.find_nodes(op="output")
        images = next(value for value in inputs if isinstance(value, Tensor) and value.ndim == 4)
        self.found.append((len(output.args[0]), len(images)))
        return graph.forward


def test_what_a_network_keeps_is_no_result_of_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position table made inside would be written over with a CUDA graph's other results, and compiled twice."""
    graphs = Graphs(monkeypatch)
    vit = ViTEncoder("vit_tiny_patch16_224", "random", 32, (1, 2))
    encoder = CompiledEncoder(vit.forward, "default")
    for _ in range(3):
        encoder(torch.rand(1, 3, 32, 32))
    assert graphs.found == [(2, 1)]


def test_training_and_validation_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond eight compilations torch would silently go on without."""
    graphs = Graphs(monkeypatch)
    encoder = CompiledEncoder(lambda images: {"mean": images.mean((1, 2, 3))}, "default")
    for mode in (torch.no_grad, torch.inference_mode):
        for count in (1, 2, 4, 8, 16, 32):
            with mode():
                images = torch.rand(count, 3, 4, 4)
                torch.testing.assert_close(encoder(images)["mean"], images.mean((1, 2, 3)))
    assert [count for _, count in graphs.found] == [1, 2, 4, 8, 16, 32]


def test_a_run_with_it_scores_the_same_and_keeps_its_own_files(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "features", 1)
    found = []
    for mode in ("no", "default", "reduce-overhead", "default"):
        method = FreeMethod()
        method.cache, method.compile_encoder = FeatureCache(store=store), mode  # type: ignore[assignment]
        make_trainer(tmp_path).test(method, datamodule=Toy(), verbose=False)
        found.append((method.scores, method.cache.encoded))
    scores, encoded = zip(*found, strict=True)
    assert scores[1:] == scores[:1] * 3
    assert encoded[0] == encoded[1] == encoded[2] > encoded[3] == 0
    assert len(store.kinds()) == 3
