"""ViTEncoder: a frozen plain vision transformer (DINOv2 or any other that timm builds), one feature map per block."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import huggingface_hub
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from timm.layers import PatchEmbed, resample_abs_pos_embed
from timm.models import PretrainedCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fssbench.encoders.weights import (
    from_dinov2,
    load_strict,
    read_tensors,
    read_vit_header,
    tensors_sha256,
    without_head,
)
from fssbench.errors import UserError, nearest
from fssbench.files import sha256_text

FROM_WEIGHTS = "from_weights"
"""Encoder name that takes the model itself from the weights file (see `fssbench.encoders.weights.save_vit`)."""

PosEmbedResize = Literal["original", "timm"]

_TIMM_MODULES = ("vision_transformer", "deit")  # the modules of timm that build plain VisionTransformers
_DINOV2_FILES = "https://dl.fbaipublicfiles.com/dinov2/"


class ViTEncoder(nn.Module):
    """A frozen plain ViT that returns the patch tokens of chosen blocks as maps; class and register tokens are dropped.

    name              timm model name, with or without pretrained tag, or `from_weights`
    weights           `hub` (timm's pretrained weights, downloaded once), `random` (the same every time; for tests),
                      or a file: .pth of the original DINOv2 release, .safetensors/.pth with timm's names, and for
                      `from_weights` a file written by `save_vit`
    image_size        input side in pixels the caller intends to use, checked here; None: the model's native size
    blocks            blocks to return, 1-based; negative numbers count from the end (-1 = last)
    final_norm        apply the model's last LayerNorm to every returned block, as DINOv2's own code does
    pos_embed_resize  how the position table is fitted to other than the native grid (see `resized_positions`)

    Attributes: `embed_dim` D, `patch_size` pixels, `depth` (all blocks of the model), `blocks` (as given, resolved),
    `image_size` and `native_size` in pixels.

    The module is frozen: always in eval mode, no gradients, and the caller's random state is left as it was.
    Blocks above the highest requested one are not kept. Raises `UserError` for names that are unknown or no plain ViT,
    weights that are absent, damaged or of another model, blocks that do not exist, and sizes that fit no patch grid.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str = "vit_base_patch14_dinov2.lvd142m",
        weights: str = "hub",
        image_size: int | None = None,
        blocks: Sequence[int] = (12,),
        final_norm: bool = True,
        pos_embed_resize: PosEmbedResize = "original",
    ) -> None:
        super().__init__()
        if pos_embed_resize not in get_args(PosEmbedResize):
            hint = nearest(pos_embed_resize, get_args(PosEmbedResize))
            raise UserError(f"pos_embed_resize '{pos_embed_resize}' is unknown.{hint}")
        vit, mean, std = _described(name, weights)  # everything is checked before anything is read or downloaded
        self.name = name
        # its own weights do not tell all of a described model: the number of heads is in no shape
        self._arguments = json.dumps(read_vit_header(weights).vit_args, sort_keys=True) if name == FROM_WEIGHTS else ""
        self.embed_dim: int = vit.embed_dim
        self.depth = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.native_size: int = vit.patch_embed.grid_size[0] * self.patch_size
        self.image_size: int = self.native_size if image_size is None else image_size
        self._check_size(self.image_size, self.image_size)
        self.blocks = _resolved_blocks(blocks, self.depth, name)
        if final_norm and isinstance(vit.norm, nn.Identity):
            raise UserError(f"{name} has no norm per token, it pools before its last norm. Set final_norm: false.")
        self.final_norm = final_norm
        self.pos_embed_resize = pos_embed_resize

        vit = _with_weights(vit, name, weights)
        vit.prune_intermediate_layers([max(self.blocks) - 1], prune_norm=not final_norm, prune_head=True)
        self.vit = vit.requires_grad_(False)
        self.register_buffer("mean", _per_channel(mean), persistent=False)
        self.register_buffer("std", _per_channel(std), persistent=False)
        self._tables: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}  # a cache, not state
        self.register_load_state_dict_post_hook(_forget_tables)
        self.eval()

    def train(self, mode: bool = True) -> ViTEncoder:
        """Stays in eval mode, whatever Lightning asks for: a frozen encoder has one behaviour."""
        return super().train(False)

    def kinds(self) -> dict[int, str]:
        """What the features of each returned block depend on besides the pixels, as text: the name of their files on disk.

        Two encoders with the same weights up to a block share it, whichever other blocks they return.
        """
        digests = {name: tensors_sha256({name: value}) for name, value in self.state_dict().items()}
        found = {}
        for block in self.blocks:
            above = tuple(f"vit.blocks.{n}." for n in range(block, self.depth))
            below = "\n".join(digests[name] for name in sorted(digests) if not name.startswith(above))
            found[block] = (
                f"{self.name} {self._arguments} block {block}, timm {timm.__version__}, final_norm {self.final_norm}, "
                f"positions {self.pos_embed_resize}, mean {self.mean.flatten().tolist()}, "
                f"std {self.std.flatten().tolist()}, weights {sha256_text(below)}"
            )
        return found

    @torch.no_grad()
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (M, 3, H, W) in [0, 1], not normalised -> `{"block3": (M, D, h, w), ...}` for the chosen blocks.

        H and W must be multiples of `patch_size` (`UserError`); h = H / patch_size, w = W / patch_size.
        """
        assert images.ndim == 4, "(M, 3, H, W) expected"
        assert images.is_floating_point(), "floating-point images in [0, 1] expected"
        self._check_size(*images.shape[-2:])
        patches = self.vit.patch_embed((images - self.mean) / self.std)  # (M, h, w, D)
        x = self.vit.norm_pre(self._with_positions(patches))  # (M, P + N, D), P prefix tokens
        features = {}
        for number, block in enumerate(self.vit.blocks, start=1):
            x = block(x)
            if number in self.blocks:
                features[f"block{number}"] = self._as_map(x, *patches.shape[1:3])
        return features

    def _with_positions(self, patches: Tensor) -> Tensor:
        """Patch embeddings (M, h, w, D) -> tokens (M, P + h*w, D) with positions, prefix tokens first."""
        vit = self.vit
        table = self._table(*patches.shape[1:3])
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        tokens = patches.flatten(1, 2)
        if vit.no_embed_class:  # the table covers the patches alone
            return torch.cat([t.expand(len(tokens), -1, -1) for t in prefix] + [tokens + table], dim=1)
        return torch.cat([t.expand(len(tokens), -1, -1) for t in prefix] + [tokens], dim=1) + table

    def _table(self, h: int, w: int) -> Tensor:
        """The position table (1, P + h*w, D) for an h x w grid, without P where the model has no prefix positions."""
        full = self.vit.pos_embed
        assert full is not None  # see _plain
        key = (h, w, full.device, full.dtype)
        if key not in self._tables:
            # a table first made under inference_mode must serve training too
            with torch.inference_mode(False):
                prefix = full.shape[1] - self.vit.patch_embed.num_patches
                mode: PosEmbedResize = "timm" if self.vit.reg_token is not None else self.pos_embed_resize
                patches = resized_positions(full[:, prefix:], h, w, mode)
                self._tables[key] = torch.cat([full[:, :prefix], patches], dim=1)
        return self._tables[key]

    def _as_map(self, tokens: Tensor, h: int, w: int) -> Tensor:
        """Tokens (M, P + h*w, D) -> (M, D, h, w), normalised if asked for, prefix tokens dropped."""
        tokens = self.vit.norm(tokens) if self.final_norm else tokens
        tokens = tokens[:, self.vit.num_prefix_tokens :]
        return tokens.transpose(1, 2).unflatten(2, (h, w)).contiguous()

    def _check_size(self, height: int, width: int) -> None:
        patch = self.patch_size
        if height % patch == 0 and width % patch == 0 and min(height, width) > 0:
            return
        sides = [sorted({max(side // patch, 1) * patch, (side // patch + 1) * patch}) for side in (height, width)]
        best = " and ".join(" or ".join(map(str, s)) for s in (sides if height != width else sides[:1]))
        raise UserError(
            f"{self.name} cannot take {height}x{width} pixels: each side must be a multiple of its patch size {patch}. "
            f"Nearest: {best}."
        )


def resized_positions(table: Tensor, h: int, w: int, mode: PosEmbedResize) -> Tensor:
    """A square position table (1, n*n, D), row by row, resized to (1, h*w, D); its own grid is returned unchanged.

    `original`: as in the DINOv2 release, bicubic without antialiasing, scale factor (h + 0.1) / n.
    `timm`: antialiased bicubic to the exact size, which is also how DINOv2's models with registers were released, so
    `ViTEncoder` uses it for every model with registers.
    The two differ by 4-14 % of the feature map at 560 px and by 25 % at 224 px (DINOv2, 37 x 37 native).
    """
    n = round(table.shape[1] ** 0.5)
    if (h, w) == (n, n):
        return table
    if mode == "timm":
        return resample_abs_pos_embed(table, new_size=[h, w], old_size=[n, n], num_prefix_tokens=0)
    grid = table.float().unflatten(1, (n, n)).permute(0, 3, 1, 2)
    scale = ((h + 0.1) / n, (w + 0.1) / n)
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False, antialias=False)
    return grid.flatten(2).transpose(1, 2).to(table.dtype)


def vit_names(pretrained: bool = False) -> list[str]:
    """Names of the plain ViTs timm knows; with `pretrained`, only names (with tag) that `weights: hub` can download."""
    return timm.list_models(module=_TIMM_MODULES, exclude_filters="*_distilled_*", pretrained=pretrained)


def hub_file(name: str) -> Path | None:
    """Where the weights of `name` lie if `weights: hub` has downloaded them before, else None; never downloads."""
    return _cached(_timm_cfg(name))


def _forget_tables(encoder: ViTEncoder, keys: Any) -> None:
    """Other weights have other position tables. A function, because hooks are pickled with the module."""
    encoder._tables.clear()


def _resolved_blocks(blocks: Sequence[int], depth: int, name: str) -> tuple[int, ...]:
    wrong = [b for b in blocks if not 1 <= abs(b) <= depth]
    if wrong or not blocks:
        raise UserError(
            f"blocks {list(blocks)} do not exist in {name}: choose from 1 to {depth}, or from -{depth} to -1 (last)."
        )
    return tuple(b if b > 0 else depth + 1 + b for b in blocks)


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1)


def _described(name: str, weights: str) -> tuple[VisionTransformer, Sequence[float], Sequence[float]]:
    """The model on the meta device (no memory, no weights yet), and its input mean and std."""
    if name == FROM_WEIGHTS:
        header = read_vit_header(weights)
        return _plain(header.build(weights), weights), header.mean, header.std
    cfg = _timm_cfg(name)
    return _created(name, device="meta", weight_init="skip"), cfg.mean, cfg.std


def _with_weights(vit: VisionTransformer, name: str, weights: str) -> VisionTransformer:
    """The described model in CPU memory with its weights, float32."""
    if name == FROM_WEIGHTS:
        load_strict(vit, read_tensors(weights), weights, "the model its own header describes")
        return vit
    if weights == "random":
        # under `with torch.device("meta")` nothing is drawn: a network that is only counted
        return _created(name, "meta" if torch.get_default_device().type == "meta" else "cpu")
    cfg = _timm_cfg(name)
    if weights == "hub":
        return _from_hub(name, cfg)
    hint = f"weights must be 'hub', 'random' or a file with the weights of {name}: {_where(cfg)}."
    state = read_tensors(weights, hint)
    state = from_dinov2(state) if "mask_token" in state else state
    load_strict(vit, without_head(state), weights, name, hint)
    return vit


def _timm_cfg(name: str) -> PretrainedCfg:
    """timm's entry (normalisation, origin of the weights) of a plain ViT; `UserError` for any other name."""
    known = vit_names()
    arch = name.partition(".")[0]
    if arch not in known:
        close = difflib.get_close_matches(name, [*known, *vit_names(pretrained=True)], n=3, cutoff=0.5)
        kind = "is no plain ViT" if timm.is_model(arch) else "is unknown to timm"
        raise UserError(
            f"Encoder '{name}' {kind}. Nearest plain ViTs: {', '.join(close or ['vit_base_patch14_dinov2.lvd142m'])}; "
            f"'{FROM_WEIGHTS}' takes the model from the weights file."
        )
    tagged = timm.list_models(f"{arch}.*", module=_TIMM_MODULES, include_tags=True)
    if name != arch and name not in tagged:
        raise UserError(f"Encoder '{name}' has an unknown pretrained tag.{nearest(name, tagged)}")
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None  # timm has an entry for every plain ViT it names
    return cfg


