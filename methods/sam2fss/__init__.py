"""SAM2FSS: SAM 2's memory, prompted by DINOv2's pseudo masks, for few-shot segmentation (arXiv 2505.14100)."""

from methods.sam2fss.module import SAM2FSS

__all__ = ["SAM2FSS"]
