"""A decoder from somebody else's config takes no more memory than the weights beside it.

A config of a few bytes may ask for a width of millions. Weights are compared with the decoder once
it is built, so what building takes is counted while it goes on, before memory is given. Knows
nothing of decoders: it sees the tensors that are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...store.errors import CacheFormatError

_TIMES = 8  # what a file holds, for the values that initial weights are made from
_AND = 1 << 22  # values, 16 MB
_LEAST = 1 << 10  # values that each tensor counts, for one without any costs time as well
_SIZED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}
_COUNTED = {torch.arange, torch.linspace}
_COPIES = {Tensor.__deepcopy__, Tensor.clone}


class Budget(TorchFunctionMode):
    """Within, tensors that are made anew hold together at most a few times `num_values` values, and
    no result of several tensors holds more; else CacheFormatError with the words `otherwise`."""

    def __init__(self, num_values: int, *, otherwise: str) -> None:
        super().__init__()
        self._most = _TIMES * num_values + _AND
        self._made = 0
        self._otherwise = otherwise

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        made = _num_made(func, args, given)
        self._made += 0 if made is None else max(_LEAST, made)
        if max(self._made, _num_joined(args)) > self._most:
            raise CacheFormatError(self._otherwise)
        return func(*args, **given)


def _num_made(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> int | None:
    """Values of a tensor that is made from numbers alone, or is a copy, before it is; else None."""
    if func is torch.eye:
        return int(math.prod(args if len(args) > 1 else (*args, *args)))
    if func in _COPIES:
        return int(args[0].numel())
    if func in _COUNTED:
        return int(max(map(abs, _numbers(args)), default=0))
    if func in _SIZED:
        sizes = args[:1] if func is torch.full or "size" in kwargs else args
        return int(math.prod(_numbers(kwargs.get("size", sizes))))
    return None


def _num_joined(args: tuple[Any, ...]) -> int:
    """Values of what comes of tensors that are brought to one shape; 0 where they cannot be."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    if len(tensors) < 2:
        return 0
    try:
        shapes = [tensor.shape for tensor in tensors]
        return math.prod(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return 0


def _numbers(values: Any) -> Iterator[float]:
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if isinstance(value, (tuple, list)):
            yield from _numbers(value)
        elif isinstance(value, (int, float)):
            yield value
