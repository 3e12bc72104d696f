"""The plug-in test: does SAM's own frozen decoder work on what the adapter gives (fsdino.md 3.1, acceptance)?

The decoder is prompted with the true box or with one point inside the object, so that only the embedding is on trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fssbench.dataset import FewShotDataset
from methods.fsdino.decoder import Decoder, DecoderConfig, SamParts

Prompt = Literal["box", "point"]
PROMPTS: tuple[Prompt, ...] = ("box", "point")


class Object(NamedTuple):
    """One object of a picture."""

    key: str
    """The picture, as its data set names it."""
    mask: np.ndarray
    """(H0, W0) bool."""

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge as parts of the picture, in [0, 1]."""
        height, width = self.mask.shape
        rows, columns = (np.flatnonzero(self.mask.any(axis)).tolist() for axis in (1, 0))
        return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height

    def point(self) -> tuple[float, float]:
        """x and y of the pixel that is farthest from the object's border, as parts of the picture: its centre."""
        framed = np.pad(self.mask.astype(np.uint8), 1)
        distance = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        height, width = self.mask.shape
        return (float(x) + 0.5) / width, (float(y) + 0.5) / height


def objects(dataset: FewShotDataset, count: int, seed: int = 0, least: int = 100) -> Iterator[Object]:
    """Up to `count` objects of a data set's test pictures, drawn at random without replacement.

    A mask holds all objects of a class, so an object is its largest connected piece (8 neighbours); pieces of fewer than
    `least` pixels are passed over.
    """
    pairs = sorted({(key, c) for c in dataset.class_names for key in dataset.candidates(c, "test")})
    found = 0
    for index in np.random.default_rng(seed).permutation(len(pairs)):
        if found == count:
            return
        key, class_id = pairs[index]
        _, pieces, facts, _ = cv2.connectedComponentsWithStats((dataset.read_mask(key, class_id) == 1).astype(np.uint8))
        sizes = facts[1:, cv2.CC_STAT_AREA]
        if len(sizes) and sizes.max() >= least:
            found += 1
            yield Object(key, pieces == 1 + sizes.argmax())


class FrozenSam(nn.Module):
    """SAM's frozen prompt encoder and mask decoder on image embeddings of any grid."""

    def __init__(self, sam: SamParts) -> None:
        super().__init__()
        self.decoder = Decoder(DecoderConfig())
        self.decoder.start_from(sam)
        self.prompt_encoder = sam.prompt_encoder
        self.prompt_encoder.input_image_size = (1, 1)  # coordinates are parts of the picture
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, embedding: Tensor, one: Object, prompt: Prompt) -> np.ndarray:
        """Mask (H0, W0) bool of an object, from the picture's embedding (1, C, g, g) and the true box or a point in it."""
        self.prompt_encoder.image_embedding_size = (embedding.shape[-2], embedding.shape[-1])
        # SAM adds half a pixel to its coordinates
        points = boxes = None
        if prompt == "box":
            boxes = torch.tensor([one.box()], device=embedding.device) - 0.5
        else:
            coordinates = torch.tensor([[one.point()]], device=embedding.device) - 0.5
            points = coordinates, torch.ones(1, 1, dtype=torch.long, device=embedding.device)
        sparse, dense = self.prompt_encoder(points, boxes, None)
        logits = self.decoder(embedding, sparse, dense)
        whole = F.interpolate(logits[None], one.mask.shape, mode="bilinear", align_corners=False)[0, 0]
        return (whole > 0).cpu().numpy()


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks (H, W) bool, not both empty."""
    return float((one & other).sum() / (one | other).sum())
