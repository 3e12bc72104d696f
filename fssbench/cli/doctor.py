"""`fssbench doctor`: versions, devices, weights, data and folders; what is ready, and for what is not, what to do next."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from shlex import quote
from typing import Any

from fssbench import __version__
from fssbench.cli.configs import known_configs, packaged_folder, search_folders
from fssbench.cli.doctor_data import Finding, datasets
from fssbench.files import data_folder, sha256_file, weights_folder
from fssbench.results.store import ResultStore

DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/"
SAM_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM2_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/"
SAM2_PACKAGE = "sam2==1.1.0"
INSTALL_SAM2 = f"pip install 'setuptools>=70.1' && SAM2_BUILD_CUDA=0 pip install --no-build-isolation {SAM2_PACKAGE}"
HUB_MODELS = tuple(f"vit_{size}_patch14_dinov2.lvd142m" for size in ("small", "base", "large"))
SAM_FACTS = {
    "sam_vit_h_4b8939.pth": (2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
    "sam_vit_l_0b3195.pth": (1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    "sam_vit_b_01ec64.pth": (375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
}
"""SAM's official checkpoints: bytes and SHA-256, as several projects that download them state (micro-sam, 3D Slicer's
SAM module); the six digits in a name begin the file's MD5."""
WEIGHT_FILES = {
    **{
        f"dinov2_vit{s}14_pretrain.pth": f"{DINOV2_URL}dinov2_vit{s}14/dinov2_vit{s}14_pretrain.pth"
        for s in ("s", "b", "l")
    },
    **{name: f"{SAM_URL}{name}" for name in SAM_FACTS},
    **{
        f"{release}_hiera_{size}.pt": f"{SAM2_URL}{day}/{release}_hiera_{size}.pt"
        for release, day in (("sam2", "072824"), ("sam2.1", "092824"))
        for size in ("tiny", "small", "base_plus", "large")
    },
}  # fmt: skip
"""Weight files that the shipped configs may name -> where they are published."""
DEFAULTS = {
    "dinov2_vitb14_pretrain.pth": "DINOv2, of nearly every method; instead of a download by `hub`",
    "sam_vit_h_4b8939.pth": "FS-DINO, to train it",
    "sam2_hiera_small.pt": "SAM2FSS",
    "vit_base_patch14_dinov2.lvd142m": "the same",
}
"""What the shipped configs need as they are -> who needs it; everything else is another size."""


def run(verb: str, arguments: list[str]) -> int:
    """Print the report; the status is 0 whatever is missing, since nothing of it is needed by every run."""
    argparse.ArgumentParser(prog=f"fssbench {verb}", description=__doc__).parse_args(arguments)
    sections = {
        "versions": versions,
        "devices": devices,
        f"weights in {weights_folder()} (FSSBENCH_WEIGHTS)": weights,
        f"data sets in {data_folder()} (FSSBENCH_DATA)": datasets,
        "configs, searched in this order (FSSBENCH_CONFIG_PATH)": configs,
        "results": results,
    }
    for title, section in sections.items():
        print(title)
        for state, what, then in section():
            print(f"  {state:<8}{what}")
            if then:
                print(f"  {'':<8}next: {then}")
    return 0


def versions() -> list[Finding]:
    """fssbench, Python, and every required library against the range that fssbench asks for."""
    found = [Finding("ok", f"fssbench {__version__}, Python {platform.python_version()}, {platform.platform()}")]
    try:
        wanted = requires("fssbench") or []
    except PackageNotFoundError:
        return [*found, Finding("missing", "fssbench is not installed", "pip install -e . in its source folder")]
    found += [installed(text) for text in wanted if "extra ==" not in text]
    return [*found, installed(SAM2_PACKAGE, INSTALL_SAM2), torch_pair()]


