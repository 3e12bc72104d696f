"""Fixtures of the data modules' tests."""

from tests.datamodules.coco import official_coco, own_cache

__all__ = ["official_coco", "own_cache"]
