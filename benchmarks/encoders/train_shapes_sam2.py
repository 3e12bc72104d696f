"""Train a small SAM 2 (`shapes_sam2.yaml`) to find the same kind of object in another view, from random weights.

    python benchmarks/encoders/train_shapes_sam2.py --minutes 60 --output shapes_sam2.pt
    python benchmarks/encoders/train_shapes_sam2.py --minutes 60 --video data/DAVIS --output shapes_sam2.pt

This is what SAM2FSS presupposes and what the official weights have learned from videos. The two views are, in turn, one
picture moved, mirrored and recoloured, two generated pictures with an object of the same kind (a shape and a texture of
another world, see `other_world.py`: none of the Shapes benchmark), and two frames of a video in DAVIS' layout. Sometimes
the query itself with a spoilt mask is a further memory, and sometimes the object is absent. The file has the layout of an
official checkpoint; `--model.sam2_config benchmarks/encoders/shapes_sam2.yaml --model.sam2_weights FILE` uses it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]

from other_world import MOST_ALIKE, other_world  # noqa: E402

from datamodules.shapes_render import Draw, World, draw_layer, draw_picture, lay_out  # noqa: E402
from fssbench.encoders.sam2 import build_sam2  # noqa: E402
from fssbench.files import written_whole  # noqa: E402
from fssbench.images import read_image, read_index_mask, resize_image, resize_mask  # noqa: E402
from methods.sam2fss.episode_sam2 import LEVELS, EpisodeSAM2, Features  # noqa: E402
from methods.sam2fss.module import TARGETS  # noqa: E402

CONFIG = Path(__file__).with_name("shapes_sam2.yaml")
HELD_OUT = 64
"""Pairs of other kinds of object that are never trained on."""


class Views(NamedTuple):
    """Pairs of views: images (M, 2, 3, S, S) uint8 and masks (M, 2, S, S) uint8 {0, 1}; the first is the support."""

    images: Tensor
    masks: Tensor

    def batch(self, size: int) -> Views:
        """Some pairs, either view first."""
        rows, order = torch.randint(len(self.images), (size,)), torch.rand(size, 2).argsort(1)
        return Views(self.images[rows[:, None], order], self.masks[rows[:, None], order])


class Naming(nn.Module):
    """Read from the coarsest tokens in training only: which shape and texture is there. It makes the trunk learn what
    the matching alone teaches slowly."""

    def __init__(self, width: int, shapes: int, textures: int) -> None:
        super().__init__()
        self.shape, self.texture = nn.Linear(width, shapes), nn.Linear(width, textures)

    def forward(self, features: Tensor, masks: Tensor, kinds: Tensor) -> Tensor:
        """Cross-entropy of the mean token under each mask: features (M, C, h, w), masks (M, S, S), kinds (M, 2)."""
        weights = F.adaptive_avg_pool2d(masks[:, None].float(), features.shape[-2:])
        pooled = (features * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-3)
        return F.cross_entropy(self.shape(pooled), kinds[:, 0]) + F.cross_entropy(self.texture(pooled), kinds[:, 1])


def main() -> None:
    """Train, write the weights, and write the log."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with open(options.log, "w", encoding="utf-8") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        names = {name: getattr(value, "name", value) for name, value in vars(options).items()}
        say(f"options {names}")
        world, likeness = other_world(options.seed, options.shapes, options.textures)
        say(f"most alike to the benchmark's: {likeness}; limit {MOST_ALIKE}")
        began = time.perf_counter()
        held = len(world.classes) // 8
        generated, kinds = pairs(world, options.pairs, options.side, options.seed, world.classes[held:])
        unseen, _ = pairs(world, HELD_OUT, options.side, options.seed + 1, world.classes[:held])
        say(f"{len(generated.images)} pairs in {time.perf_counter() - began:.0f} s")
        film = video(options.video, options.side) if options.video else None
        model = build_sam2(weights="random", image_size=options.side, config=str(CONFIG), targets=TARGETS)
        sam2 = EpisodeSAM2(model)
        naming = Naming(model.hidden_dim, options.shapes, options.textures)
        train(sam2, naming, generated, kinds, unseen, film, options, say)
        say(f"wrote {options.output.name}, {options.output.stat().st_size / 1e6:.2f} MB")


# -- views ----------------------------------------------------------------------------------------------------------


