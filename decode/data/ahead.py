"""Reading ahead on threads, in order and within bounds, and how long anybody waited for it.

    reads = ReadAhead(read, workers=4, depth=20)
    reads.add(items)         items are begun as room comes up, in their order
    reads.take(16)           the first sixteen, as soon as they are there
    reads.fill()             begin what there is room for, before something long

Knows nothing of what is read.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")
Read = TypeVar("Read")


class Stopwatch:
    """Seconds in which it ran."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class ReadAhead(Generic[Item, Read]):
    """`read` of items in their order, at most `depth` begun and not yet taken.

    Reads run on `workers` threads; with none of them each is made when it is taken. An error is
    raised where its result would have come. `close` cancels what has not begun, and ends the
    threads.
    """

    def __init__(self, read: Callable[[Item], Read], *, workers: int, depth: int) -> None:
        self._read = read
        self._depth = depth
        self._items: deque[Iterator[Item]] = deque()
        self._waiting: deque[Future[list[Read]]] = deque()  # one each
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="read") if workers else None

    def add(self, items: Iterable[Item]) -> None:
        """To be read after all others; they are asked for one by one, as there is room."""
        self._items.append(iter(items))

    def fill(self) -> None:
        """Begin as many as there is room for."""
        if self._threads is None:
            return
        for item in self._next(self._depth - len(self._waiting)):
            self._waiting.append(self._threads.submit(self._read_one, item))

    def take(self, count: int) -> list[Read]:
        """The next `count` results, at most `depth`, or as many as are left.

        Nothing is begun meanwhile: so what is taken and what is on its way are at most `depth`
        together, as long as what was taken is dropped before `fill`.
        """
        self.fill()
        if self._threads is None:
            return [self._read(item) for item in self._next(count)]
        number = min(count, len(self._waiting))
        return [self._waiting.popleft().result().pop() for _ in range(number)]

    def close(self) -> None:
        for future in self._waiting:
            future.cancel()
        if self._threads is not None:
            self._threads.shutdown()
        self._waiting.clear()

    def _read_one(self, item: Item) -> list[Read]:
        """In a list, which `take` empties: a thread may hold what it gave for a while longer."""
        return [self._read(item)]

    def _next(self, count: int) -> list[Item]:
        """The next items that have not been begun, at most `count`."""
        found: list[Item] = []
        while self._items and len(found) < count:
            found += islice(self._items[0], count - len(found))
            if len(found) < count:
                self._items.popleft()
        return found


def read_ahead(
    read: Callable[[Item], Read],
    items: Iterable[Item],
    *,
    workers: int,
    depth: int,
    waiting: Stopwatch | None = None,
) -> Iterator[Read]:
    """`map(read, items)` in order, with at most `depth` results in flight or waiting.

    waiting: runs while a result is waited for. Leaving the loop early cancels what has not begun.
    """
    watch = waiting or Stopwatch()
    reads = ReadAhead(read, workers=workers, depth=depth)
    try:
        reads.add(items)
        while True:
            with watch.running():
                found = reads.take(1)
            if not found:
                return
            yield found.pop()  # and keep nothing of it
    finally:
        reads.close()
