"""Where a run's settings are not those of its protocol: for its notes, and for labels of reports.

Knows settings by their dotted names, and no figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...store.errors import UsageError
from ...store.fields import flatten
from ..config import NOT_LEARNED, load_config
from ..decoders import decoder_options
from .protocols import PROTOCOLS, Protocol, without_mixer

Settings = Mapping[str, Any]

# What is of a run and of no protocol. `blocks` deals the order of videos, as a seed does, and
# judging the test split after each epoch changes nothing that is learned or selected.
OF_A_RUN = frozenset({*NOT_LEARNED, "task", "seed", "blocks", "test_each_epoch"})

_OPTION = "decoder."
_NAME = _OPTION + "name"


@dataclass(frozen=True, kw_only=True)
class Departure:
    """A setting as it is, and as the protocol, or a decoder by itself, would have made it."""

    found: Any
    usual: Any


def departures(settings: Settings) -> dict[str, Departure]:
    """By name, the settings that are not their protocol's; those of the decoder come first.

    settings: a run's config, resolved, by dotted names; what is of a run may be left out. The
    decoder and its tokens are told where the protocol fixes these; precision, which is the
    machine's matter, never is.
    """
    settings = {name: value for name, value in settings.items() if name not in OF_A_RUN}
    protocol: Protocol = settings["protocol"]
    flags = {"task": "any/task", "protocol": protocol, _NAME: settings[_NAME]}
    config = load_config(flags=flags)
    usual = flatten(config.to_json()) | {"precision": settings.get("precision")}
    fixed = flatten(PROTOCOLS[protocol])
    usual |= {name: fixed.get(name, settings[name]) for name in (_NAME, "tokens")}
    options = {k: v for k, v in settings.items() if k.startswith(_OPTION) and k != _NAME}
    changed = {
        name: Departure(found=value, usual=usual.get(name))
        for name, value in settings.items()
        if name not in options and usual.get(name) != value
    }
    changed |= _changed_options(settings[_NAME], config.decoder.options, options)
    return dict(sorted(changed.items(), key=lambda item: not item[0].startswith(_OPTION)))


def departure_note(config: Mapping[str, Any]) -> str | None:
    """One line where a run's config, as JSON, is not all of its protocol."""
    protocol = config["protocol"]
    said = [
        f"{name} is {_short(each.found)} ({protocol}: {_short(each.usual)})"
        for name, each in departures(flatten(config)).items()
    ]
    return f"not all of protocol {protocol}: {', '.join(said)}" if said else None


def _short(value: Any) -> Any:
    """A digest by its first digits, which tell it from another."""
    digest = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return f"{value[:12]}…" if digest else value


def _changed_options(name: str, asked: Settings, found: Settings) -> dict[str, Departure]:
    """Of the options `found`, by dotted names, those that `asked` and the decoder do not give.

    What follows from another option, as `tied` does from `variant`, is not told beside it.
    """
    options = {option.removeprefix(_OPTION): value for option, value in found.items()}
    if "mixer" in asked and options.get("mixer", asked["mixer"]) != asked["mixer"]:
        asked = without_mixer(asked) | {"mixer": asked["mixer"]}
    changed: dict[str, Departure] = {}
    try:
        for option, value in decoder_options(name, options).to_json().items():
            so_far = {each: departure.found for each, departure in changed.items()}
            given = decoder_options(name, {**asked, **so_far}).to_json()
            if option not in given or given[option] != value:
                changed[option] = Departure(found=value, usual=given.get(option))
    except UsageError:  # a decoder of a later version, or options that only fit together
        changed = {
            option: Departure(found=value, usual=asked.get(option))
            for option, value in options.items()
            if asked.get(option) != value
        }
    return {_OPTION + option: departure for option, departure in changed.items()}
