"""Making a batch on a GPU while the step before it is computed there.

Copies and what follows them run on a stream of their own; the steps wait for it on the device, and
nobody on the host. On a CPU a batch is simply made. Knows nothing of what a batch is for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

_STEPS_AHEAD = 2  # batches on the device beside the one in use, however far ahead the host is


class Handover:
    """Gives batches from a stream of its own to the current one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _stream(device) if device.type == "cuda" else None
        self._steps: deque[torch.cuda.Event] = deque()

    def made(self, make: Callable[[], Made]) -> Made:
        """What `make` makes, usable on the current stream."""
        if self._stream is None:
            return make()
        current = torch.cuda.current_stream(self._device)
        self._steps.append(current.record_event())
        if len(self._steps) > _STEPS_AHEAD:
            self._steps.popleft().synchronize()
        with torch.cuda.stream(self._stream):
            batch = make()
        current.wait_stream(self._stream)
        for tensor in _tensors(batch):
            if tensor.is_cuda:
                tensor.record_stream(current)  # whose work keeps its memory from being taken
        return batch


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _tensors(value: object) -> Iterator[Tensor]:
    """All in a record of records."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
