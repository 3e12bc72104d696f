"""Train a small SAM on generated pictures: a teacher for distillation where the real one is not to be had.

    python benchmarks/encoders/train_shapes_sam.py --minutes 30 --output shapes_sam.pth --pictures pictures

Image encoder, prompt encoder and mask decoder are segment-anything's own modules. Decoder and prompt encoder have SAM's
sizes, so that FS-DINO takes them as `sam_weights`; the encoder is small (112 px, 14 x 14 tokens, 256 channels out). It is
trained as SAM was (Kirillov et al. 2023, section 3 and appendix A, much shortened): one object per picture, prompted by a
point or a box, then again with a corrective point and its own mask; focal, Dice and IoU loss 20 : 1 : 1. Pictures are those of
another world (`other_world.py`): no shape, no texture and so no class of the Shapes benchmark is ever seen.

The checkpoint has SAM's names, so the code that reads the official files reads it:

    --model.teacher from_weights --model.teacher_weights shapes_sam.pth      (methods.fsdino.Distillation)
    --model.sam_weights shapes_sam.pth                                       (methods.fsdino.FSDINO)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sam_prompts import Prompts, corrected, first_prompts, some_object
from segment_anything.modeling import PromptEncoder, Sam, TwoWayTransformer
from session import Say, new_parser, session
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from datamodules.shapes_render import Draw, World, draw_layer, draw_picture, lay_out
from fssbench.encoders.sam import MEAN, STD, SamShape
from fssbench.files import written_whole
from fssbench.images import resize_image, resize_mask
from methods.fsdino.decoder import BatchedMaskDecoder

SIDE, PATCH, CHANNELS = 112, 8, 256
GRID = SIDE // PATCH
HELD_OUT = 200
LEAST = 60
"""Visible pixels (of 112 x 112) that an object must have to be prompted."""


def new_sam(width: int, depth: int, heads: int) -> Sam:
    """The untrained network; every third block and the last attend over the whole picture."""
    globally = tuple(sorted({*range(2, depth, 3), depth - 1}))
    shape = SamShape(width, depth, heads, globally, image_size=SIDE, window=7, patch_size=PATCH, channels=CHANNELS)
    transformer = TwoWayTransformer(depth=2, embedding_dim=CHANNELS, num_heads=8, mlp_dim=2048)
    sam = Sam(
        shape.build(),
        PromptEncoder(CHANNELS, (GRID, GRID), (SIDE, SIDE), mask_in_chans=16),
        BatchedMaskDecoder(transformer_dim=CHANNELS, transformer=transformer),
    )
    assert sam.image_encoder.pos_embed is not None
    torch.nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
    look_at_each_other(transformer)
    return sam


@torch.no_grad()
def look_at_each_other(transformer: TwoWayTransformer) -> None:
    """Let prompts and the places they name look at each other from the start, which a short training would not find.

    Queries and keys of every cross-attention begin with the same projection, so that their product is large where two
    position encodings are alike.
    """
    crossing = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        crossing += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in crossing:
        attention.q_proj.weight *= 2.5
        attention.k_proj.weight.copy_(attention.q_proj.weight)


def pictures(world: World, count: int, seed: int, folder: Path | None = None) -> tuple[Tensor, Tensor]:
    """`count` scenes: images (count, 3, 112, 112) uint8 and layers (count, 112, 112) uint8, 0 or the number of the object
    that is seen at a pixel; objects of which too little is seen are left out of the layers.

    With a `folder` the pictures are also written there as PNG files of their original size.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    images = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    layers = torch.empty(count, SIDE, SIDE, dtype=torch.uint8)
    chosen = np.random.default_rng((seed, 1)).integers(len(world.classes), size=count)
    for index in range(count):
        draw = Draw(seed, 3, index)
        layout = lay_out(world, world.classes[chosen[index]], draw)
        picture = draw_picture(world, layout, draw)
        images[index] = torch.from_numpy(resize_image(picture, SIDE)).permute(2, 0, 1)
        if folder is not None:
            Image.fromarray(picture).save(folder / f"{index:06d}.png")
        layer = resize_mask(draw_layer(world, layout), SIDE)
        areas = np.bincount(layer.ravel(), minlength=256)
        layers[index] = torch.from_numpy(np.where(areas[layer] >= LEAST, layer, 0).astype(np.uint8))
    seen = (layers > 0).flatten(1).any(1)
    return images[seen], layers[seen]


# -- training -----------------------------------------------------------------------------------------------------------


