"""NumPy's own files: `.npy`, one array, and `.npz`, a zip of them. Objects in them are refused.

An array in a `.npz` is read as a stream, compressed or not, so neither has to fit in memory.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from .arrays import (
    MAX_WHOLE_BYTES,
    Blocks,
    Bounds,
    RefusedArrayError,
    TokenArray,
    dtype_name,
    sliced,
)

_HEADERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


@contextlib.contextmanager
def open_npy(path: Path) -> Iterator[list[TokenArray]]:
    """The one array of a `.npy`, mapped."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        if "object" not in str(error):
            raise
        raise RefusedArrayError("holds Python objects, which are never unpickled") from error
    if not isinstance(array, np.ndarray):
        raise RefusedArrayError("is an archive, expected one array; name it .npz")
    yield [
        TokenArray(name="", shape=array.shape, dtype=dtype_name(array.dtype), blocks=sliced(array))
    ]


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[list[TokenArray]]:
    """The arrays of a `.npz`."""
    with zipfile.ZipFile(path) as archive:
        yield [_member(archive, info) for info in archive.infolist() if not info.is_dir()]


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> TokenArray:
    if not info.filename.endswith(".npy"):
        raise RefusedArrayError(f"holds {info.filename!r}, expected .npy files alone")
    with archive.open(info) as file:
        shape, fortran, dtype = _header(cast(BinaryIO, file))
        header_bytes = file.tell()
    if dtype.hasobject:
        raise RefusedArrayError(f"{info.filename}: Python objects, which are never unpickled")
    if info.file_size - header_bytes != math.prod(shape) * dtype.itemsize:
        raise RefusedArrayError(f"{info.filename}: not as long as its header says; damaged?")

    if fortran and info.file_size > MAX_WHOLE_BYTES:
        raise RefusedArrayError(
            f"{info.filename}: {info.file_size:,} bytes in Fortran order, which are read at once, "
            f"expected at most {MAX_WHOLE_BYTES:,}; save it with np.ascontiguousarray"
        )

    def blocks(bounds: Bounds) -> Blocks:
        with archive.open(info) as file:
            _header(cast(BinaryIO, file))
            if fortran:  # frames are scattered: there is no reading them one after another
                whole = np.frombuffer(file.read(), dtype).reshape(shape, order="F")
                yield from sliced(whole)(bounds)
                return
            for start, stop in bounds:
                block = (stop - start, *shape[1:])
                data = file.read(math.prod(block) * dtype.itemsize)
                yield np.frombuffer(data, dtype).reshape(block)

    name = info.filename.removesuffix(".npy")
    return TokenArray(name=name, shape=shape, dtype=dtype_name(dtype), blocks=blocks)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    if version not in _HEADERS:
        raise RefusedArrayError(f"an array of .npy version {version}, expected 1.0 or 2.0")
    shape, fortran, dtype = _HEADERS[version](file)
    return tuple(shape), bool(fortran), np.dtype(dtype)


def write_npy(
    file: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterator[NDArray[Any]]
) -> None:
    """Write a `.npy` of consecutive blocks along the first axis."""
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(file, header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=dtype).data)
