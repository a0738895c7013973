"""Lines and CSV rows of annotation files, each with its place for errors.

UTF-8 with or without a byte-order mark, line ends of any system. What a row means is said by the
parsers.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ...store.errors import UsageError

MAX_FILE_BYTES = 256 << 20  # a hundred times the largest annotation file known
_NUMBER_PATTERN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of text; `where` names file and line."""

    where: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CsvLine:
    """One row of a CSV, values by column; `where` names file and line."""

    where: str
    values: Mapping[str, str]


def read_lines(path: Path) -> list[Line]:
    """The lines of a text file without blank ones; UsageError when it cannot be read."""
    try:
        with _open_text(path) as file:
            lines = enumerate(file, start=1)
            return [
                Line(where=f"{path}, line {number}", text=text.rstrip("\n"))
                for number, text in lines
                if text.strip()
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); expected text in UTF-8") from error


def read_csv(path: Path, *, check_header: Callable[[Sequence[str], str], None]) -> list[CsvLine]:
    """The rows of a comma-separated file with a header line, blank ones left out.

    check_header: refuses column names (lower case, stripped) that are not as expected; it is given
    their place too. Raises UsageError for anything that is no such file, or has no rows.
    """
    try:
        with _open_text(path, newline="") as file:
            return _parse(file, path, check_header)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}); expected a CSV in UTF-8") from error
    except csv.Error as error:
        raise UsageError(f"{path}: not a CSV ({error})") from error


def number(text: str) -> float | None:
    """The number that a text is, as people write numbers; None for any other text.

    Python's own spelling (1_1, nan, inf, digits of other scripts) makes a text no number.
    """
    if not _NUMBER_PATTERN.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _open_text(path: Path, *, newline: str | None = None) -> TextIO:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise UsageError(f"{path} is no plain file; expected text in UTF-8")
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise UsageError(
            f"{path}: {path.stat().st_size} bytes, expected a file of labels of at most "
            f"{MAX_FILE_BYTES}"
        )
    return path.open(encoding="utf-8-sig", newline=newline)


def _parse(
    file: TextIO, path: Path, check_header: Callable[[Sequence[str], str], None]
) -> list[CsvLine]:
    reader = csv.reader(file, strict=True)
    header = [name.strip().lower() for name in next(reader, [])]
    check_header(header, f"{path}, line 1")
    lines = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UsageError(
                f"{where}: {len(cells)} values, expected {len(header)} ({','.join(header)}); "
                'a value that holds a comma stands in "quotes"'
            )
        values = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        lines.append(CsvLine(where=where, values=values))
    if not lines:
        raise UsageError(f"{path}: no rows below the header, expected one a video")
    return lines


def require_columns(header: Sequence[str], where: str, *, columns: Sequence[str]) -> None:
    """UsageError unless all these columns are there, each once."""
    found = ",".join(header) or "nothing"
    for column in columns:
        if header.count(column) != 1:
            raise UsageError(
                f"{where}: column {column!r} is missing or doubled (found {found}); expected "
                f"{','.join(columns)}, comma-separated"
            )
