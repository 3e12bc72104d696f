"""Masks of a COCO instances JSON, rendered once per (image, class) and kept in a small cache file.

The official JSON files hold up to 600,000 annotations in 330 MB of text: too slow to parse for every run and too large
to hold in every loader worker. `load_index` renders each (image, class) pair once with pycocotools as a run-length code
of a few hundred bytes, counts its pixels, and keeps all of them in one compressed file named after the JSON's SHA-256.

Two renderers (protocols.md 1.2):

* `clean`: the mask of a class is the union of all polygons, compressed and uncompressed run-length codes of that class;
  regions marked as crowds of that class are ignored (255) where no object of the class covers them.
* `legacy`: one label per pixel, as in the PNG masks in circulation, whose only known generator is RePRI's. Objects are
  drawn in the order of the file and cover what is below them; only the first polygon of an object is filled, its corners
  cut to whole pixels; crowds are background. So occluded objects lose parts, and overlapping classes lose pixels.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
from pycocotools import mask as rle_tools

from datamodules.array_cache import cached_arrays
from datamodules.parallel import parallel_map
from fssbench.errors import UserError, nearest
from fssbench.files import sha256_file
from fssbench.images import read_image

Renderer = Literal["clean", "legacy"]
RENDERER: Renderer = "clean"
"""The usual renderer."""
_VERSION = 1  # of the cache file: raise it whenever the rendering or the layout below changes
_IMAGE_STEP = 1 << 17  # room for 65,536 category ids


def _code(image: int, category: int, crowd: bool) -> int:
    return image * _IMAGE_STEP + category * 2 + crowd


@dataclass(frozen=True)
class CocoIndex:
    """All masks of one instances JSON. Arrays, not objects, so that loader workers share the memory.

    names       file names of the I images, ascending
    categories  official category id -> name
    sizes       (I, 2) int32 height and width of each image
    codes       (M,) int64, ascending: `_code(image, category, crowd)` of each of the M masks
    pixels      (M,) int64 pixels of each mask
    ends        (M + 1,) int64 bounds of each mask's run-length code in `runs`
    runs        (R,) uint8 compressed COCO run-length codes, one after the other
    dropped     number of polygons without area (fewer than three points), which no renderer can fill
    """

    names: tuple[str, ...]
    categories: dict[int, str]
    sizes: np.ndarray
    codes: np.ndarray
    pixels: np.ndarray
    ends: np.ndarray
    runs: np.ndarray
    dropped: int

    def images_of(self, category: int, min_pixels: int) -> np.ndarray:
        """Positions of the images whose mask of a category has at least `min_pixels` pixels (crowds do not count)."""
        chosen = (self.codes % _IMAGE_STEP == _code(0, category, False)) & (self.pixels >= min_pixels)
        return self.codes[chosen] // _IMAGE_STEP

    def categories_of(self, image: int) -> np.ndarray:
        """Official ids, ascending, of the categories with a pixel in the image at position `image`; a crowd counts."""
        first, last = np.searchsorted(self.codes, (_code(image, 0, False), _code(image + 1, 0, False)))
        return np.unique(self.codes[first:last][self.pixels[first:last] > 0] % _IMAGE_STEP // 2)

    def pairs(self) -> list[tuple[int, int, int]]:
        """(image position, category, pixels) of every mask that is no crowd, by image, then category."""
        found = np.flatnonzero(self.codes % 2 == 0)
        codes = self.codes[found]
        return list(
            zip(
                (codes // _IMAGE_STEP).tolist(),
                (codes % _IMAGE_STEP // 2).tolist(),
                self.pixels[found].tolist(),
                strict=True,
            )
        )

    def mask(self, image: int, category: int) -> np.ndarray:
        """(H0, W0) uint8 {0, 1, 255} mask of a category in the image at position `image`."""
        height, width = self.sizes[image]
        mask = np.zeros((height, width), np.uint8)
        for crowd, value in ((True, 255), (False, 1)):
            code = _code(image, category, crowd)
            at = int(np.searchsorted(self.codes, code))
            if at < len(self.codes) and self.codes[at] == code:
                runs = self.runs[self.ends[at] : self.ends[at + 1]].tobytes()
                mask[rle_tools.decode({"size": [int(height), int(width)], "counts": runs}).astype(bool)] = value
        return mask


def load_index(annotations: Path, renderer: Renderer = RENDERER) -> CocoIndex:
    """The index of an instances JSON: from the cache, or rendered (a minute for train2014) and cached.

    Raises `UserError` where the file is missing or is no instances JSON.
    """
    if renderer not in get_args(Renderer):
        raise UserError(f"Unknown mask renderer '{renderer}'.{nearest(renderer, get_args(Renderer))}")
    if not annotations.is_file():
        raise UserError(
            f"{annotations} does not exist, expected a COCO instances JSON. Unpack annotations_trainval2014.zip of "
            "cocodataset.org there, or set the path of the annotations."
        )
    name = f"coco-{renderer}-v{_VERSION}-{sha256_file(annotations)}"
    arrays = cached_arrays(
        name, lambda: index_arrays(_render(annotations, renderer)), f"Rendering the masks of {annotations}"
    )
    return index_of(arrays)


def index_arrays(index: CocoIndex) -> dict[str, np.ndarray]:
    """An index as arrays alone, for a cache file."""
    texts = json.dumps({"names": index.names, "categories": list(index.categories.items())}).encode()
    fields = ("sizes", "codes", "pixels", "ends", "runs", "dropped")
    return {
        "texts": np.frombuffer(texts, np.uint8),
        **{field: np.asarray(getattr(index, field)) for field in fields},
    }


def index_of(arrays: dict[str, np.ndarray]) -> CocoIndex:
    """The index that `index_arrays` took apart."""
    fields = dict(arrays)
    texts = json.loads(fields.pop("texts").tobytes())
    names, categories = tuple(texts["names"]), dict(texts["categories"])
    return CocoIndex(names, categories, dropped=int(fields.pop("dropped")), **fields)


def _render(annotations: Path, renderer: Renderer) -> CocoIndex:
    images, by_image, categories = _parse(annotations)
    drawn = parallel_map(
        partial(_draw, renderer, annotations),
        [(by_image[image["id"]], *image["size"]) for image in images],
        f"rendering masks of {annotations.name}",
        "image",
    )
    sizes = np.array([image["size"] for image in images], np.int32).reshape(-1, 2)
    names = tuple(image["file_name"] for image in images)
    return make_index(names, categories, sizes, [masks for masks, _ in drawn], sum(dropped for _, dropped in drawn))


Drawn = list[tuple[int, bool, bytes, int]]
"""(category, crowd, run-length code, pixels) of each mask of one image, in the order of `_code`."""


def make_index(
    names: tuple[str, ...], categories: dict[int, str], sizes: np.ndarray, drawn: list[Drawn], dropped: int = 0
) -> CocoIndex:
    """The index of images whose masks are `drawn`; names, `sizes` and `drawn` go together."""
    masks = [(_code(position, *mask[:2]), *mask[2:]) for position, found in enumerate(drawn) for mask in found]
    runs = [counts for _, counts, _ in masks]
    return CocoIndex(
        names=names,
        categories=categories,
        sizes=sizes,
        codes=np.array([code for code, _, _ in masks], np.int64),
        pixels=np.array([area for _, _, area in masks], np.int64),
        ends=np.cumsum([0, *map(len, runs)], dtype=np.int64),
        runs=np.frombuffer(b"".join(runs), np.uint8),
        dropped=dropped,
    )


def _draw(renderer: Renderer, annotations: Path, image: tuple[list[dict[str, Any]], int, int]) -> tuple[Drawn, int]:
    """The masks of one image, and the number of polygons without area."""
    masks, dropped = (_clean_masks if renderer == "clean" else _legacy_masks)(*image, annotations)
    return [(*key, mask["counts"], int(rle_tools.area(mask))) for key, mask in sorted(masks.items())], dropped


_Masks = dict[tuple[int, bool], dict[str, Any]]
"""(official category id, crowd) -> compressed run-length code of one image."""


def _clean_masks(found: list[dict[str, Any]], height: int, width: int, annotations: Path) -> tuple[_Masks, int]:
    """Unions by class, crowds apart, and the number of polygons without area."""
    pieces: dict[tuple[int, bool], list[dict[str, Any]]] = defaultdict(list)
    dropped = 0
    for annotation in found:
        parts, skipped = run_lengths(annotation, height, width, annotations)
        pieces[annotation["category_id"], bool(annotation.get("iscrowd", 0))] += parts
        dropped += skipped
    return {key: rle_tools.merge(parts) for key, parts in pieces.items() if parts}, dropped


def _legacy_masks(found: list[dict[str, Any]], height: int, width: int, annotations: Path) -> tuple[_Masks, int]:
    """What is left of each class in a single-label mask, and the number of polygons without area."""
    # 16 bits: category ids of other files in this format may be above 255
    labels = np.zeros((height, width), np.int16)
    dropped = 0
    for annotation in found:
        if annotation.get("iscrowd", 0):
            continue
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, list):
            usable = [polygon for polygon in segmentation if _has_area(polygon)]
            dropped += len(segmentation) - len(usable)
            if usable:
                try:
                    corners = np.array(usable[0], np.float64).reshape(-1, 2).astype(np.int32)
                except (TypeError, ValueError):
                    raise _unfit(annotation, height, width, annotations) from None
                cv2.fillPoly(labels, [corners], annotation["category_id"])
        else:  # the official files give run-length codes to crowds only
            parts, _ = run_lengths(annotation, height, width, annotations)
            labels[rle_tools.decode(parts[0]).astype(bool)] = annotation["category_id"]
    return {(category, False): code for category, code in _codes_of(labels).items()}, dropped


def _codes_of(labels: np.ndarray) -> dict[int, dict[str, Any]]:
    """Label above 0 -> run-length code of its pixels, from one pass over the runs of all labels: encoding each class's own
    mask would take most of the time of rendering."""
    flat = cv2.transpose(labels).reshape(-1)  # codes go down the columns
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], flat.size)
    values = flat[starts]
    codes = {}
    for label in np.unique(values[values > 0]).tolist():
        runs = values == label
        bounds = np.stack([starts[runs], ends[runs]], 1).reshape(-1)
        counts = np.diff(np.concatenate([[0], bounds, [flat.size]]))
        counts = counts[:-1] if counts[-1] == 0 else counts
        size = list(labels.shape)
        codes[label] = rle_tools.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    return codes


def _has_area(polygon: list[float]) -> bool:
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def run_lengths(
    annotation: dict[str, Any], height: int, width: int, annotations: Path
) -> tuple[list[dict[str, Any]], int]:
    """Compressed run-length codes of one annotation, and how many of its polygons have no area.

    Raises `UserError`, naming the file and the annotation, where its segmentation does not fit the image.
    """
    try:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            # pycocotools would take four numbers for a box
            polygons = [polygon for polygon in segmentation if _has_area(polygon)]
            parts = rle_tools.frPyObjects(polygons, height, width) if polygons else []
            return parts, len(segmentation) - len(polygons)
        if list(segmentation["size"]) == [height, width]:
            counts = segmentation["counts"]
            if isinstance(counts, str):
                return [{"size": [height, width], "counts": counts.encode()}], 0
            if sum(counts) == height * width:
                return [rle_tools.frPyObjects(segmentation, height, width)], 0
    except (KeyError, TypeError, ValueError):
        pass  # the error below names the annotation
    raise _unfit(annotation, height, width, annotations)


def _unfit(annotation: dict[str, Any], height: int, width: int, annotations: Path) -> UserError:
    return UserError(
        f"{annotations}: annotation {annotation.get('id')} has no segmentation that fits its image of "
        f"{width}x{height}, expected polygons or a run-length code of that size. Correct or remove the annotation."
    )


def read_listed_image(path: Path, size: tuple[int, int], annotations: Path) -> np.ndarray:
    """(H0, W0, 3) uint8 RGB of an image that `annotations` says is of `size` (H0, W0).

    Raises `UserError` where it is not, or as `read_image` does.
    """
    image = read_image(path)
    if image.shape[:2] != size:
        raise UserError(
            f"{path} is {image.shape[1]}x{image.shape[0]} pixels, {annotations} says {size[1]}x{size[0]}. Use the original "
            "images: masks fit only these."
        )
    return image


def _parse(annotations: Path) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]], dict[int, str]]:
    """Image records by file name, annotations by image id, and category names of an instances JSON, checked."""
    try:
        with open(annotations, encoding="utf-8") as file:
            content = json.load(file)
        for image in content["images"]:
            if "file_name" not in image:  # LVIS says no more than http://images.cocodataset.org/val2017/NAME.jpg
                image["file_name"] = "/".join(image["coco_url"].split("/")[-2:])
        images = sorted(content["images"], key=lambda image: image["file_name"])
        categories = {int(category["id"]): str(category["name"]) for category in content["categories"]}
        by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
        for annotation in content["annotations"]:
            if annotation["image_id"] not in by_image or annotation["category_id"] not in categories:
                raise UserError(
                    f"{annotations}: annotation {annotation.get('id')} names image {annotation['image_id']} and "
                    f"category {annotation['category_id']}, which are not both in the file. Unpack or write the file "
                    "again."
                )
            by_image[annotation["image_id"]].append(annotation)
        for image in images:
            image["size"] = (int(image["height"]), int(image["width"]))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{annotations} is not valid JSON ({error}). Unpack or download it again.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{annotations} is not a COCO instances JSON ({type(error).__name__}: {error}), expected images, "
            "annotations and categories. Use instances_*.json, not captions or keypoints."
        ) from error
    for before, image in itertools.pairwise(images):
        if before["file_name"] == image["file_name"]:
            raise UserError(f"{annotations} lists the image {image['file_name']} twice. Join the two entries.")
    if len(by_image) < len(images):
        raise UserError(f"{annotations} gives the same id to several images. Give each image an id of its own.")
    return images, by_image, categories
