"""torch's `.pt` and `.pth`: a tensor, or a dictionary of tensors. Never anything unpickled.

torch is imported only when such a file is met.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .arrays import Blocks, Bounds, RefusedArrayError, TokenArray


@contextlib.contextmanager
def open_torch(path: Path) -> Iterator[list[TokenArray]]:
    """The tensors of a file, mapped where the file's form allows it."""
    import torch

    try:
        content = _load(path, mapped=True)
    except RuntimeError:  # the form from before torch 1.6, or no file of torch's: this one says so
        content = _load(path, mapped=False)
    if isinstance(content, torch.Tensor):
        content = {"": content}
    if not isinstance(content, dict):
        raise RefusedArrayError(
            f"holds a {type(content).__name__}, expected a tensor or a dictionary id → tensor"
        )
    yield [_tensor(key, value) for key, value in content.items()]


def _load(path: Path, *, mapped: bool) -> Any:
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # of a module that is never imported here
            raise
        raise RefusedArrayError(
            "is damaged, or holds Python objects, which are never unpickled; save tensors alone"
        ) from error


def _tensor(key: object, value: Any) -> TokenArray:
    import torch

    if not isinstance(key, str) or not isinstance(value, torch.Tensor):
        raise RefusedArrayError(
            f"holds {key!r:.80}: {type(value).__name__}, expected a dictionary id → tensor"
        )
    tensor = value.detach()
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise RefusedArrayError(f"{key!r:.80} is no dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise RefusedArrayError(f"{key!r:.80} claims more values than the file holds")

    def blocks(bounds: Bounds) -> Blocks:
        for start, stop in bounds:
            block = tensor[start:stop]
            yield (block.float() if block.dtype == torch.bfloat16 else block).numpy()

    dtype = str(tensor.dtype).removeprefix("torch.")
    return TokenArray(name=key, shape=tuple(tensor.shape), dtype=dtype, blocks=blocks)
