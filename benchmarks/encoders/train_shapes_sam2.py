"""Train a small SAM 2 (`shapes_sam2.yaml`) to find the same kind of object in another view, from random weights.

    python benchmarks/encoders/train_shapes_sam2.py --minutes 90 --output shapes_sam2.pt
    python benchmarks/encoders/train_shapes_sam2.py --minutes 90 --video data/DAVIS --output shapes_sam2.pt

This is what SAM2FSS presupposes and what the official weights have learned from videos. Two views are two generated
pictures with an object of the same kind (a shape and a texture of another world, see `other_world.py`: none of the Shapes
benchmark), one picture moved, mirrored and recoloured, or two frames of a sequence in DAVIS' layout. The file has the
layout of an official checkpoint; `--model.sam2_config benchmarks/encoders/shapes_sam2.yaml --model.sam2_weights FILE` uses it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sam2_views import Pictures, pictures, some_views, spoilt, video
from session import Say, new_parser, session
from torch import Tensor, nn

from fssbench.encoders.sam2 import build_sam2
from fssbench.files import written_whole
from methods.sam2fss.episode_sam2 import LEVELS, EpisodeSAM2, Features, MemoryFrame
from methods.sam2fss.module import TARGETS

CONFIG = Path(__file__).with_name("shapes_sam2.yaml")
HELD_OUT = 4
"""Pictures of each kind of object that is never trained on."""
VIEWS = 4
"""Pictures of one kind in a step."""


class Likeness(nn.Module):
    """Which tokens are like those under the mask of another view: the cross-entropy of their scaled cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.offset = nn.Parameter(torch.tensor(10.0)), nn.Parameter(torch.tensor(-5.0))

    def forward(self, tokens: Tensor, covered: Tensor, other: Tensor, other_covered: Tensor) -> Tensor:
        """Tokens (M, C, h, w) and of the other view as many; covered: the part (M, 1, h, w) of each that is object."""
        cosine = torch.einsum(
            "mchw,mc->mhw", F.normalize(tokens, dim=1), F.normalize(pooled(other, other_covered), dim=1)
        )
        return F.binary_cross_entropy_with_logits(self.scale * cosine + self.offset, covered[:, 0])


class Lessons(nn.Module):
    """What matching through memories alone teaches slowly, asked in training only: which shape and texture is there,
    which of the coarsest tokens are like those of the object in the other view, and which tokens of a memory made with a
    spoilt mask are like those of the other view's memory."""

    def __init__(self, width: int, shapes: int, textures: int) -> None:
        super().__init__()
        self.shape, self.texture = nn.Linear(width, shapes), nn.Linear(width, textures)
        self.image, self.memory = Likeness(), Likeness()

    def forward(
        self, tokens: Tensor, covered: Tensor, kinds: Tensor, partner: Tensor, spoilt: Tensor | None, own: Tensor
    ) -> Tensor:
        """Tokens (M, C, h, w), their covered part (M, 1, h, w), kinds (M, 2), the row of each one's support (M,), and
        memories (M, c, h, w) by a spoilt mask, where there are any, and by the true one."""
        loss: Tensor = self.image(tokens, covered, tokens[partner], covered[partner])
        if spoilt is not None:
            loss = loss + self.memory(spoilt, covered, own[partner], covered[partner])
        if (named := kinds[:, 0] >= 0).any():
            mean = pooled(tokens, covered)[named]
            loss = loss + F.cross_entropy(self.shape(mean), kinds[named, 0])
            loss = loss + F.cross_entropy(self.texture(mean), kinds[named, 1])
        return loss


def pooled(tokens: Tensor, covered: Tensor) -> Tensor:
    """The mean (M, C) of tokens (M, C, h, w) weighted by (M, 1, h, w)."""
    return (tokens * covered).sum((2, 3)) / covered.sum((2, 3)).clamp(min=1e-3)


def main() -> None:
    """Train, write the weights, and write the log."""
    options = _options()
    with session(options) as (say, world):
        began = time.perf_counter()
        held = len(world.classes) // 8
        shown = pictures(world, world.classes[held:], options.pictures, options.side, options.seed)
        unseen = pictures(world, world.classes[:held], HELD_OUT, options.side, options.seed + 1)
        say(f"{len(shown.images)} pictures in {time.perf_counter() - began:.0f} s")
        film = video(options.video, options.side) if options.video else None
        model = build_sam2(weights="random", image_size=options.side, config=str(CONFIG), targets=TARGETS)
        if options.start is not None:
            model.load_state_dict(torch.load(options.start, weights_only=True)["model"])
        sam2 = EpisodeSAM2(model)
        lessons = Lessons(model.hidden_dim, options.shapes, options.textures)
        train(sam2, lessons, shown, unseen, film, options, say)


# -- training -------------------------------------------------------------------------------------------------------


