"""Methods, one folder each; nothing here imports another method. Classes are imported when first asked for."""

from importlib import import_module
from typing import Any

_WHERE = {
    "Distillation": "methods.fsdino",
    "FSDINO": "methods.fsdino",
    "Prototype": "methods.prototype",
    "SAM2FSS": "methods.sam2fss",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'methods' has no attribute '{name}'")
