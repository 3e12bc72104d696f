"""Dataclasses that check themselves, and their way to JSON and back.

A record is read by people and programs that did not write it, so nothing is guessed: a missing, extra or wrongly typed
field is refused by name, when it is made as well as when it is read.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Collection
from functools import cache, partial
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, Union, get_args, get_origin, get_type_hints

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
        values = vars(self)
        plan = _plan(type(self))
        # the same few types come again and again: with scalars, finding them right once is enough
        types = tuple(map(type, map(values.__getitem__, plan.scalars)))
        if types not in plan.right:
            for name, hint in plan.scalars.items():
                _check_type(hint, values[name], f"{self.group}.{name}")
            plan.right.add(types)
        for name, hint, fits in plan.others:
            if not fits(values[name]):
                _check_type(hint, values[name], f"{self.group}.{name}")
        self._check()

    @classmethod
    def trusted(cls, **values: Any) -> Self:
        """A group whose fields, all of them, were checked where they come from: a board has very many rows."""
        made = object.__new__(cls)
        vars(made).update(values)
        return made

    def _check(self) -> None:
        """What a type cannot say: ranges and agreement between fields. Called after all types are right."""

    def require(self, condition: bool, field: str, expected: str) -> None:
        """Raise `UserError` naming the field, its value and what was `expected`, unless `condition` holds."""
        if not condition:
            raise UserError(f"{self.group}.{field} is {shown(getattr(self, field))}, expected {expected}")


def to_json(value: Any) -> Any:
    """A group as plain dicts, lists, text and numbers, fields in the order of their declaration; keys become text."""
    if isinstance(value, Checked):
        return {name: to_json(getattr(value, name)) for name in _hints(type(value))}
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
    if data.keys() != hints.keys():
        for name in hints:
            if name not in data:
                raise UserError(f"{where}.{name} is missing")
        for name in data:
            if name not in hints:
                raise UserError(f"{where}.{name} is not a known field.{nearest(name, hints)}")
    revived = {name: revive(data[name], f"{where}.{name}") for name, revive in _plan(kind).revivers.items()}
    made = kind.trusted(**{**data, **revived})  # __init__ would set the fields one by one
    made.__post_init__()
    return made


def check_plain(value: Any, where: str) -> None:
    """Refuse what JSON cannot hold: NaN, infinity, and types but str, int, float, bool, None, list and dict[str, ...].

    Raises:
        UserError: naming the key, e.g. `config.model.init_args.lr`.
    """
    if _is_plain(value) or isinstance(value, str | int):
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

_EXACT = frozenset((str, bool, int, type(None)))
"""Types that say all there is to check; a float may still be NaN."""


class _Plan(NamedTuple):
    """How a group is checked and read, worked out once."""

    scalars: dict[str, Any]
    """Field -> type, of text, whole numbers, true/false and null."""
    right: set[tuple[type, ...]]
    """Types of all scalars that were found to be right."""
    others: list[tuple[str, Any, Callable[[Any], bool]]]
    """(field, type, its check) of the other fields."""
    revivers: dict[str, Callable[[Any, str], Any]]
    """Field -> its `_reviver`, where it has one."""


_PLANS: dict[Any, _Plan] = {}


def _plan(kind: Any) -> _Plan:
    if kind not in _PLANS:
        _PLANS[kind] = _made_plan(_hints(kind))
    return _PLANS[kind]


def _made_plan(hints: dict[str, Any]) -> _Plan:
    scalars = {name: hint for name, hint in hints.items() if _exact(hint)}
    others = [(name, hint, _fits(hint)) for name, hint in hints.items() if name not in scalars]
    revivers = {name: _reviver(hint) for name, hint in hints.items()}
    return _Plan(scalars, set(), others, {name: revive for name, revive in revivers.items() if revive})


@cache
def _exact(hint: Any) -> frozenset[Any]:
    """The types that a scalar hint allows, empty for another hint."""
    members = frozenset(get_args(hint) if get_origin(hint) in _UNIONS else (hint,))
    return members if members <= _EXACT else frozenset()


def _is_plain(value: Any) -> bool:
    """Whether JSON can hold a value; `check_plain` says why not."""
    kind = type(value)
    if kind in _EXACT:
        return True
    if kind is float:
        return math.isfinite(value)
    if kind is list:
        return {*map(type, value)} <= _EXACT or all(map(_is_plain, value))
    if kind is dict and {*map(type, value)} <= {str}:
        return {*map(type, value.values())} <= _EXACT or all(map(_is_plain, value.values()))
    return False


def _check_type(hint: Any, value: Any, where: str) -> None:
    """Raise `UserError`, naming the very item, unless `value` is of the hinted type."""
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
    return _fits(hint)(value)


@cache
def _fits(hint: Any) -> Callable[[Any], bool]:
    """Whether a value is of a type, as a function made once per type: a board reads very many records."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return _is_plain
    if origin in _UNIONS:
        members = [_fits(member) for member in args]
        return lambda value: any(fits(value) for fits in members)
    if origin is tuple:
        items = _fit_all(args[0])
        return lambda value: isinstance(value, tuple) and items(value)
    if origin is dict:
        keys, values = _fit_all(args[0]), _fit_all(args[1])
        return lambda value: isinstance(value, dict) and keys(value) and values(value.values())
    if hint is float:
        return lambda value: (type(value) in (float, int) and math.isfinite(value)) or _is_other_float(value)
    if hint is int:
        return lambda value: isinstance(value, int) and not isinstance(value, bool)
    return lambda value: isinstance(value, hint)