def pairs(world: World, count: int, side: int, seed: int, kinds: tuple[tuple[int, int], ...]) -> tuple[Views, Tensor]:
    """`count` pairs of generated pictures with an object of the same of the `kinds`, and its shape and texture
    (count, 2)."""
    views = Views(
        torch.empty(count, 2, 3, side, side, dtype=torch.uint8), torch.empty(count, 2, side, side, dtype=torch.uint8)
    )
    chosen = np.random.default_rng((seed, 1)).integers(len(kinds), size=count)
    for index in range(count):
        kind = kinds[chosen[index]]
        for view in range(2):
            draw = Draw(seed, 3, index, view)
            layout = lay_out(world, kind, draw)
            of_kind = np.array([0, *((piece.shape, piece.texture) == kind for piece in layout.pieces)], np.uint8)
            picture = resize_image(draw_picture(world, layout, draw), side)
            views.images[index, view] = torch.from_numpy(picture).permute(2, 0, 1)
            views.masks[index, view] = torch.from_numpy(resize_mask(of_kind[draw_layer(world, layout)], side))
    return views, torch.tensor(kinds)[torch.from_numpy(chosen)]


def video(root: Path, side: int, apart: int = 8) -> Views:
    """Pairs of frames up to `apart` apart, of all sequences of a folder in DAVIS' layout."""
    images, masks = [], []
    for folder in sorted((root / "JPEGImages" / "480p").iterdir()):
        frames = sorted(folder.glob("*.jpg"))
        labels = [root / "Annotations" / "480p" / folder.name / f"{frame.stem}.png" for frame in frames]
        squares = [torch.from_numpy(resize_image(read_image(frame), side)).permute(2, 0, 1) for frame in frames]
        objects = [
            torch.from_numpy((resize_mask(read_index_mask(label), side) > 0).astype(np.uint8)) for label in labels
        ]
        for first in range(len(frames)):
            for second in range(first + 1, min(first + apart + 1, len(frames))):
                images.append(torch.stack([squares[first], squares[second]]))
                masks.append(torch.stack([objects[first], objects[second]]))
    return Views(torch.stack(images), torch.stack(masks))


def moved(views: Views) -> Views:
    """The first view beside itself: turned, scaled, shifted, mirrored, its colour channels in another order."""
    image, mask = views.images[:, 0].float(), views.masks[:, 0].float()
    size = len(image)
    turn, scale = (torch.rand(size) - 0.5) * 1.2, torch.empty(size).uniform_(0.7, 1.4)
    mirror = torch.where(torch.rand(size) < 0.5, -1.0, 1.0)
    linear = torch.stack([turn.cos() * mirror, -turn.sin(), turn.sin() * mirror, turn.cos()], 1).view(size, 2, 2)
    matrix = torch.cat([linear * scale[:, None, None], (torch.rand(size, 2, 1) - 0.5) * 0.6], 2)
    grid = F.affine_grid(matrix, list(image.shape), align_corners=False)
    other = F.grid_sample(image, grid, padding_mode="reflection", align_corners=False)
    other = other[:, torch.randperm(3)]
    cover = F.grid_sample(mask[:, None], grid, mode="nearest", padding_mode="reflection", align_corners=False)[:, 0]
    return Views(
        torch.stack([views.images[:, 0], other.round().to(torch.uint8)], 1),
        torch.stack([views.masks[:, 0], cover.to(torch.uint8)], 1),
    )


def spoilt(masks: Tensor) -> Tensor:
    """Masks (B, 1, S, S) in [0, 1] as a pseudo prompt might be: parts missing, blobs added, edges soft."""
    size, side = len(masks), masks.shape[-1]

    def clouds() -> Tensor:
        return F.interpolate(torch.rand(size, 1, 5, 5), (side, side), mode="bicubic", align_corners=False)

    kept = masks * ((clouds() - 0.35) * 12).sigmoid()
    return torch.maximum(kept, ((clouds() - 0.85) * 12).sigmoid())


# -- training -------------------------------------------------------------------------------------------------------


