"""Train the small plain ViT that ships with fssbench (`fssbench/assets/shapes_vit.safetensors`) on a CPU.

    python benchmarks/encoders/train_shapes_encoder.py

For every patch of generated pictures of another world (`other_world.py`) the network names the shape and the texture of
the object, whatever its colours, size and tilt: no shape, no texture and so no class of the Shapes benchmark is ever
seen. The log beside this file is that of the shipped weights: made with --minutes 24 and
stopped by hand at step 4500 (981 s), before the part without windows. The schedule follows the clock, so another run
gives similar weights, not the same.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from local_start import start_local
from other_world import shape_facts, texture_facts
from session import Say, new_parser, session
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import fssbench
from datamodules.shapes_render import Draw, World, draw_layer, draw_picture, lay_out
from fssbench.encoders.weights import save_vit
from fssbench.images import resize_image

VIT: dict[str, Any] = {"img_size": 112, "patch_size": 8, "embed_dim": 96, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
GRID = VIT["img_size"] // VIT["patch_size"]
FACTS = 24
"""Numbers that say how alike two shapes are, and as many for two textures."""
HELD_OUT = 128
"""Pictures that are never trained on."""


def main() -> None:
    """Train, write the weights, and write the log."""
    options = _options()
    with session(options) as (say, world):
        start = time.perf_counter()
        images, labels = pictures(world, options.images, options.seed)
        say(f"{len(images)} pictures in {time.perf_counter() - start:.0f} s")
        facts = shape_facts(world.shapes, FACTS), texture_facts(world.textures, FACTS)
        model = train(images, labels, tuple(map(torch.from_numpy, facts)), options, say)
        save(model, options.output)


def pictures(world: World, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`count` scenes at network size.

    Returns images (count, 3, 112, 112) uint8 and labels (count, 3, 14, 14) int16: shape and texture of the object that
    covers most of a patch, and the share of the patch that it covers, in 255ths.
    """
    side = VIT["img_size"]
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    labels = torch.empty(count, 3, GRID, GRID, dtype=torch.int16)
    chosen = np.random.default_rng((seed, 1)).integers(len(world.classes), size=count)
    for index in range(count):
        draw = Draw(seed, 2, index)
        layout = lay_out(world, world.classes[chosen[index]], draw)
        objects = torch.tensor([(piece.shape, piece.texture) for piece in layout.pieces])
        picture = resize_image(draw_picture(world, layout, draw), side)
        images[index] = torch.from_numpy(picture).permute(2, 0, 1)
        planes = F.one_hot(torch.from_numpy(draw_layer(world, layout)).long(), len(objects) + 1).permute(2, 0, 1)[None]
        share = F.interpolate(planes.float(), (side, side), mode="bilinear", align_corners=False)
        covered, which = F.avg_pool2d(share, VIT["patch_size"])[0, 1:].max(0)
        labels[index, :2] = objects[which].permute(2, 0, 1)
        labels[index, 2] = (covered * 255).round()
    return images, labels


class Heads(nn.Module):
    """What is read from the tokens in training only: shape and texture from the last block, cover from the third."""

    def __init__(self, width: int, shapes: int, textures: int) -> None:
        super().__init__()
        self.shape, self.texture = nn.Linear(width, shapes), nn.Linear(width, textures)
        self.cover = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))


