"""The catalogue of readers: one file each, opened by name.

To add one, write a module with a class that satisfies `base.Reader` and name it in `_READERS`; the
conformance suite then runs over it. A reader is imported when it is asked for, so one that is not
installed costs nothing.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal, get_args

from ...store.errors import UsageError
from ...store.wording import first_line
from .base import (
    MAX_DAMAGED_FRACTION,
    MAX_PIXELS,
    FrameBatch,
    Reader,
    ReadMethod,
    VideoError,
    VideoInfo,
    VideoStream,
)

__all__ = [
    "MAX_DAMAGED_FRACTION",
    "MAX_PIXELS",
    "FrameBatch",
    "ReadMethod",
    "Reader",
    "ReaderName",
    "ReaderStatus",
    "VideoError",
    "VideoInfo",
    "VideoStream",
    "available_readers",
    "get_reader",
]

ReaderName = Literal["pyav", "decord", "torchcodec"]

# name → (module here, class, how to install it)
_READERS: dict[str, tuple[str, str, str]] = {
    "pyav": ("pyav", "PyAVReader", "pip install av"),
    "decord": ("decord", "DecordReader", "pip install decord (x86-64 Linux only)"),
    "torchcodec": (
        "torchcodec",
        "TorchCodecReader",
        "pip install '.[torchcodec]' in the checkout, with a torchcodec that matches torch, and "
        "FFmpeg 4–7",
    ),
}


@dataclass(frozen=True, kw_only=True)
class ReaderStatus:
    """Whether a reader can be used here: its version, or what is wrong and how to mend it."""

    name: str
    version: str | None
    problem: str | None


def get_reader(name: str) -> Reader:
    """The reader of that name, one of `ReaderName`.

    Raises UsageError when there is none, or when what it needs is not installed or does not load.
    """
    if name not in _READERS:
        choices = ", ".join(get_args(ReaderName))
        raise UsageError(f"unknown reader {name!r}, expected one of: {choices}")
    module, class_name, install = _READERS[name]
    try:
        reader: Reader = getattr(importlib.import_module(f".{module}", __name__), class_name)()
    # A library that is installed but was built for another torch or FFmpeg fails in these ways.
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"the reader {name!r} cannot be loaded: {first_line(error)}; install it with: "
            f"{install}, or use another reader"
        ) from error
    return reader


def available_readers() -> tuple[ReaderStatus, ...]:
    """Every reader of the catalogue, with its version or with the reason it cannot be used."""
    return tuple(_status(name) for name in get_args(ReaderName))


def _status(name: ReaderName) -> ReaderStatus:
    try:
        return ReaderStatus(name=name, version=get_reader(name).version, problem=None)
    except UsageError as error:
        return ReaderStatus(name=name, version=None, problem=str(error))