def _is_other_float(value: Any) -> bool:
    """Whether a value of a subclass of float or int, numpy's float64 for one, is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@cache
def _fit_all(hint: Any) -> Callable[[Collection[Any]], bool]:
    """Whether all items are of a type: a look at the set of their types decides nearly always."""
    exact, fits = _EXACT if hint is Any else _exact(hint), _fits(hint)
    if hint is float:
        return lambda items: (
            ({*map(type, items)} == {float} and all(map(math.isfinite, items))) or all(map(fits, items))
        )
    return lambda items: {*map(type, items)} <= exact or all(map(fits, items))


@cache
def _reviver(hint: Any) -> Callable[[Any, str], Any] | None:
    """JSON has no tuples, integer keys or groups: a function that puts them back, given a value and its place; None where
    nothing has to be put back. What does not fit is left for `_check_type` to refuse."""
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and issubclass(hint, Checked):
        return partial(from_json, hint)
    if origin in _UNIONS:
        lists = [member for member in args if get_origin(member) is tuple]
        return _reviver(lists[0]) if lists else None
    if origin is tuple:
        item = _reviver(args[0])
        return lambda value, where: _tuple(value, where, item)
    if origin is dict:
        key, item, together = args[0], _reviver(args[1]), partial(_groups, args[1]) if _is_flat(args[1]) else None
        if item or key is int:
            return lambda value, where: _dict(value, where, key is int, item, together)
    return None


def _is_flat(hint: Any) -> bool:
    """Whether a hint is a group without groups or lists of its own."""
    return isinstance(hint, type) and issubclass(hint, Checked) and len(_hints(hint)) > 1 and not _plan(hint).revivers


def _tuple(value: Any, where: str, item: Callable[[Any, str], Any] | None) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(item(one, f"{where}[{index}]") for index, one in enumerate(value)) if item else tuple(value)


def _dict(
    value: Any,
    where: str,
    integer_keys: bool,
    item: Callable[[Any, str], Any] | None,
    together: Callable[[Collection[Any]], list[Any] | None] | None,
) -> Any:
    if not isinstance(value, dict):
        return value
    keys = [_int_key(key, where) for key in value] if integer_keys else list(value)
    items = together(value.values()) if together else None
    if items is None:
        items = [item(one, f"{where}[{key}]") for key, one in value.items()] if item else list(value.values())
    return dict(zip(keys, items, strict=True))


def _groups(kind: type[Checked], items: Collection[Any]) -> list[Checked] | None:
    """Flat groups of one kind, their types checked column by column: a board reads millions of them. None where one of
    them is wrong; reading them one by one will say which and why."""
    hints = _hints(kind)
    if {*map(type, items)} != {dict} or {*map(len, items)} != {len(hints)}:
        return None
    try:
        rows = list(map(itemgetter(*hints), items))
    except KeyError:
        return None
    if not all(_fit_all(hint)(column) for hint, column in zip(hints.values(), zip(*rows, strict=True), strict=True)):
        return None
    made = []
    for item in items:
        group = object.__new__(kind)
        vars(group).update(item)
        group._check()
        made.append(group)
    return made


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
