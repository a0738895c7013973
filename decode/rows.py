"""Which rows of a batch are here, where several processes learn from one batch together.

Dropout and other noise is drawn by row. So that a row gets the same numbers whoever has it, they
are drawn for the whole batch, from the same seed everywhere, and of these the rows that are here
are taken. Knows nothing of how processes talk to each other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Share:
    """One of `count` nearly equal parts of whatever is split, by its number from 0."""

    index: int = 0
    count: int = 1

    def of(self, number: int) -> range:
        """Which of `number` things are in this part: none where there are too few."""
        return range(number * self.index // self.count, number * (self.index + 1) // self.count)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """`count` rows of a batch of `total`, from number `first` on.

    own: how many of them are learned from here. Less than `count` only where it is 0: a process to
    which a small batch leaves nothing computes another's row beside it and gives it no weight, so
    that whatever counts steps counts them everywhere.
    frames: of the longest window of the whole batch.
    """

    first: int
    count: int
    total: int
    own: int
    frames: int

    @classmethod
    def of(cls, own: range, *, total: int, frames: int) -> Rows:
        """The rows `own` of so many; where these are none, the first one to look on."""
        return cls(
            first=own.start if own else 0,
            count=len(own) or 1,
            total=total,
            own=len(own),
            frames=frames,
        )

    @property
    def taken(self) -> slice:
        """Of a whole batch."""
        return slice(self.first, self.first + self.count)

    @property
    def weight(self) -> float:
        """Of the mean over these rows in the mean over the whole batch."""
        return self.own / self.total


_here: Rows | None = None


@contextlib.contextmanager
def drawing_for(rows: Rows | None) -> Iterator[None]:
    """Within, `drawn_by_row` draws for the whole batch of which `rows` are here; None: for all
    there is."""
    # A plain variable: a backward pass may compute a part again on a thread of its own.
    global _here
    before, _here = _here, rows
    try:
        yield
    finally:
        _here = before


def drawn_by_row(draw: Callable[[int], Tensor], num_rows: int) -> Tensor:
    """What `draw` gives for so many rows, its first dimension; the part that is here of what it
    gives for a whole batch, within `drawing_for`."""
    if _here is None:
        return draw(num_rows)
    if num_rows != _here.count:
        raise ValueError(f"numbers for {num_rows} rows, but {_here.count} of the batch are here")
    return draw(_here.total)[_here.taken]
