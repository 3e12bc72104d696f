"""What the benchmarks of whole methods share: generated data of any size, methods with random weights, and one test run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from datamodules.episodic import EpisodicDataModule
from fssbench.cli.messages import quiet
from fssbench.dataset import FewShotDataset, Split
from fssbench.method import FewShotMethod
from methods import fsdino, prototype, sam2fss

HEIGHT, WIDTH = 480, 640
SIZES: dict[str, dict[str, Any]] = {
    "full": {"vit": "vit_base_patch14_dinov2", "side": 518, "sam2": "small", "sam2_side": 512, "dino_side": 560},
    "small": {"vit": "vit_small_patch14_dinov2", "side": 224, "sam2": "tiny", "sam2_side": 256, "dino_side": 224},
    "tiny": {"vit": "vit_tiny_patch16_224", "side": 64, "sam2": "tiny", "sam2_side": 64, "dino_side": 64},
}
"""`full` is as published; `small` is for a CPU; `tiny` only shows that a script works."""


class GeneratedDataset(FewShotDataset):
    """Noisy images of 640x480 pixels with one lighter disc each; class c of `classes` has `images` of its own."""

    name = "generated"
    n_folds = 2
    class_partition = "interleaved"
    episodes_per_class = 1

    def __init__(self, classes: int, images: int) -> None:
        self.images = images
        self.class_names = {c: f"class {c}" for c in range(2 * classes)}

    def novel_classes(self, fold: int) -> tuple[int, ...]:
        """Every other class."""
        return tuple(c for c in self.class_names if c % 2 == fold)

    def candidates(self, class_id: int, split: Split) -> list[str]:
        """The class's images; training and test share them."""
        return [f"{class_id:04d}_{number:04d}" for number in range(self.images)]

    def read_image(self, key: str) -> np.ndarray:
        """Noise, lighter where the object is."""
        noise = np.random.default_rng(list(key.encode())).integers(0, 160, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        return noise + 80 * self.read_mask(key, 0)[:, :, None]

    def read_mask(self, key: str, class_id: int) -> np.ndarray:
        """A disc whose place follows from the image's number."""
        number = int(key.rpartition("_")[2])
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        centre = 120 + 37 * number % 240, 150 + 53 * number % 340
        return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 100**2).astype(np.uint8)


class Generated(EpisodicDataModule):
    """Episodes of `GeneratedDataset`; `classes` of them are novel and as many are base classes."""

    def __init__(self, classes: int = 2, images: int = 8, **kwargs: Any) -> None:
        super().__init__(num_workers=0, **kwargs)
        self.classes, self.images = classes, images

    def make_dataset(self) -> GeneratedDataset:
        """The generated data set."""
        return GeneratedDataset(self.classes, self.images)


def build(name: str, size: str, scale: int = 1, **settings: Any) -> FewShotMethod:
    """A method with random weights in one of `SIZES`, as if it were trained; `scale` multiplies the sides of its inputs."""
    facts = SIZES[size]
    vit, side = facts["vit"], scale * facts["side"]
    common = {"backbone_weights": "random", "image_size": side}
    method: FewShotMethod
    if name == "prototype":
        method = prototype.Prototype(**{"backbone": vit, **common, **settings})
    elif name == "fsdino":
        method = fsdino.FSDINO(**{"backbone": vit, "sam_weights": "random", **common, **settings})
    else:
        common = {**common, "image_size": scale * facts["sam2_side"], "dino_image_size": scale * facts["dino_side"]}
        own = {"sam2_size": facts["sam2"], "sam2_weights": "random", "dino": vit, "precision": "fp32"}
        method = sam2fss.SAM2FSS(**{**own, **common, **settings})
    method.trained = True
    return method


def trainer(folder: Path, **settings: Any) -> Trainer:
    """A silent Trainer that leaves nothing behind."""
    quiet()
    warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    ours = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "logger": False}
    return Trainer(**{**silent, **ours, "default_root_dir": str(folder), **settings})


def seconds_of_test(
    method: FewShotMethod, data: Generated, folder: Path, clock: Callable[[], float], **settings: Any
) -> float:
    """Seconds of a whole test with a method that exists: lists, images, encoder, `segment` and scores. `settings` are the
    Trainer's."""
    runner = trainer(folder, **settings)
    began = clock()
    runner.test(method, datamodule=data, verbose=False)
    return clock() - began
