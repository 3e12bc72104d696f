"""What the user of a terminal reads: jsonargparse's messages as one line each, and no notices meant for developers."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

from lightning.pytorch import LightningDataModule

from fssbench.cli.run_help import GRID_OPTIONS
from fssbench.errors import closest, nearest
from fssbench.trainable import Trainable

BASES: dict[str, type] = {"model": Trainable, "data": LightningDataModule}
SILENT_NOTICES = ("💡", "Seed set", "GPU available", "TPU available", "HPU available", "`Trainer", "Restoring states",
                  "Loaded model weights", "Restored all states", "Using default `ModelCheckpoint`",
                  "Initializing distributed", "Loading `train_dataloader`", "-----", "LOCAL_RANK: ",
                  "You are using a CUDA device")  # fmt: skip
SILENT_WARNINGS = (
    "does not have many workers",
    "Checkpoint directory .* exists and is not empty",
    "isinstance",
    "smaller than the logging interval",
    "in eval mode at the start of training",  # the frozen encoder, on purpose
    "Be aware that when using `ckpt_path`",
    "Starting from v1.9.0, `tensorboardX`",
    "it is recommended to use `Trainer\\(devices=1, num_nodes=1\\)`",  # our sampler counts each episode once
    "using a DistributedSampler",
    "recommended to use `self\\.log\\(.*sync_dist=True",  # our scores are computed from summed counts
    "Experiment logs directory .* exists and is not empty",
    "Total length of `list` across ranks is zero",  # nothing is held out for validation, on purpose
)


def quiet() -> None:
    """Silence notices that are not for the user of a benchmark."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed",
                 "lightning.fabric.utilities.rank_zero", "lightning.fabric.utilities.distributed",
                 "lightning.pytorch.accelerators.cuda"):  # fmt: skip
        logging.getLogger(name).addFilter(_is_for_users)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # which process it ended after an error
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # its retries: the error says it all
    for text in SILENT_WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}")


def _is_for_users(record: logging.LogRecord) -> bool:
    text = re.sub(r"^\[rank: \d+\] ", "", record.getMessage())
    return not text.startswith(SILENT_NOTICES)


def parse_message(text: str, options: Iterable[str] = ()) -> str:
    """jsonargparse's message as one line: the key, what is wrong with it, and the nearest valid name.

    `options` are the option strings of the parser (`--data.fold`, ...). A message of an unknown kind is kept as it is.
    """
    flat = " ".join(text.split())
    names = sorted({option.lstrip("-") for option in options if option.startswith("--")})
    outer = re.search(r'Parser key "([\w.]+)"', flat)
    key = outer[1] if outer else ""
    if found := re.search(r"arguments are required: ([\w.-]+(?:, [\w.-]+)*)", flat):
        return _missing(found[1], key)
    if found := re.search(r"unrecognized arguments: (\S+)", flat):
        return f"Unknown argument {found[1]}.{_option_hint(found[1], names)} See --help for all."
    if found := re.search(r"does not accept option '([^']+)'", flat):
        return f"Unknown key {found[1]}.{_option_hint(found[1], names)} --print_config shows all keys."
    if found := re.search(r"Expected a dot import path string: (\S+)", flat):
        asked = re.search(r"--(model|data)\.help", flat)
        key = key or (asked[1] if asked else "")
        return f"{key}: no class '{found[1]}' is known.{_class_hint(key, found[1])}"
    problems = re.findall(r"Problem with given class_path '([^']+)': (.*?)(?= - Expected| Given value type|$)", flat)
    if problems:
        path, reason = problems[-1]
        return _class_problem(key, path, reason, flat)
    wrong = _wrong_value(key, flat)
    return wrong or flat


def _missing(names: str, key: str) -> str:
    """What to add where arguments are missing: a config, or the options of the class that `key` names."""
    if key:
        options = [f"{key}.{name}" for name in names.split(", ")]
        given = " ".join(f"--{option} VALUE" for option in options)
        return f"{', '.join(options)} must be given. Add {given}."
    name = "model" if "model" in names else names.split(",")[0].rpartition(".")[2]
    config = {"model": "methods/comp.yaml", "data": "data/shapes.yaml"}.get(name)
    if config is None:
        return f"{name} is missing. See --help."
    return f"No {name} is configured. Add --config {config} (see `fssbench list`), or --{name} CLASS."


