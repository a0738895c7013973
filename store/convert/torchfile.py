"""torch's `.pt` and `.pth` as token arrays: a tensor, or a dictionary of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..torchfile import TorchFileError, read_torch
from .arrays import Blocks, Bounds, RefusedArrayError, TokenArray


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[list[TokenArray]]:
    """The tensors of a file, mapped where the file's form allows it."""
    import torch

    try:
        content = _read(path)
    except TorchFileError as error:
        raise RefusedArrayError(str(error)) from error
    if isinstance(content, torch.Tensor):
        content = {"": content}
    if not isinstance(content, dict):
        raise RefusedArrayError(
            f"holds a {type(content).__name__}, expected a tensor or a dictionary id → tensor"
        )
    yield [_tensor(key, value) for key, value in content.items()]


def _read(path: Path) -> object:
    try:
        return read_torch(path, mapped=True)
    except RuntimeError:  # the form from before torch 1.6, or no file of torch's: this one says so
        return read_torch(path)


def _tensor(key: object, value: Any) -> TokenArray:
    import torch

    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise RefusedArrayError(
            f"holds {key!r:.80}: {type(value).__name__}, expected a dictionary id → tensor"
        )
    tensor = value.detach()

    def blocks(bounds: Bounds) -> Blocks:
        for start, stop in bounds:
            block = tensor[start:stop]
            yield (block.float() if block.dtype == torch.bfloat16 else block).numpy()

    dtype = str(tensor.dtype).removeprefix("torch.")
    return TokenArray(name=key, shape=tuple(tensor.shape), dtype=dtype, blocks=blocks)
