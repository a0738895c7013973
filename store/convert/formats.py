"""Which file names hold which format, and the opening of any of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..wording import first_line
from .arrays import OpenFile, RefusedArrayError, TokenArray
from .hdf5 import open_hdf5
from .npy import open_npy, open_npz
from .safetensors import open_safetensors
from .torchfile import open_torch


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """A format that can be imported. `named`: its arrays are called by their names in the file
    even where there is only one."""

    name: str
    open: OpenFile
    named: bool = False


FORMATS: dict[str, FileFormat] = {
    ".npy": FileFormat(name="npy", open=open_npy),
    ".npz": FileFormat(name="npz", open=open_npz),
    ".pt": FileFormat(name="torch", open=open_torch),
    ".pth": FileFormat(name="torch", open=open_torch),
    ".h5": FileFormat(name="hdf5", open=open_hdf5, named=True),
    ".hdf5": FileFormat(name="hdf5", open=open_hdf5, named=True),
    ".safetensors": FileFormat(name="safetensors", open=open_safetensors),
}


def format_of(path: Path) -> FileFormat | None:
    """The format that a file's extension names."""
    return FORMATS.get(path.suffix.lower())


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[list[TokenArray]]:
    """The arrays of a file while it is open. RefusedArrayError says why there are none."""
    found = format_of(path)
    if found is None:
        raise RefusedArrayError(f"expected a name that ends in {', '.join(FORMATS)}")
    with contextlib.ExitStack() as stack:
        try:
            arrays = stack.enter_context(found.open(path))
        except RefusedArrayError:
            raise
        except Exception as error:  # every library has its own kinds for a file that is not its own
            raise RefusedArrayError(
                f"cannot be read as {found.name} ({type(error).__name__}: {first_line(error)})"
            ) from error
        if not arrays:
            raise RefusedArrayError("holds no array")
        yield arrays