def _class_problem(key: str, path: str, reason: str, flat: str) -> str:
    """What is wrong with a class or one of its options; `flat` holds the value where `reason` was cut before it."""
    if found := re.search(r"Option '([^']+)' is not accepted", reason):
        if found[1] == "class_path":
            return f"{key}: options of the class belong below init_args, and nothing else beside class_path."
        return f"{key}.{found[1]}: {path} has no option '{found[1]}'.{nearest(found[1], init_options(path))}"
    if found := re.search(r'Parser key "([\w.]+)"', reason):
        name = f"{key}.{found[1]}"
        return _wrong_value(name, flat[flat.index(reason) :]) or f"{name}: {reason}"
    return f"{key}: {path} is no usable class ({reason.rstrip('.')}).{_class_hint(key, path)}"


def _wrong_value(key: str, flat: str) -> str | None:
    """`KEY: expected TYPE, not 'VALUE'.` from either of jsonargparse's forms; None where neither is found."""
    one = re.search(r"Expected an? (.*?)\. Got value: (.*?)(?= - Expected| Given value type|$)", flat)
    several = re.search(r"Subtypes: \[(.*?)\] Errors:", flat)
    given = re.search(r"Given value: (.*?)(?= - Expected|$)", flat)
    if one:
        kinds, value = one[1], one[2]
    elif several and given:
        nested = re.fullmatch(r"NestedArg\(key='.*?', val='(.*)'\)", given[1])
        kinds, value = several[1], nested[1] if nested else given[1]
    else:
        return None
    choices = re.findall(r"'([^']*)'", " ".join(re.findall(r"Literal\[(.*?)\]", kinds)))
    plain = re.findall(r"<class '(?:\w+\.)*(\w+)'>", kinds)
    expected = [*dict.fromkeys(choices), *("null" if kind == "NoneType" else kind for kind in plain)]
    hint = _close(value, choices)
    return f"{key}: expected {' or '.join(expected) or kinds}, not '{value}'.{hint}"


def init_options(class_path: str) -> list[str]:
    """Names of a class's init options, those it passes on to its bases included."""
    module, _, name = class_path.rpartition(".")
    cls = getattr(import_module(module), name)
    names: list[str] = []
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else ()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters) and parameters:
            break
    return sorted(set(names) - {"self"})


def _option_hint(name: str, names: list[str]) -> str:
    """The nearest option of the parser; for options of a class, whose names differ from class to class, the prefix."""
    dashes = "--" if name.startswith("-") else ""
    key = name.lstrip("-").partition("=")[0]
    head, dot, rest = key.partition(".")
    names = [*names, *(option.partition(" ")[0] for option in GRID_OPTIONS)]
    heads = sorted({option.partition(".")[0] for option in names})
    if dot and head not in heads:
        return _close(head, heads, dashes, f".{rest}")
    return _close(key, names, dashes)


def _close(name: str, valid: Iterable[str], before: str = "", after: str = "") -> str:
    """The hint of `nearest` with text around the name, but nothing instead of a long list where no name is close."""
    close = closest(name, valid)
    return f" Did you mean '{before}{close}{after}'?" if close else ""


def _class_hint(key: str, path: str) -> str:
    """The nearest class: of the module that was named, else of all that can be named without a path."""
    base = BASES.get(key)
    if base is None:
        return ""
    module_name, _, name = path.rpartition(".")
    try:
        module: Any = import_module(module_name) if module_name else None
    except Exception:  # the user's module, which may fail in any way; the reason is in the message already
        return ""
    if module is None:
        return nearest(name, {cls.__name__ for cls in _subclasses(base)})
    members = {attribute: getattr(module, attribute, None) for attribute in getattr(module, "__all__", dir(module))}
    valid = [f"{module_name}.{n}" for n, v in members.items() if isinstance(v, type) and issubclass(v, base)]
    return nearest(path, valid)


def _subclasses(base: type) -> Iterator[type]:
    """All classes below `base` that can be made."""
    cls: type
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from _subclasses(cls)
