"""FS-DINO: matching in frozen DINOv2 features prompts a SAM mask decoder (arXiv 2504.15669)."""

from methods.fsdino.distillation import Distillation
from methods.fsdino.module import FSDINO

__all__ = ["FSDINO", "Distillation"]
