"""What a person can ask about a decoder: summary, source, options, their types and defaults."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class OptionAbout:
    """One option; `kind` is its type in words, `default` what it is when nothing is said.

    mixers: the only ones that have this option; empty when it depends on none.
    exception: where the default is another, in words; empty when it is the same everywhere.
    """

    name: str
    kind: str
    default: str | int | float | bool | None
    mixers: tuple[str, ...] = ()
    exception: str = ""

    def describe(self) -> str:
        """Such as `true or false, default true (false in official); mixer s4 only`."""
        plain = self.default is None or isinstance(self.default, bool)
        shown = str(self.default).lower() if plain else self.default
        text = f"{self.kind}, default {shown}"
        if self.exception:
            text += f" ({self.exception})"
        if self.mixers:
            text += f"; mixer {', '.join(self.mixers)} only"
        return text


@dataclass(frozen=True)
class DecoderAbout:
    """A decoder's name in the catalogue, one line about it, and its options.

    sources: the papers it is from, such as `arXiv 2204.01692`; empty for one that needs none.
    """

    name: str
    summary: str
    sources: tuple[str, ...]
    options: tuple[OptionAbout, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def papers_of(cls: type) -> tuple[str, ...]:
    """The papers that the docstring of its module names, each once."""
    text = sys.modules[cls.__module__].__doc__ or ""
    return tuple(dict.fromkeys(re.findall(r"arXiv \d{4}\.\d{5}", text)))


def options_about(cls: type, *, without: frozenset[str] = frozenset()) -> tuple[OptionAbout, ...]:
    """The options of an options dataclass, in the order of its fields."""
    hints = get_type_hints(cls)
    return tuple(
        OptionAbout(
            name=field.name,
            kind=kind_in_words(hints[field.name]),
            default=None if field.default is MISSING else field.default,
        )
        for field in fields(cls)
        if field.name not in without
    )


def kind_in_words(hint: Any) -> str:
    """A type as a person would say it: "whole number", "one of paper, official"."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(kind_in_words(part) for part in get_args(hint))
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return words.get(hint, "none")
