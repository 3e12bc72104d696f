"""The named protocols: which lists, which episodes, which pixels (protocols.md section 2; docs/protocols.md).

A number means something only together with its protocol, so a protocol is one word in the configuration, in manifests
and in records, and everything that follows from the word is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fssbench.errors import UserError, nearest

ProtocolName = Literal["clean-v1", "hsnet-compat", "bam-compat", "one-shot-video"]
TrainingPolicy = Literal["keep-as-background", "drop-image", "ignore-pixels"]
"""What happens to novel-class pixels in training images: they are background, their image is not used at all, or they
are ignored (255)."""
BAM_SEEDS = (510, 365, 382, 322, 988)
"""Seeds of BAM's five test runs; `bam-compat` is reported per seed and as their mean, never as the best."""
_BASE = "-base"


@dataclass(frozen=True)
class Profile:
    """Everything that follows from the name of a protocol."""

    name: ProtocolName
    masks: Literal["clean", "legacy"]
    """`clean`: per class from the official annotations, crowds ignored; `legacy`: as released code reads them."""
    distinct_supports: bool
    """False: a support may occur twice in one episode."""
    void_in_supports: Literal["ignore", "background"]
    """What 255 in a support mask means."""
    training_policy: TrainingPolicy
    """Default of `data.training_policy`."""
    square: bool
    """Whether the protocol's own numbers are counted at the network's square input instead of the original size."""
    default_seed: int
    own_seeds: tuple[int, ...] | None
    """Seeds that the protocol defines; None = any."""


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("clean-v1", "clean", True, "ignore", "keep-as-background", False, 0, None),
        Profile("hsnet-compat", "legacy", False, "background", "keep-as-background", True, 0, (0,)),
        Profile("bam-compat", "legacy", True, "ignore", "drop-image", False, BAM_SEEDS[0], None),
        Profile("one-shot-video", "clean", True, "background", "keep-as-background", False, 0, (0,)),
    )
}
"""Name -> profile; `clean-v1` is the default and the headline, `one-shot-video` is for DAVIS-17 alone."""


def profile_of(protocol: str) -> Profile:
    """The profile of a protocol name, also of one from a manifest or record (`clean-v1.s3`, `clean-v1-base`).

    Raises `UserError` for an unknown name.
    """
    name = protocol.removesuffix(_BASE).partition(".s")[0]
    if name not in PROFILES:
        raise UserError(f"Unknown protocol '{protocol}'.{nearest(name, get_args(ProtocolName))}")
    return PROFILES[name]


def protocol_id(name: str, seed: int, classes: Literal["novel", "base"] = "novel") -> str:
    """The name in manifests and records: with the seed where there are several draws, with `-base` for validation.

    Raises `UserError` for a seed that the protocol does not define.
    """
    profile = profile_of(name)
    if profile.own_seeds is not None and seed not in profile.own_seeds:
        seeds = ", ".join(map(str, profile.own_seeds))
        raise UserError(f"{name} is defined for seed {seeds} only, not {seed}: other seeds would be another protocol.")
    if seed < 0:
        raise UserError(f"The seed of the episodes must be 0 or more, not {seed}.")
    several = seed > 0 if profile.own_seeds is None and profile.default_seed == 0 else profile.own_seeds is None
    return name + (f".s{seed}" if several else "") + (_BASE if classes == "base" else "")


def is_base(protocol: str) -> bool:
    """Whether a manifest's protocol names episodes of base classes (validation)."""
    return protocol.endswith(_BASE)