def installed(requirement: str, how: str = "") -> Finding:
    """Whether one requirement such as `timm>=1.0.12` is met; `how` to install it, where that takes more than pip."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    install = how or f"pip install '{wanted.name}{wanted.specifier}'"
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return Finding("missing", f"{wanted.name} {wanted.specifier}", install)
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding("wrong", f"{wanted.name} {found}, needed: {wanted.specifier}", install)
    return Finding("ok", f"{wanted.name} {found}")


def torch_pair() -> Finding:
    """Whether torch and torchvision belong together: torch 2.N goes with torchvision 0.(N + 15)."""
    try:
        pair = {name: version(name) for name in ("torch", "torchvision")}
    except PackageNotFoundError as error:
        return Finding("missing", f"{error.name}", "pip install torch torchvision")
    text = " and ".join(f"{name} {value}" for name, value in pair.items())
    torch_minor, vision_minor = (re.match(r"\d+\.(\d+)", value) for value in pair.values())
    if torch_minor and vision_minor and int(vision_minor[1]) != int(torch_minor[1]) + 15:
        wanted = f"torchvision==0.{int(torch_minor[1]) + 15}.*"
        return Finding("wrong", f"{text} do not belong together", f"pip install '{wanted}'")
    return Finding("ok", f"{text} belong together")


def devices() -> list[Finding]:
    """The accelerators torch can use, and the memory of each."""
    try:
        import torch
    except Exception as error:  # a broken installation raises anything: missing libraries, mixed versions
        reason = " ".join(str(error).split())
        return [Finding("wrong", f"torch cannot be imported: {reason}", "install torch again, see https://pytorch.org")]
    found = [Finding("ok", f"cpu: {os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}")]
    for number in range(torch.cuda.device_count()):
        found.append(gpu(number, torch.cuda.get_device_properties(number), torch.version.hip is None))
    if torch.backends.mps.is_available():
        found.append(Finding("ok", "mps: Apple GPU"))
    if len(found) == 1:
        reason = (
            "this torch is built without CUDA" if torch.version.cuda is None else f"CUDA {torch.version.cuda}: no GPU"
        )
        then = "nothing, if the CPU is fast enough; else a CUDA build of torch and a driver (see https://pytorch.org)"
        found.append(Finding("missing", f"GPU ({reason})", then))
    return found


def gpu(number: int, facts: Any, nvidia: bool) -> Finding:
    """A GPU that torch sees, from torch's own `facts`: one older than NVIDIA's Ampere only imitates bfloat16, slowly."""
    what = f"cuda:{number}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
    if not nvidia or facts.major >= 8:
        return Finding("ok", what)
    then = "--trainer.precision 16-mixed after trainer/gpu.yaml; for SAM2FSS --model.precision fp32"
    return Finding("ok", f"{what}, no bfloat16 of its own", then)


def weights() -> list[Finding]:
    """Known weight files, and what timm has downloaded; other sizes than the shipped configs take are one line."""
    found = []
    for name, url in WEIGHT_FILES.items():
        path = weights_folder() / name
        download = f"curl -L --create-dirs -o {quote(str(path))} {url}"
        if path.is_file():
            found.append(weight_file(path, download))
        elif name in DEFAULTS:
            found.append(Finding("missing", f"{name} ({DEFAULTS[name]})", download))
    absent = [name for name in WEIGHT_FILES if name not in DEFAULTS and not (weights_folder() / name).is_file()]
    if absent:
        then = "nothing, unless you choose one of these sizes: a run that lacks its file says where it is published"
        found.append(Finding("missing", f"other sizes: {', '.join(absent)}", then))
    try:
        from fssbench.encoders.vit import hub_file
    except Exception:  # reported under versions and devices
        return found
    for name in HUB_MODELS:
        path_of = hub_file(name)
        then = "nothing: `backbone_weights: hub` downloads it when it is first used"
        if path_of:
            found.append(Finding("ok", f"timm {name}: {path_of}"))
        elif name in DEFAULTS:
            found.append(Finding("missing", f"timm {name} ({DEFAULTS[name]})", then))
    return found


def weight_file(path: Path, download: str) -> Finding:
    """A weight file that is there: of SAM's, whether it is the published one (reading it takes a few seconds)."""
    size = path.stat().st_size
    if path.name not in SAM_FACTS:
        return Finding("ok", f"{path.name}, {size / 2**20:.0f} MiB")
    published, digest = SAM_FACTS[path.name]
    if size != published:
        return Finding("wrong", f"{path.name} has {size} bytes, the published file {published}", download)
    if sha256_file(path) != digest:
        return Finding("wrong", f"{path.name} is not the published file (its SHA-256 differs)", download)
    return Finding("ok", f"{path.name}, {size / 2**20:.0f} MiB, SHA-256 as published")


def configs() -> list[Finding]:
    """The folders in which `--config NAME` looks."""
    found = [Finding("ok", f"{Path.cwd()} (where you are)")]
    for folder in search_folders():
        packaged = " (shipped)" if folder == packaged_folder() else ""
        count = sum(path.is_relative_to(folder) for path in known_configs().values())
        if folder.is_dir():
            found.append(Finding("ok", f"{folder}{packaged}: {count} configs"))
        else:
            found.append(Finding("missing", f"{folder}", "make it, or take it out of FSSBENCH_CONFIG_PATH"))
    return found


def results(folder: Path = Path("results")) -> list[Finding]:
    """The default results folder, and the free space beside it."""
    free = f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free"
    if not folder.is_dir():
        return [Finding("missing", f"{folder.absolute()}, {free}", "nothing: `fssbench test` makes it")]
    if not os.access(folder, os.W_OK):
        return [Finding("wrong", f"{folder.absolute()} cannot be written", "give --results FOLDER to `fssbench test`")]
    contents = ResultStore(folder).read_all()
    damaged = [
        Finding("wrong", f"{path}", f"remove it or run the test again ({why})") for path, why in contents.damaged
    ]
    return [Finding("ok", f"{folder.absolute()}: {len(contents.records)} records, {free}"), *damaged]
