"""The threads of a run's stages: started, waited for, and made to leave when one meets an error.

Knows nothing of what they do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from .buffers import AbortedError
from .steps import StageName

PROGRESS_SECONDS = 0.2


class Abortable(Protocol):
    """What threads may wait at."""

    def abort(self) -> None:
        """Make all that wait leave."""


class StageThreads:
    """The threads of a run. The first error that any of them meets makes all of them leave."""

    def __init__(self, *buffers: Abortable) -> None:
        self._buffers = buffers
        self._stages: list[tuple[list[threading.Thread], Callable[[], None]]] = []
        self._error: BaseException | None = None
        self._failing = threading.Lock()

    def start(
        self,
        stage: StageName,
        body: Callable[[], None],
        count: int,
        *,
        then: Callable[[], None] = lambda: None,
    ) -> None:
        """Start `count` threads of a stage; `then` is called when the last has left."""

        def guarded() -> None:
            try:
                body()
            except AbortedError:
                pass  # somebody else's error is already being reported
            except BaseException as error:  # `finish` raises it when all have left
                self._abort(error)

        threads = [
            threading.Thread(target=guarded, name=f"{stage}-{i}", daemon=True) for i in range(count)
        ]
        for thread in threads:
            thread.start()
        self._stages.append((threads, then))

    def finish(self, on_wait: Callable[[], None]) -> None:
        """Wait for all stages in turn, calling `on_wait` meanwhile; raises what went wrong."""
        try:
            for threads, then in self._stages:
                for thread in threads:
                    while thread.is_alive():
                        thread.join(PROGRESS_SECONDS)
                        on_wait()
                then()
            on_wait()
        except BaseException as error:  # Ctrl-C in the calling thread, or its own progress callback
            self._abort(error)
        finally:
            for threads, _ in self._stages:
                for thread in threads:
                    thread.join()
        if self._error is not None:
            raise self._error

    def _abort(self, error: BaseException) -> None:
        with self._failing:
            self._error = self._error or error
        for buffer in self._buffers:
            buffer.abort()