def train(
    sam2: EpisodeSAM2,
    naming: Naming,
    generated: Views,
    kinds: Tensor,
    unseen: Views,
    film: Views | None,
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """Train for `options.minutes`; the rate follows the clock, so that it ends in time on a slow or busy machine."""
    modules = nn.ModuleList([sam2, naming]).train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=options.lr, weight_decay=0.02, betas=(0.9, 0.98))
    began, step, seen = time.perf_counter(), 0, []
    while (progress := (time.perf_counter() - began) / (60 * options.minutes)) < 1 and step != options.steps:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3)
        views, named = next_views(step, generated, kinds, film, options.batch_size)
        query, support = features(sam2, views.images[:, 1]), features(sam2, views.images[:, 0])
        loss, overlap = matching(sam2, query, support, views.masks)
        name_loss = naming(support[LEVELS[-1]], views.masks[:, 0], named) if named is not None else loss.new_zeros(())
        optimizer.zero_grad()
        (loss + name_loss).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        seen.append([float(loss.detach()), float(name_loss.detach()), float(overlap)])
        step += 1
        if step % options.report == 0:
            means = np.mean(seen[-options.report :], 0)
            say(
                f"step {step}, {time.perf_counter() - began:.0f} s, matching {means[0]:.3f}, naming {means[1]:.3f}, IoU "
                f"{means[2]:.3f}"
            )
            save(sam2, options.output)
    say(f"{step} steps; IoU on pairs of kinds never seen: {evaluated(sam2, unseen):.3f}")
    save(sam2, options.output)


def next_views(
    step: int, generated: Views, kinds: Tensor, film: Views | None, size: int
) -> tuple[Views, Tensor | None]:
    """A batch of pairs: moved pictures, pictures of the same kind, and every fourth time frames of a video."""
    if film is not None and step % 4 == 3:
        return film.batch(size), None
    rows = torch.randint(len(kinds), (size,))
    views = Views(generated.images[rows], generated.masks[rows])
    return (moved(views) if step % 2 == 0 else views), kinds[rows]


def features(sam2: EpisodeSAM2, images: Tensor) -> Features:
    """SAM 2's pyramid as `EpisodeSAM2.encode_images` gives it, with gradients."""
    found = sam2.model.forward_image((images.float() / 255 - sam2.mean) / sam2.std)["backbone_fpn"]
    return dict(zip(LEVELS, found, strict=True))


def matching(sam2: EpisodeSAM2, query: Features, support: Features, masks: Tensor) -> tuple[Tensor, Tensor]:
    """SAM 2's losses on the query, and the IoU of the mask it would choose: masks (B, 2, S, S) of support and query.

    Of the three candidates the best learns the mask (cross-entropy and Dice), all learn their own IoU, and the object
    score learns whether there is anything.
    """
    frames = [sam2.encode_mask_memory(support, masks[:, :1].float())]
    if torch.rand(()) < 0.5:
        frames.append(sam2.encode_mask_memory(query, spoilt(masks[:, 1:].float())))
    logits, quality, score = sam2.candidates(query, sam2.attend(query, sam2.build_bank(frames)))
    target = F.adaptive_avg_pool2d(masks[:, 1:].float(), logits.shape[-2:]).expand_as(logits)
    there = target[:, :1].flatten(1).any(1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    found, wanted = logits > 0, target > 0.5
    iou = (found & wanted).sum((2, 3)) / (found | wanted).sum((2, 3)).clamp(min=1)
    best = (5 * entropy + dice).min(1).values
    loss = (best * there).mean() + (quality - iou).abs().mean()
    loss = loss + F.binary_cross_entropy_with_logits(score[:, 0], there)
    chosen = iou.gather(1, quality.argmax(1, keepdim=True))[:, 0]
    return loss, chosen[there > 0].mean()


@torch.no_grad()
def evaluated(sam2: EpisodeSAM2, views: Views) -> float:
    """Mean IoU of the decoded masks, the first view of each pair as the only support."""
    sam2.eval()
    query, support = (sam2.encode_images(views.images[:, view].float() / 255) for view in (1, 0))
    bank = sam2.build_bank([sam2.encode_mask_memory(support, views.masks[:, :1].float())])
    found, wanted = sam2.decode(query, sam2.attend(query, bank)) > 0, views.masks[:, 1] == 1
    both, either = (found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))
    return float((both / either.clamp(min=1)).mean())


def save(sam2: EpisodeSAM2, path: Path) -> None:
    """Write the weights in the layout of an official checkpoint."""
    with written_whole(path) as temporary:
        torch.save({"model": sam2.model.state_dict()}, temporary)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, default=32)
    parser.add_argument("--textures", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=6000)
    parser.add_argument("--video", type=Path, default=None, help="folder in DAVIS' layout")
    parser.add_argument("--side", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--minutes", type=float, default=60, help="of training")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--report", type=int, default=100, help="steps between two lines of the log")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("shapes_sam2.pt"))
    parser.add_argument("--log", type=Path, default=Path("shapes_sam2.log"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
