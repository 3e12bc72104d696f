"""What a checkpoint says about the method it belongs to, and whether that fits a configured method."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import marshal
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

MISSING = object()


def checkpoint_mismatch(
    facts: Mapping[str, Any] | None,
    method_class: str,
    settings: Mapping[str, Any],
    free: Iterable[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> str | None:
    """Why a checkpoint (its `fssbench` entry) does not fit a configured method; None if it does.

    free      settings that may differ
    defaults  of the settings: what holds for a checkpoint made before a setting existed
    """
    if facts is None:
        return (
            "The checkpoint was not made by fssbench (it lacks the 'fssbench' entry). Use one made by `fssbench fit`."
        )
    if facts["method_class"] != method_class:
        return (
            f"The checkpoint is of {facts['method_class']}, the configuration asks for {method_class}. "
            "Use that method's config, or a checkpoint of the configured method."
        )
    theirs = completed(facts["settings"], settings, defaults)
    different = [n for n in sorted({*theirs, *settings}) if n not in free and theirs.get(n) != settings.get(n)]
    if different:
        name = different[0]
        return (
            f"The checkpoint was made with {name}={theirs.get(name)!r}, the configuration says "
            f"{settings.get(name)!r} (differing: {', '.join(different)}). Use the settings it was trained with."
        )
    return None


def completed(theirs: Mapping[str, Any], ours: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings of an earlier version, with the defaults of those of `ours` that it did not have, at any depth."""
    found = dict(theirs)
    for name, value in ours.items():
        default = defaults.get(name, MISSING)
        if name not in found and default is not MISSING:
            found[name] = default
        elif all(isinstance(x, Mapping) for x in (found.get(name), value, default)):
            found[name] = completed(found[name], value, defaults[name])
    return found


def without(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A copy of plain settings that lacks those named; `a.b` is entry b of the mapping a."""
    kept = dict(settings)
    for name in names:
        outer, dot, inner = name.partition(".")
        if not dot:
            kept.pop(outer, None)
        elif isinstance(kept.get(outer), Mapping):
            kept[outer] = without(kept[outer], [inner])
    return kept


def class_path(cls: type) -> str:
    """Import path of a method class, the shortest public one: `methods.fsdino.FSDINO`."""
    package = cls.__module__.rpartition(".")[0]
    short = package and getattr(import_module(package), cls.__name__, None) is cls
    return f"{package if short else cls.__module__}.{cls.__qualname__}"


def code_sha256(cls: type, base: type) -> str:
    """SHA-256 (hex) of the source files of a class and of its bases that are subclasses of `base`; of their functions'
    compiled code where there is no file (a notebook)."""
    digest = hashlib.sha256()
    for part in (c for c in cls.__mro__ if issubclass(c, base) and c is not base):
        try:
            digest.update(Path(inspect.getfile(part)).read_bytes())
        except (TypeError, OSError):
            functions = (value for value in vars(part).values() if inspect.isfunction(value))
            digest.update(b"".join(marshal.dumps(function.__code__) for function in functions))
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """Configuration values as JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "as_dict"):  # jsonargparse Namespace
        return plain(value.as_dict())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)
