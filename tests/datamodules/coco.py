"""Tiny COCO data sets for the tests of COCO-20i: one made once, and one of a single image with given annotations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.coco20i import COCO20iDataset
from tests.data.coco import make_coco

SINGLE = {
    "train_images": "images",
    "test_images": "images",
    "train_annotations": "annotations/instances.json",
    "test_annotations": "annotations/instances.json",
}


@pytest.fixture(scope="session")
def official_coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout; only to be read."""
    root = tmp_path_factory.mktemp("coco")
    make_coco(root)
    return root


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, so that masks are rendered anew."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FSSBENCH_CACHE", str(folder))
    return folder


def one_image(root: Path, annotations: list[dict[str, Any]], height: int = 60, width: int = 80) -> COCO20iDataset:
    """A data set of one image with these annotations (category and segmentation)."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    Image.new("RGB", (width, height)).save(root / "images" / "a.jpg")
    content = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [{"id": 10 + i, "image_id": 5, "iscrowd": 0, **a} for i, a in enumerate(annotations)],
        "categories": [{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    }
    (root / "annotations" / "instances.json").write_text(json.dumps(content))
    return COCO20iDataset(root, **SINGLE, min_pixels=1)