def decode(sam: Sam, embedding: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Four masks (B, 4, 4g, 4g) and their predicted IoU (B, 4)."""
    encoder, device = sam.prompt_encoder, embedding.device
    points, labels = prompts.points.to(device), prompts.labels.to(device)
    sparse = encoder.pe_layer.forward_with_coords(points + 0.5, (SIDE, SIDE))  # of the pixels' centres
    table = torch.stack([encoder.not_a_point_embed.weight[0], *(e.weight[0] for e in encoder.point_embeddings)])
    sparse = torch.where((labels < 0)[..., None], torch.zeros_like(sparse), sparse) + table[labels + 1]
    if prompts.mask is None:
        dense = encoder.no_mask_embed.weight[0][None, :, None, None].expand(len(points), -1, GRID, GRID)
    else:
        dense = encoder.mask_downscaling(prompts.mask)
    masks, quality = sam.mask_decoder.predict_masks(embedding, encoder.get_dense_pe(), sparse, dense)
    return masks, quality


def objective(logits: Tensor, quality: Tensor, masks: Tensor) -> Tensor:
    """Loss of the first mask plus that of the best of the other three (SAM's way with prompts of several meanings)."""
    target = masks[:, None].float().expand_as(logits)
    focal = sigmoid_focal_loss(logits, target, alpha=-1, reduction="none").mean((2, 3))
    chance = logits.sigmoid()
    dice = 1 - (2 * (chance * target).sum((2, 3)) + 1) / (chance.sum((2, 3)) + target.sum((2, 3)) + 1)
    each = 20 * focal + dice
    hit = (logits > 0) & (target > 0.5)
    iou = hit.sum((2, 3)) / ((logits > 0) | (target > 0.5)).sum((2, 3)).clamp(min=1)
    return (each[:, 0] + each[:, 1:].amin(1)).mean() + F.mse_loss(quality, iou.detach())


def normalised(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 to the encoder's input."""
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augmented(images: Tensor, layers: Tensor, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches, each with its own order and sign of the colour channels and perhaps mirrored."""
    while True:
        for rows in torch.randperm(len(images), generator=generator).split(size):
            picture = images[rows][:, torch.randperm(3, generator=generator)]
            negative, mirrored = torch.randint(2, (2,), generator=generator).tolist()
            picture = 255 - picture if negative else picture
            yield (picture.flip(3), layers[rows].flip(2)) if mirrored else (picture, layers[rows])


def train(sam: Sam, images: Tensor, layers: Tensor, options: argparse.Namespace, say: Say) -> None:
    """Train for `options.steps`, or for `options.minutes`: then the rate follows the clock, so that it ends in time on a
    slow or busy machine."""
    sam.to(options.device).train()
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.AdamW(sam.parameters(), lr=options.lr, weight_decay=0.05, betas=(0.9, 0.98))
    batches = augmented(images[HELD_OUT:], layers[HELD_OUT:], options.batch_size, generator)
    start, step, losses = time.perf_counter(), 0, []

    def done() -> float:
        return step / options.steps if options.steps else (time.perf_counter() - start) / (60 * options.minutes)

    while (progress := done()) < 1:
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min((step + 1) / 100, 1.0, 1.5 * (1 - progress) + 1e-3)
        picture, layer = next(batches)
        whole = some_object(layer, generator)
        masks = F.max_pool2d(whole[:, None].float(), 2)[:, 0] > 0  # 4g = 56 pixels a side
        target = F.avg_pool2d(whole[:, None].float(), 2)[:, 0].to(options.device) >= 0.5
        embedding = sam.image_encoder(normalised(picture.to(options.device)))
        prompts = first_prompts(whole, generator)
        logits, quality = decode(sam, embedding, prompts)
        loss = objective(logits, quality, target)
        again = corrected(prompts, logits[:, 0], masks, SIDE, generator)
        loss = loss + objective(*decode(sam, embedding, again), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        step += 1
        if step % options.every == 0:
            seconds = time.perf_counter() - start
            say(
                f"step {step}, {seconds:.0f} s, loss {np.mean(losses):.3f}; held out: {scores(sam, images, layers, options)}"
            )
            losses = []
            save(sam, options.output)
    say(f"{step} steps; held out: {scores(sam, images, layers, options)}")


@torch.no_grad()
def scores(sam: Sam, images: Tensor, layers: Tensor, options: argparse.Namespace) -> str:
    """Mean IoU of the first mask on held-out pictures, prompted by one point and by the box."""
    generator = torch.Generator().manual_seed(0)
    sam.eval()
    found = []
    for boxes in (False, True):
        ious = []
        for rows in torch.arange(HELD_OUT).split(50):
            whole = some_object(layers[rows], generator)
            embedding = sam.image_encoder(normalised(images[rows].to(options.device)))
            logits, _ = decode(sam, embedding, first_prompts(whole, generator, boxes))
            large = F.interpolate(logits[:, :1], (SIDE, SIDE), mode="bilinear")[:, 0].cpu() > 0
            ious += ((large & whole).flatten(1).sum(1) / (large | whole).flatten(1).sum(1)).tolist()
        found.append(f"{'box' if boxes else 'point'} {100 * np.mean(ious):.1f}")
    sam.train()
    return "mIoU by " + ", ".join(found)


def save(sam: Sam, path: Path) -> None:
    """Write the weights under SAM's own names."""
    with written_whole(path) as temporary:
        torch.save({name: value.detach().cpu() for name, value in sam.state_dict().items()}, temporary)


def main() -> None:
    """Train, and write weights and log."""
    options = _options()
    with session(options) as (say, world):
        images, layers = pictures(world, options.images, options.seed, options.pictures)
        sam = new_sam(options.width, options.depth, options.heads)
        sizes = {n: sum(p.numel() for p in part.parameters()) for n, part in sam.named_children()}
        say(f"{len(images)} pictures; parameters {sizes}")
        train(sam, images, layers, options, say)
        save(sam, options.output)


def _options() -> argparse.Namespace:
    parser = new_parser(__doc__.partition("\n")[0], 64, Path("shapes_sam.pth"), Path("shapes_sam.log"))
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--pictures", type=Path, help="also write the pictures into this folder, to distil from")
    parser.add_argument("--minutes", type=float, default=30, help="of training, after the pictures are made")
    parser.add_argument("--steps", type=int, help="of training, instead of --minutes: the same weights on every run")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--every", type=int, default=100, help="steps between lines of the log")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
