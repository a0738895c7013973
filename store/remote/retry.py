"""Trying again what may pass: timeouts, overload, broken connections. Bounded, with growing pauses.

Knows no place: each says by raising PassingError that its failure may pass.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from .place import Place, RemoteError

T = TypeVar("T")
TRIES = 5
FIRST_PAUSE_SECONDS = 0.5
_MAX_PAUSE_SECONDS = 8.0
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})  # of HTTP


class PassingError(RemoteError):
    """A failure that may be over in a moment."""


def created(place: Place, key: str, data: bytes, create: Callable[[], bool]) -> bool:
    """Whether `create`, tried again as `tried_again` does, made a new object of `data`.

    An answer may be lost after the object was made: where a try failed before, what is there is
    compared with what was to be made.
    """
    tries = 0

    def once() -> bool:
        nonlocal tries
        tries += 1
        return create()

    if tried_again(once):
        return True
    return tries > 1 and place.size(key) == len(data) and place.read(key) == data


def tried_again(call: Callable[[], T]) -> T:
    """What `call` gives, after up to TRIES tries; RemoteError with the last one's words.

    The pause before try k + 1 is drawn between half of and all of 2ᵏ⁻¹ first pauses, so that many
    workers that were turned away together do not come back together.
    """
    for tried in range(1, TRIES + 1):
        try:
            return call()
        except PassingError as error:
            if tried == TRIES:
                raise RemoteError(f"{error} (tried {TRIES} times)") from None
        pause = min(_MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (tried - 1))
        time.sleep(pause * random.uniform(0.5, 1))
    raise AssertionError("unreachable")  # the last try returns or raises
