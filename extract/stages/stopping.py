"""Ending a run early: the wish, and whether it came in time to leave anything undone."""

from __future__ import annotations

import threading


class StopSignal:
    """Shared by the stages. `requested` is somebody else's event, which may be set at any time."""

    def __init__(self, requested: threading.Event | None = None) -> None:
        self._requested = requested or threading.Event()
        self._took_effect = threading.Event()

    @property
    def requested(self) -> bool:
        return self._requested.is_set()

    @property
    def took_effect(self) -> bool:
        return self._took_effect.is_set()

    def leave_undone(self) -> None:
        """Note that something is left undone because of the wish."""
        self._took_effect.set()
