"""`fssbench segment`: masks for your own images from a few examples, without a data set."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fssbench.cli.messages import quiet
from fssbench.cli.parsing import instantiated, new_parser, register_classes
from fssbench.errors import UserError, some
from fssbench.files import written_whole
from fssbench.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, read_image, write_mask
from fssbench.method import FewShotMethod
from fssbench.segmenter import Segmenter
from fssbench.viz import overlay

EXAMPLE = """example:
  fssbench segment --ckpt_path runs/comp/folder/fold0/last.ckpt \\
                   --support one.jpg one_mask.png --support two.jpg two_mask.png --images photos/ --out masks
  fssbench segment --config methods/prototype.yaml --support one.jpg one_mask.png --images photos/"""


def run(verb: str, arguments: list[str]) -> int:
    """Write one mask per image; images that cannot be read are named at the end, with status 1."""
    parser = argparse.ArgumentParser(
        prog=f"fssbench {verb}",
        allow_abbrev=False,
        description="Segment one class in your own images, given at least one example with its mask (white: the object). "
        "Writes a PNG per image, 255 where the class is. Images that cannot be read are named at the end (status 1).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--support", nargs=2, action="append", required=True, metavar=("IMAGE", "MASK"),
                        help="an example and its mask; may be given several times")  # fmt: skip
    parser.add_argument("--images", nargs="+", required=True, metavar="PATH", help="images, or folders of images")
    parser.add_argument("--out", type=Path, default=Path("masks"), help="folder of the masks (default: masks)")
    parser.add_argument("--overlays", action="store_true", help="write IMAGE_overlay.jpg beside each mask as well")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    parser.add_argument("--ckpt_path", metavar="FILE", help="checkpoint of `fssbench fit`: it names its method")
    parser.add_argument(
        "--backbone_weights", metavar="FILE", help="with --ckpt_path: where the encoder's weights are now"
    )
    parser.add_argument("--config", metavar="NAME", help="without --ckpt_path: config of a training-free method "
                        "(and --model.* options)")  # fmt: skip
    options, rest = parser.parse_known_args(arguments)
    quiet()
    found, unread = images_in(options.images, options.out)
    targets = outputs(found, options.out)
    segmenter = Segmenter(_configured(options.config, rest), options.device) if options.ckpt_path is None else (
        _trained(options, rest)
    )  # fmt: skip
    images, masks = zip(*options.support, strict=True)
    segmenter.learn(images, masks)
    unreadable = [_not_read(unread)] if unread else []
    done = 0
    for image, target in tqdm(targets.items(), "segmenting", delay=3, unit="image"):
        try:
            pixels = read_image(image)
        except UserError as error:  # the others get their masks
            unreadable.append(str(error))
            continue
        mask = segmenter(pixels)
        write_mask(target, mask.astype(np.uint8) * 255)
        done += 1
        if options.overlays:
            _write_overlay(target.with_name(f"{target.stem}_overlay.jpg"), pixels, mask)
    print(f"{done} mask(s) in {options.out}")
    for message in unreadable:
        print(f"fssbench: {message}", file=sys.stderr)
    return 1 if unreadable else 0


def images_in(paths: Iterable[str], out: Path) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """(file, its path below the folder that was named) of every image, and the photographs in formats that are not read.

    Folders are searched with their subfolders, but not hidden ones, and not `out`, where an earlier run left its masks.
    Raises `UserError` for a path that is missing, and for a folder without an image.
    """
    found, unread = [], []
    for path in map(Path, paths):
        if path.is_dir():
            own = out.resolve() if path.resolve() in out.resolve().parents else None
            below = sorted(file for file in path.rglob("*") if _is_visible(file.relative_to(path)))
            below = [file for file in below if own is None or own not in file.resolve().parents]
            images = [file for file in below if file.suffix.lower() in IMAGE_SUFFIXES]
            others = [file for file in below if file.suffix.lower() in UNREAD_SUFFIXES]
            if not images:
                reason = f" {_not_read(others)}" if others else " Name another folder, or files."
                raise UserError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}).{reason}")
            found += [(file, file.relative_to(path)) for file in images]
            unread += others
        elif path.is_file():
            found.append((path, Path(path.name)))
        else:
            raise UserError(f"{path} does not exist. Name an image or a folder of images after --images.")
    return found, unread


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _not_read(files: list[Path]) -> str:
    return f"{len(files)} image(s) of a format that is not read: {some(files)}. Save them as JPEG or PNG."


def outputs(images: list[tuple[Path, Path]], folder: Path) -> dict[Path, Path]:
    """Image -> mask file. Raises `UserError` where two images would write the same mask or a mask would replace an
    image."""
    targets: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}
    sources = {image.resolve() for image, _ in images}
    for image, below in images:
        target = folder / below.with_suffix(".png")
        if target in taken and taken[target] != image:
            raise UserError(
                f"{taken[target]} and {image} would both write {target}. Segment them into two --out folders."
            )
        if target.resolve() in sources:
            raise UserError(f"The mask of {image} would replace an image ({target}). Choose another --out folder.")
        taken[target] = image
        targets[image] = target
    return targets


def _trained(options: argparse.Namespace, rest: list[str]) -> Segmenter:
    if options.config or rest:
        raise UserError(
            f"A checkpoint names its method and settings: leave {(options.config and '--config') or rest[0]} out, or leave "
            "--ckpt_path out to use a training-free method."
        )
    settings = {"backbone_weights": options.backbone_weights} if options.backbone_weights else {}
    return Segmenter.load(options.ckpt_path, options.device, **settings)


def _configured(config: str | None, rest: list[str]) -> FewShotMethod:
    if not (config or rest):
        raise UserError(
            "No method is named. Give --ckpt_path FILE (made by `fssbench fit`), or --config methods/prototype.yaml, which "
            "needs no training."
        )
    register_classes()
    parser = new_parser()
    parser.add_subclass_arguments(FewShotMethod, "model", required=True)
    for other in ("data", "trainer", "seed_everything"):  # a config may say how its method is trained, too
        parser.add_argument(f"--{other}", type=Any, help=argparse.SUPPRESS)
    method: FewShotMethod = instantiated(parser, [*(["--config", config] if config else []), *rest]).model
    return method


def _write_overlay(path: Path, pixels: np.ndarray, mask: np.ndarray) -> None:
    from PIL import Image

    with written_whole(path) as temporary:
        Image.fromarray(overlay(pixels, mask.astype(np.uint8))).save(temporary, format="JPEG", quality=90)
