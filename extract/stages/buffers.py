"""Bounded buffers between the stages of a run, which can never leave a thread waiting for ever.

Every wait ends when there is room or work, when the other side has closed, or when somebody calls
`abort`: a stage that fails aborts both buffers, and every thread leaves with `AbortedError`. Knows
nothing of what passes through.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class AbortedError(Exception):
    """The run is being torn down; the cause is kept by whoever aborted."""


class _Buffer(ABC):
    """The ends of waiting: closed from one side, or aborted from anywhere."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._closed = False
        self._aborted = False
        self._changed = threading.Condition()

    @property
    def aborted(self) -> bool:
        return self._aborted

    def close(self) -> None:
        """No more items will be put."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Every thread that waits here, or comes to, leaves with AbortedError."""
        with self._changed:
            self._aborted = True
            self._forget()
            self._changed.notify_all()

    def _wait_until(self, ready: Callable[[], object]) -> None:
        """Wait, holding the condition, until `ready`; AbortedError when aborted."""
        self._changed.wait_for(lambda: self._aborted or ready())
        if self._aborted:
            raise AbortedError

    @abstractmethod
    def _forget(self) -> None:
        """Let go of the items."""


class WeightedBuffer(_Buffer, Generic[T]):
    """First in, first out, bounded by the sum of its items' weights (frames, here).

    An item heavier than the whole capacity is let in when the buffer is empty, so nothing waits
    for room that cannot come.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._items: deque[tuple[T, int]] = deque()
        self._weight = 0

    def put(self, item: T, *, weight: int) -> None:
        """Wait for room, then append."""
        with self._changed:
            self._wait_until(lambda: not self._weight or self._weight + weight <= self._capacity)
            self._items.append((item, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self) -> T | None:
        """Wait for an item; None when the buffer is closed and empty."""
        with self._changed:
            self._wait_until(lambda: self._items or self._closed)
            if not self._items:
                return None
            item, weight = self._items.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return item

    def _forget(self) -> None:
        self._items.clear()


class OrderedBuffer(_Buffer, Generic[T]):
    """Takes numbered items in any order and gives them back as 0, 1, 2, …

    Item n may be put only once item n - capacity has been taken; the item that is waited for is
    always let in.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._items: dict[int, T] = {}
        self._next = 0

    def put(self, number: int, item: T) -> None:
        """Wait until the item's turn is near, then keep it."""
        with self._changed:
            self._wait_until(lambda: number < self._next + self._capacity)
            self._items[number] = item
            self._changed.notify_all()

    def get(self) -> T | None:
        """Wait for the next item in order; None when the buffer is closed and all are taken."""
        with self._changed:
            self._wait_until(lambda: self._next in self._items or self._closed)
            item = self._items.pop(self._next, None)
            self._next += 1
            self._changed.notify_all()
            return item

    def _forget(self) -> None:
        self._items.clear()