def _plain(vit: nn.Module, source: str) -> VisionTransformer:
    """`vit` itself if its tokens are one square grid of square RGB patches with learned positions, else `UserError`."""
    if type(vit) is VisionTransformer and type(vit.patch_embed) is PatchEmbed and vit.pos_embed is not None:
        grid, patch = vit.patch_embed.grid_size, vit.patch_embed.patch_size
        if grid[0] == grid[1] and patch[0] == patch[1] and vit.in_chans == 3:
            return vit
    raise UserError(
        f"{source} is not a ViT that can be used here: expected timm's VisionTransformer for RGB images with square "
        f"patches on a square grid and a learned position table. Choose another model, e.g. a DINOv2 ViT."
    )


def _created(name: str, device: str = "cpu", **options: Any) -> VisionTransformer:
    """A timm model without head, for any image size; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reseed the GPUs too
        return _plain(timm.create_model(name, num_classes=0, dynamic_img_size=True, **options), name)


def _from_hub(name: str, cfg: PretrainedCfg) -> VisionTransformer:
    """timm's pretrained weights: from the download cache without asking the network, else downloaded."""
    if not (cfg.hf_hub_id or cfg.url):
        raise UserError(f"timm has no weights for '{name}'. Choose a name that has, or give a file as weights.")
    cached = _cached(cfg)
    if not cached:
        rank_zero_info(f"downloading the weights of {name} (once; FILE instead of `hub` does without)")
    try:
        file = cached or (cfg.hf_hub_id and huggingface_hub.hf_hub_download(cfg.hf_hub_id, _hub_filename(cfg)))
        overlay = {"file": str(file)} if file else None
        return _created(name, pretrained=True, pretrained_cfg_overlay=overlay, weight_init="skip")
    except Exception as error:  # the download goes through several libraries, each with exceptions of its own
        reason = str(error).partition("\n")[0]
        if isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):  # whose text is a paragraph
            reason = "no connection to huggingface.co"
        if cached:
            raise UserError(
                f"Downloaded weights {cached} cannot be used ({reason}). Delete the file, try again."
            ) from error
        raise UserError(
            f"Weights of '{name}' could not be downloaded ({reason}). Without internet, get {_where(cfg)} on another "
            f"machine and give the path of that file as weights (--model.backbone_weights FILE)."
        ) from error


