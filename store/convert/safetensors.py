"""safetensors: a JSON header, then the bytes of each tensor. Read and written as a stream.

The format is 8 bytes with the header's length, the header, and the values; it is read here and not
by its library because that has no NumPy type for bfloat16.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .. import fields as f
from .. import quantise
from ..files import parse_json
from .arrays import (
    Blocks,
    Bounds,
    FrameTimes,
    RefusedArrayError,
    TokenArray,
    frame_times,
    sliced,
)

_MAX_HEADER_BYTES = 100 << 20  # the library's own bound
_LENGTH_BYTES = 8
TIMES = ("pts_seconds", "duration_seconds")
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_NUMPY = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8"}


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[list[TokenArray]]:
    """The tensors of a file, mapped. `id` of its metadata is the id when there is one tensor."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read(_LENGTH_BYTES)
        length = struct.unpack("<Q", data)[0] if len(data) == _LENGTH_BYTES else size
        if length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
            raise RefusedArrayError("is no safetensors file, or only a part of one")
        header = parse_json(file.read(length), name="its header")
    metadata = header.pop("__metadata__", None)
    first = _LENGTH_BYTES + length
    arrays = [_tensor(path, name, header, first=first, size=size) for name in sorted(header)]
    if len(arrays) == 1 and isinstance(metadata, dict) and isinstance(metadata.get("id"), str):
        (only,) = arrays
        arrays = [replace(only, entry_id=metadata["id"], times=_times(metadata))]
    yield arrays


def _tensor(
    path: Path,
    name: str,
    header: Mapping[str, Any],
    *,
    first: int,
    size: int,
) -> TokenArray:
    """A tensor of the header, its place checked against the file."""
    where = f"tensor {name!r}"
    about = f.mapping(header, name, name="its header")
    shape = f.integers(about, "shape", name=where)
    code = f.text(about, "dtype", name=where)
    offsets = f.integers(about, "data_offsets", name=where)
    dtype = _DTYPES.get(code, code)
    if code in _NUMPY:
        itemsize = np.dtype(_NUMPY[code]).itemsize
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * itemsize:
            raise RefusedArrayError(f"{where}: its place does not fit its shape; damaged?")
        if first + offsets[1] > size:
            raise RefusedArrayError(f"{where}: lies beyond the end of the file; cut off?")

    def blocks(bounds: Bounds) -> Blocks:
        mapped = np.memmap(path, _NUMPY[code], "r", offset=first + offsets[0], shape=shape)
        for block in sliced(mapped)(bounds):
            yield quantise.decode_bfloat16(block) if code == "BF16" else block

    return TokenArray(name=name, shape=shape, dtype=dtype, blocks=blocks)


def _times(metadata: Mapping[str, Any]) -> FrameTimes | None:
    """Of the frames, as an export writes them; None where it did not, or not so."""
    try:
        said = [json.loads(metadata.get(name, "null")) for name in TIMES]
    except (ValueError, TypeError, RecursionError):
        return None
    return frame_times(*said)


def write_safetensors(
    file: BinaryIO,
    shape: tuple[int, ...],
    dtype: str,
    blocks: Iterator[NDArray[Any]],
    metadata: Mapping[str, str],
) -> None:
    """Write one tensor, `tokens`, of consecutive blocks along the first axis.

    dtype: a NumPy name or `bfloat16`, whose blocks are uint16.
    """
    code = next(code for code, name in _DTYPES.items() if name == dtype)
    stored = np.dtype(_NUMPY[code])
    tensor = {
        "dtype": code,
        "shape": list(shape),
        "data_offsets": [0, math.prod(shape) * stored.itemsize],
    }
    header = json.dumps({"__metadata__": dict(metadata), "tokens": tensor}).encode()
    header += b" " * (-len(header) % 8)
    file.write(struct.pack("<Q", len(header)) + header)
    for block in blocks:
        file.write(np.ascontiguousarray(block, dtype=stored).data)
