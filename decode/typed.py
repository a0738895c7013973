"""Frozen dataclasses from JSON, TOML and `--set` text, by the types of their fields.

One place says what a value of each type may look like and how an error lists what was expected.
Supports text, integers, numbers, yes/no, `Literal` choices, `X | None` and nested dataclasses that
bring a `from_json` of their own. Knows nothing of what the fields mean: ranges are checked by the
dataclass when it is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..store.errors import UsageError

T = TypeVar("T")
_YES_NO = {"true": True, "false": False, "yes": True, "no": False}


def build(cls: type[T], data: Mapping[str, Any], *, path: str = "") -> T:
    """An instance of dataclass `cls` from `data`; UsageError for an unknown field or value.

    `path` is the dotted name of `data` itself, empty at the top.
    """
    hints = get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise unknown_name("field", dotted(path, name), known)
    required = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    for name in required:
        if data.get(name) is None:
            raise UsageError(f"{dotted(path, name)} is not set; add --set {dotted(path, name)}=…")
    values = {
        name: convert(value, hints[name], field=dotted(path, name)) for name, value in data.items()
    }
    return cls(**values)


def convert(value: object, hint: Any, *, field: str) -> Any:
    """`value` as the type `hint`; text is read by the type. UsageError names field and choices."""
    origin = get_origin(hint)
    if origin is Literal:
        return _choice(value, get_args(hint), field=field)
    if origin in (Union, types.UnionType):
        return _optional(value, hint, field=field)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise refuse(field, value, "a table of fields")
        return hint.from_json(value, path=field)  # type: ignore[union-attr]
    if hint is bool:
        return _yes_no(value, field=field)
    if hint is int:
        return _integer(value, field=field)
    if hint is float:
        return _number(value, field=field)
    if hint is str and isinstance(value, str):
        return value
    raise refuse(field, value, "text")


def refuse(field: str, value: object, expected: str) -> UsageError:
    """The error for a value that a field cannot take."""
    return UsageError(f"{field:.160} is {value!r:.400}, expected {expected}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that does not exist, with the nearest one that does."""
    choices = list(known)
    near = difflib.get_close_matches(name[-160:].rpartition(".")[2], choices, n=1)
    if not choices:
        return UsageError(f"unknown {kind} {name!r:.160}: there is none to choose from")
    hint = f"; did you mean {near[0]}?" if near else ""
    return UsageError(f"unknown {kind} {name!r:.160}, expected one of {', '.join(choices)}{hint}")


def dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _choice(value: object, choices: tuple[Any, ...], *, field: str) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise refuse(field, value, "one of " + ", ".join(map(str, choices)))


def _optional(value: object, hint: Any, *, field: str) -> Any:
    inner = [option for option in get_args(hint) if option is not type(None)]
    if len(inner) < len(get_args(hint)) and (value is None or value == "none"):
        return None
    if len(inner) != 1:
        raise TypeError(f"{field}: a field is of one type, or of one type and None, not {hint}")
    return convert(value, inner[0], field=field)


def _yes_no(value: object, *, field: str) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _YES_NO:
        return _YES_NO[value.lower()]
    raise refuse(field, value, "true or false")


def _integer(value: object, *, field: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
    raise refuse(field, value, "a whole number")


def _number(value: object, *, field: str) -> float:
    number = math.nan
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer of hundreds of digits
            number = float(value)
    elif isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = float(value)
    if not math.isfinite(number):
        raise refuse(field, value, "a finite number")
    return number
