"""torch's `.pt`, `.pth` and `.ckpt`: containers of tensors. Never anything unpickled.

A file may come from anyone. A tensor in it can be a view that claims terabytes of a few stored
bytes, or be of a form that every later step would take for another: all are looked at before a
value is. torch is imported only when such a file is met. Knows no names and no shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile


class TorchFileError(ValueError):
    """What a file is, or holds: the rest of a sentence that begins with its name."""


def read_torch(path: Path, *, mapped: bool = False) -> object:
    """What was saved, on the CPU; tensors in mappings and lists are dense, and all there.

    mapped: from the file's pages, which only the form since torch 1.6 allows. Raises
    TorchFileError for Python objects and for other tensors, and RuntimeError, OSError and EOFError
    as torch does for what is no such file.
    """
    import torch

    _require_stored(path)
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # of a module that is never imported here
            raise
        raise TorchFileError(
            "is damaged, or holds Python objects, which are never unpickled; save tensors alone"
        ) from error
    for name, tensor in _tensors(content):
        _require_dense(name, tensor)
    return content


def _require_stored(path: Path) -> None:
    """A few compressed bytes may unpack to more than the memory holds."""
    if not is_zipfile(path):
        return  # the form before torch 1.6, or no such file: torch says so
    try:
        with ZipFile(path) as file:
            compressed = any(entry.compress_type != ZIP_STORED for entry in file.infolist())
    except (BadZipFile, RuntimeError) as error:
        raise TorchFileError("is damaged; save it anew with torch.save") from error
    if compressed:
        raise TorchFileError("is compressed, which torch never does; save it with torch.save")


def _tensors(content: object) -> Iterator[tuple[str, Any]]:
    """Every tensor by the keys that lead to it; a container that holds itself is gone into once."""
    import torch

    waiting: list[tuple[str, object]] = [("", content)]
    met: set[int] = set()
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in met:
            met.add(id(value))
            inner = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f"{name:.60}.{key!s:.60}".lstrip("."), each) for key, each in inner]


def _require_dense(name: str, tensor: Any) -> None:
    import torch

    if (
        tensor.layout != torch.strided
        or tensor.device.type != "cpu"
        or tensor.is_quantized
        or tensor.is_nested
    ):
        raise TorchFileError(f"holds {name!r}, which is no dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise TorchFileError(f"holds {name!r}, which claims more values than the file holds")
