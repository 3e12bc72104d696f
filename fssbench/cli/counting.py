"""Numbers of parameters of the methods that ship as configs, without any weights."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import torch
from jsonargparse import ArgumentParser

from fssbench.cli.configs import find_config, read_config
from fssbench.cli.messages import quiet
from fssbench.cli.parsing import register_classes
from fssbench.errors import user_error_in
from fssbench.method import FewShotMethod

COLUMNS = {"total": "all", "trainable": "in trained parts", "optimised": "in the optimiser"}


def parameter_counts(config: str, backbone: str | None = None) -> dict[str, int] | None:
    """`FewShotMethod.parameter_counts` of a method config, with another encoder if one is named; None where the config is
    of something else, or of a method that does not choose its encoder by `backbone`.

    The method is built on torch's meta device, where a tensor is only its shape. Raises `UserError` for an encoder that
    does not exist.
    """
    model = read_config(find_config(config)).get("model", {})
    module, _, name = str(model.get("class_path", "")).rpartition(".")
    cls = getattr(import_module(module), name, None) if module else None
    if not (inspect.isclass(cls) and issubclass(cls, FewShotMethod)):
        return None
    settings: dict[str, Any] = {**model.get("init_args", {}), **cls.without_files()}
    if backbone is not None:
        if "backbone" not in inspect.signature(cls).parameters:
            return None
        settings["backbone"] = backbone
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(FewShotMethod, "model")
    parsed = parser.parse_object({"model": {"class_path": model["class_path"], "init_args": settings}})
    try:
        with torch.device("meta"):
            method: FewShotMethod = parser.instantiate(parsed).model
    except ValueError as error:
        raise user_error_in(error) or error from None
    return method.parameter_counts()


def print_counts(configs: list[str], backbone: str | None) -> None:
    """A table with one row per config."""
    quiet()
    register_classes()
    counts = {config: parameter_counts(config, backbone) for config in configs}
    width = max(map(len, counts))
    print("  ".join([f"{'parameters':<{width}}", *(f"{title:>16}" for title in COLUMNS.values())]))
    for config, found in counts.items():
        cells = [f"{found[name]:>16,}" if found else f"{'-':>16}" for name in COLUMNS]
        print("  ".join([f"{config:<{width}}", *cells]))
    print(
        "FS-DINO is counted as published, with a distilled adapter; without adapter_weights the adapter is trained too."
    )
