"""Where exported videos go: a folder of one file each, or one HDF5 file.

Both keep `index.csv`. A file a video is written beside its name and renamed, and its row is added
at once; so a run that is killed loses the video in hand and nothing else.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, TextIO

import numpy as np
from numpy.typing import NDArray

from ..errors import Vis4merError
from ..files import JSON, replacing, storage_errors
from ..records import EntryRecord
from ..wording import first_line
from .arrays import RefusedArrayError
from .hdf5 import FILE, Hdf5Folder
from .names import INDEX, IndexRow, append_row, read_index, write_index
from .npy import write_npy
from .safetensors import TIMES, write_safetensors

Shape = tuple[int, int, int]
Blocks = Iterator[NDArray[Any]]


class Target(Protocol):
    """A context manager; what was written stays when it is left by an error."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def finished(self) -> dict[str, IndexRow]:
        """The videos that are there whole, by id."""
        ...

    def name_of(self, file: str) -> str:
        """The name that `write` was given, from a row's `file`."""
        ...

    def write(self, name: str, shape: Shape, blocks: Blocks, record: EntryRecord) -> None:
        """Write a video under a name, in the place of what has that name. RefusedArrayError when
        the format cannot hold it."""
        ...


class FileFolder:
    """One `.npy` or `.safetensors` a video."""

    def __init__(self, root: Path, extension: str, dtype: str) -> None:
        self._root = root
        self._extension = extension
        self._dtype = dtype
        self._rows: dict[str, IndexRow] = {}
        self._index: TextIO | None = None

    def __enter__(self) -> Self:
        with storage_errors(self._root):
            self._rows = {
                row.id: row
                for row in read_index(self._root / INDEX).values()
                if (self._root / row.file).is_file()
            }
            # A row that a killed run left torn must not run into the next one.
            write_index(self._root / INDEX, self._rows.values())
            self._index = (self._root / INDEX).open("a", encoding="utf-8", newline="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._index is not None:
            self._index.close()
        if kind is None:
            write_index(self._root / INDEX, self._rows.values())

    def finished(self) -> dict[str, IndexRow]:
        return dict(self._rows)

    def name_of(self, file: str) -> str:
        return file.rpartition(".")[0]

    def write(self, name: str, shape: Shape, blocks: Blocks, record: EntryRecord) -> None:
        file = f"{name}.{self._extension}"
        with replacing(self._root / file) as out:
            self._write_file(out, shape, blocks, record)
        row = IndexRow(
            file=file,
            id=record.id,
            frames=shape[0],
            dtype=self._dtype,
            attempt=record.attempt,
        )
        self._rows[record.id] = row
        if self._index is not None:
            append_row(self._index, row)

    def _write_file(self, out: BinaryIO, shape: Shape, blocks: Blocks, record: EntryRecord) -> None:
        if self._extension == "npy":
            write_npy(out, shape, np.dtype(self._dtype).newbyteorder("<"), blocks)
        else:
            times = {name: json.dumps(getattr(record, name)) for name in TIMES}
            metadata = {"id": record.id, **times}
            write_safetensors(out, shape, self._dtype, blocks, metadata)


class Hdf5Target:
    """`tokens.h5`, one dataset a video with its id, its frames' times and its length in seconds."""

    def __init__(self, root: Path, dtype: str, about: JSON) -> None:
        self._root = root
        self._dtype = dtype
        self._file = Hdf5Folder(root, about)
        self._rows: dict[str, IndexRow] = {}

    def __enter__(self) -> Self:
        for entry_id, (name, attempt, frames) in self._file.finished().items():
            self._rows[entry_id] = self._row(name, entry_id, attempt, frames)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with storage_errors(self._root):
            self._file.close(whole=kind is None)
        if kind is None:
            write_index(self._root / INDEX, self._rows.values())

    def finished(self) -> dict[str, IndexRow]:
        return dict(self._rows)

    def name_of(self, file: str) -> str:
        return file.partition(":")[2]

    def write(self, name: str, shape: Shape, blocks: Blocks, record: EntryRecord) -> None:
        if "\0" in record.id:
            raise RefusedArrayError("HDF5 cannot hold this id; use npy or safetensors")
        attributes = {
            "id": record.id,
            "pts_seconds": np.asarray(record.pts_seconds),
            "duration_seconds": record.duration_seconds,
            "attempt": record.attempt,
        }
        with _as_vis4mer_error(self._root / FILE), storage_errors(self._root / FILE):
            self._file.write(name, shape, np.dtype(self._dtype), blocks, attributes)
        self._rows[record.id] = self._row(name, record.id, record.attempt, shape[0])

    def _row(self, name: str, entry_id: str, attempt: str, frames: int) -> IndexRow:
        return IndexRow(
            file=f"{FILE}:{name}", id=entry_id, frames=frames, dtype=self._dtype, attempt=attempt
        )


@contextlib.contextmanager
def _as_vis4mer_error(path: Path) -> Iterator[None]:
    """HDF5 reports a full disk in words of its own, as a RuntimeError or an OSError."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if isinstance(error, Vis4merError):
            raise
        raise Vis4merError(f"cannot write {path}: {first_line(error)}") from error
