"""Dataclasses that check themselves, and their way to JSON and back.

A record is read by people and programs that did not write it, so nothing is guessed: a missing, extra or wrongly typed
field is refused by name, when it is made as well as when it is read.
"""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from fssbench.errors import UserError, nearest

T = TypeVar("T", bound="Checked")

_UNIONS = (Union, types.UnionType)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of the groups of a record: every field is checked against its type hint on construction.

    Hints understood: str, bool, int, float (finite; an int is taken too), None, unions, tuple[X, ...], dict[K, X],
    other `Checked` groups, and Any for plain JSON values.
    """

    group: ClassVar[str]
    """Where the group stands in the JSON file; error messages begin with it."""

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            _check_type(hint, getattr(self, name), f"{self.group}.{name}")
        self._check()

    def _check(self) -> None:
        """What a type cannot say: ranges and agreement between fields. Called after all types are right."""

    def require(self, condition: bool, field: str, expected: str) -> None:
        """Raise `UserError` naming the field, its value and what was `expected`, unless `condition` holds."""
        if not condition:
            raise UserError(f"{self.group}.{field} is {shown(getattr(self, field))}, expected {expected}")


def to_json(value: Any) -> Any:
    """A group as plain dicts, lists, text and numbers, fields in the order of their declaration; keys become text."""
    if isinstance(value, Checked):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, where: str) -> T:
    """The group `kind` from its JSON object; `where` names the place in the file.

    Raises:
        UserError: missing, extra or wrong fields, by name.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where} is {shown(data)}, expected an object")
    hints = _hints(kind)
    for name in hints:
        if name not in data:
            raise UserError(f"{where}.{name} is missing")
    for name in data:
        if name not in hints:
            raise UserError(f"{where}.{name} is not a known field.{nearest(name, hints)}")
    return kind(**{name: _revive(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


def check_plain(value: Any, where: str) -> None:
    """Refuse what JSON cannot hold: NaN, infinity, and types but str, int, float, bool, None, list and dict[str, ...].

    Raises:
        UserError: naming the key, e.g. `config.model.init_args.lr`.
    """
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}, expected a finite number")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{where} has the key {shown(key)}, expected text keys only")
            check_plain(item, f"{where}.{key}")
    else:
        raise UserError(f"{where} is {shown(value)}, expected plain text, numbers, true/false, null, lists and dicts")


def shown(value: Any) -> str:
    """A value for an error message: its repr, cut short, and its type where the repr does not tell it."""
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return text if value is None or isinstance(value, bool) else f"{text} ({type(value).__name__})"


def _hints(kind: Any) -> dict[str, Any]:
    """Field name -> type, in the order of declaration."""
    if kind not in _HINTS:
        hints = get_type_hints(kind)
        _HINTS[kind] = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return _HINTS[kind]


_HINTS: dict[Any, dict[str, Any]] = {}  # resolving hints is slow, and a board reads many records


def _check_type(hint: Any, value: Any, where: str) -> None:
    """Raise `UserError` unless `value` is of the hinted type; containers are checked item by item."""
    if type(value) is hint and hint is not float:  # the usual case, and tables have many rows
        return
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        check_plain(value, where)
    elif origin in _UNIONS and (container := _container(args, value)) is not None:
        _check_type(container, value, where)
    elif origin is tuple and isinstance(value, tuple):
        for index, item in enumerate(value):
            _check_type(args[0], item, f"{where}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            _check_type(args[0], key, f"key of {where}")
            _check_type(args[1], item, f"{where}[{key}]")
    elif not _is(hint, value):
        raise UserError(f"{where} is {shown(value)}, expected {_name(hint)}")


def _container(members: tuple[Any, ...], value: Any) -> Any:
    """The list type of a union where the value is a list, e.g. `tuple[float, float]` of `tuple[float, float] | None`."""
    return next((m for m in members if get_origin(m) is tuple and isinstance(value, tuple | list)), None)


def _is(hint: Any, value: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return any(_is(one, value) for one in args)
    if origin is not None:  # a container that got something else
        return False
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _revive(hint: Any, value: Any, where: str) -> Any:
    """JSON has no tuples, integer keys or groups: put them back. `_check_type` refuses what does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Checked):
        return from_json(hint, value, where)
    if origin in _UNIONS and (container := _container(args, value)) is not None:
        return _revive(container, value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_revive(args[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {
            (_int_key(key, where) if args[0] is int else key): _revive(args[1], item, f"{where}[{key}]")
            for key, item in value.items()
        }
    return value


def _int_key(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and str(int(key)) == key):
        raise UserError(f"{where} has the key {key!r}, expected whole numbers as text")
    return int(key)


def _name(hint: Any) -> str:
    """A hint in the words of a JSON file."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_name(one) for one in args)
    if origin is tuple:
        return f"a list of {_name(args[0])}"
    if origin is dict:
        return "an object"
    words = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", type(None): "null"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))
