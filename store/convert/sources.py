"""From files and folders to arrays with ids, before anything is written.

An id is the POSIX path below the folder given, without extension; for a file given by itself its
name; in a file of several arrays, and always in HDF5, the array's own name. Files that
`vis4mer cache export` wrote give their videos back the ids they had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UsageError
from ..keys import check_id
from .arrays import OnProgress, RefusedArrayError, TokenArray, require_floats
from .formats import FORMATS, format_of, open_arrays
from .layouts import TokenLayout, layout_of
from .names import exported_ids

NameBy = Literal["auto", "file", "array"]


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """One array that is to become an entry: `name` inside its file, `dtype` as it is there."""

    id: str
    path: Path
    format: str
    name: str
    shape: tuple[int, ...]
    dtype: str

    def layout(self, *, prefix: int | None, grid: tuple[int, int] | None) -> TokenLayout:
        """See `layout_of`. RefusedArrayError when these are no tokens."""
        require_floats(self.dtype)
        return layout_of(self.shape, prefix=prefix, grid=grid)

    @property
    def shown(self) -> str:
        """The file, and the array in it, for people; bytes that are no Unicode are escaped."""
        return _printable(str(self.path)) + (f":{self.name}" if self.name else "")


@dataclass(frozen=True, kw_only=True)
class UnreadableSource:
    """A file, or an array in one, that cannot be taken, under the id it would have had."""

    id: str
    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoundSources:
    """Everything that was named, sorted by file and then by place in it."""

    arrays: tuple[ArraySource, ...]
    unreadable: tuple[UnreadableSource, ...]


def find_arrays(
    sources: Sequence[str | Path],
    *,
    only: frozenset[str] = frozenset(FORMATS),
    name_by: NameBy = "auto",
    progress: OnProgress | None = None,
) -> FoundSources:
    """Look into every file named, or below a folder named, whose extension is one of `only`.

    name_by: `file` gives every array its file's name (one array a file), `array` its own name.
    Raises UsageError when a source is missing or holds nothing, or when ids collide.
    """
    files = _files(sources, only)
    arrays: list[ArraySource] = []
    unreadable: list[UnreadableSource] = []
    for number, (path, file_id) in enumerate(files.items()):
        if progress is not None:
            progress(number, len(files), "looking into files")
        try:
            with open_arrays(path) as held:
                arrays += _named(held, path, file_id, name_by)
        except RefusedArrayError as error:
            unreadable.append(UnreadableSource(id=file_id, path=path, reason=str(error)))
    _require_unique(arrays)
    return FoundSources(arrays=tuple(arrays), unreadable=tuple(unreadable))


def _named(
    held: list[TokenArray], path: Path, file_id: str, name_by: NameBy
) -> Iterator[ArraySource]:
    found = FORMATS[path.suffix.lower()]
    if name_by == "file" and len(held) > 1:
        raise RefusedArrayError(
            f"holds {len(held)} arrays ({held[0].name}, {held[1].name}{', …' * (len(held) > 2)}), "
            "which cannot all have the file's name; use --name-by array"
        )
    own_names = name_by == "array" or (name_by == "auto" and (found.named or len(held) > 1))
    for array in held:
        entry_id = array.name if own_names and array.name else file_id
        yield ArraySource(
            id=(array.entry_id or entry_id) if name_by == "auto" else entry_id,
            path=path,
            format=found.name,
            name=array.name,
            shape=array.shape,
            dtype=array.dtype,
        )


def _files(sources: Sequence[str | Path], only: frozenset[str]) -> dict[Path, str]:
    """Files with the ids they give, sorted; each once."""
    found: dict[Path, str] = {}
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(_below(source, only))
            if not inside:
                raise UsageError(
                    f"folder {str(source)!r} holds no tokens, expected files that end in "
                    f"{', '.join(sorted(only))}"
                )
            for path in inside:
                found.setdefault(path, path.relative_to(source).with_suffix("").as_posix())
        elif not source.exists():
            raise UsageError(f"source {str(source)!r} does not exist; expected a file or a folder")
        elif format_of(source) is None or source.suffix.lower() not in only:
            raise UsageError(
                f"source {str(source)!r}: expected a folder, or a file that ends in "
                f"{', '.join(sorted(only))}"
            )
        else:
            found.setdefault(source, source.stem)
    if not found:
        raise UsageError("no sources named: give folders, or files of tokens")
    known = {folder: exported_ids(folder) for folder in {path.parent for path in found}}
    return {
        path: known[path.parent].get(path.name) or _printable(file_id)
        for path, file_id in found.items()
    }


def _below(folder: Path, only: frozenset[str]) -> Iterator[Path]:
    """Files of these extensions below a folder, links followed once; hidden ones are left out."""
    visited: set[tuple[int, int]] = set()  # links between folders may form a ring
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in only:
                yield Path(parent, name)


def _refuse_folder(error: OSError) -> None:
    raise UsageError(f"folder {error.filename!r} cannot be listed: {error.strerror}") from error


def _require_unique(arrays: Sequence[ArraySource]) -> None:
    by_id: dict[str, ArraySource] = {}
    for array in arrays:
        check_id(array.id)
        other = by_id.setdefault(array.id, array)
        if other is not array:
            raise UsageError(
                f"{other.shown!r} and {array.shown!r} would both be called {array.id!r}; import "
                "them apart, or give --name-by file or --name-by array"
            )


def _printable(text: str) -> str:
    return os.fsencode(text).decode("utf-8", "backslashreplace")
