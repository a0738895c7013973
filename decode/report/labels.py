"""What a row of a report is called, and where it left its protocol.

A label is the decoder and its tokens, the protocol where the rows have several, and of the settings
that left the protocol those that tell the row from others: `vis4mer 60x14x14+cls, official,
lr=0.01`. Knows settings by their dotted names, and no figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..training.departures import departures

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
        told = {**_departures(row), "precision": row.get("precision")}
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
    said = ", ".join(_said(_departures(row)))
    return f"{row['protocol']} with {said}" if said else str(row["protocol"])


def _departures(row: Settings) -> dict[str, Any]:
    return {name: departure.found for name, departure in departures(row).items()}


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
