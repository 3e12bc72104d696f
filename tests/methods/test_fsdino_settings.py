"""FS-DINO's settings: names and defaults are those of its specification (fsdino.md 6.1, and its table 3.1 for stage 1)."""

from __future__ import annotations

from methods.fsdino import FSDINO, Distillation

ADAPTER = {
    "block": 3, "norm": "bn", "act": "gelu", "heads": 8, "pre_norm": True, "pos_enc": "none", "dropout": 0.0,
    "final_ln": False, "hidden": 256, "width": 128, "depth": 2,
}  # fmt: skip
ENCODER = {
    "backbone": "vit_base_patch14_dinov2.lvd142m", "backbone_weights": "hub", "pos_embed_resize": "original",
    "apply_final_norm": True,
}  # fmt: skip
METHOD = ENCODER | {
    "preset": "fsdino_ce", "image_size": 518, "sam_weights": "sam_vit_h_4b8939.pth", "adapter": ADAPTER,
    "mask_threshold": 0.5, "support_ignore": "background", "kshot_merge": "feature", "compile": False,
    "prototype": {"block": -1, "eps": 1e-6, "fallback": "max_pool"},
    "svp": {"hidden": 64, "tokens": 1, "init": "sam"},
    "pcs": {"scale": "learned", "encoder_init": "sam"},
    "corr": {
        "blocks": [-6, -5, -4, -3, -2, -1], "channels": [16, 64, 128], "groups": 1, "zero_init_head": True,
        "mask": "binary", "eps": 1e-5, "ce": None, "init": "average", "ce_balance": False,
    },
    "decoder": {"train": None, "grid": None, "width": 256, "depth": 2, "heads": 8, "mlp_dim": 2048},
    "train": {
        "lr": 1e-4, "decoder_lr": 5e-5, "adapter_lr": None, "weight_decay": 1e-4, "warmup_steps": 500,
        "recompute_correlation": False,
    },
    "dense": None, "adapter_weights": None, "train_adapter": None,
}  # fmt: skip
"""None: as the preset says, as there is a distilled adapter or not, or (`decoder.grid`) the encoder's own grid of 37."""
DISTILLATION = ENCODER | {
    "teacher": "vit_h", "teacher_weights": "sam_vit_h_4b8939.pth", "width": 256, "cache_dir": None, "teacher_batch": 4,
    "adapter": ADAPTER,
    "distill": {
        "resolutions": [126, 252, 518], "epochs": [5, 5, 10], "batch": [64, 64, 32], "align": "down_teacher",
        "lr": 1e-3, "weight_decay": 0.05, "warmup_steps": 500, "cache_grid": None,
    },
}  # fmt: skip


def test_every_setting_has_the_default_of_the_specification() -> None:
    assert FSDINO.default_settings() == METHOD
    assert Distillation.default_settings() == DISTILLATION