def _cached(cfg: PretrainedCfg) -> Path | None:
    if not cfg.hf_hub_id:
        return None
    found = huggingface_hub.try_to_load_from_cache(cfg.hf_hub_id, _hub_filename(cfg))
    return Path(found) if isinstance(found, str) else None


def _hub_filename(cfg: PretrainedCfg) -> str:
    return cfg.hf_hub_filename or "model.safetensors"


def _where(cfg: PretrainedCfg) -> str:
    """Where a file with a timm model's weights can be had."""
    if isinstance(cfg.url, str) and cfg.url.startswith(_DINOV2_FILES):
        return cfg.url
    if cfg.hf_hub_id:
        return f"model.safetensors from https://huggingface.co/{cfg.hf_hub_id}"
    return f"a .safetensors file with timm's names for {cfg.architecture}"


def backbone_facts(name: str, weights: str) -> dict[str, Any]:
    """What is known about a backbone's pre-training, as fields of a record: `backbone`, `backbone_pretraining`,
    `contamination`.

    DINOv2's LVD-142M was curated with images of labelled sets, labels unused (protocols.md section 5, item 10); other
    weights are `unknown` unless they are random.
    """
    if weights == "random":
        return {"backbone": name, "backbone_pretraining": "none (random)", "contamination": ("none",)}
    if "dinov2" in name:
        images = "LVD-142M, self-supervised"
        return {"backbone": name, "backbone_pretraining": images, "contamination": ("unlabelled images",)}
    return {"backbone": name, "backbone_pretraining": "unknown", "contamination": ("unknown",)}
