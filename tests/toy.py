"""A small real method and data module: enough to drive every shared step without an encoder."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.episodic import EpisodicDataModule
from fssbench.dataset import FewShotDataset
from fssbench.method import Features, FewShotMethod
from tests.protocols.toy import CompatToy, ToyDataset


class ColourMethod(FewShotMethod):
    """Distance of pooled colours to the support's mean colour, with a learned scale and bias."""

    def __init__(self, image_size: int = 16, lr: float = 0.1, bias: float = 0.5) -> None:
        super().__init__()
        self.image_size = image_size
        self.lr = lr
        self.encoder = nn.Conv2d(3, 4, 1)
        self.encoder.requires_grad_(False)
        with torch.no_grad():
            self.encoder.weight.copy_(torch.arange(12.0).view(4, 3, 1, 1) / 12)
            self.encoder.bias.zero_()
        self.scale = nn.Parameter(torch.tensor(-4.0))
        self.bias = nn.Parameter(torch.tensor(bias))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def encode(self, images: Tensor) -> Features:
        return {"colour": F.avg_pool2d(self.encoder(images), 2)}

    def segment(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        weight = F.avg_pool2d((support_masks == 1).float(), 2)[:, :, None]
        prototype = (support["colour"] * weight).sum((1, 3, 4)) / weight.sum((1, 3, 4)).clamp(min=1e-6)
        distance = (query["colour"] - prototype[..., None, None]).pow(2).sum(1)
        return self.scale * distance + self.bias

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.scale, self.bias], lr=self.lr)


class FreeMethod(ColourMethod):
    """The same without training."""

    needs_checkpoint: ClassVar[bool] = False


class Toy(EpisodicDataModule):
    """The toy data set as a data module."""

    def __init__(self, images_per_class: int = 6, n_classes: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images_per_class, self.n_classes = images_per_class, n_classes

    def make_dataset(self) -> FewShotDataset:
        return ToyDataset(dict.fromkeys(range(1, self.n_classes + 1), self.images_per_class))


class AnyProtocol(Toy):
    """The toy data set with every protocol defined."""

    def make_dataset(self) -> FewShotDataset:
        return CompatToy(dict.fromkeys(range(1, self.n_classes + 1), self.images_per_class))


def on_process(rank: int, world_size: int, method: Any) -> SimpleNamespace:
    """What a data module sees of the trainer on one of several processes before the first epoch."""
    begun = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    return SimpleNamespace(global_rank=rank, world_size=world_size, lightning_module=method, fit_loop=begun)
