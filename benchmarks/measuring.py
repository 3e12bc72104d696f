"""What the benchmarks share: generated photographs in COCO's layout, paired timing, and the printed heading."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {1: "person", 5: "airplane", 9: "boat", 14: "parking meter"}
"""Official id -> name of four classes that COCO-20i's fold 0 tests."""
HEIGHT, WIDTH = 480, 640
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
"""What `--clock` means; processor time hardly depends on other work on the machine, but knows nothing of a GPU."""


def generate_coco(root: Path, images: int) -> None:
    """Write `images` smooth, noisy JPEGs of COCO's usual size (640x480, quality 90), each with one polygon of 60 points,
    in the official layout; training and test share them."""
    folder = root / "val2014"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir()
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    entries, annotations = [], []
    for number in range(images):
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + generator.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
        name = f"{number:06d}.jpg"
        Image.fromarray(noisy).save(folder / name, quality=90)
        radius = generator.uniform(60, 120, 60)
        points = np.stack([320 + radius * np.cos(angle), 240 + radius * np.sin(angle)], 1)
        entries.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": list(CLASSES)[number % len(CLASSES)],
                "segmentation": [points.round(1).flatten().tolist()],
                "iscrowd": 0,
            }
        )
    categories = [{"id": i, "name": name} for i, name in CLASSES.items()]
    content = json.dumps({"images": entries, "annotations": annotations, "categories": categories})
    (root / "annotations" / "instances_val2014.json").write_text(content)


def alternating(actions: Sequence[Callable[[], float]], rounds: int) -> list[list[float]]:
    """Seconds of each action in each round; the actions take turns, and every other round runs them backwards, so that a
    machine that slows down meanwhile slows all of them."""
    seconds: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds):
        order = range(len(actions)) if turn % 2 == 0 else reversed(range(len(actions)))
        for number in order:
            seconds[number].append(actions[number]())
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def resident(what: str) -> int:
    """Bytes of this process now (VmRSS) or at most (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def forget_peak() -> None:
    """The highest resident set starts anew (a child inherits its parent's)."""
    Path("/proc/self/clear_refs").write_text("5")


def of_own_process(script: str, *more: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What a script prints last, as JSON, run with the arguments of this one and `more` in a process of its own, with
    `environment` over this one's."""
    command = [sys.executable, script, *sys.argv[1:], *more]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def heading(*libraries: str) -> str:
    """One line: processor, cores, load when it began, Python and library versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or "unknown processor"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    return f"{processor}, {os.cpu_count()} cores{load}; Python {platform.python_version()}, {versions}"
