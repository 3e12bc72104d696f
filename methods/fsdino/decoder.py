"""SAM's mask decoder for batches of images with one prompt each, and SAM's weights for it (fsdino.md 2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from torch import Tensor, autocast, nn

from fssbench.encoders.weights import find_weights, load_strict, read_tensors, weights_folder
from fssbench.errors import UserError

SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = ("sam_vit_h_4b8939.pth", "sam_vit_l_0b3195.pth", "sam_vit_b_01ec64.pth")


@dataclass(frozen=True)
class DecoderConfig:
    """The mask decoder. The defaults are SAM's; its weights fit no other width, depth, heads or mlp_dim.

    Args:
        train: train the decoder; null: as the preset says (`comp` yes, `comp_star` no).
        grid: side of the token grid it works on; null: the encoder's own grid (37 at 518 px). Another side resizes
            image embedding and dense prompt bilinearly (64 is SAM's own).
        width: channels of image embedding, prompts and tokens.
        depth: layers of the two-way transformer.
        heads: attention heads; must divide half the width.
        mlp_dim: inner width of the transformer's feed-forward layers.
    """

    train: bool | None = None
    grid: int | None = None
    width: int = 256
    depth: int = 2
    heads: int = 8
    mlp_dim: int = 2048

    @property
    def fits_sam(self) -> bool:
        """Whether SAM's weights fit."""
        return (self.width, self.depth, self.heads, self.mlp_dim) == (256, 2, 8, 2048)


class BatchedMaskDecoder(MaskDecoder):
    """segment-anything's mask decoder where prompt row i belongs to image i.

    The reference repeats every image by the number of prompt rows, so that B images with B rows become B*B. All four
    mask hypernetworks are computed and the caller slices, so that distributed training sees no unused parameter.
    """

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Four masks (B, 4, 4h, 4w) and their predicted quality (B, 4) from images and dense prompts (B, C, h, w),
        positions (1, C, h, w) and sparse prompts (B, T, C)."""
        size, grid = len(image_embeddings), image_embeddings.shape[-2:]
        learned = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([learned.expand(size, -1, -1), sparse_prompt_embeddings], 1)
        tokens, image = self.transformer(image_embeddings + dense_prompt_embeddings, image_pe, tokens)
        image = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))
        kernels = [mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)]
        masks = torch.einsum("bmc,bchw->bmhw", torch.stack(kernels, 1), image)
        return masks, self.iou_prediction_head(tokens[:, 0])


class Decoder(nn.Module):
    """SAM's mask decoder with SAM's positional encoding: embedding and prompts to one mask.

    4,058,340 parameters by default, 132,612 of them in the head that predicts mask quality: it is kept, so that SAM's
    weights load strictly, but never trained, as nothing reads it. Raises `UserError` where width and heads do not fit, and
    for a grid without tokens.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        if config.heads < 1 or config.width % 8 or (config.width // 2) % config.heads:
            raise UserError(
                f"decoder.width is {config.width} and decoder.heads is {config.heads}: the width must be divisible by "
                "8 and its half by the heads. Change one of them."
            )
        if config.grid is not None and config.grid < 1:
            raise UserError(
                f"decoder.grid is {config.grid}. Give a side of 1 token or more, or null for the encoder's own."
            )
        self.grid = config.grid
        transformer = TwoWayTransformer(config.depth, config.width, config.heads, config.mlp_dim)
        self.mask_decoder = BatchedMaskDecoder(transformer_dim=config.width, transformer=transformer)
        self.pe_layer = PositionEmbeddingRandom(config.width // 2)

    def start_from(self, sam: SamParts) -> None:
        """Start at SAM's mask decoder and positional encoding (a buffer, never sampled again).

        Raises `UserError` where the weights do not fit.
        """
        device = self.pe_layer.positional_encoding_gaussian_matrix.device
        state = {name: value.to(device) for name, value in sam.mask_decoder.items()}
        load_strict(self.mask_decoder, state, sam.source, "SAM's mask decoder", "Expected an original SAM checkpoint.")
        self.pe_layer.load_state_dict(sam.prompt_encoder.pe_layer.state_dict())

    def trained_parameters(self) -> list[nn.Parameter]:
        """All parameters but those of the mask-quality head."""
        unused = {id(p) for p in self.mask_decoder.iou_prediction_head.parameters()}
        return [p for p in self.parameters() if id(p) not in unused]

    def position(self, grid: tuple[int, int]) -> Tensor:
        """Positional encoding (1, C, h, w) float32 of the token centres ((i + 0.5) / h, (j + 0.5) / w)."""
        with autocast(self.pe_layer.positional_encoding_gaussian_matrix.device.type, enabled=False):
            return self.pe_layer(grid)[None]  # angles of many turns: never in half precision

    def forward(self, embedding: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        """Embedding (B, C, h, w), sparse (B, T, C) and dense prompt (B, C, h, w) to float32 logits (B, 4g, 4g).

        g is the side of `decoder.grid`, or the embedding's own (then 4h x 4w).
        """
        if self.grid is not None and tuple(embedding.shape[-2:]) != (self.grid, self.grid):
            embedding, dense = (
                F.interpolate(x, (self.grid, self.grid), mode="bilinear", align_corners=False)
                for x in (embedding, dense)
            )
        height, width = embedding.shape[-2:]
        position = self.position((height, width))
        masks, _ = self.mask_decoder(embedding, position, sparse, dense, multimask_output=False)
        return masks[:, 0].float()


@dataclass(frozen=True)
class SamParts:
    """What is used of a SAM checkpoint.

    source          the file it comes from
    mask_decoder    state of segment-anything's `MaskDecoder`
    prompt_encoder  a loaded `PromptEncoder`: point embeddings, mask encoder, positional encoding
    """

    source: str
    mask_decoder: dict[str, Tensor]
    prompt_encoder: PromptEncoder

    @classmethod
    def read(cls, weights: str) -> SamParts:
        """Read SAM's original checkpoint: a path, or a file name in `FSSBENCH_WEIGHTS`.

        Raises `UserError` where the file is missing or is no SAM checkpoint.
        """
        path = _find(weights)
        hint = f"Expected an original SAM checkpoint: {_url(path.name)}."
        parts: dict[str, dict[str, Tensor]] = {"mask_decoder": {}, "prompt_encoder": {}}
        for name, value in read_tensors(path, hint).items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        prompt_encoder = new_prompt_encoder(DecoderConfig.width)
        load_strict(prompt_encoder, parts["prompt_encoder"], path, "SAM's prompt encoder", hint)
        return cls(str(path), parts["mask_decoder"], prompt_encoder)


def new_prompt_encoder(width: int) -> PromptEncoder:
    """An untrained SAM prompt encoder. Its grid is left open: only point prompts and `get_dense_pe` depend on it."""
    return PromptEncoder(width, (1, 1), (1, 1), mask_in_chans=16)


def _find(weights: str) -> Path:
    found = find_weights(weights)
    if found is not None:
        return found
    raise UserError(
        f"SAM weights {weights} exist neither at that path nor in {weights_folder()} (environment variable FSSBENCH_WEIGHTS). "
        f"Download {_url(Path(weights).name)} into that folder, or set sam_weights: random to start untrained."
    )


def _url(name: str) -> str:
    return SAM_URL + (name if name in SAM_FILES else f"{SAM_FILES[0]} (or {' or '.join(SAM_FILES[1:])})")
