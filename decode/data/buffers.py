"""Memory that frames are read into: taken anew, page-locked for a GPU, or used again and again.

A read of 24 MB into fresh memory spends as long on the system's pages as on the bytes. Knows
nothing of what is read.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Memory = Callable[[int], Tensor]
"""So many bytes, uint8 (n,), of any content."""


def fresh(num_bytes: int) -> Tensor:
    """Memory of its own, on the host."""
    return torch.from_numpy(np.empty(num_bytes, dtype=np.uint8))


def pinned(num_bytes: int) -> Tensor:
    """Page-locked memory, which a GPU copies from while others compute. Torch keeps what was used,
    and hands it out again once every copy from it is done."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def memory_for(device: torch.device) -> Memory:
    """For reads that go to a device, each kept by whoever asked for it."""
    return pinned if device.type == "cuda" else fresh


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A small tensor made on the host, on the device, without waiting for work queued there."""
    pinned = host.pin_memory() if device.type == "cuda" else host
    return pinned.to(device, non_blocking=True)


class BufferPool:
    """Memory on the host that is used again as soon as no tensor is left that lies in it.

    So it never waits, never gives a buffer to two, and holds as many as were in use at once.
    Threads may share it. num_buffers: how many there are, in use or not.
    """

    def __init__(self) -> None:
        self.num_buffers = 0
        self._free: deque[memoryview] = deque()
        self._lock = threading.Lock()

    def __call__(self, num_bytes: int) -> Tensor:
        buffer = self._find(num_bytes) or np.empty(num_bytes, dtype=np.uint8).data
        lent = np.frombuffer(buffer, dtype=np.uint8, count=num_bytes)
        # Called wherever the last view goes away, so without the lock, which may be held there.
        weakref.finalize(lent, self._free.append, buffer).atexit = False
        return torch.from_numpy(lent)

    def _find(self, num_bytes: int) -> memoryview | None:
        """A free buffer of the size; else None, and a new one takes the place of a free one that is
        too small, where there is one."""
        with self._lock:
            for _ in range(len(self._free)):
                buffer = self._free.popleft()
                if buffer.nbytes >= num_bytes:
                    return buffer
                self._free.append(buffer)
            if self._free:
                self._free.popleft()
            else:
                self.num_buffers += 1
            return None
