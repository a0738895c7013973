"""What a bench compares, from the words of the command line: decoders with options, token views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...store.errors import UsageError
from ...store.views import TokenView
from ..data.batch import TokenShape
from ..decoders import decoder_class, decoder_options
from ..typed import unknown_name


@dataclass(frozen=True, kw_only=True)
class BenchSubject:
    """One decoder. label: as it was asked for, and unlike any other's.   options: all of them."""

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)


def parse_subjects(text: str, sets: Sequence[str] = ()) -> tuple[BenchSubject, ...]:
    """The decoders in `NAME[:OPTION=VALUE]…,…`.

    sets: `decoder.OPTION=VALUE`, for each of the decoders that has the option; what stands with a
    decoder itself overrides it. Raises UsageError for unknown names and values, a `set` that no
    decoder has, and the same decoder twice.

        parse_subjects("vis4mer,lst,lst:attention=materialised", ["decoder.depth=2"])
    """
    words = [word.strip() for word in text.split(",")]
    if len(set(words)) < len(words):
        raise UsageError(f"--decoders {text}: the same decoder twice; name each once")
    shared = dict(_shared_option(each) for each in sets)
    used: set[str] = set()
    subjects = []
    for word in words:
        name, *settings = word.split(":")
        known = {option.name for option in decoder_class(name).Options.about()}
        options = {option: value for option, value in shared.items() if option in known}
        used |= options.keys()
        options |= dict(_pair(setting, where=f"--decoders {word}") for setting in settings)
        given = decoder_options(name, options).to_json()
        subjects.append(BenchSubject(label=word, name=name, options=given))
    for option in shared:
        if option not in used:
            raise UsageError(f"--set decoder.{option}: none of {', '.join(words)} has this option")
    return tuple(subjects)


def _shared_option(text: str) -> tuple[str, str]:
    name, value = _pair(text, where=f"--set {text}")
    prefix, _, option = name.partition(".")
    if prefix != "decoder" or not option:
        raise unknown_name("field", name, ["decoder.OPTION"])
    return option, value


def _pair(text: str, *, where: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError(f"{where}: {text!r}, expected OPTION=VALUE such as attention=materialised")
    return name.strip(), value.strip()


def parse_views(text: str) -> tuple[TokenView, ...]:
    """The token views in `60x1x1,60x7x7`. UsageError for one without frames, or the same twice."""
    views = [TokenView.parse(word.strip()) for word in text.split(",")]
    for view in views:
        if view.frames is None:
            raise UsageError(
                f"--tokens {view}: say how many frames a window has, such as 60x{view}"
            )
    if len(set(views)) < len(views):
        raise UsageError(f"--tokens {text}: the same view twice; name each once")
    return tuple(views)


def view_shape(view: TokenView, *, dim: int) -> TokenShape:
    """Windows of such a view, whose tokens are `dim` wide."""
    if view.frames is None:
        raise ValueError(f"view {view} says no frames")  # as `parse_views` has refused
    return TokenShape(frames=view.frames, grid=view.given_grid, num_prefix=int(view.cls), dim=dim)
