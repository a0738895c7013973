"""Typed fields out of untrusted JSON objects.

One function a kind of value, each with an error that names the file, the field, the value and what
was expected. `bool` is an `int` to Python and is refused where a number is meant.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from .errors import CacheFormatError, FieldDifference

T = TypeVar("T")
MOST = (1 << 63) - 1  # of any count, size or time: sums of some stay numbers that can be written


def _refuse(name: str, field: str, value: object, expected: str) -> CacheFormatError:
    shown = reprlib.repr(value)  # bounded in depth and length, whatever the file holds
    return CacheFormatError(f"{name}: field {field!r:.80} is {shown}, expected {expected}")


def _get(data: Mapping[str, Any], field: str, name: str) -> Any:
    if field not in data:
        raise CacheFormatError(f"{name}: field {field!r} is missing")
    return data[field]


def text(data: Mapping[str, Any], field: str, *, name: str) -> str:
    value = _get(data, field, name)
    if not isinstance(value, str):
        raise _refuse(name, field, value, "text")
    return value


def choice(data: Mapping[str, Any], field: str, choices: tuple[T, ...], *, name: str) -> T:
    value = _get(data, field, name)
    for allowed in choices:
        if value == allowed and type(value) is type(allowed):
            return allowed
    raise _refuse(name, field, value, "one of " + ", ".join(map(str, choices)))


def integer(
    data: Mapping[str, Any], field: str, *, name: str, minimum: int = 0, maximum: int = MOST
) -> int:
    value = _get(data, field, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise _refuse(name, field, value, f"an integer of at least {minimum}")
    if value > maximum:
        raise _refuse(name, field, value, f"an integer of at most {maximum}")
    return value


def number(data: Mapping[str, Any], field: str, *, name: str) -> float:
    value = _get(data, field, name)
    return as_number(value, field, name=name)


def as_number(value: object, field: str, *, name: str) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer of hundreds of digits
        pass
    raise _refuse(name, field, value, "a finite number")


def optional_number(data: Mapping[str, Any], field: str, *, name: str) -> float | None:
    return None if data.get(field) is None else number(data, field, name=name)


def numbers(data: Mapping[str, Any], field: str, *, name: str) -> tuple[float, ...]:
    values = sequence(data, field, name=name)
    quick = _plain_numbers(values)
    return tuple(as_number(v, field, name=name) for v in values) if quick is None else quick


def _plain_numbers(values: list[Any]) -> tuple[float, ...] | None:
    """What `as_number` makes of each value, in a tenth of the time; None when it refuses one.

    Ten thousand records hold a million timestamps, and are all read before a cache is summed up.
    """
    if not {int, float}.issuperset(map(type, values)):
        return None
    try:
        found = tuple(map(float, values))
    except OverflowError:  # an integer of hundreds of digits
        return None
    return found if all(map(math.isfinite, found)) else None


def integers(data: Mapping[str, Any], field: str, *, name: str) -> tuple[int, ...]:
    values = sequence(data, field, name=name)
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise _refuse(name, field, value, f"integers from 0 to {MOST}")
    return tuple(values)


def texts(data: Mapping[str, Any], field: str, *, name: str) -> tuple[str, ...]:
    values = sequence(data, field, name=name)
    if not all(isinstance(value, str) for value in values):
        raise _refuse(name, field, values, "a list of text")
    return tuple(values)


def sequence(data: Mapping[str, Any], field: str, *, name: str) -> list[Any]:
    value = _get(data, field, name)
    if not isinstance(value, list):
        raise _refuse(name, field, value, "a list")
    return value


def mapping(data: Mapping[str, Any], field: str, *, name: str) -> dict[str, Any]:
    value = _get(data, field, name)
    if not isinstance(value, dict):
        raise _refuse(name, field, value, "an object")
    return value


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, by dotted names: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(
    stored: Mapping[str, Any], wanted: Mapping[str, Any], *, ignoring: Collection[str] = ()
) -> tuple[FieldDifference, ...]:
    """Fields in which nested objects differ, dotted names, sorted."""
    left, right = flatten(stored), flatten(wanted)
    return tuple(
        FieldDifference(name, str(left.get(name)), str(right.get(name)))
        for name in sorted(left.keys() | right.keys())
        if name not in ignoring and left.get(name) != right.get(name)
    )
