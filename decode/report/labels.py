"""What a row of a report is called, and where it left its protocol.

A label is the decoder and its tokens, the protocol where the rows have several, and of the settings
that left the protocol those that tell the row from others: `vis4mer 60x14x14+cls, official,
lr=0.01`. Knows settings by their dotted names, and no figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...store.errors import UsageError
from ...store.fields import flatten
from ..config import load_config
from ..decoders import decoder_options
from ..training.protocols import PROTOCOLS, Protocol

Settings = Mapping[str, Any]
MAX_VALUE = 20  # of a setting's text in a label; a longer one, such as a SHA-256, is cut

_OPTION = "decoder."
_NAME = _OPTION + "name"
_ALWAYS_SAID = (_NAME, "tokens", "protocol")


def row_labels(rows: Sequence[Settings]) -> list[str]:
    """One label a row, no two the same: rows that differ in data or cache alone are numbered."""
    several = len({row["protocol"] for row in rows}) > 1
    labels = []
    for row in rows:
        # A run writes out the precision that it found on its machine: no departure, but telling.
        told = {**departures(row), "precision": row.get("precision")}
        labels.append(
            ", ".join(
                [
                    f"{row[_NAME]} {row['tokens']}",
                    *([row["protocol"]] if several else []),
                    *_said({k: v for k, v in told.items() if _tells(k, row, rows)}),
                ]
            )
        )
    repeated, number = Counter(labels), Counter[str]()
    for i, label in enumerate(labels):
        number[label] += 1
        if repeated[label] > 1:
            labels[i] = f"{label} #{number[label]}"
    return labels


def protocol_text(row: Settings) -> str:
    """The protocol's name, and what was set otherwise: `official with epochs=8, depth=2`."""
    said = ", ".join(_said(departures(row)))
    return f"{row['protocol']} with {said}" if said else str(row["protocol"])


def departures(row: Settings) -> dict[str, Any]:
    """Settings that are not what the protocol, and a decoder by itself, would have made them.

    The decoder and its tokens are among them where the protocol fixes these; precision, which is
    the machine's matter, never is.
    """
    name: Protocol = row["protocol"]
    flags = {"task": "any/task", "protocol": name, _NAME: row[_NAME]}  # a row has no task
    config = load_config(flags=flags)
    usual = flatten(config.to_json()) | {"precision": row.get("precision")}
    fixed = flatten(PROTOCOLS[name].settings)
    usual |= {k: fixed.get(k, row[k]) for k in (_NAME, "tokens")}
    options = {k: v for k, v in row.items() if k.startswith(_OPTION) and k != _NAME}
    changed = {k: v for k, v in row.items() if k not in options and usual.get(k) != v}
    changed |= _changed_options(row[_NAME], config.decoder.options, options)
    return dict(sorted(changed.items(), key=lambda item: not item[0].startswith(_OPTION)))


def _changed_options(name: str, asked: Settings, found: Settings) -> dict[str, Any]:
    """Of the options `found`, by dotted names, those that `asked` and the decoder do not give.

    What follows from another option, as `tied` does from `variant`, is not told beside it.
    """
    changed: dict[str, Any] = {}
    try:
        own = decoder_options(name, {k.removeprefix(_OPTION): v for k, v in found.items()})
        for option, value in own.to_json().items():
            given = decoder_options(name, {**asked, **changed}).to_json()
            if option not in given or given[option] != value:
                changed[option] = value
    except UsageError:  # a decoder of a later version, or options that only fit together
        return {k: v for k, v in found.items() if asked.get(k.removeprefix(_OPTION)) != v}
    return {_OPTION + option: value for option, value in changed.items()}


def _tells(name: str, row: Settings, rows: Iterable[Settings]) -> bool:
    """Whether a setting differs among the rows; an option, among those of the same decoder."""
    if name in _ALWAYS_SAID:
        return False
    peers = [r for r in rows if not name.startswith(_OPTION) or r[_NAME] == row[_NAME]]
    return any(peer.get(name) != row.get(name) for peer in peers)


def _said(settings: Settings) -> list[str]:
    """`lr=0.01`: the last part of each name, and what it is set to."""
    said = []
    for name, value in settings.items():
        text = str(value)
        cut = text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE // 2]}…"
        said.append(f"{'decoder' if name == _NAME else name.rpartition('.')[2]}={cut}")
    return said
