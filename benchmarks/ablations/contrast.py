"""What contrastive enhancement does to the mean of the correlation over the support, before anything is learned.

    python benchmarks/ablations/contrast.py

On base classes of Shapes and with the demo's encoder: each query token is scored with the mean over the support tokens of
its correlation C (mean of the three blocks of the ablations), weighted by the support mask M in several ways, and the
average precision of these scores for the object's tokens is printed (in an episode, mean over episodes), for all episodes
and by thirds of the support's area:

    foreground  C M: without contrast
    contrast    C (2 M - 1): contrast as FS-DINO has it
    balanced    the mean over the foreground minus the mean over the background
    background  C (M - 1): what the background alone says
    prototype   the similarity map of the compact model
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision

from datamodules.shapes import Shapes
from fssbench.encoders.cache import FeatureCache
from fssbench.encoders.vit import ViTEncoder
from fssbench.episode import EpisodeBatch
from methods.fsdino.correlation import Tokens, correlation, token_signs
from methods.fsdino.prompts import cosine_map, pooled_prototypes, pooling_weights, with_fallback

SIDE, BLOCKS = 112, (4, 5, 6)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", type=int, default=0, help="default: 0")
    parser.add_argument("--episodes", type=int, default=480, help="default: 480")
    options = parser.parse_args()
    data = Shapes(fold=options.fold, batch_size=8, episodes_per_epoch=options.episodes, seed=0, image_size=SIDE)
    data.setup("fit")
    encoder, cache = ViTEncoder("from_weights", "shapes_vit.safetensors", SIDE, BLOCKS), FeatureCache()
    rows = (row for batch in data.train_dataloader() for row in precisions(batch, encoder, cache))
    found = sorted(rows, key=lambda row: row[0])
    names = list(found[0][1])
    print(f"{len(found)} episodes of base classes, fold {options.fold}\n")
    print(f"| support's area | {' | '.join(names)} |")
    print(f"| --- |{' ---: |' * len(names)}")
    thirds = [found[len(found) * i // 3 : len(found) * (i + 1) // 3] for i in range(3)]
    for title, part in (("all", found), *zip(("small", "middle", "large"), thirds, strict=True)):
        area = sum(area for area, _ in part) / len(part)
        cells = [f"{100 * sum(scores[name] for _, scores in part) / len(part):.1f}" for name in names]
        print(f"| {title} ({100 * area:.0f} % of the tokens) | {' | '.join(cells)} |")


@torch.no_grad()
def precisions(
    batch: EpisodeBatch, encoder: ViTEncoder, cache: FeatureCache
) -> Iterator[tuple[float, dict[str, float]]]:
    """The support's area and the average precision of each way to weight it, for the episodes of a batch."""
    keys = [*batch.query_key, *(key for (key,) in batch.support_keys)]
    features = cache.features(keys, torch.cat([batch.query_image, batch.support_images[:, 0]]), encoder)
    query = {name: tokens[: batch.size] for name, tokens in features.items()}
    support = {name: tokens[batch.size :] for name, tokens in features.items()}
    late = f"block{BLOCKS[-1]}"
    grid = query[late].shape[-2:]
    weights = pooling_weights(batch.support_masks, (grid[0], grid[1]))
    foreground, background = with_fallback(weights[:, :, 0], 0.5)[:, 0], weights[:, 0, 1]
    inside = token_signs(foreground, background, ce=False).flatten(1)
    c = torch.stack([_cosines(query[name], support[name]) for name in query]).mean(0)
    of_object, of_rest = torch.einsum("bqs,bs->bq", c, inside), torch.einsum("bqs,bs->bq", c, 1 - inside)
    prototypes = pooled_prototypes(support[late][:, None], weights)[:, 0]
    scores = {
        "foreground": of_object,
        "contrast": of_object - of_rest,
        "balanced": of_object / inside.sum(1, keepdim=True) - of_rest / (1 - inside).sum(1, keepdim=True),
        "background": -of_rest,
        "prototype": cosine_map(query[late], prototypes[:, 0]).flatten(1),
    }
    truth = F.adaptive_avg_pool2d((batch.query_mask == 1).float(), grid).flatten(1) >= 0.5
    for b in torch.nonzero(truth.any(1)).flatten().tolist():
        found = {
            name: float(binary_average_precision(_ranks(score[b]), truth[b].long())) for name, score in scores.items()
        }
        yield float(inside[b].mean()), found


def _cosines(query: Tensor, support: Tensor) -> Tensor:
    return correlation(Tokens.of([query], 1e-5), Tokens.of([support], 1e-5))[:, :, 0]


def _ranks(scores: Tensor) -> Tensor:
    """Ranks in [0, 1], as torchmetrics takes other scores for logits."""
    return scores.argsort().argsort() / (len(scores) - 1)


if __name__ == "__main__":
    main()
