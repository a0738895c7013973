"""What `report` shows: the same sheets as the written forms, a note where a cell has its number."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..console import Progress, out, print_json, print_line, print_note, print_table, share
from .fold import folded

if TYPE_CHECKING:
    from ..decode.report.sheet import Section, Sheet
    from ..decode.report.table import Report


def show_stills(show: Progress, done: int, total: int) -> None:
    """While frames are taken for the page."""
    show(f"reading frames {share(done, total)}")


def print_report(
    report: Report, written: Sequence[Path], notes: Sequence[str], *, as_json: bool
) -> None:
    """`report`: every sheet with its notes, what was left out, which files were written.

    notes: what could not be shown on the page.
    """
    from ..decode.report.sheet import left_out_lines, sheets

    for note in notes:
        print_note(f"note: {note}")
    if as_json:
        print_json({**report.to_json(), "files": [str(path) for path in written]})
        return
    for sheet in sheets(report):
        _print_sheet(sheet)
        for number, note in enumerate(sheet.notes, start=1):
            _print_text(f"{number}. {note}")
        for remark in sheet.remarks:
            _print_text(remark)
        print_line()
    for line in left_out_lines(report):
        _print_text(line)
    for path in written:
        print_line(f"written: {path}")


def _print_sheet(sheet: Sheet) -> None:
    """Folded to a terminal's width; anywhere else one row a line, however wide."""
    if not out.is_terminal:
        print_table(sheet.headings, list(_rows(sheet)), title=sheet.title)
        return
    title = sheet.title
    for part in folded(sheet, out.width):
        print_table(part.headings, part.rows, title=title, gap=part.gap)
        title = f"{sheet.title}, continued"


def _print_text(text: str) -> None:
    """A line that a terminal would break within a word is broken between two."""
    for line in textwrap.wrap(text, out.width) if out.is_terminal else [text]:
        print_line(line)


def _rows(sheet: Sheet) -> Iterator[tuple[str, ...]]:
    """One line each, a section's title on a line of its own."""
    blank = ("",) * (len(sheet.headings) - 1)
    for section in sheet.sections:
        if section.title:
            yield (f"— {section.title}", *blank)
        yield from _section_rows(section)


def _section_rows(section: Section) -> Iterator[tuple[str, ...]]:
    for row in section.rows:
        yield tuple(
            cell.text + (f" ({','.join(map(str, cell.marks))})" if cell.marks else "")
            for cell in row.cells
        )
        if row.under:
            yield (f"  {row.under[0]}", *row.under[1:])
