"""HDF5: one dataset a video, in groups or not; and one file of exported videos.

Links to other files, values kept outside the file and datasets of which a part was never written
(HDF5 reads that part as zeros without a word) are refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError, Vis4merError
from ..files import fsync_directory, replacing
from ..wording import first_line
from .arrays import (
    MAX_WHOLE_BYTES,
    Blocks,
    Bounds,
    RefusedArrayError,
    TokenArray,
    dtype_name,
    frame_times,
    sliced,
)

FILE = "tokens.h5"
_PART = ".tokens.h5.tmp"
# The newest form of the file: it keeps attributes beyond 64 kB (timestamps of hours of video) and
# notices when the process that wrote it was killed.
_FORM = "latest"
# What HDF5 says of a file whose writer was killed, at once or later.
_TORN = ("already open for write", "truncated file", "file signature not found")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[list[TokenArray]]:
    """Every dataset below the root by its path. Links to other files are not followed."""
    with h5py.File(path, "r", locking="best-effort") as file:
        found: list[TokenArray] = []
        file.visititems(lambda name, item: _add(found, name, item))
        yield found


def _add(found: list[TokenArray], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        entry_id = item.attrs.get("id")
        pts, duration = item.attrs.get("pts_seconds"), item.attrs.get("duration_seconds")
        found.append(
            TokenArray(
                name=name,
                shape=tuple(item.shape or ()),
                dtype=dtype_name(item.dtype),
                blocks=_whole(item),
                entry_id=entry_id if isinstance(entry_id, str) else None,
                times=frame_times(
                    pts.tolist() if isinstance(pts, np.ndarray) else None,
                    float(duration) if isinstance(duration, np.floating) else None,
                ),
            )
        )


def read_about(path: Path) -> str | None:
    """What an export said of itself in the file; None for a file that is none of ours."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            about = file.attrs.get("vis4mer")
    except Exception:  # the library has many kinds; a file that cannot be opened is met again
        return None
    return about if isinstance(about, str) else None


def _whole(dataset: Any) -> Any:
    """Blocks of a dataset that lies in its file, all of it."""

    def blocks(bounds: Bounds) -> Blocks:
        if dataset.is_virtual or dataset.external:
            raise RefusedArrayError("its values lie in other files, which are not opened")
        _require_small_chunks(dataset)
        written = dataset.id.get_storage_size() > 0
        if written and dataset.chunks:
            chunks = math.prod(
                -(-size // chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)
            )
            written = dataset.id.get_num_chunks() == chunks
        if not written:
            raise RefusedArrayError("a part of it was never written, and would be read as zeros")
        return sliced(dataset)(bounds)

    return blocks


def _require_small_chunks(dataset: Any) -> None:
    """A chunk that was compressed is read whole, whatever is wanted of it."""
    if not dataset.chunks or not dataset.id.get_create_plist().get_nfilters():
        return
    num_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if num_bytes > MAX_WHOLE_BYTES:
        raise RefusedArrayError(
            f"its compressed chunks unpack to {num_bytes:,} bytes each, expected at most "
            f"{MAX_WHOLE_BYTES:,}; write it with chunks of a few frames"
        )


def _is_own(path: Path) -> bool:
    """Is there a file that only this folder names? UsageError for a link to one elsewhere, which
    would be written through."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    if not S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UsageError(
            f"{path} is a link or no plain file, expected the file of an earlier export; remove "
            "it, or choose another folder"
        )
    return True


def _whole_datasets(path: Path) -> dict[str, tuple[str, str, int]]:
    """Tokens that an export finished: id → (name, attempt, frames). OSError as HDF5 raises it."""
    found: dict[str, tuple[str, str, int]] = {}
    with h5py.File(path, "r", locking="best-effort") as file:
        for name in file:
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                continue  # a link out of the file, which is not ours
            item = file[name]
            if not isinstance(item, h5py.Dataset) or item.ndim != 3:
                continue
            entry_id, attempt = item.attrs.get("id"), item.attrs.get("attempt")
            if isinstance(entry_id, str) and isinstance(attempt, str):
                found[entry_id] = (name, attempt, len(item))
    return found


def _cannot_open(path: Path, error: OSError) -> Vis4merError:
    return Vis4merError(
        f"{path} cannot be opened ({first_line(error)}); another program holds it, or it is "
        "damaged; close it or remove it"
    )


class Hdf5Folder:
    """`tokens.h5` in a folder, filled beside its name and renamed when it is closed whole.

    A finished file is gone on with in a copy, and stands until that is whole. A part whose writer
    was killed cannot be trusted any more (HDF5 refuses to open it) and is begun anew.
    """

    def __init__(self, folder: Path, about: Mapping[str, object]) -> None:
        self._path = folder / FILE
        self._part = folder / _PART
        self._about = about
        self._file: Any = None

    def close(self, *, whole: bool) -> None:
        """Close; `whole` gives the file its name, otherwise the next run goes on with the part."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if whole and self._part.exists():
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            self._part.replace(self._path)
            fsync_directory(self._path.parent)

    def finished(self) -> dict[str, tuple[str, str, int]]:
        """Datasets that are whole: id → (name, attempt, frames). Vis4merError for a file that
        cannot be opened."""
        if _is_own(self._part):
            try:
                return _whole_datasets(self._part)
            except OSError as error:
                if error.errno is not None or not any(words in str(error) for words in _TORN):
                    raise _cannot_open(self._part, error) from error
                self._part.unlink()
        try:
            return _whole_datasets(self._path) if _is_own(self._path) else {}
        except OSError as error:
            raise _cannot_open(self._path, error) from error

    def write(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        blocks: Iterator[NDArray[Any]],
        attributes: Mapping[str, object],
    ) -> None:
        """Add or replace a dataset; `attempt`, its last attribute, says that it is whole."""
        file = self._opened()
        if name in file:
            del file[name]
        try:
            dataset = file.create_dataset(name, shape=shape, dtype=dtype)
            start = 0
            for block in blocks:
                dataset[start : start + len(block)] = block
                start += len(block)
        except BaseException:
            with contextlib.suppress(KeyError, OSError):
                del file[name]
            raise
        for key, value in sorted(attributes.items(), key=lambda item: item[0] == "attempt"):
            dataset.attrs[key] = value

    def _opened(self) -> Any:
        if self._file is None:
            if not _is_own(self._part) and _is_own(self._path):
                with self._path.open("rb") as whole, replacing(self._part) as part:
                    shutil.copyfileobj(whole, part)
            mode = "r+" if _is_own(self._part) else "x"  # x never opens what is there
            self._file = h5py.File(self._part, mode, libver=_FORM)
            self._file.attrs["vis4mer"] = json.dumps(self._about, sort_keys=True)
        return self._file