def train(
    sam2: EpisodeSAM2,
    lessons: Lessons,
    shown: Pictures,
    unseen: Pictures,
    film: Pictures | None,
    options: argparse.Namespace,
    say: Say,
) -> None:
    """Train for `options.minutes`; the rate follows the clock, so that it ends in time on a slow or busy machine.

    An image is encoded once in a step and is query of one pair and support of another.
    """
    modules = nn.ModuleList([sam2, lessons]).train()
    optimizer = torch.optim.AdamW(modules.parameters(), lr=options.lr, weight_decay=0.02, betas=(0.9, 0.98))
    began, step, seen = time.perf_counter(), 0, []
    while (progress := (time.perf_counter() - began) / (60 * options.minutes)) < 1 and step != options.steps:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * progress)) + 1e-3)
        source = film if film is not None and step % 8 == 7 else shown
        views = some_views(source, options.groups, VIEWS)
        images, masks, kinds = (part.flatten(0, 1) for part in views)
        found, partner = features(sam2, images), partners(options.groups)
        own = sam2.encode_mask_memory(found, masks[:, None].float())
        other = sam2.encode_mask_memory(found, spoilt(masks[:, None].float())) if torch.rand(()) < 0.5 else None
        loss, overlap = matching(sam2, found, masks, own, other, partner)
        tokens = found[LEVELS[-1]]
        covered = F.adaptive_avg_pool2d(masks[:, None].float(), tokens.shape[-2:])
        lesson = lessons(tokens, covered, kinds, partner, None if other is None else other.memory, own.memory)
        optimizer.zero_grad()
        (loss + lesson).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        seen.append([float(loss.detach()), float(lesson.detach()), float(overlap)])
        step += 1
        if step % options.report == 0:
            means = np.mean(seen[-options.report :], 0)
            say(
                f"step {step}, {time.perf_counter() - began:.0f} s, matching {means[0]:.3f}, lessons {means[1]:.3f}, IoU "
                f"{means[2]:.3f}; on kinds never seen {evaluated(sam2, unseen):.3f}"
            )
            save(sam2, options.output)
    say(f"{step} steps; IoU on pairs of kinds never seen: {evaluated(sam2, unseen):.3f}")
    save(sam2, options.output)


def partners(groups: int) -> Tensor:
    """For each of the rows of `groups` x VIEWS another one of its group."""
    rows = torch.arange(groups * VIEWS).view(groups, VIEWS)
    return rows.roll(int(torch.randint(1, VIEWS, ())), 1).flatten()


def features(sam2: EpisodeSAM2, images: Tensor) -> Features:
    """SAM 2's pyramid as `EpisodeSAM2.encode_images` gives it, with gradients."""
    found = sam2.model.forward_image((images.float() / 255 - sam2.mean) / sam2.std)["backbone_fpn"]
    return dict(zip(LEVELS, found, strict=True))


def matching(
    sam2: EpisodeSAM2, found: Features, masks: Tensor, own: MemoryFrame, other: MemoryFrame | None, partner: Tensor
) -> tuple[Tensor, Tensor]:
    """SAM 2's losses on every image as query, and the IoU of the mask it would choose: features of M images, their
    masks (M, S, S), their memories, perhaps further ones with a spoilt mask, and the row of each one's support (M,).

    Where there is no spoilt memory, half the steps have a second support instead. Of the three candidates the best learns
    the mask (cross-entropy and Dice), all learn their own IoU, and the object score learns whether there is anything.
    """
    frames = [MemoryFrame(*(part[partner] for part in own))]
    if other is not None:
        frames.append(other)
    elif torch.rand(()) < 0.5:
        frames.append(MemoryFrame(*(part[partner[partner]] for part in own)))
    logits, quality, score = sam2.candidates(found, sam2.attend(found, sam2.build_bank(frames)))
    target = F.adaptive_avg_pool2d(masks[:, None].float(), logits.shape[-2:]).expand_as(logits)
    there = target[:, :1].flatten(1).any(1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.sum((2, 3)) + target.sum((2, 3)) + 1)
    claimed, wanted = logits > 0, target > 0.5
    iou = (claimed & wanted).sum((2, 3)) / (claimed | wanted).sum((2, 3)).clamp(min=1)
    best = (5 * entropy + dice).min(1).values
    loss = (best * there).mean() + (quality - iou).abs().mean()
    loss = loss + F.binary_cross_entropy_with_logits(score[:, 0], there)
    chosen = iou.gather(1, quality.argmax(1, keepdim=True))[:, 0]
    return loss, chosen[there > 0].mean()


@torch.no_grad()
def evaluated(sam2: EpisodeSAM2, pictures: Pictures) -> float:
    """Mean IoU of the decoded masks, the next picture of the group as the only support."""
    sam2.eval()
    partner = torch.cat([rows.roll(1) for rows in pictures.groups])
    found, masks = sam2.encode_images(pictures.images.float() / 255), pictures.masks
    own = sam2.encode_mask_memory(found, masks[:, None].float())
    bank = sam2.build_bank([MemoryFrame(*(part[partner] for part in own))])
    chosen, wanted = sam2.decode(found, sam2.attend(found, bank)) > 0, masks == 1
    sam2.train()
    return float(((chosen & wanted).sum((1, 2)) / (chosen | wanted).sum((1, 2)).clamp(min=1)).mean())


def save(sam2: EpisodeSAM2, path: Path) -> None:
    """Write the weights in the layout of an official checkpoint."""
    with written_whole(path) as temporary:
        torch.save({"model": sam2.model.state_dict()}, temporary)


def _options() -> argparse.Namespace:
    parser = new_parser(__doc__, 16, Path("shapes_sam2.pt"), Path("shapes_sam2.log"))
    parser.add_argument("--pictures", type=int, default=20, help="of each kind of object")
    parser.add_argument("--video", type=Path, default=None, help="folder in DAVIS' layout")
    parser.add_argument("--side", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--minutes", type=float, default=60, help="of training")
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many")
    parser.add_argument("--groups", type=int, default=12, help="kinds of object in a step, four pictures each")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--report", type=int, default=100, help="steps between two lines of the log")
    parser.add_argument("--start", type=Path, default=None, help="go on from these weights instead of random ones")
    return parser.parse_args()


if __name__ == "__main__":
    main()
