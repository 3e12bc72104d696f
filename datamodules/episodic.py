"""EpisodicDataModule: episodes of any data set, the same for every method.

Validation, test and predict episodes come from a manifest; training episodes are drawn per (seed, epoch, index).
Neither depends on workers, processes or devices.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import Augmentation
from datamodules.by_image import single_threaded
from datamodules.episode_items import ManifestEpisodes, TrainingEpisodes
from datamodules.parallel import default_workers, pins_memory
from datamodules.policies import for_training, training_lists
from datamodules.squares import Squares
from fssbench.dataset import FewShotDataset
from fssbench.episode import EpisodeBatch, collate
from fssbench.errors import UserError
from fssbench.metrics.observers import BoundaryScores, Observer
from fssbench.metrics.square import Square, check_square
from fssbench.protocols.lists import list_sha256
from fssbench.protocols.manifest import (
    Manifest,
    SmallClasses,
    build_manifest,
    load_manifest,
    verify_manifest,
)
from fssbench.protocols.profiles import ProtocolName, TrainingPolicy, profile_of
from fssbench.protocols.sampler import ShardedEpisodeSampler, next_epoch
from fssbench.protocols.voting import KShot

Selection = Literal["last", "base", "novel"]
STAGE_LISTS = {"fit": ("training_classes", "val_manifest"), "validate": ("val_manifest",)}
"""Stage -> the lists that it needs; every other stage needs the test episodes."""


class EpisodicDataModule(LightningDataModule, ABC):
    """Base of all data modules: a subclass says how to make its `FewShotDataset`, nothing else.

    Args:
        fold: the fold whose classes are novel: tested, never trained on.
        shot: number of supports K per episode, in training and test.
        batch_size: training episodes per step and process.
        eval_batch_size: episodes per validation, test and predict step; scores do not depend on it.
        num_workers: loader processes; episodes do not depend on it. None = 0 on machines with up to two cores, else
            up to eight.
        image_size: network input side in pixels; None = what the method asks for.
        seed: seed of the training episodes.
        episodes_per_epoch: training episodes per epoch; None = as many as the fold has base images.
        augment: training augmentation: none, flip, standard, or FSSAM's (fssam-pascal, fssam-coco).
        protocol: the named protocol (docs/protocols.md): lists, masks, test episodes and scoring all follow from it.
        manifest: test episodes from this file; None = the protocol's episodes of the data set.
        manifest_seed: seed of the test episodes; None = the protocol's own draw.
        episodes_per_class: test episodes per novel class of `clean-v1`; None = the data set's own number.
        episodes: test episodes of a compat protocol; None = the protocol's own number.
        squares: also count at these squares, from the same logits: sides in pixels, or `473-pad` as PFENet does (`641-pad` for
            COCO); `hsnet-compat` adds its own.
        kshot: K supports are used as the `method` itself does, or by HSNet's `vote` of K runs with one support each.
        boundary: also boundary IoU and 95th-percentile Hausdorff distance of each test episode, in a file beside the record.
        training_policy: novel-class pixels in training images are kept as background, their images are dropped, or the
            pixels are ignored; None = what the protocol's papers do.
        val_episodes_per_class: validation episodes per *base* class.
        selection: what `fit` selects on, besides `last.ckpt`: nothing (`last`), `base` (also `best.ckpt`, by validation on
            base classes, or on the set's own validation classes), or `novel` (on the test episodes: only to reproduce
            numbers that were selected on them). Records say which it was.
        small_classes: a novel class with fewer than K+1 images, or with none of a compat protocol's own number of episodes,
            is an `error` in a test, or `leave-out` (listed in the record).
        image_memory: MiB for decoded images that later episodes use again, shared by the loader processes; 0 = off.
    """

    gives: ClassVar[str] = "episodes"
    training_remedy: ClassVar[str] = "Train on another data set."
    """What to do where all classes of the data set are tested, and none is left to train on."""

    def __init__(
        self,
        fold: int = 0,
        shot: int = 1,
        batch_size: int = 16,
        eval_batch_size: int = 1,
        num_workers: int | None = None,
        image_size: int | None = None,
        seed: int = 0,
        episodes_per_epoch: int | None = None,
        augment: Augmentation = "none",
        protocol: ProtocolName = "clean-v1",
        manifest: str | None = None,
        manifest_seed: int | None = None,
        episodes_per_class: int | None = None,
        episodes: int | None = None,
        squares: tuple[Square, ...] = (),
        kshot: KShot = "method",
        boundary: bool = False,
        training_policy: TrainingPolicy | None = None,
        val_episodes_per_class: int = 2,
        selection: Selection = "last",
        small_classes: SmallClasses = "error",
        image_memory: float = 512,
    ) -> None:
        super().__init__()
        for name, value in (("shot", shot), ("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, not {value}.")
        if num_workers is not None and num_workers < 0:
            raise UserError(f"data.num_workers must be at least 0, not {num_workers}.")
        if episodes_per_epoch is not None and episodes_per_epoch < 1:
            raise UserError(f"data.episodes_per_epoch must be at least 1, not {episodes_per_epoch}.")
        self.fold, self.shot, self.seed = fold, shot, seed
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.image_size = self._given_image_size = image_size
        self.episodes_per_epoch = episodes_per_epoch
        self.augment = augment
        self.protocol: ProtocolName = protocol
        self.profile = profile_of(protocol)
        self.training_policy: TrainingPolicy = training_policy or self.profile.training_policy
        self.episodes, self.boundary = episodes, boundary
        self.extra_squares = tuple(map(check_square, squares))
        self.kshot: KShot = kshot
        self.manifest_path, self.manifest_seed = manifest, manifest_seed
        self.episodes_per_class, self.val_episodes_per_class = episodes_per_class, val_episodes_per_class
        self.selection: Selection = selection
        self.small_classes: SmallClasses = small_classes
        self.image_memory = image_memory

    @abstractmethod
    def make_dataset(self) -> FewShotDataset:
        """The data set this module serves; called once."""

    def number_of_folds(self) -> int:
        """Number of folds of the data set; overridden where it is known without reading the data."""
        return self.make_dataset().n_folds

    @cached_property
    def dataset(self) -> FewShotDataset:
        """The data set, checked for the configured fold."""
        dataset = self.make_dataset().for_shot(self.shot)
        if not 0 <= self.fold < dataset.n_folds:
            raise UserError(f"{dataset.name} has folds 0 to {dataset.n_folds - 1}, not data.fold={self.fold}.")
        if self.protocol not in dataset.protocols:
            raise UserError(
                f"data.protocol {self.protocol} is not defined for {dataset.name}, only {', '.join(dataset.protocols)}. "
                "Choose one of these."
            )
        return dataset

    @cached_property
    def observers(self) -> tuple[Observer, ...]:
        """What else looks at the predictions of a test."""
        return (BoundaryScores(),) if self.boundary else ()

    @property
    def squares(self) -> tuple[Square, ...]:
        """The squares at which pixels are counted besides the original size, the protocol's own first."""
        own = (self.image_size,) if self.profile.square and self.image_size else ()
        return tuple(dict.fromkeys((*own, *self.extra_squares)))

    @cached_property
    def test_manifest(self) -> Manifest:
        """The episodes that are tested and predicted."""
        if self.manifest_path is None:
            return self.manifest(self.fold, self.shot)
        manifest = load_manifest(self.manifest_path)
        problems = []
        if (manifest.header.fold, manifest.header.shot) != (self.fold, self.shot):
            problems = [
                f"it is of fold {manifest.header.fold}, {manifest.header.shot}-shot; the configuration says fold "
                f"{self.fold}, {self.shot}-shot"
            ]
        if profile_of(manifest.header.protocol) != self.profile:
            problems = [f"it is of protocol {manifest.header.protocol}, data.protocol is {self.protocol}"]
        problems = problems or verify_manifest(manifest, self.dataset)
        if problems:
            raise UserError(f"{self.manifest_path} does not fit the data: {problems[0]}.")
        return manifest

    @cached_property
    def val_manifest(self) -> Manifest:
        """Validation episodes of base classes, or of the set's own validation classes: the novel classes are never looked
        at during training, unless `selection` asks for it."""
        if self.selection == "novel":
            return self.test_manifest
        # clean-v1 under every protocol: the others know no base-class episodes
        return build_manifest(
            self.dataset, self.fold, self.shot, None, self.val_episodes_per_class, "base", "leave-out"
        )

    @property
    def other_image_size(self) -> int | None:
        """The network input side where `image_size` overrules the method's own; None where the two agree."""
        method = self.trainer.lightning_module if self.trainer else None
        return None if self._given_image_size == getattr(method, "image_size", None) else self._given_image_size

    @property
    def selection_label(self) -> str | None:
        """How a selected checkpoint was chosen, in the words of records; None where nothing is selected."""
        return None if self.selection == "last" else self.validation_label

    @property
    def validation_label(self) -> str:
        """What a checkpoint is that was chosen by a score of the validation, in the words of records."""
        if self.selection == "novel":
            return "best-on-test (legacy)"
        return "val-split" if self.dataset.val_classes else "base-selected"

    def manifest(self, fold: int, shot: int, seed: int | None = None) -> Manifest:
        """The test episodes of any fold and number of supports, drawn as configured (`seed` None = `manifest_seed`)."""
        return build_manifest(
            self.dataset, fold, shot, self.manifest_seed if seed is None else seed, self.episodes_per_class,
            small_classes=self.small_classes, protocol=self.protocol, episodes=self.episodes,
        )  # fmt: skip

    def refuse_missing_classes(self) -> None:
        """Raise `UserError` where a full test would be silent about a novel class, because its protocol draws no episode of
        it: `bam-compat` takes the first 1000 images of a list, and COCO-20i's fold 2 has no hair drier there (protocols.md
        section 0, item 6)."""
        header = self.test_manifest.header
        if self.episodes is not None or self.manifest_path is not None or self.small_classes != "error":
            return
        if header.left_out:
            name = next(iter(header.left_out.values()))
            raise UserError(
                f"None of the {header.episodes} episodes that {self.protocol} draws on {self.dataset.name} fold {self.fold} is of "
                f"class {name}, so it would have no IoU (released codes count it as 0). Draw more with data.episodes, or leave "
                "such classes out with data.small_classes leave-out."
            )

    @cached_property
    def training_classes(self) -> dict[int, list[str]]:
        """Base class -> its training images, for the classes that have at least K+1."""
        if not self.dataset.base_classes(self.fold):
            raise UserError(
                f"All classes of {self.dataset.name} are tested, none is trained on. {self.training_remedy}"
            )
        lists = training_lists(self.dataset, self.fold, self.training_policy)
        usable = {c: keys for c, keys in lists.items() if len(keys) > self.shot}
        if not usable:
            raise UserError(
                f"No base class of {self.dataset.name} fold {self.fold} has the {self.shot + 1} training images that "
                f"{self.shot}-shot training needs. Use fewer shots or another fold, or a set with more images."
            )
        return usable

    def training_problem(self, facts: Mapping[str, Any], goes_on: bool = False) -> str | None:
        """Why weights that were trained so (`training_facts` in their checkpoint) do not belong to this fold; None if they
        may.

        goes_on  whether they are to be trained on: a checkpoint tells of one data set and fold only
        """
        trained = facts.get("dataset"), facts.get("fold"), facts.get("shot")
        if None in trained:
            return None
        name, fold, shot = str(trained[0]), int(facts["fold"]), int(facts["shot"])
        if goes_on and (name, fold) != (self.dataset.name, self.fold):
            return (
                f"The checkpoint was trained on {name} fold {fold}, the configuration says {self.dataset.name} fold {self.fold}: "
                "going on would hide that. Leave --ckpt_path out."
            )
        if not self.dataset.saw_novel(self.fold, name, fold, shot):
            return None
        return (
            f"The checkpoint was trained on {name} fold {fold} ({shot}-shot), with masks of classes that are novel in "
            f"{self.dataset.name} fold {self.fold}. Give one whose training held them out (with --folds, write {{fold}} in --ckpt_path); "
            "a method that may see them says so by its track, in-domain or generalist."
        )

    def training_facts(self) -> dict[str, Any]:
        """How this module trains, for checkpoint and record: what must agree between the folds of one row."""
        return {
            "dataset": self.dataset.name,
            "fold": self.fold,
            "shot": self.shot,
            "batch_size": self.batch_size,
            "episodes_per_epoch": self.episodes_per_epoch,
            "augment": self.augment,
            "data_seed": self.seed,
            "training_policy": self.training_policy,
            "training_list_sha256": list_sha256((c, key) for c, keys in self.training_classes.items() for key in keys),
            "validation": "test episodes" if self.selection == "novel" else "base classes",
            **({"image_size": self.other_image_size} if self.other_image_size else {}),
        }

    def read(self, stage: str) -> None:
        """Read the data set and the lists that `stage` needs. Raises `UserError` for what is wrong with them."""
        for name in ("dataset", *STAGE_LISTS.get(stage, ("test_manifest",))):
            getattr(self, name)

    def take(self, other: EpisodicDataModule) -> None:
        """Take over what another data module of the same configuration has read."""
        names = ("dataset", "training_classes", "val_manifest", "test_manifest")
        vars(self).update({name: vars(other)[name] for name in names if name in vars(other)})

    def setup(self, stage: str) -> None:
        """Read the lists that `stage` needs and learn the image size from the method."""
        if self.image_size is None:
            method = self.trainer.lightning_module if self.trainer else None
            self.image_size = getattr(method, "image_size", None)
            if self.image_size is None:
                raise UserError("The method does not say its image_size; give data.image_size.")
        self.read(stage)
        if stage not in STAGE_LISTS:
            header = self.test_manifest.header
            if stage == "test":
                self.refuse_missing_classes()
            if header.left_out:
                rank_zero_info(
                    f"{self.dataset.name} fold {self.fold}: {len(header.left_out)} of "
                    f"{len(header.left_out) + len(header.classes)} classes are left out ({header.why_left_out}): "
                    f"{', '.join(header.left_out.values())}"
                )
        skipped = getattr(self.dataset, "skipped", [])
        if skipped:
            rank_zero_info(f"{self.dataset.name}: skipped {len(skipped)} item(s), the first: {skipped[0]}")

    def train_dataloader(self) -> DataLoader[EpisodeBatch]:
        """Batches of training episodes, padded to the same number on every process."""
        images = {key for keys in self.training_classes.values() for key in keys}
        count = len(images) if self.episodes_per_epoch is None else self.episodes_per_epoch
        void_is_background = self._void_is_background and self.training_policy != "ignore-pixels"
        squares = self._squares(for_training(self.dataset, self.fold, self.training_policy))
        source = TrainingEpisodes(
            squares, self.training_classes, self.shot, self.seed, self.augment, void_is_background
        )
        return self._loader(source, count, self.batch_size, self.num_workers, pad=True)

    def val_dataloader(self) -> DataLoader[EpisodeBatch]:
        """Batches of base-class validation episodes."""
        return self._manifest_loader(self.val_manifest)

    def test_dataloader(self) -> DataLoader[EpisodeBatch]:
        """Batches of the manifest's episodes, each exactly once over all processes."""
        return self._manifest_loader(self.test_manifest)

    def predict_dataloader(self) -> DataLoader[EpisodeBatch]:
        """The test episodes."""
        return self._manifest_loader(self.test_manifest)

    @property
    def _void_is_background(self) -> bool:
        return self.profile.void_in_supports == "background"

    def _squares(self, dataset: FewShotDataset | None = None) -> Squares:
        if self.image_size is None:
            raise UserError("Call setup() first, or give data.image_size.")
        return Squares(dataset or self.dataset, self.image_size, self.image_memory / max(1, self.num_workers))

    def _manifest_loader(self, manifest: Manifest) -> DataLoader[EpisodeBatch]:
        """All episodes of a manifest. A method that encodes images ahead of them reads these by themselves (`stream`):
        it gets episodes without images, ordered by class and in blocks, so that processes share few images."""
        count, method = len(manifest.episodes), self.trainer.lightning_module if self.trainer else None
        ahead = getattr(method, "encodes_ahead", False)
        workers = self.num_workers // 2 if ahead else self.num_workers
        order = None
        if ahead and not self.observers:  # which see episodes in order
            order = sorted(range(count), key=lambda index: manifest.episodes[index].class_id)
        source = ManifestEpisodes(
            self._squares(),
            manifest,
            self._void_is_background,
            ahead,
            max(0, self.num_workers - workers),
            pins_memory(self.trainer),
        )
        return self._loader(source, count, self.eval_batch_size, workers, pad=False, order=order)

    def _loader(
        self,
        source: Dataset[EpisodeBatch],
        count: int,
        batch_size: int,
        workers: int,
        pad: bool,
        order: Sequence[int] | None = None,
    ) -> DataLoader[Any]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if count < world_size:  # a process without a batch would leave the others waiting for it
            raise UserError(
                f"{count} episode(s) cannot be shared by {world_size} processes. Use fewer devices, or more episodes "
                "(data.episodes_per_class, data.val_episodes_per_class, data.episodes_per_epoch)."
            )
        epoch = next_epoch(self.trainer) if self.trainer else 0
        return DataLoader(
            source,
            batch_size=batch_size,
            sampler=ShardedEpisodeSampler(count, rank, world_size, pad=pad, order=order, epoch=epoch),
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pins_memory(self.trainer),
            persistent_workers=pad and workers > 0,
            worker_init_fn=single_threaded,
        )
