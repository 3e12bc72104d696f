"""The plug-in test of a distilled adapter: SAM's frozen decoder on its embeddings, against SAM's own embeddings.

    python benchmarks/plug_in.py runs/fsdino_distill/images/adapter.safetensors --config data/coco20i.yaml
    python benchmarks/plug_in.py adapter.safetensors --sam shapes_sam.pth --config data/shapes.yaml

Each of `--objects` objects (500) is prompted with its true box and, apart from that, with one point inside it; the mean IoU
of the first mask is printed for three embeddings: SAM's own, SAM's own shrunk to the adapter's grid, and the adapter's.
The last two are enlarged to SAM's grid again, on which the frozen decoder was trained; the second tells what the coarser grid
alone costs. Settings and encoder are read from the adapter's file (stage 1 writes them there).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from measuring import heading
from safetensors import safe_open
from torch import Tensor

from fssbench.cli.parsing import configured_data
from fssbench.encoders.sam import SamEncoder
from fssbench.encoders.vit import ViTEncoder
from fssbench.errors import UserError
from fssbench.images import resize_image
from methods.fsdino.adapter import Adapter, AdapterConfig
from methods.fsdino.alignment import down_to, up_to
from methods.fsdino.decoder import SamParts
from methods.fsdino.plug_in import PROMPTS, FrozenSam, iou, objects

ROWS = ("SAM", "SAM, shrunk to the adapter's grid", "adapter")


class Networks:
    """The teacher, and the student as stage 1 left it."""

    def __init__(self, adapter: Path, backbone_weights: str | None, sam: str | None, device: str) -> None:
        if not adapter.is_file():
            raise UserError(f"There is no adapter {adapter}. Stage 1 (methods/fsdino_distill.yaml) writes it.")
        with safe_open(adapter, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("fssbench_distillation", "{}"))
        if not facts:
            raise UserError(f"{adapter} was not written by stage 1: it says nothing of its encoder.")
        settings = facts["settings"]
        self.side, self.device = max(settings["distill"]["resolutions"]), device
        config = AdapterConfig(**settings["adapter"])
        self.encoder = ViTEncoder(
            settings["backbone"],
            backbone_weights or settings["backbone_weights"],
            self.side,
            (config.block,),
            final_norm=settings["apply_final_norm"],
            pos_embed_resize=settings["pos_embed_resize"],
        ).to(device)
        self.adapter = Adapter(self.encoder.embed_dim, settings["width"], config).to(device).eval()
        self.adapter.start_from(str(adapter))
        weights = sam or settings["teacher_weights"]
        self.teacher = SamEncoder(settings["teacher"], weights).to(device)
        if self.teacher.sha256() != facts["teacher_sha256"]:
            print(f"note: {weights} is not the teacher that the adapter learned from", file=sys.stderr)
        self.frozen = FrozenSam(SamParts.read(weights)).to(device)

    @torch.no_grad()
    def embeddings(self, picture: np.ndarray) -> list[Tensor]:
        """The embeddings (1, C, g, g) of `ROWS`, on SAM's grid."""
        (tokens,) = self.encoder(self._input(picture, self.side)).values()
        student = self.adapter(tokens)
        own = self.teacher(self._input(picture, self.teacher.image_size))
        shrunk = down_to(own, student.shape[-2:])
        return [own, up_to(shrunk, own.shape[-2:]), up_to(student, own.shape[-2:])]

    def _input(self, picture: np.ndarray, side: int) -> Tensor:
        return torch.from_numpy(resize_image(picture, side)).permute(2, 0, 1)[None].to(self.device).float() / 255


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--sam", help="SAM's checkpoint (default: the teacher's file name)")
    parser.add_argument("--backbone_weights", help="default: as stage 1 had them")
    parser.add_argument("--objects", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options, data = parser.parse_known_args()
    networks = Networks(options.adapter, options.backbone_weights, options.sam, options.device)
    dataset = configured_data(data).dataset
    ious: dict[tuple[str, str], list[float]] = {(row, prompt): [] for row in ROWS for prompt in PROMPTS}
    for one in objects(dataset, options.objects):
        for row, embedding in zip(ROWS, networks.embeddings(dataset.read_image(one.key)), strict=True):
            for prompt in PROMPTS:
                ious[row, prompt].append(iou(networks.frozen(embedding, one, prompt), one.mask))
    print(heading("torch") + f"; {dataset.name}, {len(ious[ROWS[0], 'box'])} objects")
    print("\n| embedding | mIoU by box | by point |\n| --- | ---: | ---: |")
    for row in ROWS:
        print(f"| {row} | " + " | ".join(f"{100 * np.mean(ious[row, prompt]):.1f}" for prompt in PROMPTS) + " |")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"plug_in: {error}")
