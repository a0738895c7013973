"""A validation split for tasks that come without one, taken from the training groups.

Whole groups go (a person, a movie), never single videos of one, or validation would flatter. Which
ones is a function of their names alone, the same for every seed, decoder and machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from ...store.errors import UsageError
from ...store.tasks import TaskTable
from .plan import group_of


def hold_out(table: TaskTable, share: float) -> TaskTable:
    """The table with the nearest to `share` of its training groups, at least one, as `val`.

    share 0 leaves it as it is. UsageError where the task has a validation split of its own, and
    where nothing would be left on one side.
    """
    if share == 0:
        return table
    if table.split("val"):
        raise UsageError(
            f"hold_out is {share:g}, but task {table.reference} has a validation split of its own; "
            "leave hold_out at 0"
        )
    groups = sorted({group_of(row) for row in table.split("train")}, key=_rank)
    count = max(1, round(share * len(groups)))
    if count >= len(groups):
        raise UsageError(
            f"hold_out is {share:g} of {len(groups)} training groups of {table.reference}, which "
            "leaves none to train on; use a smaller share"
        )
    held = frozenset(groups[:count])
    rows = tuple(
        replace(row, split="val") if row.split == "train" and group_of(row) in held else row
        for row in table.rows
    )
    return replace(table, rows=rows)


def _rank(group: str) -> bytes:
    # A hash and not the order of names: P03, P04 … would be the first people of a study.
    encoded = group.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(encoded, digest_size=16, person=b"hold out").digest()
