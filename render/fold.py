"""Where a report's sheet folds on a terminal: between rows and between columns, never in a cell.

A long name of a row goes on in lines of its own; columns that do not fit stand in a table of their
own below, beside the names again. Prints nothing and knows no terminal.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    from ..decode.report.sheet import Section, Sheet, SheetRow, Text

MOST_NAME, LEAST_NAME = 34, 22  # characters that a line gives to the name of its row
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
Line = tuple[str, ...]  # the name, or what continues it, and a text for each other column


@dataclass(frozen=True, kw_only=True)
class Folded:
    """Some columns of a sheet. gap: spaces between two of them."""

    headings: Line
    rows: tuple[Line, ...]
    gap: int


def folded(sheet: Sheet, width: int) -> Iterator[Folded]:
    """The sheet as tables of at most `width` characters, where each cell by itself fits."""
    rows = [row for section in sheet.sections for row in section.rows]
    beside = [sheet.headings[1:], *(line for row in rows for line in _beside(row))]
    widths = [max(map(_width, column)) for column in zip(*beside, strict=True)]
    room = width - sum(1 + each for each in widths)  # for names, with all columns side by side
    most = min(MOST_NAME, room) if room >= LEAST_NAME else MOST_NAME
    lines = [line for each in sheet.sections for line in _section_lines(each, most, len(widths))]
    name = max(_width(line[0]) for line in [sheet.headings, *lines])
    for columns in _blocks(widths, width - name):
        needed = name + sum(widths[i] for i in columns)
        table = [
            (line[0], *(_set(line[1 + i], widths[i], sheet.numeric[1 + i]) for i in columns))
            for line in [sheet.headings, *lines]
        ]
        gap = 2 if needed + 2 * len(columns) <= width else 1
        yield Folded(headings=table[0], rows=tuple(table[1:]), gap=gap)


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns that stand side by side, a space before each; at least one, however wide."""
    block: list[int] = []
    for i, _ in enumerate(widths):
        if block and sum(1 + widths[j] for j in [*block, i]) > room:
            yield block
            block = []
        block.append(i)
    yield block


def _section_lines(section: Section, most: int, num_beside: int) -> Iterator[Line]:
    blank = ("",) * num_beside
    if section.title:
        yield from ((name, *blank) for name in _wrapped(f"— {section.title}", most))
    for row in section.rows:
        names = _wrapped(_marked(row.cells[0].text, row.cells[0]), most)
        if row.under:
            names += _wrapped(f"  {row.under[0]}", most)
        for name, texts in zip_longest(names, _beside(row)):
            yield (name or "", *(texts or blank))


def _beside(row: SheetRow) -> list[Line]:
    """The texts of all columns but the first, one line or two."""
    figures = tuple(_marked(cell.short or cell.text, cell) for cell in row.cells[1:])
    return [figures, row.under[1:]] if row.under else [figures]


def _marked(text: str, cell: Text) -> str:
    return text + ",".join(str(mark).translate(_SUPERSCRIPT) for mark in cell.marks)


def _wrapped(text: str, most: int) -> list[str]:
    """At spaces, indented from the second line on; a longer word is broken."""
    return textwrap.wrap(text, most, subsequent_indent="  ", break_on_hyphens=False)


def _set(text: str, width: int, to_the_right: bool) -> str:
    return " " * (width - _width(text)) + text if to_the_right else text


def _width(text: str) -> int:
    return cell_len(text)