def train(
    images: Tensor, labels: Tensor, facts: tuple[Tensor, ...], options: argparse.Namespace, say: Say
) -> VisionTransformer:
    """Train for `options.minutes`; the rate follows the clock, so that it ends in time on a slow or busy machine."""
    model = VisionTransformer(**VIT, num_classes=0)
    start_local(model, images[:500], MEAN, STD)
    heads = Heads(VIT["embed_dim"], *map(len, facts))
    modules = nn.ModuleList([model, heads])
    optimizer = torch.optim.AdamW(modules.parameters(), lr=options.lr, weight_decay=0.02, betas=(0.9, 0.98))
    start, step, seen = time.perf_counter(), 0, []
    batches = augmented(images[HELD_OUT:], labels[HELD_OUT:], options.batch_size, options.seed)
    while (progress := (time.perf_counter() - start) / (60 * options.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min((step + 1) / 100, 1.0, 1.5 * (1 - progress) + 1e-3)
        picture, label = next(batches)
        if progress < 1 - options.whole_pictures:
            picture, patches, label = windows(picture, label)
            tokens, early = forward(model, picture, patches)
        else:
            some = slice(0, len(picture) // 3)
            label = label[some]
            tokens, early = forward(model, picture[some])
        losses, right = objective(tokens, early, label, heads, facts)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        seen.append([float(v.detach()) for v in (*losses.values(), *right)])
        step += 1
        if step % 250 == 0:
            *means, shape, texture = np.mean(seen[-250:], 0)
            parts = ", ".join(f"{name} {mean:.3f}" for name, mean in zip(losses, means, strict=True))
            say(
                f"step {step}, {time.perf_counter() - start:.0f} s, loss: {parts}; right: shape {shape:.3f}, "
                f"texture {texture:.3f}"
            )
            save(model, options.output)
    with torch.no_grad():
        tokens, early = forward(model, images[:HELD_OUT].float() / 255)
        _, right = objective(tokens, early, labels[:HELD_OUT].long(), heads, facts)
    say(f"{step} steps; patches of held-out pictures named right: shape {right[0]:.3f}, texture {right[1]:.3f}")
    return model


def objective(
    tokens: Tensor, early: Tensor, label: Tensor, heads: Heads, facts: tuple[Tensor, ...]
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Losses, and the shares of object patches whose shape and texture are named right.

    shape, texture  cross-entropy of object patches
    likeness        makes plain cosines meaningful: that of two patches is to be the mean of the cosines of their shapes'
                    and their textures' facts, 0 between object and background, 1 within the background
    cover           how much of a patch an object covers, from the third block
    """
    shape, texture, share = label.flatten(2).unbind(1)
    inside, outside = share > 150, share < 40
    shape, texture, features = shape[inside], texture[inside], tokens[inside]
    named = heads.shape(features), heads.texture(features)

    some = torch.randperm(len(features))[:240]
    background = tokens[outside]
    background = background[torch.randperm(len(background))[:80]]
    unit = F.normalize(torch.cat([features[some], background]), dim=1)
    target = torch.zeros(len(unit), len(unit))
    s, t = F.normalize(facts[0][shape[some]], dim=1), F.normalize(facts[1][texture[some]], dim=1)
    target[: len(some), : len(some)] = (s @ s.T + t @ t.T) / 2
    target[len(some) :, len(some) :] = 1
    losses = {
        "shape": F.cross_entropy(named[0], shape),
        "texture": F.cross_entropy(named[1], texture),
        "likeness": (unit @ unit.T - target).square().mean() * 4,
        "cover": F.binary_cross_entropy_with_logits(heads.cover(early)[..., 0], share / 255),
    }
    right = (named[0].argmax(1) == shape).float().mean(), (named[1].argmax(1) == texture).float().mean()
    return losses, right


def forward(model: VisionTransformer, images: Tensor, patches: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Images (M, 3, H, W) in [0, 1] -> tokens of the last (normalised) and of the third block, both (M, N, D).

    `patches` (M, N) says which places of the whole picture they have; None = the images are whole.
    """
    x = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    x = model.patch_embed.proj(x).flatten(2).transpose(1, 2)
    place = model.pos_embed[:, 1:] if patches is None else model.pos_embed[0, 1:][patches]
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1)
    x = early = torch.cat([first, x + place], 1)
    for index, block in enumerate(model.blocks):
        x = block(x)
        early = x if index == 2 else early
    return model.norm(x)[:, 1:], early[:, 1:]


def windows(images: Tensor, labels: Tensor, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """One window of 8 x 8 patches from each picture, preferably one with much object: twice the lessons for the time.

    Returns images (M, 3, 64, 64), the numbers of their patches in the picture (M, 64), and labels (M, 3, 8, 8).
    """
    share = F.avg_pool2d(labels[:, 2:].float(), side, stride=1)[:, 0]  # (M, 7, 7)
    positions = torch.multinomial((share / 255).square().flatten(1) + 1e-4, 1)[:, 0]
    rows, columns = positions // share.shape[-1], positions % share.shape[-1]
    row = (rows[:, None] + torch.arange(side))[:, :, None]
    column = (columns[:, None] + torch.arange(side))[:, None, :]
    patches = (row * GRID + column).flatten(1)
    cells = images.unflatten(3, (GRID, -1)).unflatten(2, (GRID, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    taken = cells[torch.arange(len(images))[:, None], patches]  # (M, 64, 3, 8, 8)
    cut = taken.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    label = labels.flatten(2).gather(2, patches[:, None].expand(-1, 3, -1)).unflatten(2, (side, side))
    return cut, patches, label


def augmented(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of pictures, each with its own order and sign of the colour channels."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            picture = images[rows].float() / 255
            picture = picture[:, torch.randperm(3, generator=generator)]
            negative = int(torch.randint(2, (), generator=generator))
            yield (1 - picture if negative else picture), labels[rows].long()


def save(model: VisionTransformer, path: Path) -> None:
    """Write the network without heads, as float16."""
    save_vit(path, copy.deepcopy(model).half(), {**VIT, "num_classes": 0}, MEAN, STD)


def _options() -> argparse.Namespace:
    output = Path(fssbench.__file__).parent / "assets" / "shapes_vit.safetensors"
    parser = new_parser(__doc__.partition("\n")[0], 64, output, Path(__file__).with_name("shapes_encoder.log"))
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=25, help="of training")
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--whole_pictures", type=float, default=0.2, help="last part of the training without windows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
