"""The training-free baseline as a method: nothing to fit, ready to test."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from fssbench.encoders.vit import ViTEncoder, backbone_facts
from fssbench.errors import UserError
from fssbench.method import Features, FewShotMethod
from methods.prototype.model import PrototypeNet


class Prototype(FewShotMethod):
    """Cosine of query tokens with the masked average of support tokens, thresholded; has no parameters of its own.

    Args:
        backbone: timm name of a plain vision transformer.
        backbone_weights: `hub` (timm's download), `random`, or the path of a weight file.
        image_size: side in pixels of the squares given to the encoder; a multiple of its patch size.
        apply_final_norm: apply the encoder's final norm to the tokens.
        pos_embed_resize: resize position embeddings as the `original` DINOv2 does, or as `timm` does.
        block: encoder block whose tokens are compared (1-based; negative counts from the end).
        background: subtract the cosine with the background prototype.
        threshold: `otsu` (per image), or the score above which a patch belongs to the class.
    """

    needs_checkpoint: ClassVar[bool] = False

    def __init__(
        self,
        backbone: str = "vit_base_patch14_dinov2.lvd142m",
        backbone_weights: str = "hub",
        image_size: int = 518,
        apply_final_norm: bool = True,
        pos_embed_resize: Literal["original", "timm"] = "original",
        block: int = -1,
        background: bool = True,
        threshold: float | Literal["otsu"] = "otsu",
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.encoder = ViTEncoder(
            backbone,
            backbone_weights,
            image_size,
            (block,),
            final_norm=apply_final_norm,
            pos_embed_resize=pos_embed_resize,
        )
        self.net = PrototypeNet(background, threshold)

    def encode(self, images: Tensor) -> Features:
        """Images (M, 3, H, W) float32 in [0, 1] to the tokens (M, D, h, w) of one block, as `tokens`."""
        (tokens,) = self.encoder(images).values()
        return {"tokens": tokens}

    def feature_kinds(self) -> dict[str, str]:
        """Stored tokens are those of the encoder, whichever method made them."""
        (kind,) = self.encoder.kinds().values()
        return {"tokens": kind}

    def segment(self, query: Features, support: Features, support_masks: Tensor) -> Tensor:
        """Logits (B, h, w): score minus threshold, on the patch grid."""
        return self.net(query["tokens"], support["tokens"], support_masks)

    def metadata(self) -> dict[str, Any]:
        """Facts for the record."""
        return {
            **backbone_facts(self.hparams["backbone"], self.hparams["backbone_weights"]),
            "track": "training-free",
            "supervision": "none",
            "base_knowledge_at_test": False,
            "kshot_mode": "joint",
            "hyper_parameters": "one setting for all data sets and shots",
            "uses_text": False,
        }

    def configure_optimizers(self) -> None:
        """Refuse `fit`: there is nothing to train. Raises `UserError`."""
        raise UserError("Prototype is training-free: there is nothing to fit. Run `fssbench test` with it right away.")
