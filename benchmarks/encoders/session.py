"""What the scripts that train a small network on another world share: their options, their log, and the world itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from other_world import MOST_ALIKE, other_world

from datamodules.shapes_render import World

Say = Callable[[str], None]
"""Prints a line on the terminal and into the log."""


def new_parser(description: str, kinds: int, output: Path, log: Path) -> argparse.ArgumentParser:
    """A parser with the options of every script; `kinds` is the usual number of shapes, and of textures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, default=kinds, help=f"of the other world (default: {kinds})")
    parser.add_argument("--textures", type=int, default=kinds, help=f"of the other world (default: {kinds})")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=output, help=f"file of the weights (default: {output.name})")
    parser.add_argument("--log", type=Path, default=log, help=f"default: {log.name}")
    return parser


@contextmanager
def session(options: argparse.Namespace) -> Iterator[tuple[Say, World]]:
    """Seed torch, open the log, and make the other world; at the end say what was written to `options.output`.

    The log begins with the options, files by name, and with how alike the world is to the benchmark's.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    with open(options.log, "w", encoding="utf-8") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        named = {name: value.name if isinstance(value, Path) else value for name, value in vars(options).items()}
        say(f"options {named}")
        world, likeness = other_world(options.seed, options.shapes, options.textures)
        say(f"{options.shapes} shapes, {options.textures} textures")
        say(f"most alike to the benchmark's: {likeness}; limit {MOST_ALIKE}")
        yield say, world
        say(f"wrote {options.output.name}, {options.output.stat().st_size / 1e6:.2f} MB")
