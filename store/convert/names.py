"""Files of exported videos: what each is called, and `index.csv`, which says whose it is.

An id may be anything, so only a plain one is a file's name as it is; any other video gets the key
that it has in the cache. The index is read again by the next run and by `vis4mer cache import`, and
believed no further than that: a name in it counts only where it is one that its id would be given.
Because it is read again an id in it stands as it is, also where a spreadsheet would compute it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TextIO

from ..errors import UsageError
from ..files import write_atomic
from ..keys import entry_key

INDEX = "index.csv"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One exported video. dtype: as written. attempt: which commit of the entry it is a copy of."""

    file: str
    id: str
    frames: int
    dtype: str
    attempt: str


_COLUMNS = [field.name for field in fields(IndexRow)]


class FileNames:
    """Names without extension, one an id, none equal to another even where case does not count."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = {name.lower() for name in taken}

    def choose(self, entry_id: str) -> str:
        """The id itself where it is plain and free, otherwise its key."""
        name = entry_id
        if not _PLAIN.fullmatch(entry_id) or entry_id.lower() in self._taken:
            name = entry_key(entry_id)
        self._taken.add(name.lower())
        return name


def read_index(path: Path) -> dict[str, IndexRow]:
    """Rows by id; none when there is no index. A row that is torn or not ours is passed by."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return {}
    lines = csv.reader(io.StringIO(text, newline=""))
    found: dict[str, IndexRow] = {}
    try:
        if next(lines, None) != _COLUMNS:
            return {}
        for line in lines:
            if len(line) == len(_COLUMNS) and line[2].isdecimal():
                file, entry_id, frames, dtype, attempt = line
                row = IndexRow(
                    file=file, id=entry_id, frames=int(frames), dtype=dtype, attempt=attempt
                )
                if _is_given(row):
                    found[row.id] = row
    except (csv.Error, ValueError):  # what follows is not ours
        return found
    return found


def exported_ids(folder: Path) -> dict[str, str]:
    """File name → id, of a folder that was exported to."""
    return {row.file: row.id for row in read_index(folder / INDEX).values()}


def write_index(path: Path, rows: Iterable[IndexRow]) -> None:
    """Replace the index, sorted by id."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(_COLUMNS)
    lines.writerows(asdict(row).values() for row in sorted(rows, key=lambda row: row.id))
    write_atomic(path, text.getvalue().encode())


def append_row(file: TextIO, row: IndexRow) -> None:
    """Add a row at once, so that a killed run knows what it has done."""
    csv.writer(file).writerow(asdict(row).values())
    file.flush()


def _is_given(row: IndexRow) -> bool:
    """Is the file's name one that `FileNames` gives this id?"""
    name = row.file.partition(":")[2] or row.file.rpartition(".")[0]
    try:
        return name == entry_key(row.id) or (name == row.id and bool(_PLAIN.fullmatch(row.id)))
    except UsageError:
        return False
